"""Opening a pretrained model by its name: faults are found before it is loaded, and nothing is unpickled."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StateformError, require
from ..machine import free_memory
from ..models import SequenceModel, open_folder
from ..models.pattern import MOST_LAYERS
from ..models.pretrained import CONFIG, read_kind
from ..text import parse_json, read_bytes
from .formats import Words, open_file, read_words
from .lifted import FAMILIES
from .namings.mamba_ssm import describes_model, language_model
from .supported import language_kind, no_adapter, require_supported

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Files of a tokenizer. If there is one that cannot be read, that is an error; if there is none, the model has none."""
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Opened:
    """A pretrained model with its tokenizer."""

    name: str
    model: nn.Module
    tokenizer: Any
    """One of transformers, the Words of a llama2.c file, "bytes" for the bytes of a text, or None."""

    def tokens(self, text: bytes | str, most: int | None = None) -> Tensor:
        """Read the first tokens of a text, [1,T].

        Raises:
            StateformError: the model reads numbers; there is no tokenizer; the text gives no token.
        """
        width = self.model.config.d_input if isinstance(self.model, SequenceModel) else None
        require(width is None, f"{self.name} reads numbers, {width} a step, not tokens; give them as data")
        text = text.encode() if isinstance(text, str) else text
        require(
            self.tokenizer is not None,
            f"{self.name} has no tokenizer; give one (tokenizer='bytes' reads the bytes of the text, where the "
            "vocabulary has 256 entries or more; or the name or folder of another)",
        )
        if self.tokenizer == "bytes":
            size = int(getattr(_config(self.model), "vocab_size", None) or 0)
            require(size >= 256, f"the vocabulary of {self.name} has {size} entries; bytes need 256")
            ids = list(text if most is None else text[:most])
        elif isinstance(self.tokenizer, Words):
            return self.tokenizer.encode(text[: 16 * most if most else None].decode("utf-8", "replace"))[:, :most]
        else:
            part = text if most is None else text[: 16 * most]  # 16 bytes a token are enough
            ids = self.tokenizer(part.decode("utf-8", "replace"), add_special_tokens=True)["input_ids"][:most]
        require(len(ids) > 0, "the text gives no token; give more of it")
        return torch.tensor([ids])

    def decode(self, ids: Tensor) -> list[str]:
        """Turn each token into text."""
        if self.tokenizer is None or self.tokenizer == "bytes":
            return [chr(i) if self.tokenizer and 32 <= i < 127 else str(i) for i in ids.flatten().tolist()]
        if isinstance(self.tokenizer, Words):
            return [self.tokenizer.pieces[i].decode("utf-8", "replace") for i in ids.flatten().tolist()]
        return [self.tokenizer.decode([i]) for i in ids.flatten().tolist()]


