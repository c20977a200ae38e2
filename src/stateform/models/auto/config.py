"""The configuration of a model as one of transformers."""

from __future__ import annotations

import itertools
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...errors import require
from ...files import write_atomically
from .. import beside
from ..config import MODEL_TYPE, OTHERS, ModelConfig
from ..language import LanguageModel

OURS = tuple(f.name for f in fields(ModelConfig))
"""The fields of a ModelConfig."""
_TOP = ("dtype", "transformers_version")
"""Settings of transformers in config.json that a ModelConfig ignores."""
_EDITS = itertools.count(1)


class StateformConfig(PreTrainedConfig):
    """A ModelConfig as a configuration of transformers; its fields are attributes.

    They may be edited. A model made afterwards takes them as they are then; an existing one follows at its next call
    (dropout, norm_eps, ...), or raises an error if it cannot.
    """

    model_type = MODEL_TYPE
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "tie_word_embeddings": "tie_embeddings"
    }  # fmt: skip
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        for name in ("format", "auto_map", "model_type"):
            settings.pop(name, None)
        settings.update(settings.pop(OTHERS, {}))
        given = {self.attribute_map.get(name, name): name for name in settings}
        ours = {name: settings.pop(given[name]) for name in OURS if name in given}
        self.use_cache = settings.pop("use_cache", True)
        super().__init__(**settings)
        made = asdict(ModelConfig(**ours)) if ours else dict.fromkeys(OURS)
        for name, value in made.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if self.attribute_map.get(name, name) in OURS:
            self.__dict__["_edited"] = next(_EDITS)

    @property
    def model(self) -> ModelConfig:
        """Make the ModelConfig of a model, with all edits.

        Raises:
            StateformError: as ModelConfig.
        """
        require(
            getattr(self, "pattern", None) is not None,
            "this configuration is empty; give a pattern, d_model, vocab_size, ...",
        )
        return ModelConfig(**{name: getattr(self, name) for name in OURS})

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values.pop("_edited", None)
        return {**values, "architectures": [LanguageModel.__name__], "auto_map": dict(beside.AUTO_MAP)}

    def to_diff_dict(self) -> dict[str, Any]:
        """Give the content of config.json: as `LanguageModel.save_pretrained` writes it, other settings apart."""
        diff = super().to_diff_dict()
        ours = {} if self.pattern is None else self.model.to_dict()
        top = {"model_type": MODEL_TYPE, "architectures": [LanguageModel.__name__], "auto_map": dict(beside.AUTO_MAP)}
        known = {*OURS, *ours, *top, *_TOP} | ({"use_cache"} if self.use_cache is True else set())
        others = {name: value for name, value in diff.items() if name not in known}
        kept = {name: diff[name] for name in _TOP if name in diff}
        return {**top, **ours, **kept, **({OTHERS: others} if others else {})}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Write config.json, and beside it what other programs need to open the folder."""
        super().save_pretrained(save_directory, *args, **options)
        for name, data in beside.files(self.tokenizer).items():
            write_atomically(Path(save_directory) / name, data)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: the code is that of this package, none is copied into folders."""
