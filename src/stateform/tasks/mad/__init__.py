"""The six tasks of MAD, mechanistic architecture design (Poli et al. 2024, arXiv 2403.17844), and their sweeps."""

from .mad_compression import MADCompression
from .mad_fuzzy_recall import MADFuzzyRecall
from .mad_memorization import MADMemorization
from .mad_noisy_recall import MADNoisyRecall
from .mad_recall import MADRecall
from .mad_selective_copy import MADSelectiveCopy
from .setting import (
    MAD_SWEEPS,
    MAD_TRAIN_SIZES,
    SOURCE,
    TRAIN_SIZES,
    MADOfKeys,
    MADPairs,
    MADTask,
    mad_settings,
    training_set,
)

__all__ = [
    "MADCompression", "MADFuzzyRecall", "MADMemorization", "MADNoisyRecall", "MADOfKeys", "MADPairs", "MADRecall",
    "MADSelectiveCopy", "MADTask", "MAD_SWEEPS", "MAD_TRAIN_SIZES", "SOURCE", "TRAIN_SIZES", "mad_settings",
    "training_set",
]  # fmt: skip
