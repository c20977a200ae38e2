"""Padding changes nothing: on the left, on the right, between tokens, and for what is computed after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..draws import short
from ..law import Layout, holds, span, spans
from ..layer import LayerRunner
from ..listening import Heard, Rows
from ..model import ModelRunner, positions_of
from .ways import first_that_agrees

# -- a layer ---------------------------------------------------------------------------------------------------------


def layer_padding(b: LayerRunner) -> None:
    """Check that left and right padding full of NaN changes nothing, and that masked outputs are 0."""
    if not b.offers("attention_mask"):
        return
    T, more = 40, 7
    places = [(0, T), (0, 13), (17, T), (5, 31)]
    mask = spans(T, places)
    for dtype in (torch.float64, torch.float32):
        layer = b.drawn().in_precision(dtype, T)
        x = layer.input(4, T)
        rows = [f"row {row} padded to [{low},{high}) of {T}, {short(dtype)}" for row, (low, high) in enumerate(places)]
        longer = torch.cat([mask, torch.ones(4, more, dtype=torch.bool, device=mask.device)], 1)
        after = Layout.padded(longer, T, more, seen=span(T + more, T, T + more))
        with torch.no_grad():
            holds(layer, f"padded rows {places}, {short(dtype)}", x, Layout.padded(mask), states=rows)
            both = torch.cat([x, layer.input(4, more)], 1)
            holds(layer, f"continuing after padding, {short(dtype)}", both, after)


# -- a model ---------------------------------------------------------------------------------------------------------

_LENGTHS = (17, 9, 2)
_BETWEEN = (6, 3, 5)
"""Tokens, padding, and tokens again."""


def left(b: ModelRunner) -> None:
    """Pad rows of different lengths on the left, in one batch, with attention_mask alone, as users call it."""
    _at_one_end(b, _on_the_left())


def right(b: ModelRunner) -> None:
    """Pad rows of different lengths on the right, in one batch."""
    _at_one_end(b, spans(max(_LENGTHS), [(0, n) for n in _LENGTHS]))


def _on_the_left() -> Tensor:
    T = max(_LENGTHS)
    return spans(T, [(T - n, T) for n in _LENGTHS])


def _at_one_end(b: ModelRunner, mask: Tensor) -> None:
    if b.offers("attention_mask"):
        _in_any_way(b, "", b.input(*mask.shape), Layout.padded(mask), _positions(b, mask))


def _positions(b: ModelRunner, mask: Tensor) -> Sequence[dict[str, Tensor]]:
    """List what may be given besides attention_mask: nothing, or the positions too."""
    return [{}, {"position_ids": positions_of(mask.to(b.device))}] if b.positions else [{}]


def _in_any_way(
    b: ModelRunner, text: str, x: Tensor, layout: Layout, ways: Sequence[dict[str, Tensor]], *, refuses: str = "",
    **how: Any,
) -> None:  # fmt: skip
    """Compare with attention_mask alone, as users call it, or else with the first of `ways` that agrees."""
    want = b.alone(x, layout)
    named = {f"{text}{' and '.join(['attention_mask', *more])}": more for more in ways}
    tried = first_that_agrees(b, x, layout, want, named, refuses=refuses, **how)
    if tried.refusal:
        return b.report.lacks(f"{b.part}, {text.removesuffix(', ')} ({tried.refusal})")
    for way, why in tried.raised.items():
        b.report.expect(b.part, False, f"{way}: {why}")
    if named.get(tried.agrees):
        b.report.lacks(f"{b.part} without {' and '.join(named[tried.agrees])}")
    way = tried.agrees or next(iter(tried.found), "")
    if way:
        b.compare(way, tried.found[way], want)
    return None


def continued(b: ModelRunner) -> None:
    """Compute the next tokens from the cache, after left padding: one by one, many at once, and by generate."""
    if b.cache_name is None or "attention_mask" not in b.takes:
        return
    mask = _on_the_left()
    rows, T = mask.shape
    first = b.input(rows, T)
    tokens = torch.cat([first, b.input(rows, 12)], 1)
    for split in ((1, 1, 1), (5,), (1, 5, 1), (9, 3)):
        longer = torch.cat([mask, torch.ones(rows, sum(split), dtype=torch.bool, device=mask.device)], 1)
        text = f"padded, then {' then '.join(map(str, split))} tokens"
        holds(b, text, tokens[:, : longer.shape[1]], Layout.padded(longer, T, *split), call=b.as_generate)
    with b.attempt("generate"):
        _generate(b, first, mask)


def _generate(b: ModelRunner, tokens: Tensor, mask: Tensor) -> None:
    """Greedy tokens of a left padded batch, and those of each row alone: the logits that chose them."""
    new, given = 6, mask.long().to(tokens)
    tokens = tokens.masked_fill(given == 0, b.pad)
    alone = [(tokens[i : i + 1, keep], given[i : i + 1, keep]) for i, keep in enumerate(given.bool())]
    if not hasattr(b.model, "prepare_inputs_for_generation"):
        return _same_tokens(b, tokens, given, alone, new)
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=b.pad)

    def last(outputs: list[Tensor]) -> Rows | None:
        if len(outputs) != new:
            return None
        return [torch.cat([x[i : i + 1, -1:] for x in outputs], 1) for i in range(len(outputs[0]))]

    def generated(ids: Tensor, mask: Tensor) -> Heard:
        b.forget()
        return b.ears.hear(lambda: b.model.generate(ids, attention_mask=mask, generation_config=config), last)

    together = generated(tokens, given)
    rows = [generated(*row) for row in alone]
    want = Heard({name: [r.sites[name][0] for r in rows] for name in rows[0].sites})
    b.compare(f"generate, {new} tokens", together, want)
    return None


def _same_tokens(b: ModelRunner, tokens: Tensor, mask: Tensor, alone: list[tuple[Tensor, Tensor]], new: int) -> None:
    """Compare the tokens alone, of a model with a `generate` of its own, which is not listened to."""
    if not hasattr(b.model, "generate"):
        return b.report.lacks("generate")
    got = b.model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False)[:, -new:]
    for i, (ids, _) in enumerate(alone):
        want = b.model.generate(ids, max_new_tokens=new, do_sample=False)[:, -new:]
        text = f"generate, text {i} of {len(alone)}: other tokens"
        b.report.expect(b.part, torch.equal(got[i : i + 1], want), text)
    return None


def between(b: ModelRunner) -> None:
    """Pad between tokens, as a batch of chats has it whose turns have different lengths: all in one forward, and the
    tokens after it from the cache, as generate calls it. Each row gives what its tokens give without padding.
    """
    if "attention_mask" not in b.takes:
        return
    first, T = _BETWEEN[0] + _BETWEEN[1], sum(_BETWEEN)
    tokens, mask = b.input(2, T), spans(T, [(0, T), (0, T)])
    mask[0, _BETWEEN[0] : first] = False
    ways = _positions(b, mask)
    _in_any_way(b, "in one forward, ", tokens, Layout.padded(mask), ways, refuses="mask")
    if b.cache_name is not None:
        layout = Layout.padded(mask, first, T - first)
        _in_any_way(b, "continued, ", tokens, layout, [{}], refuses="mask", call=b.as_generate)
