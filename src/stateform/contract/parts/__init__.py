"""The parts of the contract, in the order in which they run: those of a layer, and those of a language model."""

from __future__ import annotations

from collections.abc import Callable

from ..layer import LayerRunner
from ..model import ModelRunner
from . import forms, gradients, packing, padding, promises, splits

__all__ = ["LAYER", "MODEL"]

LAYER: dict[str, Callable[[LayerRunner], None]] = {
    "draw": promises.parts_matter,
    "equations": forms.equations,
    "forms": forms.forms,
    "gradients": gradients.gradients,
    "splits": splits.layer_splits,
    "steps": splits.layer_steps,
    "padding": padding.layer_padding,
    "packing": packing.layer_packing,
    "promise": promises.contractive,
    "empty": promises.empty,
}
"""What a layer is put to, by name."""
MODEL: dict[str, Callable[[ModelRunner], None]] = {
    "rows": packing.model_rows,
    "future": packing.model_future,
    "cache": splits.model_cache,
    "continue": splits.model_continue,
    "steps": splits.model_steps,
    "left padding": padding.left,
    "right padding": padding.right,
    "padded, continued": padding.continued,
    "padding between": padding.between,
    "packed": packing.model_packed,
}
"""What a language model is put to, by name."""
