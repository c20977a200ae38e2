"""RWKV-7 in a file of PyTorch (.pth): the names of the published models, or of the small ones that reverse digits."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import StateformError, require
from .format import reads
from .rwkv import RWKV, model_of, version
from .weights import FileWeights


@reads("RWKV-7 .pth", begins=lambda head: head[:4] == b"PK\x03\x04" or head[:1] == b"\x80")
def read(file: Path) -> RWKV:
    """Read the model of a file.

    Raises:
        StateformError: a pickle with more than weights (nothing of it is run); a file that is cut short; weights of
            another model.
    """
    weights = _weights(file)
    if "e.weight" in weights and "rwkv1.r_k" in weights:
        weights = _renamed(weights)
    require(
        "emb.weight" in weights and "blocks.0.ln1.weight" in weights,
        f"{file} holds other weights than those of RWKV ({', '.join(list(weights)[:3])}, ...)",
    )
    kind = version(weights)
    require(kind == "7", f"{file} holds RWKV-{kind}; of PyTorch's files version 7 is read")
    return model_of(weights)


def _weights(file: Path) -> FileWeights:
    size = file.stat().st_size
    with file.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    if zipped:
        try:
            with zipfile.ZipFile(file) as archive:
                whole = sum(part.file_size for part in archive.infolist())
        except zipfile.BadZipFile:
            raise StateformError(f"{file} is cut short: it begins as a file of PyTorch and lacks its end") from None
        require(whole <= size, f"{file} is compressed: {size:,} bytes that say they are {whole:,}; PyTorch writes none")
    try:
        with warnings.catch_warnings():  # it warns of unknown protocols, then refuses them
            warnings.simplefilter("ignore")
            held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StateformError(
            f"{file} holds more than weights, and loading it could run code; nothing of it was run. Where you trust "
            "it, write its weights to a file of their own: "
            "safetensors.torch.save_file(torch.load(path, weights_only=False), 'model.safetensors'), or "
            f"torch.save of a plain dict of tensors ({_first(error)})"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise StateformError(f"{file} is damaged, or no file of PyTorch: {_first(error)}") from None
    plain = isinstance(held, dict) and all(isinstance(k, str) and isinstance(x, Tensor) for k, x in held.items())
    require(
        plain and len(held) > 0, f"{file} holds {_what(held)}; expected a dict from names to tensors, as a state_dict"
    )
    need = sum(x.numel() * x.element_size() for x in held.values())
    require(need <= size, f"the weights of {file} say that they have {need:,} bytes, the file has {size:,}")
    return FileWeights(file, {name: x.float() for name, x in held.items()})


def _what(held: Any) -> str:
    odd = next((k for k, x in held.items() if not isinstance(x, Tensor)), None) if isinstance(held, dict) else None
    return f"a {type(held).__name__}" + ("" if odd is None else f" whose {odd!r} is no tensor")


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


def _renamed(w: FileWeights) -> FileWeights:
    """Give the names of the published models to weights with blocks numbered from 1 with a branch that must be off."""
    parts = {"rwkv": "att", "ffn": "ffn"}
    tops = {"e": "emb", "lno": "ln_out", "o": "head"}
    made: dict[str, Tensor] = {}
    for name, x in w.items():
        top, _, rest = name.partition(".")
        stem, digits = top.rstrip("0123456789"), top[len(top.rstrip("0123456789")) :]
        if top in tops:
            made[f"{tops[top]}.{rest}"] = x
        elif stem in parts:
            made[f"blocks.{int(digits or 1) - 1}.{parts[stem]}.{rest}"] = x
        elif top.startswith("ln") and top[-1] in "ab" and top[2:-1].isdigit():
            made[f"blocks.{int(top[2:-1]) - 1}.ln{'ab'.index(top[-1]) + 1}.{rest}"] = x
        elif stem == "rosa" and rest == "rosa_qkv.emb":
            require(not bool(x.any()), f"{w.file} has a branch {top} that is on; it is no System, and is not read here")
        elif stem == "rosa" and rest == "o.bias":  # a branch that is off still adds its bias
            made[f"blocks.{int(digits) - 1}.att.output.bias"] = x
    return FileWeights(w.file, made)
