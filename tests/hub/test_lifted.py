"""Mixers whose state is in no cache of transformers: in the module, in a list for all layers, in other coordinates.

Also where the package's own code goes wrong: the reference is then its forward over each text alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stateform.hub import accelerate, undo
from stateform.hub.widen import widened
from tests.independent.helpers import EXACT, assert_close

pytest.importorskip("transformers")
from stateform.hub.families.xlstm import LiftedXLSTM
from tests.fixtures.foreign import small


def tokens(rows: int, length: int = 26) -> Tensor:
    return torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def piece(model: Any, ids: Tensor, start: int, kept: Any) -> tuple[Tensor, Any]:
    """One call that goes on from another, in each model's own way."""
    kind = model.config.model_type
    if kind == "rwkv":
        out = model(ids, use_cache=True, state=kept)
        return out.logits, out.state
    if kind == "xlstm":
        out = model(ids, use_cache=True, cache_params=kept)
        return out.logits, out.cache_params
    from transformers import DynamicCache

    kept = DynamicCache(config=model.config) if kept is None else kept
    at = torch.arange(start, start + ids.shape[1]).expand(len(ids), -1)
    return model(ids, use_cache=True, past_key_values=kept, position_ids=at).logits, kept


def in_pieces(model: Any, ids: Tensor, sizes: list[int]) -> Tensor:
    start, kept, found = 0, None, []
    for part in ids.split(sizes, 1):
        y, kept = piece(model, part, start, kept)
        start += part.shape[1]
        found.append(y)
    return torch.cat(found, 1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["recurrent_gemma", "rwkv", "xlstm"])
@torch.no_grad()
def test_any_split_of_any_rows(kind: str, rows: int) -> None:
    """transformers itself forgets the convolution of RecurrentGemma where a text goes on with several tokens, and takes
    steps of RWKV for one row alone.
    """
    model, ids = small(kind).double(), tokens(rows)
    with widened(torch.float64):
        want = model(ids, use_cache=False).logits
        accelerate(model)
        for sizes in ([26], [9, 17], [1, 1, 24], [20, *[1] * 6]):
            assert_close(in_pieces(model, ids, sizes), want, f"{sizes}", EXACT)


@pytest.mark.parametrize("kind", ["recurrent_gemma", "rwkv", "xlstm"])
@torch.no_grad()
def test_states_go_over_to_the_package_and_back(kind: str) -> None:
    model, ids = small(kind).double(), tokens(1)
    with widened(torch.float64):
        want = model(ids, use_cache=False).logits
        for switches in ((accelerate, undo), (undo, accelerate)):
            switches[0](model)
            y, kept = piece(model, ids[:, :20], 0, None)
            switches[1](model)
            found = [y]
            for t in range(20, 26):
                y, kept = piece(model, ids[:, t : t + 1], t, kept)
                found.append(y)
            assert_close(torch.cat(found, 1), want, switches[0].__name__, EXACT)


@torch.no_grad()
def test_recurrent_gemma_padded_and_packed() -> None:
    """Neither the convolution nor the recurrence sees padding, or another text."""
    model, ids = small("recurrent_gemma").double(), tokens(2)
    with widened(torch.float64):
        short, long = model(ids[:1, 6:], use_cache=False).logits, model(ids[1:], use_cache=False).logits
        accelerate(model)
        mask = torch.ones_like(ids)
        mask[0, :6] = 0
        at = (mask.cumsum(-1) - 1).clamp(min=0)
        for how in ({}, {"position_ids": at}, {"use_cache": False}):
            got = model(ids, attention_mask=mask, **how).logits
            assert_close(got[:1, 6:], short, f"padded, {list(how)}", EXACT)
            assert_close(got[1:], long, f"beside padded, {list(how)}", EXACT)
        at = torch.cat([torch.arange(20), torch.arange(26)])[None]
        got = model(torch.cat([ids[:1, 6:], ids[1:]], 1), position_ids=at, use_cache=False).logits
        assert_close(got, torch.cat([short, long], 1), "packed", EXACT)
    one = [model.generate(ids[i : i + 1], max_new_tokens=6, do_sample=False) for i in (0, 1)]  # the state is reset
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), torch.cat(one))


@pytest.mark.parametrize("mode", ["single", "fused"])
@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_xlstm_with_its_eps(mode: str, eps: float) -> None:
    """An eps that matters, in coordinates that begin at m = 0; and its gradient."""
    from transformers import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    config = xLSTMConfig(hidden_size=32, num_heads=4, weight_mode=mode, use_bias=True, chunk_size=8, eps=eps)
    module = xLSTMLayer(config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    layer = LiftedXLSTM(module)
    u = torch.randn(2, 21, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    with widened(torch.float64):
        want = module(u)[0]
        (slope,) = torch.autograd.grad(want.square().sum(), u)
        for form in layer.forms(u):
            y = layer(u, form=form)
            assert_close(y, want, form, EXACT)
            assert_close(torch.autograd.grad(y.square().sum(), u)[0], slope, f"gradient, {form}", EXACT)
    config.eps, config.gate_soft_cap = 1e-6, 100.0
    with pytest.raises(ValueError, match=r"gates up to 100\.0"):
        LiftedXLSTM(module)
