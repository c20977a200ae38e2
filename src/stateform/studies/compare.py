"""The main job: layers side by side on real text."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis import horizon, spectrum
from ..architectures import REGISTRY, accepted, build, resolve
from ..errors import StateformError, require, require_finite_weights, require_seed, validate
from ..layer import system_of
from ..models import open_folder
from ..result import Progress, Steps, header, until_interrupted
from ..system.precision import why_no_proof
from ..text import read_text
from ..timing.measure import blank_cost, measure
from .comparison import Comparison
from .questions import SHOWN
from .questions.certificate import certify
from .questions.coefficients import effective_attention
from .questions.identity import about, identify
from .questions.pairs import compare_pair, pairs_of
from .subject import DTYPES, embed, printable
from .words import rounded

CERTIFIED = 256
"""Tokens on which the forms are compared in float64, and on which systems are looked at token by token."""
SHOWN_HEADS = 4
"""Heads with a map of effective attention."""


def lengths_up_to(longest: int) -> list[int]:
    """The lengths at which time is measured: powers of four times 256, and the longest."""
    require(longest >= 2, f"max_length is {longest}; expected 2 tokens or more")
    out = [T for T in (64, 256, 1024, 4096, 16384, 65536) if longest > T]
    return [*out[-3:], longest]


def compare(
    layers: Sequence[str | type[nn.Module] | nn.Module], *, text: str | Path | None = None, d_model: int = 64,
    n_heads: int | None = None, d_state: int | None = None, max_length: int = 4096, dtype: str = "float32",
    memory_limit_gb: float = 1.0, seed: int = 0, repeats: int = 5, on_progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Put layers side by side on a text.

    Args:
        layers: names (`sf.names()`), names with options ("qlstm(reversed=True)"), files "path/file.py:Class", layers
            of saved models "folder" or "folder:2" (the first, or by number), classes or layers.
        text: a file whose bytes are the tokens; default: Python's own documentation.
        d_model: width of every layer that is built here.
        n_heads: for the layers that take it (default: each layer's own).
        d_state: likewise.
        max_length: the longest sequence whose time is measured.
        dtype: of the measurements of time (certificates are in float64).
        memory_limit_gb: a form whose estimated memory is larger is left out, and the result says so.
        seed: of the weights, the embedding and all draws.
        repeats: runs per time; median, least and largest are kept.
        on_progress: called as the work goes on.

    Returns:
        A Comparison. After Ctrl-C it holds what was finished, and says that it is not complete.

    Raises:
        StateformError: before any work: an unknown name or option, an unreadable or empty text, sizes that do not fit.
    """
    require(len(layers) > 0, "name at least one layer, e.g. softmax linear mamba2 gated_deltanet")
    require(dtype in DTYPES, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    require_seed(seed)
    require(repeats >= 1, f"repeats is {repeats}; expected 1 or more")
    require(memory_limit_gb > 0, f"memory_limit_gb is {memory_limit_gb}; expected a number above 0")
    source, data = read_text(text)
    require(len(data) >= 2, f"{source} has {len(data)} byte; expected at least 2")
    built = _build_all(layers, d_model, n_heads, d_state, seed)
    lengths = lengths_up_to(min(max_length, len(data)))
    x = embed(data[: lengths[-1]], d_model, seed)
    result: dict[str, Any] = {
        **header(),
        "text": {"source": source, "tokens": x.shape[1], "excerpt": data[:240].decode(errors="replace")},
        "settings": {
            "d_model": d_model, "lengths": lengths, "batch": 1, "dtype": dtype, "seed": seed,
            "memory_limit_gb": memory_limit_gb, "repeats": repeats,
        },
        "complete": False, "layers": [], "pairs": [],
    }  # fmt: skip
    step = Steps(on_progress, 2 * len(built) + len(lengths) + len(built) * (len(built) - 1) // 2)
    rows: dict[str, dict[str, Any]] = {}
    with until_interrupted(result), torch.no_grad(), validate(False):
        for name, layer in built.items():
            with validate(True):
                _try(name, layer, x[:, :2])
        for name, layer in built.items():
            step(f"{name}: forms agree?")
            row = {"name": name, **about(layer), "certificate": certify(layer, x[:, :CERTIFIED])}
            step(f"{name}: dynamics")
            row |= {
                "identity": identify(layer, x[:, :CERTIFIED]),
                "dynamics": _dynamics(layer, x, data),
                "cost": blank_cost(),
            }
            rows[name] = row
            result["layers"].append(row)
        measure(built, rows, x.to(DTYPES[dtype]), lengths, memory_limit_gb, repeats, step)
        for a, b in pairs_of(list(built)):
            step(f"{a} = {b}?")
            result["pairs"].append(compare_pair(a, built[a], b, built[b], x[:, :SHOWN], seed))
    step.end()
    return Comparison(result)


def _try(name: str, layer: nn.Module, x: Tensor) -> None:
    """Run a layer on two tokens, so that one that cannot run is told of before any work."""
    try:
        y = layer(x)
    except StateformError as error:
        raise StateformError(f"{name}: {error}") from None
    except Exception as error:
        raise StateformError(f"{name} failed on two tokens: {type(error).__name__}: {error}") from error
    shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
    require(
        shape == list(x.shape), f"{name} gave {shape} for an input {list(x.shape)}; expected a tensor of the same shape"
    )
    why = why_no_proof(y)
    require(not why, f"{name}: {why}")


# -- one layer ----------------------------------------------------------------------------------------------------


def _build_all(
    layers: Sequence[str | type[nn.Module] | nn.Module],
    d_model: int,
    n_heads: int | None,
    d_state: int | None,
    seed: int,
) -> dict[str, nn.Module]:
    built: dict[str, nn.Module] = {}
    for spec in layers:
        name = spec if isinstance(spec, str) else spec.__name__ if isinstance(spec, type) else type(spec).__name__
        if isinstance(spec, nn.Module):
            layer = copy.deepcopy(spec)
        elif isinstance(spec, str) and (trained := _trained(spec)) is not None:
            layer = trained
        else:
            cls = resolve(spec)[0] if isinstance(spec, str) else spec
            known = accepted(cls)
            options = {"d_model": d_model, "n_heads": n_heads, "d_state": d_state}
            torch.manual_seed(seed)
            layer = build(spec, **{k: v for k, v in options.items() if k in known and v is not None})
        require(hasattr(layer, "system"), f"{name} has no method system(u): compare needs layers that give a System")
        require(
            getattr(layer, "d_model", None) == d_model,
            f"{name} has d_model = {getattr(layer, 'd_model', None)}, not {d_model}",
        )
        require_finite_weights(layer)
        label, n = name, 2
        while label in built:
            label, n = f"{name} #{n}", n + 1
        built[label] = layer.double().eval()
    return built


def _trained(spec: str) -> nn.Module | None:
    """The layer that FOLDER or FOLDER:NUMBER names, of a saved model; None if it names no folder.

    Raises:
        StateformError: a folder without a model, or a model without that layer.
    """
    folder, colon, number = spec.rpartition(":")
    if not (colon and number.isdigit() and os.path.isdir(folder)):
        folder, number = spec, "0"
    if spec in REGISTRY or not os.path.isdir(folder):
        return None
    blocks = open_folder(folder).blocks
    last = len(blocks) - 1
    require(int(number) <= last, f"the model in {folder} has the layers 0 to {last}; there is no {number}")
    mixer: nn.Module = blocks[int(number)].mixer  # type: ignore[assignment]
    return mixer


def _dynamics(layer: nn.Module, x: Tensor, data: bytes) -> dict[str, Any]:
    system = system_of(layer, x[:, :1024])
    values = spectrum(system[:CERTIFIED]).sample(600)
    found = horizon(system, queries=sorted({int(t) for t in torch.linspace(min(15, system.T - 1), system.T - 1, 24)}))
    return {
        "eigenvalues": {"re": rounded(values.real), "im": rounded(values.imag)},
        "horizon": found.to_dict(),
        "coefficients": effective_attention(system, [printable(c) for c in data[:SHOWN]], range(SHOWN_HEADS)),
    }
