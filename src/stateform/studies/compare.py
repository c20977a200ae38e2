"""The main job: layers side by side on real text."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import REGISTRY, accepted, build, resolve
from ..errors import StateformError, require, require_finite_weights, require_seed, validate
from ..models import open_folder
from ..result import Progress, Steps, header, until_interrupted
from ..series import Given, read_series, told_apart
from ..system.precision import why_no_proof
from ..text import read_text
from .comparison import Comparison
from .questions import BESIDE, SHOWN, Lineup, Member
from .subject import DTYPES, EXCERPT, Read, embed, printable


def lengths_up_to(longest: int) -> list[int]:
    """List the lengths at which time is measured: powers of four times 256, and the longest."""
    require(longest >= 2, f"max_length is {longest}; expected 2 tokens or more")
    out = [T for T in (64, 256, 1024, 4096, 16384, 65536) if longest > T]
    return [*out[-3:], longest]


def compare(
    layers: Sequence[str | type[nn.Module] | nn.Module], *, text: str | Path | None = None,
    data: Given | None = None, project: bool = False, d_model: int = 64, n_heads: int | None = None,
    d_state: int | None = None, max_length: int = 4096, dtype: str = "float32", memory_limit_gb: float = 1.0,
    seed: int = 0, repeats: int = 5, on_progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Put layers side by side on a text, or on numbers.

    Args:
        layers: names (`sf.names()`), names with options ("qlstm(reversed=True)"), files "path/file.py:Class", layers
            of saved models "folder" or "folder:2" (the first, or by number), classes or layers.
        text: a file whose bytes are the tokens; default: Python's own documentation.
        data: numbers in its place: a file (.npy, .csv, .wav) or an array [T,d], see `stateform.series.read_series`; the
            layers read them as they are, and the report speaks of steps, or of a recording's samples.
        project: map numbers of another width than d_model by a fixed random matrix, which the result names; without
            it they are refused.
        d_model: width of every layer that is built here.
        n_heads: for the layers that take it (default: each layer's own).
        d_state: likewise.
        max_length: the longest sequence whose time is measured.
        dtype: of the measurements of time (certificates are in float64).
        memory_limit_gb: a form whose estimated memory is larger is left out, and the result says so.
        seed: of the weights, the embedding of bytes, the matrix of `project` and all draws.
        repeats: runs per time; median, least and largest are kept.
        on_progress: called as the work goes on.

    Returns:
        A Comparison. After Ctrl-C it holds what was finished, and says that it is not complete.

    Raises:
        StateformError: before any work: an unknown name or option, an unreadable or empty text, numbers that are not
            finite or of another width, sizes that do not fit.
    """
    require(len(layers) > 0, "name at least one layer, e.g. softmax linear mamba2 gated_deltanet")
    require(dtype in DTYPES, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    require_seed(seed)
    require(repeats >= 1, f"repeats is {repeats}; expected 1 or more")
    require(memory_limit_gb > 0, f"memory_limit_gb is {memory_limit_gb}; expected a number above 0")
    most = lengths_up_to(max_length)[-1]
    read = _read(text, data, project, most, d_model, seed)
    built = _build_all(layers, d_model, n_heads, d_state, seed)
    x = read.inputs
    lengths = lengths_up_to(x.shape[1])
    result: dict[str, Any] = {
        **header(),
        **read.to_dict(),
        "settings": {
            "d_model": d_model, "lengths": lengths, "batch": 1, "dtype": dtype, "seed": seed,
            "memory_limit_gb": memory_limit_gb, "repeats": repeats,
        },
        "complete": False, "layers": [], "pairs": [],
    }  # fmt: skip
    lineup = Lineup(built, x, read.shown, lengths, DTYPES[dtype], memory_limit_gb, repeats, seed)
    alone = sum(one.layer is not None for one in BESIDE)
    step = Steps(on_progress, len(built) * alone + sum(one.steps(lineup) for one in BESIDE))
    with until_interrupted(result), torch.no_grad(), validate(False):
        for name, layer in built.items():
            with validate(True):
                _try(name, layer, x[:, :2])
        for name in built:
            result["layers"].append(_row(name, lineup, step))
        for one in BESIDE:
            if one.together is not None:
                one.together(lineup, result, step)
    step.end()
    return Comparison(result)


def _read(text: str | Path | None, data: Given | None, project: bool, most: int, d_model: int, seed: int) -> Read:
    """Read what all layers are given, as numbers [1,T,d_model]."""
    given, data = told_apart(text, data)
    if data is not None:
        series = read_series(data).first(most)
        return Read.of(series.fitted(d_model, "a layer here", project=project, seed=seed))
    require(not isinstance(given, Tensor), "token ids are for a model; give layers a text, whose bytes they read, or "
            "numbers")  # fmt: skip
    source, found = read_text(given)  # type: ignore[arg-type]
    require(len(found) >= 2, f"{source} has {len(found)} byte; expected at least 2")
    excerpt = found[:EXCERPT].decode(errors="replace")
    shown = [printable(c) for c in found[:SHOWN]]
    return Read(source, embed(found[:most], d_model, seed), shown, excerpt)


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


def _row(name: str, lineup: Lineup, step: Callable[[str], None]) -> dict[str, Any]:
    """Collect what is known and measured of one layer."""
    layer = lineup.layers[name]
    row, member = {"name": name, **about(layer)}, Member(name, layer, lineup)
    for one in BESIDE:
        if one.layer is not None:
            step(f"{name}: {one.where[-1]}")
            one.ask(member, row)
    return row


def about(layer: nn.Module) -> dict[str, Any]:
    """Give what is known of a layer without running it."""
    entry = next((e for e in REGISTRY.values() if e.cls is type(layer)), None)
    text = (type(layer).__doc__ or type(layer).__name__).strip().split("\n")[0]
    return {
        "summary": entry.summary if entry else text, "paper": entry.paper if entry else "",
        "parameters": sum(p.numel() for p in layer.parameters()),
    }  # fmt: skip


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
    """Open the layer that FOLDER or FOLDER:NUMBER names, of a saved model; None if it names no folder.

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
