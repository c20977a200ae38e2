"""Models around any layer: patterns and hybrids, a language model, a classifier, generation, weights in a folder."""

from .classifier import Classifier
from .config import ModelConfig
from .folder import open_folder
from .language import LanguageModel, ModelOutput
from .pattern import expand
from .text import continue_text, decode, encode
from .trunk import SequenceModel

__all__ = [
    "Classifier", "LanguageModel", "ModelConfig", "ModelOutput", "SequenceModel", "continue_text", "decode", "encode",
    "expand", "open_folder",
]  # fmt: skip
