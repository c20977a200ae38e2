"""What lies beside a text changes nothing: other rows, later tokens, and other texts in the same row."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ..law import Layout, holds, span, unmoved
from ..layer import LayerRunner
from ..model import ModelRunner
from .ways import first_that_agrees

# -- a layer ---------------------------------------------------------------------------------------------------------


def layer_packing(b: LayerRunner) -> None:
    """Compare packed sequences with each alone, in all forms: nothing leaks between them, between rows or backwards."""
    T, ends = 61, (0, 1, 20, 20, 39, 61)
    layer = b.drawn().in_precision(torch.float64, T)
    x = layer.input(1, T)
    with torch.no_grad():
        if b.offers("cu_seqlens"):
            _packed(layer, x, ends)
            other = x.clone()
            other[:, 20:39] = layer.input(1, 19)
            rest = Layout.packed(ends, seen=~span(T, 20, 39))
            unmoved(layer, "another sequence of the pack changed", x, other, rest)
        rows = layer.input(3, 30)
        other = rows.clone()
        other[1] = layer.input(1, 30)[0]
        other[2, 11:] = layer.input(1, 19)[0]
        unmoved(layer, "another row of the batch changed", rows, other, Layout.rows(3, 30, only=0))
        past = Layout.rows(3, 30, only=2, seen=span(30, 0, 11))
        unmoved(layer, "the future changed", rows, other, past)


def _packed(layer: LayerRunner, x: Tensor, ends: tuple[int, ...]) -> None:
    """Compare a pack with its sequences alone, and once more from the states after them."""
    T = ends[-1]
    once, again = Layout.packed(ends), Layout.packed(ends, times=2, seen=span(2 * T, T, 2 * T))
    twice = torch.cat([x, x], 1)
    want, want_again = layer.alone(x, once), layer.alone(twice, again)
    for form in layer.forms(x):
        where = f"packed at {list(ends)}, form {form}"
        states = [f"packed, form {form}, sequence {i}" for i in range(len(ends) - 1)]
        holds(layer, where, x, once, want, form=form, states=states)
        holds(layer, f"{where}, continued", twice, again, want_again, form=form)


# -- a model ---------------------------------------------------------------------------------------------------------


def model_rows(b: ModelRunner) -> None:
    """Compare a row of a batch with the row alone."""
    for rows, T in ((3, 19), (2, 1), (5, 2)):
        holds(b, f"{rows} rows of {T} token{'s' * (T > 1)}", b.input(rows, T), Layout.rows(rows, T))


def model_future(b: ModelRunner) -> None:
    """Check that later tokens do not change earlier outputs."""
    T = min(80, b.longest)
    tokens = b.input(1, T)
    for at in (1, 5, 11, T - 1):
        holds(b, f"tokens from position {at}", tokens, Layout((T,), ((0, span(T, 0, at)),)))


def model_packed(b: ModelRunner) -> None:
    """Put several texts into one row, with positions that start anew."""
    if not b.positions:
        return b.report.lacks("packing")
    lengths = (9, 5, 13)
    ends = (0, *itertools.accumulate(lengths))
    x, layout = b.input(1, ends[-1]), Layout.packed(ends)
    want = b.alone(x, layout)
    tried = first_that_agrees(b, x, layout, want, _ways(b, lengths, ends), refuses="pack")
    if tried.refusal:
        return b.report.lacks(f"packing ({tried.refusal})")
    if tried.agrees:
        if tried.agrees != "position_ids":
            b.report.lacks(f"packing by position_ids alone (it takes {tried.agrees})")
        return b.compare(tried.agrees, tried.found[tried.agrees], want)
    if not b.claims_packing():
        return b.report.lacks("packing")
    for way, got in tried.found.items():
        b.compare(way, got, want)
    for way, why in tried.raised.items():
        b.report.expect(b.part, False, f"{way}: {why}")
    return None


def _ways(b: ModelRunner, lengths: tuple[int, ...], ends: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """List the names under which models take where packed texts begin."""
    positions = torch.cat([torch.arange(n, device=b.device) for n in lengths])[None]
    cu = torch.tensor(ends, dtype=torch.int32, device=b.device)
    index = torch.repeat_interleave(torch.arange(len(lengths), device=b.device), cu.diff().long())[None].to(cu)
    flash = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    alone = {"position_ids": positions}
    ways: dict[str, dict[str, Any]] = {"position_ids": alone}
    if b.any:
        ways |= {"position_ids and seq_idx": {**alone, "seq_idx": index}}
        ways |= {"position_ids, seq_idx and cu_seq_lens": {**alone, "seq_idx": index, **flash}}
    return ways
