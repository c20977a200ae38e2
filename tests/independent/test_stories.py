"""A trained language model, Stories260K of llama2.c: its attention layers as ours, and the text that it writes."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import stateform as sf

from .helpers import EXACT, RECORDED, assert_close, recorded


@dataclass
class Stories:
    """A Llama whose attention layers are Stateform's."""

    weights: dict[str, Tensor]
    """Per layer on the first axis, but for `embedding` and `final_norm`."""
    attention: list[Any]

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    def logits(self, tokens: Tensor, states: list[sf.State]) -> tuple[Tensor, list[sf.State]]:
        """tokens [B,T] to logits [B,T,vocabulary]; goes on from the states of the layers."""
        w, x, new = self.weights, self.weights["embedding"][tokens], []
        for i, layer in enumerate(self.attention):
            y, state = layer(self.norm(x, w["attention_norm"][i]), initial_state=states[i], return_state=True)
            new.append(state)
            x = x + y
            u = self.norm(x, w["mlp_norm"][i])
            x = x + (F.silu(u @ w["gate"][i].T) * (u @ w["up"][i].T)) @ w["down"][i].T
        return self.norm(x, w["final_norm"]) @ w["embedding"].T, new


def read_model(path: Path, dtype: torch.dtype) -> Stories:
    """The format: seven integers, then the arrays one after the other."""
    data = path.read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, _ = np.frombuffer(data, "<i4", 7).tolist()
    numbers, at = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy()).to(dtype), 0
    kv = width * kv_heads // heads
    shapes = {
        "embedding": (vocabulary, width), "attention_norm": (layers, width), "q": (layers, width, width),
        "k": (layers, kv, width), "v": (layers, kv, width), "out": (layers, width, width),
        "mlp_norm": (layers, width), "gate": (layers, hidden, width), "down": (layers, width, hidden),
        "up": (layers, hidden, width), "final_norm": (width,),
    }  # fmt: skip
    weights = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        weights[name], at = numbers[at : at + size].reshape(shape), at + size
    attention = []
    for i in range(layers):
        layer = sf.build("softmax", d_model=width, n_heads=heads, n_kv_heads=kv_heads).to(dtype)
        layer.load_state_dict({
            "q_proj.weight": halves(weights["q"][i], heads), "k_proj.weight": halves(weights["k"][i], kv_heads),
            "v_proj.weight": weights["v"][i], "out_proj.weight": weights["out"][i],
        })  # fmt: skip
        attention.append(layer)
    return Stories(weights, attention)


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head whose rotary pairs are neighbours, put so that a pair is i and i + n/2."""
    per_head = weight.unflatten(0, (heads, -1))
    return torch.cat([per_head[:, 0::2], per_head[:, 1::2]], 1).flatten(0, 1)


def read_words(path: Path) -> list[bytes]:
    """The text of each token: after one integer, a score, a length and the bytes of each."""
    data, at, words = path.read_bytes(), 4, []
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        word = data[at + 8 : at + 8 + length]
        raw = re.fullmatch(rb"<0x([0-9A-F]{2})>", word)
        words.append(bytes.fromhex(raw[1].decode()) if raw else word)
        at += 8 + length
    return words


def continued(model: Stories, tokens: list[int], total: int) -> tuple[list[int], Tensor]:
    """The tokens, greedily continued to `total`, and all logits; the first tokens at once, then one at a time."""
    states, seen, logits = [layer.init_state(1) for layer in model.attention], 0, []
    while seen < total:
        step, states = model.logits(torch.tensor([tokens[seen:]]), states)
        seen = len(tokens)
        logits.append(step[0])
        tokens = [*tokens, int(step[0, -1].argmax())]
    assert all(int(state.position) == total for state in states)
    return tokens[:-1], torch.cat(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trained_model_writes_its_known_text(dtype: torch.dtype) -> None:
    """200 tokens, each the likeliest, one at a time with the state; then after a prompt, and all at once."""
    place = recorded("stories260k")
    model, words = read_model(place / "stories260K.bin", dtype), read_words(place / "tok512.bin")
    expected = ast.literal_eval((place / "expected_stdout.txt").read_text().partition("=")[2].strip())
    with torch.no_grad():
        tokens, logits = continued(model, [1], 201)
        after_prompt, logits_after_prompt = continued(model, tokens[:60], 201)
        at_once, _ = model.logits(torch.tensor([tokens]), [layer.init_state(1) for layer in model.attention])
    assert b"".join(words[token] for token in tokens[1:]).lstrip(b" ") == expected
    assert after_prompt == tokens
    tolerance = EXACT if dtype == torch.float64 else RECORDED
    assert_close(logits_after_prompt, at_once[0], "logits, after a prompt", tolerance)
    assert_close(logits, at_once[0], "logits, one token at a time", tolerance)
