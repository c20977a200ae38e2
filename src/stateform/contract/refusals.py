"""What cannot be checked is refused before any work; what a model raises is put into one line."""

from __future__ import annotations

import inspect
import os
import traceback
from typing import Any

from torch import nn

from ..errors import require, require_finite_weights
from .listening import WrongShapeError, embedding


def is_language_model(thing: object) -> bool:
    """True if `thing` is a model of the package transformers; does not import the package."""
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.partition(".")[0] == "transformers"
        for base in type(thing).__mro__
    )


def require_causal_model(model: Any) -> None:
    """Raise unless `model` is a causal language model of transformers, with weights in full precision."""
    kind = type(model).__name__
    require(
        is_language_model(model),
        f"{kind} is no model of transformers; expected a causal language model, as AutoModelForCausalLM gives it",
    )
    require_weights(model)
    require(
        not getattr(model.config, "is_encoder_decoder", False),
        f"{kind} is an encoder with a decoder; expected a causal language model, which has one text",
    )
    takes = arguments(model)
    require(
        "input_ids" in takes,
        f"the forward of {kind} takes no input_ids but {', '.join(list(takes)[:3])}; expected a causal language model",
    )
    size = vocabulary(model)
    require(size > 1, f"the vocabulary of {kind} has {size} tokens; expected two or more")
    quantized = getattr(model, "hf_quantizer", None) is not None
    require(not quantized, f"{kind} is quantized; load it without quantization_config, in float32")
    require_finite_weights(model)


def require_weights(module: nn.Module) -> None:
    """Raise if a parameter or buffer is on the device 'meta', where there are no numbers."""
    away = [name for name, x in (*module.named_parameters(), *module.named_buffers()) if x.is_meta]
    require(
        not away,
        f"{type(module).__name__} has no weights yet: {away[0] if away else ''} is on the device 'meta'; load the "
        "weights, or move it with to_empty and initialise it",
    )


def arguments(model: nn.Module) -> dict[str, Any]:
    """List what the forward of a model takes, and their kinds; with **kwargs, also what that of its base takes."""
    found: dict[str, Any] = {}
    for forward in (
        model.forward,
        *(base.__dict__["forward"] for base in type(model).__mro__ if "forward" in base.__dict__),
    ):
        known = inspect.signature(forward).parameters
        found |= {name: p.kind for name, p in known.items() if name != "self"}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
            break
    return found


def vocabulary(model: Any) -> int:
    """Count the tokens that there are, by the embedding and the configuration; 0 if neither says."""
    sizes = [getattr(embedding(model), "num_embeddings", None), getattr(model.config, "vocab_size", None)]
    given = [int(size) for size in sizes if size is not None]
    return min(given) if given else 0


def raised(error: BaseException) -> str:
    """Tell what was raised, and where: the last line of the model's own."""
    if isinstance(error, WrongShapeError):
        return str(error)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}models{os.sep}" in f.filename]
    at = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"raised {type(error).__name__}{at}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Take the first line of what an error says, short."""
    lines = [x for x in str(error).splitlines() if x.strip()] or ["(no message)"]
    return lines[0].strip()[:200]