def open_model(
    name: str | os.PathLike[str], *, dtype: str = "auto", tokenizer: str | None = None, revision: str | None = None,
    trust_remote_code: bool = False, memory_limit_gb: float | None = None,
) -> Opened:  # fmt: skip
    """Open a pretrained model, from a folder, a file or the Hugging Face hub, with its tokenizer.

    Args:
        name: a folder, the name of a repository ("state-spaces/mamba-130m-hf"), or a file of another program
            (`stateform.hub.formats`; a GGUF file is read by transformers, and dequantised).
        dtype: of the weights: "auto" (as saved), "float32", "bfloat16", "float64".
        tokenizer: "bytes", or the folder or name of another than the model's own; for a model of llama2.c the file of
            its words.
        revision: of the repository.
        trust_remote_code: run the code that comes with the model, where it needs that.
        memory_limit_gb: refuse larger models (default: nine tenths of the memory that is free).

    Returns:
        The model in eval mode, with the tokenizer, or None in its place.

    Raises:
        StateformError: before any weights are read: no such model; a type without adapter; a configuration that needs
            code of its own; weights that are pickled, missing or cut off; more weights than memory. Then: weights that
            do not fit.
    """
    require(dtype in ("auto", *_BYTES), f"dtype is {dtype!r}; expected auto, {', '.join(_BYTES)}")
    require(
        isinstance(name, str | os.PathLike), f"the name of the model is {name!r}; expected a folder or a repository"
    )
    where = os.path.expanduser(os.fspath(name))
    require(where.strip() != "", "the name of the model is empty; give a folder or the name of a repository")
    folder = Path(where)
    packed = _is_gguf(folder)
    ours = None if packed else _of_ours(folder, tokenizer)
    if ours is not None:
        return ours if dtype == "auto" else Opened(where, ours.model.to(getattr(torch, dtype)), ours.tokenizer)
    hf = transformers()
    if packed:
        _require_gguf(where)
    elif folder.is_dir():
        require((folder / "config.json").is_file(), f"{where} has no config.json; expected the folder of a model")
    elif folder.is_absolute() or where.startswith((".", "~")) or where.count("/") > 1:
        raise StateformError(f"there is no folder {where}")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    options |= {"gguf_file": folder.name} if packed else {}
    if folder.is_dir():
        _check_config(folder / "config.json")
    config = _configuration(hf, where, options)
    if folder.is_dir():
        check_weights(folder)
    maker = _class(hf, config)
    _check_model(maker, config, dtype, memory_limit_gb, trust_remote_code)
    words = _tokenizer(hf, where, tokenizer, options)
    return Opened(where, _loaded(hf, maker, where, config=config, dtype=dtype, **options), words)


def _is_gguf(path: Path) -> bool:
    """True if the file begins as those of llama.cpp do."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def _require_gguf(where: str) -> None:
    """Raise unless the packages are there with which transformers reads a GGUF file."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    require(not missing, f"{where} is a GGUF file, which transformers reads with the package{'s' * (len(missing) > 1)} "
            f"{' and '.join(missing)}: pip install {' '.join(missing)}")  # fmt: skip


def _place(where: str, options: dict[str, Any]) -> str:
    """Give what transformers calls the place of a model: for a GGUF file its folder; the file is an option there."""
    return str(Path(where).parent) if "gguf_file" in options else where


def _loaded(hf: Any, maker: Any, where: str, **options: Any) -> nn.Module:
    """Load the weights of a model. Raises StateformError if some are missing."""
    place = _place(where, options)
    try:
        with _quiet(hf):
            model, info = maker.from_pretrained(place, use_safetensors=True, output_loading_info=True, **options)
    except Exception as error:  # any error that another library raises on files it did not expect
        raise StateformError(f"cannot load {where}: {_describe(error)}") from error
    missing = sorted(info.get("missing_keys") or [])
    require(
        not missing,
        f"the weights of {where} lack {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}: they are "
        "those of another model, or were saved in part",
    )
    return model.eval()


def _of_ours(path: Path, tokenizer: str | None) -> Opened | None:
    """Open a model of Stateform's own: a folder that `save_pretrained` wrote, or a file of another program."""
    if path.is_file():
        model: SequenceModel = open_file(path)
    elif path.is_dir() and (path / CONFIG).is_file() and read_kind(path) in ("LanguageModel", "Classifier"):
        model = open_folder(path)
    elif (config := _mamba_ssm(path)) is not None:
        check_weights(path)
        mamba = language_model(config, _tensors(path), path)
        return Opened(str(path), mamba, _tokenizer(transformers(), str(path), tokenizer, {}) if tokenizer else None)
    else:
        return None
    words: Any = tokenizer or ("bytes" if model.config.tokenizer == "bytes" else None)
    return Opened(str(path), model.eval(), words if words in (None, "bytes") else read_words(words))


