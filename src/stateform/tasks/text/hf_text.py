"""The next byte of a text of Hugging Face's hub."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...errors import StateformError, require
from ..base import SPLITS, Split, register_task
from .bytes import Bytes, parts


@register_task("hf_text", source="language modelling on bytes, of a data set of Hugging Face")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceText(Bytes):
    """The next byte of a text of Hugging Face's hub.

    As `text`, for a column of a data set that the package `datasets` fetches: its splits train, validation and test
    where it has all three, and train cut into 90%, 5% and 5% otherwise. The rows are joined as they are, in UTF-8.
    """

    dataset: str = "Salesforce/wikitext"
    """The name of the data set, or a folder."""
    config: str | None = "wikitext-2-raw-v1"
    """The name of a configuration of it; None: its only one."""
    column: str = "text"
    """The column with the text."""

    def text(self, split: Split) -> np.ndarray:
        return read_hub(self.dataset, self.config, self.column)[split]


@lru_cache(maxsize=2)
def read_hub(dataset: str, config: str | None, column: str) -> dict[Split, np.ndarray]:
    """Read the three parts of a data set of the hub.

    Raises:
        StateformError: without the package, the network, the data set or the column.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise StateformError(
            "the task hf_text needs the package datasets: pip install 'stateform[data]'; "
            "the task text reads a local file without it"
        ) from None
    try:
        found = datasets.load_dataset(dataset, config)
    except Exception as error:  # of many classes: no network, no such data set, no such configuration
        raise StateformError(f"cannot load the data set {dataset!r} ({config}): {error}") from error
    names = {"train": "train", "valid": "validation", "test": "test"}
    require("train" in found, f"{dataset} has the splits {', '.join(found)}; expected train among them")
    columns = found["train"].column_names
    require(column in columns, f"{dataset} has the columns {', '.join(columns)}; there is no {column!r}")
    if all(name in found for name in names.values()):
        return {s: np.frombuffer("".join(found[names[s]][column]).encode(), np.uint8) for s in SPLITS}
    return parts("".join(found["train"][column]).encode())
