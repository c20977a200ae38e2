"""Opening a folder that `save_pretrained` wrote, whichever model it holds."""

from __future__ import annotations

import os
from pathlib import Path

from .classifier import Classifier
from .language import LanguageModel
from .pretrained import read_kind


def open_folder(folder: str | os.PathLike[str]) -> LanguageModel | Classifier:
    """Open the model in a folder, ready to use, of the class that was saved.

    Raises:
        StateformError: see `SequenceModel.from_pretrained`.
    """
    kind = Classifier if read_kind(Path(folder)) == Classifier.__name__ else LanguageModel
    return kind.from_pretrained(folder)
