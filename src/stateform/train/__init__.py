"""Experiments: training, sweeps over settings, the store of their results, presets that reproduce findings."""

from .config import Experiment, Training, overridden, read_toml
from .loop import Machine, Outcome, evaluate, load_trained, train

__all__ = [
    "Experiment", "Machine", "Outcome", "Training", "evaluate", "load_trained", "overridden", "read_toml", "train",
]  # fmt: skip
