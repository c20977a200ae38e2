"""Functions of a System: its coefficients, spectrum and memory on real input, its cost, and what it can express."""

from .attention.coefficients import Rollout, has_weights, influence, influence_band, normaliser, rollout, systems_of
from .attention.collapse import Collapse, SkipBound, collapse, skip_bound
from .attention.interaction import Interaction, interaction_rank
from .attention.principles import Principle, Principles, VarianceExponent, principles, variance_exponent
from .attention.representation import Representation, effective_rank, representation
from .dynamics.expressivity import Expressivity, Reach, Verdict, expressivity, reach
from .dynamics.gradients import GradientPaths, MeasuredReach, gradient_paths, receptive_fields
from .dynamics.lyapunov import Lyapunov, lyapunov
from .dynamics.stability import Perturbation, Stability, TokenDynamics, perturbation, stability, token_dynamics
from .equations import equations, realisation
from .linear.balance import Balanced, balred
from .linear.control import (
    Hankel,
    Hautus,
    Minimal,
    Response,
    ctrb,
    freqresp,
    frequencies,
    hautus,
    hsvd,
    minimal,
    obsv,
)
from .linear.gramian import gram, poles
from .linear.impulse import ImpulseResponse, impulse_response
from .linear.spectrum import Retention, Spectrum, retention, spectrum
from .linear.statespace import StateSpace, statespace
from .state.condition import Condition, condition
from .state.cost import Cost, cost
from .state.excited import Excited, excited
from .state.memory import Horizon, ReceptiveField, horizon, receptive_field
from .state.need import StateNeed
from .state.peak import peak_bytes
from .state.state_need import state_need
from .structure import constant_transition, contraction, describe, describe_read, token_steps, token_transitions

__all__ = [
    "Balanced", "Collapse", "Condition", "Cost", "Excited", "Expressivity", "GradientPaths", "Hankel", "Hautus",
    "Horizon", "ImpulseResponse", "Interaction", "Lyapunov", "MeasuredReach", "Minimal", "Perturbation",
    "Principle", "Principles", "Reach", "ReceptiveField", "Representation", "Response", "Retention", "Rollout",
    "SkipBound", "Spectrum", "Stability", "StateNeed", "StateSpace", "TokenDynamics", "VarianceExponent", "Verdict",
    "balred", "collapse", "condition", "constant_transition", "contraction", "cost", "ctrb", "describe",
    "describe_read", "effective_rank", "equations", "excited", "expressivity", "freqresp", "frequencies",
    "gradient_paths", "gram", "has_weights", "hautus", "horizon", "hsvd", "impulse_response", "influence",
    "influence_band", "interaction_rank", "lyapunov", "minimal", "normaliser", "obsv", "peak_bytes", "perturbation",
    "poles", "principles", "reach", "realisation", "receptive_field", "receptive_fields", "representation",
    "retention", "rollout", "skip_bound", "spectrum", "stability", "state_need", "statespace", "systems_of",
    "token_dynamics", "token_steps", "token_transitions", "variance_exponent",
]  # fmt: skip
