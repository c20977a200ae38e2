"""Conversions between systems: exact ones, with a certificate that is measured; approximations, with their error."""

from ..system.discretise import continuous, discretise
from .approximate import degree_needed, random_features, taylor
from .attention import linear_attention_to_ssd, ssd_to_linear_attention
from .certificate import Conversion
from .diagonal import diagonalise
from .heads import Heads, heads_for_ssm
from .kernels import kernel, realise, recurrence
from .reduce import Reduction, reduce
from .reduce_varying import VaryingReduction, reduce_varying
from .smaller import Smaller, smaller
from .special import RELATIONS, Relation, special_case

__all__ = [
    "RELATIONS", "Conversion", "Heads", "Reduction", "Relation", "Smaller", "VaryingReduction", "continuous",
    "degree_needed", "diagonalise", "discretise", "heads_for_ssm", "kernel", "linear_attention_to_ssd",
    "random_features", "realise", "recurrence", "reduce", "reduce_varying", "smaller", "special_case",
    "ssd_to_linear_attention", "taylor",
]  # fmt: skip
