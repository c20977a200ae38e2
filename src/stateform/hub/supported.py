"""Models that can be opened: those of a type in `FAMILIES`, or with a mixer that has an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import nearest, require
from ..models import SequenceModel
from . import families  # noqa: F401 - whose files register themselves
from .lifted import ADAPTERS, FAMILIES

HOW = "see `Your model in Stateform` in the documentation for how to write an adapter (about 40 lines)"


def kind_of(model: Any) -> str | None:
    """Give the type of a model of transformers; None for anything else."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind if isinstance(kind, str) else None


def language_kind(config: Any) -> str | None:
    """Give the type of the language model in a model of several parts (of text and images, say); else its own type."""
    try:
        kind = config.get_text_config().model_type
    except (AttributeError, ValueError):  # no such part, or several
        kind = getattr(config, "model_type", None)
    return kind if isinstance(kind, str) else None


def require_supported(model: Any) -> None:
    """Raise unless the model is of a type with adapters."""
    kind = kind_of(model)
    inner = getattr(model, "model", None)
    hint = "; give .model of what was opened" if kind is None and kind_of(inner) is not None else ""
    hint = "; it is one of Stateform's own, in our forms already" if isinstance(model, SequenceModel) else hint
    require(kind is not None, f"{type(model).__name__} is no model of transformers; its config has no model_type{hint}")
    known = {name for names in FAMILIES.values() for name in names}
    own = any(type(m).__name__ in ADAPTERS and type(m).__name__ not in known for m in model.modules())
    inside = language_kind(model.config)
    require(own or not {kind, inside}.isdisjoint(FAMILIES), no_adapter(kind, inside))


def no_adapter(kind: str | None, inside: str | None = None) -> str:
    """Say that a type has no adapter (nor has the language model inside), and which types have."""
    part = kind if inside is None else inside
    among = "" if part == kind else f" for their language model, of type {part!r}"
    return (
        f"models of type {kind!r} have no adapter{among}: {nearest(str(part), FAMILIES)} "
        f"All types: {', '.join(FAMILIES)}; {HOW}"
    )


def mixers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules of a model that have an adapter, by name, in the model's order."""
    found = {name: m for name, m in model.named_modules() if type(m).__name__ in ADAPTERS}
    inner = {name for name in found if any(name.startswith(f"{other}.") for other in found)}
    return {name: m for name, m in found.items() if name not in inner}
