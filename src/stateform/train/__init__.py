"""Training: an Experiment in, a model and its Outcome out."""

from .config import Experiment, Training, overridden, read_toml
from .folder import Outcome, load_trained
from .loop import train
from .process import Machine
from .scores import evaluate

__all__ = [
    "Experiment", "Machine", "Outcome", "Training", "evaluate", "load_trained", "overridden", "read_toml", "train",
]  # fmt: skip
