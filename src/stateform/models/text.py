"""Text and bytes: for models whose token ids are the bytes of a text (`tokenizer="bytes"`)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import require
from .language import LanguageModel


def encode(texts: str | bytes | Sequence[str | bytes]) -> tuple[Tensor, Tensor]:
    """Turn texts into the ids of their bytes [B,T], padded on the left, and the attention mask [B,T]."""
    several = [texts] if isinstance(texts, str | bytes) else list(texts)
    data = [t if isinstance(t, bytes) else t.encode("utf-8", "surrogateescape") for t in several]
    longest = max((len(d) for d in data), default=0)
    ids = torch.tensor([[0] * (longest - len(d)) + list(d) for d in data], dtype=torch.long)
    mask = torch.tensor([[0] * (longest - len(d)) + [1] * len(d) for d in data], dtype=torch.long)
    return ids.reshape(len(data), longest), mask.reshape(len(data), longest)


def decode(ids: Tensor | Sequence[int]) -> str:
    """Turn ids [T] into the text of these bytes. What is no UTF-8 is replaced; ids above 255 are left out."""
    values = ids.tolist() if isinstance(ids, Tensor) else ids
    return bytes(i for i in values if i < 256).decode("utf-8", "replace")


def continue_text(model: LanguageModel, prompt: str | bytes, **options: Any) -> Iterator[str]:
    """Continue a prompt, and yield pieces of whole characters as they come.

    Args:
        model: with tokenizer "bytes".
        prompt: one character or more.
        options: of `LanguageModel.stream`: max_new_tokens, temperature, ...

    Raises:
        StateformError: a model with another tokenizer, or as `stream`; before anything is computed.
    """
    given = model.config.tokenizer
    require(given == "bytes", f"the model's tokenizer is {given!r}; expected 'bytes': call generate with token ids")
    require(len(prompt) > 0, "the prompt is empty; give one character or more")
    ids, _ = encode(prompt)
    tokens = model.stream(ids.to(model.device), **options)
    return _characters(tokens)


def _characters(tokens: Iterator[Tensor]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        value = int(token)
        if value < 256 and (text := decoder.decode(bytes([value]))):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
