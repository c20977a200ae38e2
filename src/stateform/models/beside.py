"""Files beside those of a language model, so that programs that know transformers alone open its folder.

`config.json` names a module of the folder (`auto_map`). Told to trust its code (`trust_remote_code=True`), transformers
runs it, and it only imports `stateform.models.auto`. A model that reads bytes also has the files of a tokenizer whose
ids are the bytes of a text.
"""

from __future__ import annotations

import json

MODULE = "modeling_stateform"
CODE = '''"""What transformers reads with trust_remote_code=True: the model is in `pip install "stateform[hub]"`."""

from stateform.models.auto import StateformConfig, StateformForCausalLM

__all__ = ["StateformConfig", "StateformForCausalLM"]
'''
AUTO_MAP = {"AutoConfig": f"{MODULE}.StateformConfig", "AutoModelForCausalLM": f"{MODULE}.StateformForCausalLM"}
NUL = "\0"
"""The token that pads, begins and ends: the byte 0, which no text needs. Its name is no letter that a text may have."""


def files(tokenizer: str | None) -> dict[str, bytes]:
    """Make the files that are written beside a language model's own, by name."""
    tokens = _byte_tokenizer() if tokenizer == "bytes" else {}
    return {f"{MODULE}.py": CODE.encode(), **{name: _as_json(values) for name, values in tokens.items()}}


def _as_json(values: dict[str, object]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _names() -> list[str]:
    """Name the token of each byte as byte-level tokenizers do. Printable characters are their own names; the other
    bytes, in order, are named by the characters from U+0100 on.
    """
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    names = [chr(byte if byte in shown else next(others)) for byte in range(256)]
    return [NUL, *names[1:]]


def _byte_tokenizer() -> dict[str, dict[str, object]]:
    """Make tokenizer.json and tokenizer_config.json of a tokenizer that joins no bytes."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = {"content": NUL, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": 0, "special": True, **special}],
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {name: byte for byte, name in enumerate(_names())},
                "merges": [],
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "bos_token": NUL,
            "eos_token": NUL,
            "pad_token": NUL,
        },
    }