def _mamba_ssm(folder: Path) -> dict[str, Any] | None:
    """Read the configuration in a folder of a language model of mamba_ssm; None for any other folder."""
    file = folder / "config.json"
    config = parse_json(read_bytes(file), file) if file.is_file() else None
    return config if isinstance(config, dict) and describes_model(config) else None


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a folder whose files were checked."""
    load_file = importlib.import_module("safetensors.torch").load_file
    names = _parts(folder / INDEX) if (folder / INDEX).is_file() else [WHOLE]
    return {name: x for file in names for name, x in load_file(folder / file).items()}


def transformers() -> Any:
    """Import the package transformers, or raise an error that names the extra."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise StateformError("opening pretrained models needs transformers: pip install 'stateform[hub]'") from None


def _configuration(hf: Any, where: str, options: dict[str, Any]) -> Any:
    place, found_by = _place(where, options), {k: x for k, x in options.items() if k != "trust_remote_code"}
    try:
        values, _ = hf.PreTrainedConfig.get_config_dict(place, **found_by)
    except Exception as error:
        raise StateformError(f"cannot read the configuration of {where}: {_describe(error)}") from error
    kind = values.get("model_type")
    own = "auto_map" in values
    require(
        options["trust_remote_code"] or not (own and kind not in FAMILIES),
        f"{where} (type {kind!r}) comes with code of its own, which is not run unless you ask for it by name: read it, "
        "then give trust_remote_code=True (on the command line --trust-remote-code)",
    )
    require(kind in FAMILIES or options["trust_remote_code"] or kind in hf.CONFIG_MAPPING, no_adapter(kind))
    try:
        return hf.AutoConfig.from_pretrained(place, **options)
    except Exception as error:
        raise StateformError(f"the configuration of {where} cannot be used: {_describe(error)}") from error


def _check_config(path: Path) -> None:
    """Raise unless a config.json can be a model's: a table with the name of a type, and a depth that is possible."""
    values = parse_json(read_bytes(path), path)
    require(isinstance(values, dict), f"{path} holds a {type(values).__name__}; expected a table")
    kind = values.get("model_type")
    require(kind is None or isinstance(kind, str), f"model_type is {kind!r} in {path}; expected the name of a type")
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]  # some have a table per part
    for name, count in [pair for part in parts for pair in part.items()]:
        deep = isinstance(count, int) and "layer" in name and count > MOST_LAYERS
        require(not deep, f"{name} is {count} in {path}; expected {MOST_LAYERS:,} layers at most")


def _class(hf: Any, config: Any) -> Any:
    """Choose the class that loads a model: one with a head over the vocabulary if there is one."""
    made = (getattr(config, "architectures", None) or [""])[0]
    if made.endswith("ForMaskedLM"):
        return hf.AutoModelForMaskedLM
    if made.endswith("ForConditionalGeneration") and type(config) in hf.AutoModelForImageTextToText._model_mapping:
        return hf.AutoModelForImageTextToText
    try:
        known = type(config) in hf.AutoModelForCausalLM._model_mapping
    except (AttributeError, KeyError):
        known = True
    encoder = made.endswith("Model") and not made.endswith("LMHeadModel")
    return hf.AutoModel if encoder or not known else hf.AutoModelForCausalLM


def _check_model(maker: Any, config: Any, dtype: str, limit: float | None, trusted: bool) -> None:
    """Raise if no mixer of the model has an adapter, or if its weights would not fit; for that it is made on "meta"."""
    kind = getattr(config, "model_type", None)
    try:
        with torch.device("meta"):
            model = maker.from_config(config, trust_remote_code=trusted)
    except Exception:  # a model that cannot be made on "meta" is loaded unchecked
        require(trusted or not {kind, language_kind(config)}.isdisjoint(FAMILIES), no_adapter(kind))
        return
    if not trusted:
        require_supported(model)
    count = sum(p.numel() for p in model.parameters())
    saved = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    size = count * _BYTES.get(saved if dtype == "auto" else dtype, 4)
    free = free_memory() if limit is None else limit * 1e9
    require(
        size <= free,
        f"the model has {count:,} weights, {size / 1e9:.3g} GB in {saved if dtype == 'auto' else dtype}; "
        f"{free / 1e9:.3g} GB may be used: give dtype='bfloat16', a smaller model, or a higher memory_limit_gb",
    )


def check_weights(folder: Path) -> None:
    """Raise unless a folder holds whole safetensors files."""
    index = folder / INDEX
    if index.is_file():
        names = _parts(index)
    elif (folder / WHOLE).is_file():
        names = [WHOLE]
    else:
        pickled = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        require(
            not pickled,
            f"{folder} holds its weights as {pickled[:1]}, a pickle, which could run any code: convert it where you "
            "trust it: torch.load(PATH, weights_only=True), then safetensors.torch.save_file(weights, "
            "'model.safetensors')",
        )
        raise StateformError(f"{folder} has no weights; expected {WHOLE} (or {INDEX} and its parts)")
    safetensors = importlib.import_module("safetensors")
    for name in names:
        try:
            with safetensors.safe_open(folder / name, framework="pt"):
                pass
        except (OSError, safetensors.SafetensorError) as error:
            raise StateformError(f"{folder / name} is not a whole safetensors file: {_first(error)}") from None


def _parts(index: Path) -> list[str]:
    """List the files that an index names."""
    values = parse_json(read_bytes(index), index)
    table = values.get("weight_map") if isinstance(values, dict) else None
    named = isinstance(table, dict) and table and all(isinstance(file, str) for file in table.values())
    require(named, f"cannot read {index}: expected a table weight_map, from names of weights to names of files")
    files = sorted(set(table.values()))  # type: ignore[union-attr]
    away = [file for file in files if Path(file).name != file]
    require(not away, f"{index} names {away[:1]}; expected files that lie beside it")
    missing = [file for file in files if not (index.parent / file).is_file()]
    require(
        not missing, f"{index.parent} lacks {', '.join(missing[:3])} of its {len(files)} weight files; load it again"
    )
    whole = isinstance(values.get("metadata"), dict)
    require(whole, f'{index} has no metadata, which transformers asks for; write "metadata": {{}} into it')
    return files


def _tokenizer(hf: Any, where: str, given: str | None, options: dict[str, Any]) -> Any:
    if given == "bytes":
        return "bytes"
    own = {k: x for k, x in options.items() if not given or k != "gguf_file"}
    try:
        with _quiet(hf):
            made = hf.AutoTokenizer.from_pretrained(given or _place(where, options), **own)
        # Without files of a tokenizer, transformers may give one that has no words.
        why = "" if len(made) > len(made.added_tokens_decoder) else "it has no words"
    except Exception as error:  # any error of another library's tokenizer
        made, why = None, _describe(error)
    there = given or next((name for name in TOKENIZERS if (Path(where) / name).is_file()), None)
    hint = "" if given else " (give tokenizer='bytes', or the name or folder of another)"
    require(not (why and there), f"cannot load the tokenizer {there if given else f'of {where}'}: {why}{hint}")
    return None if why else made


@contextmanager
def _quiet(hf: Any) -> Iterator[None]:
    """Silence the messages of transformers, as the caller raises clearer errors."""
    before = hf.logging.get_verbosity()
    hf.logging.set_verbosity_error()
    try:
        yield
    finally:
        hf.logging.set_verbosity(before)


def _config(model: Any) -> Any:
    return model.config if isinstance(model, SequenceModel) else model.config.get_text_config()


def _describe(error: BaseException) -> str:
    """Put an error in a line, with its class if its text alone says little."""
    plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    return _first(error) if plain and str(error) else f"{type(error).__name__}: {_first(error)}"


def _first(error: BaseException) -> str:
    """Put the first 300 characters of an error on one line."""
    text = " ".join(str(error).split())
    return text[:300] + (" ..." if len(text) > 300 else "")
