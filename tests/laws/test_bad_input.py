"""Bad input is refused in one clear sentence, before any work, with nothing changed or written; empty input works."""

from __future__ import annotations

import codecs
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import stateform as sf
from stateform.architectures import REGISTRY, accepted
from stateform.forms.form import FORMS
from stateform.system.state import CACHES
from stateform.train.config import read_toml, read_value
from tests.program import program

B, T, H, N, P, D = 2, 7, 4, 6, 3, 16
NAN, INF = math.nan, math.inf


def r(*shape: int) -> Tensor:
    return torch.randn(*shape)


def u(*shape: int) -> Tensor:
    return -torch.rand(*shape)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """A StateformError of one line that holds all the words."""
    with pytest.raises(sf.StateformError) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No form may begin to compute."""

    def worked(*_: object) -> None:
        raise AssertionError("a form began to compute")

    for form in FORMS.values():
        monkeypatch.setattr(form, "compute", worked)
    monkeypatch.setattr("stateform.forms.softmax.attend", worked)


# -- a System -----------------------------------------------------------------------------------------------------


def system(**parts: Any) -> sf.System:
    """q, k, v with some of them, or further parts, replaced."""
    parts = {"q": r(B, T, H, N), "k": r(B, T, H, N), "v": r(B, T, H, P), **parts}
    return sf.System(parts.pop("q"), parts.pop("k"), parts.pop("v"), **parts)


def exp(**parts: Any) -> sf.System:
    return system(readout="exp", eta="sum", **parts)


SYSTEMS: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    # rank
    "q of rank 1": (lambda: system(q=r(N)), ("q has shape [6]", "[B,t,H,n]")),
    "k without heads": (lambda: system(k=r(B, T, N)), ("k has shape [2, 7, 6]", "[B,T,H,n]")),
    "v of rank 2": (lambda: system(v=r(T, P)), ("v has shape", "[B,T,H,p]")),
    "product of a wrong rank": (lambda: system(log_decay=(u(B, T, H), r(1, H, N))), ("log_decay[1] has shape",)),
    # size
    "keys": (lambda: system(q=r(B, T, H, N + 1)), ("k and q", "number of keys", "6 and 7")),
    "batch": (lambda: system(v=r(B + 1, T, H, P)), ("v and q", "batch size", "3 and 2")),
    "length": (lambda: system(v=r(B, 1, H, P)), ("v and q", "length", "1 and 7")),
    "not square": (lambda: system(transition=r(H, N, N + 1)), ("transition and q", "number of keys")),
    "steps": (lambda: system(micro=2), ("k has 7 steps", "multiple of micro = 2")),
    "no keys": (lambda: system(q=r(B, T, H, 0), k=r(B, T, H, 0)), ("number of keys", "is 0")),
    "no values": (lambda: system(v=r(B, T, H, 0)), ("number of values", "is 0")),
    "d for each step": (
        lambda: system(micro=2, k=r(B, 2 * T, H, N), v=r(B, 2 * T, H, P), d=r(B, 2 * T, H)),
        ("d and q differ in their length", "14 and 7"),
    ),
    # heads
    "heads": (lambda: system(k=r(B, T, 3, N)), ("k has 3 heads", "divisor of the 4 of q")),
    "heads of q": (lambda: system(k=r(B, T, 6, N)), ("heads; expected a divisor of the 6 of k",)),
    "no heads": (lambda: system(q=r(B, T, 0, N), k=r(B, T, 0, N), v=r(B, T, 0, P)), ("0 heads", "1 or more")),
    # dtype and device
    "double values": (lambda: system(v=r(B, T, H, P).double()), ("v has dtype torch.float64", "k has torch.float32")),
    "half values": (lambda: system(v=r(B, T, H, P).half()), ("v has dtype torch.float16", ".to(dtype)")),
    "integer keys": (lambda: system(q=torch.ones(B, T, H, N).long()), ("q has dtype torch.int64", "floating")),
    "boolean gate": (lambda: system(b=torch.ones(B, T, H).bool()), ("b has dtype torch.bool", "floating")),
    "sparse": (lambda: system(q=r(B, T, H, N).to_sparse()), ("sparse", ".to_dense()")),
    "another device": (lambda: system(v=r(B, T, H, P).to("meta")), ("v is on meta, k on cpu", ".to(device)")),
    "complex log_decay": (lambda: system(log_decay=u(B, T, H) + 0j), ("log_decay is complex", "phase")),
    "complex phase": (lambda: system(phase=u(B, T, H) + 0j), ("phase is complex", "real")),
    "complex b": (lambda: system(b=u(B, T, H) + 0j), ("b is complex", "real")),
    "complex d": (lambda: system(d=u(B, T, H) + 0j), ("d is complex", "real")),
    "complex eta": (lambda: system(eta=u(B, T, H) + 0j), ("eta is complex", "real")),
    # type
    "a list": (lambda: system(q=[1.0]), ("q is a list", "tensor")),
    "an array": (lambda: system(q=np.ones((B, T, H, N))), ("q is a ndarray", "tensor")),
    "no k": (lambda: system(k=None), ("k is a NoneType", "tensor")),
    "b is a number": (lambda: system(b=0.5), ("b is a float", "tensor or None")),
    "log_decay is a number": (lambda: system(log_decay=-0.1), ("log_decay is a float", "pair")),
    "log_decay is a list": (lambda: system(log_decay=[u(B, T, H), u(H, N)]), ("log_decay is a list", "pair")),
    "log_decay of three": (lambda: system(log_decay=(u(B, T, H), u(H), u(H))), ("a tuple of 3", "pair")),
    "log_decay with None": (lambda: system(log_decay=(u(B, T, H), None)), ("log_decay is a tuple", "pair")),
    "eta": (lambda: system(eta="mean"), ("eta is 'mean'", "'sum'")),
    "eta_floor is a word": (lambda: system(eta="sum", eta_floor="x"), ("eta_floor is 'x'", "number")),
    "eta_floor is nan": (lambda: system(eta="sum", eta_floor=NAN), ("eta_floor is nan", "number")),
    "eta_floor below 0": (lambda: system(eta="sum", eta_floor=-1.0), ("eta_floor is -1.0", "0 or more")),
    "readout": (lambda: system(readout="relu"), ("readout is 'relu'", "'exp'")),
    "micro is 0": (lambda: system(micro=0), ("micro is 0", "1 or more")),
    "micro is no whole number": (lambda: system(micro=2.0), ("micro is 2.0", "1 or more")),
    "micro is a bool": (lambda: system(micro=True), ("micro is True", "1 or more")),
    "exclusive": (lambda: system(exclusive="yes"), ("exclusive is 'yes'", "True or False")),
    "causal": (lambda: exp(causal=None), ("causal is None", "True or False")),
    "window is 0": (lambda: exp(window=0), ("window is 0", "1 or more tokens")),
    "window is no whole number": (lambda: exp(window=2.5), ("window is 2.5", "1 or more tokens")),
    # combinations
    "f without w": (lambda: system(f=r(B, T, H, N)), ("both f and w",)),
    "w without f": (lambda: system(w=r(B, T, H, N)), ("both f and w",)),
    "b and log_b": (lambda: system(b=r(B, T, H), log_b=r(B, T, H)), ("b or log_b", "not both")),
    "two decays": (lambda: system(transition=r(H, N, N), log_decay=u(H)), ("dense transition already",)),
    "a dense phase": (lambda: system(transition=r(H, N, N), phase=u(H)), ("dense transition already",)),
    "eta_floor without eta": (lambda: system(eta_floor=1.0), ("give eta too",)),
    "w_out with q": (lambda: system(w_out=r(2, H, N)), ("w_out is for vector states",)),
    "w_in with v": (lambda: system(w_in=r(H, N, 2)), ("w_in", "v = None")),
    "w_out of an output axis": (
        lambda: sf.System(r(H, 3, N), r(B, T, H, N), None, w_out=r(3, H, N)),
        ("q = None",),
    ),
    "window of a linear readout": (lambda: system(window=3), ("window", "decay")),
    "a linear readout of the future": (lambda: system(causal=False), ("causal=False", "linear")),
    "all constant": (lambda: sf.System(r(H, N), r(H, N), None), ("batch and a time axis",)),
    "constant k alone": (lambda: sf.System(r(B, T, H, N), r(H, N), None), ("k is the whole input",)),
    "softmax, dense decay": (lambda: exp(transition=r(H, N, N)), ('readout "exp"', "dense")),
    "softmax, a decay that looks ahead": (lambda: exp(log_decay=r(H), causal=False), ("log_decay", "undone")),
    "softmax, a sink beside no sum": (
        lambda: sf.System(r(B, T, H, N), r(B, T, H, N), r(B, T, H, P), sink=r(H), readout="exp"),
        ("sink", 'eta = "sum"'),
    ),
    "softmax, exclusive": (lambda: exp(exclusive=True), ("inclusive",)),
    "softmax, micro-steps": (lambda: exp(micro=2, k=r(B, 14, H, N), v=r(B, 14, H, P)), ("one step a token",)),
    "softmax without q": (lambda: exp(q=None), ('readout "exp" needs q',)),
    "softmax, constant q": (lambda: exp(q=r(H, N)), ('readout "exp" needs q',)),
    "softmax, complex values": (lambda: exp(v=r(B, T, H, P) + 0j), ("real values v",)),
    # what is asked of it
    "one token": (lambda: system()[0], ("system[start:stop]",)),
    "every other token": (lambda: system()[::2], ("system[start:stop]",)),
    "half a token": (lambda: system()[0.5:1], ("whole numbers",)),
    "a head too far": (lambda: system().select_heads([4]), ("heads [4]", "0..3")),
    "half a head": (lambda: system().select_heads([0.5]), ("whole numbers",)),
    "no head": (lambda: system().select_heads([]), ("no heads",)),
    "a query too far": (lambda: system().coefficients(queries=[7]), ("queries [7]", "0..6")),
    "too large": (lambda: system().coefficients(limit=10), ("limit", "queries=")),
    "weights of vectors": (lambda: sf.System(None, r(B, T, H, N), None).coefficients(), ("contributions()",)),
    "cast to integers": (lambda: system().to(torch.int64), ("torch.int64", "floating")),
    "matrices of softmax": (lambda: exp().matrices(), ("no finite state", "coefficients()")),
    "stabilised without a gate": (lambda: sf.stabilise(system()), ("log_b",)),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_that_does_not_fit_is_refused(name: str) -> None:
    make, words = SYSTEMS[name]
    with refused(*words):
        make()


# -- run ----------------------------------------------------------------------------------------------------------


def pack() -> sf.System:
    return system(q=r(1, T, H, N), k=r(1, T, H, N), v=r(1, T, H, P))


def ends(*at: float, **kwargs: Any) -> Tensor:
    return torch.tensor(at, **kwargs)


def cache(**parts: Tensor | None) -> sf.State:
    """The state of softmax after five tokens, with parts replaced or (None) left out."""
    whole = {"keys": r(B, 5, H, N), "values": r(B, 5, H, P), "position": torch.full((B,), 5), **parts}
    return sf.State({name: x for name, x in whole.items() if x is not None})


def from_state(state: object, of: sf.System | None = None) -> Callable[[], object]:
    return lambda: sf.run(system() if of is None else of, initial_state=state)  # type: ignore[arg-type]


def with_ends(cu_seqlens: object) -> Callable[[], object]:
    return lambda: sf.run(pack(), cu_seqlens=cu_seqlens)  # type: ignore[arg-type]


RUNS: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "no system": (lambda: sf.run(r(3)), ("system is a Tensor", "layer.system(x)")),  # type: ignore[arg-type]
    "unknown form": (lambda: sf.run(system(), "chunkwize"), ("unknown form 'chunkwize'", "did you mean chunkwise?")),
    "no form": (lambda: sf.run(system(), None), ("unknown form None", "auto")),  # type: ignore[arg-type]
    "no convolution": (
        lambda: sf.run(system(log_decay=u(B, T, H)), "convolution"),
        ("convolution", "time-invariant", "q, k, log_decay", "Forms that do: chunkwise, matrix, recurrent"),
    ),
    "no scan": (lambda: sf.run(system(), "scan"), ("scan", "n = 1 or p = 1", "Forms that do")),
    "no scan of softmax": (lambda: sf.run(exp(), "scan"), ("softmax has none", "Forms that do")),
    "no chunks of a dense system": (lambda: sf.run(system(transition=r(H, N, N)), "chunkwise"), ("dense",)),
    "no steps into the future": (lambda: sf.run(exp(causal=False), "recurrent"), ("non-causal", "matrix")),
    "a state before the future": (from_state(cache(), exp(causal=False)), ("non-causal", "initial_state")),
    "a state after the future": (lambda: sf.run(exp(causal=False), return_state=True), ("non-causal", "return_state")),
    # states
    "state of a wrong shape": (from_state(r(B, H, N, P + 1)), ("[2, 4, 6, 4]", "[2, 4, 6, 3]")),
    "state of a wrong rank": (from_state(r(B, N, P)), ("[2, 6, 3]", "[2, 4, 6, 3]")),
    "state without rank": (from_state(torch.tensor(1.0)), ("[rows, ...]",)),
    "state of other rows": (from_state(r(B + 1, H, N, P)), ("3 rows", "expected 2")),
    "state of double precision": (from_state(r(B, H, N, P).double()), ("torch.float64", "state.to(dtype)")),
    "state of integers": (from_state(torch.ones(B, H, N, P).long()), ("torch.int64", "state.to(dtype)")),
    "complex state": (from_state(r(B, H, N, P) + 0j), ("state is complex", "system real")),
    "state on another device": (from_state(r(B, H, N, P).to("meta")), ("meta", "cpu", "state.to(device)")),
    "state in a list": (from_state([[0.0]]), ("initial_state is a list", "State or a tensor")),
    "state in a dict": (from_state({"S": r(B, H, N, P)}), ("initial_state is a dict",)),
    "empty state": (from_state(sf.State({})), ("holds nothing", "expected S")),
    "state of softmax": (from_state(cache()), ("holds keys, values, position", "expected S")),
    "no normaliser": (from_state(r(B, H, N, P), system(eta="sum")), ("[2, 4, 6, 4]", "last column")),
    "scale of a wrong shape": (
        from_state(sf.State({"S": r(B, H, N, P + 1), "log_scale": r(B, 1)}), system(eta="sum", log_b=r(B, T, H))),
        ("log_scale", "[2, 1]", "[2, 4]"),
    ),
    "softmax, a tensor": (from_state(r(B, H, N, P), exp()), ("cache", "return_state=True")),
    "softmax, a matrix": (from_state(sf.State({"S": r(B, H, N, P)}), exp()), ("holds S", "expected keys")),
    "softmax, no values": (from_state(cache(values=None), exp()), ("expected keys, values, position",)),
    "softmax, no position": (from_state(cache(position=None), exp()), ("expected keys, values, position",)),
    "softmax, no angle": (from_state(cache(), exp(phase=u(H, N))), ("expected keys, values, position, angle",)),
    "softmax, no weights": (from_state(cache(), exp(forget=u(H))), ("position, log_weight",)),
    "softmax, double": (from_state(cache(keys=r(B, 5, H, N).double()), exp()), ("torch.float64", "state.to(dtype)")),
    # packs
    "ends in a list": (with_ends([0, 3, 7]), ("cu_seqlens is a list", "integer tensor [N+1]")),
    "ends as floats": (with_ends(ends(0.0, 7.0)), ("torch.float32 of shape [2]", "integer tensor")),
    "ends as booleans": (with_ends(ends(False, True)), ("torch.bool", "integer tensor")),
    "ends with two axes": (with_ends(ends(0, 7)[None]), ("[1, 2]", "integer tensor [N+1]")),
    "no ends": (with_ends(ends(dtype=torch.long)), ("of shape [0]", "integer tensor [N+1]")),
    "decreasing ends": (with_ends(ends(0, 5, 3, 7)), ("decreases from 5 to 3 at index 2",)),
    "negative ends": (with_ends(ends(0, -3, 7)), ("decreases from 0 to -3",)),
    "ends too soon": (with_ends(ends(0, 3, 6)), ("ends at 6", "tokens, 7")),
    "ends too late": (with_ends(ends(0, 3, 8)), ("ends at 8", "tokens, 7")),
    "a late start": (with_ends(ends(1, 7)), ("starts at 1", "expected 0")),
    "ends on another device": (with_ends(ends(0, 7, device="meta")), ("cu_seqlens is on meta", ".to(device)")),
    "a pack of two rows": (lambda: sf.run(system(), cu_seqlens=ends(0, 7)), ("one row (B = 1)", "B = 2")),
    "a pack with a state of other rows": (
        lambda: sf.run(pack(), cu_seqlens=ends(0, 3, 7), initial_state=r(3, H, N, P)),
        ("3 rows", "expected 2"),
    ),
    "a pack in an unknown form": (lambda: sf.run(pack(), "fast", cu_seqlens=ends(0, 7)), ("unknown form 'fast'",)),
    "an empty pack in an unknown form": (lambda: sf.run(pack()[:0], "fast", cu_seqlens=ends(0)), ("'fast'",)),
    # values
    "nan": (lambda: sf.run(system(q=r(B, T, H, N) * NAN)), ("q holds nan at index (0, 0, 0, 0)", "finite")),
    "inf": (lambda: sf.run(system(v=r(B, T, H, P).fill_(INF))), ("v holds inf", "sf.validate(False)")),
    "inf and -inf": (lambda: sf.run(system(v=r(B, T, H, P) * INF)), ("v holds", "inf at index")),
    "an infinite decay": (lambda: sf.run(system(log_decay=-u(B, T, H) * INF)), ("log_decay holds inf", "or -inf")),
    "an infinite rate": (lambda: sf.run(system(log_decay=(u(B, T, H), r(H).fill_(INF)))), ("log_decay[1] holds",)),
    "no sign": (lambda: sf.run(system(sign=torch.full((H,), 2.0))), ("sign holds 2.0", "1 or -1")),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_cannot_be_is_refused(name: str) -> None:
    call, words = RUNS[name]
    with refused(*words):
        call()


def test_a_cache_of_another_shape_is_refused() -> None:
    for state in (cache(keys=r(B, 5, H, N + 1)), cache(keys=r(B, 5, 2, N)), cache(keys=r(B, 4, H, N))):
        with refused("the state holds keys", "return_state=True"):
            sf.run(exp(), initial_state=state)


def test_values_are_not_looked_at_where_the_user_says_so() -> None:
    with sf.validate(False):
        assert sf.run(system(q=r(B, T, H, N) * NAN)).isnan().all()  # type: ignore[union-attr]
        with sf.validate(True), refused("q holds nan"):
            sf.run(system(q=r(B, T, H, N) * NAN))
    with refused("q holds nan"):
        sf.run(system(q=r(B, T, H, N) * NAN))


def test_large_values_are_finite() -> None:
    sf.run(system(v=torch.full((B, T, H, P), 1e38)))  # their sum is not


# -- layers -------------------------------------------------------------------------------------------------------


def layer(name: str = "gated_deltanet", **options: Any) -> Any:
    torch.manual_seed(0)
    return sf.build(name, **{"d_model": D, **options})


def spoiled(at: tuple[int, int]) -> Tensor:
    x = r(B, T, D)
    x[(*at, 2)] = NAN
    return x


def mask(**rows: tuple[int, int]) -> Tensor:
    """Ones, and row i (given as r0, r1) kept from one position to another."""
    out = torch.ones(B, T)
    for row, (low, high) in rows.items():
        out[int(row[1:])] = 0
        out[int(row[1:]), low:high] = 1
    return out


def holed() -> Tensor:
    out = mask()
    out[1, 3] = 0
    return out


CALLS: dict[str, tuple[Callable[[Any], object], tuple[str, ...]]] = {
    "rank": (lambda m: m(r(T, D)), ("x has shape [7, 16]", "[B,T,16]")),
    "width": (lambda m: m(r(B, T, D + 1)), ("width 17", "d_model = 16")),
    "tokens": (lambda m: m(torch.ones(B, T).long()), ("torch.int64", "embed tokens")),
    "complex": (lambda m: m(r(B, T, D) + 0j), ("torch.complex64", "real")),
    "an array": (lambda m: m(np.ones((B, T, D))), ("x is a ndarray", "tensor")),
    "double": (lambda m: m(r(B, T, D).double()), ("torch.float64", "layer torch.float32", ".to(dtype)")),
    "half": (lambda m: m(r(B, T, D).half()), ("torch.float16", ".to(dtype)")),
    "device": (lambda m: m(r(B, T, D).to("meta")), ("x is on meta, the layer on cpu", ".to(device)")),
    "nan": (lambda m: m(spoiled((1, 3))), ("x holds nan at index (1, 3, 2)", "attention_mask")),
    "nan at a token": (lambda m: m(spoiled((1, 3)), attention_mask=mask(r1=(0, 5))), ("unmasked", "(1, 3, 2)")),
    "nan in a pack": (lambda m: m(spoiled((0, 3))[:1], cu_seqlens=ends(0, 7)), ("x holds nan at index (0, 3, 2)",)),
    "mask with a hole": (lambda m: m(r(B, T, D), attention_mask=holed()), ("hole in row 1", "left or right")),
    "mask of a wrong shape": (lambda m: m(r(B, T, D), attention_mask=torch.ones(B, T + 1)), ("[2, 8]", "[2, 7]")),
    "mask of pairs": (lambda m: m(r(B, T, D), attention_mask=torch.ones(B, 1, T, T)), ("[2, 1, 7, 7]", "[2, 7]")),
    "mask in a list": (lambda m: m(r(B, T, D), attention_mask=[[1] * T] * B), ("a list", "[2, 7]")),
    "mask to add": (
        lambda m: m(r(B, T, D), attention_mask=torch.where(mask(r1=(3, 7)) > 0, 0.0, -INF)),
        ("attention_mask holds -inf at index (1, 0)", "expected 0 or 1"),
    ),
    "mask of weights": (lambda m: m(r(B, T, D), attention_mask=mask() / 2), ("holds 0.5", "expected 0 or 1")),
    "mask on another device": (lambda m: m(r(B, T, D), attention_mask=mask().to("meta")), ("is on meta",)),
    "mask and ends": (
        lambda m: m(r(1, T, D), attention_mask=mask()[:1], cu_seqlens=ends(0, T)),
        ("attention_mask or cu_seqlens", "not both"),
    ),
    "ends in a list": (lambda m: m(r(1, T, D), cu_seqlens=[0, T]), ("cu_seqlens is a list",)),
    "ends too soon": (lambda m: m(r(1, T, D), cu_seqlens=ends(0, T - 1)), ("ends at 6", "tokens, 7")),
    "a pack of two rows": (lambda m: m(r(B, T, D), cu_seqlens=ends(0, T)), ("B = 2",)),
    "an unknown form": (lambda m: m(r(B, T, D), form="chunk"), ("unknown form 'chunk'", "chunkwise")),
    "an unknown form of nothing": (lambda m: m(r(B, 0, D), form="chunk"), ("unknown form 'chunk'",)),
    "a form that does not exist": (lambda m: m(r(B, T, D), form="convolution"), ("does not exist", "Forms that do")),
    "state of another batch": (lambda m: m(r(B, T, D), initial_state=m.init_state(3)), ("3 rows", "input 2")),
    "state of a pack": (
        lambda m: m(r(1, T, D), cu_seqlens=ends(0, 3, T), initial_state=m.init_state(1)),
        ("1 rows", "input 2"),
    ),
    "a tensor as state": (lambda m: m(r(B, T, D), initial_state=r(B, 3)), ("initial_state is a Tensor", "State")),
    "state of another layer": (
        lambda m: m(r(B, T, D), initial_state=layer("linear").init_state(B)),
        ("belongs to Linear-", "GatedDeltaNet-", "init_state(batch)"),
    ),
    "state of other options": (
        lambda m: m(r(B, T, D), initial_state=layer(allow_negative_eigenvalues=True).init_state(B)),
        ("belongs to GatedDeltaNet-", "same class, options and sizes"),
    ),
    "state of other sizes": (
        lambda m: m(r(B, T, D), initial_state=layer(d_state=2).init_state(B)),
        ("belongs to GatedDeltaNet-", "same class, options and sizes"),
    ),
    "a bare state": (lambda m: m(r(B, T, D), initial_state=sf.State({"S": r(B, 1)})), ("a bare system",)),
    "an empty state": (lambda m: m(r(B, T, D), initial_state=sf.State({}, m.fingerprint)), ("0 rows",)),
    "state on another device": (
        lambda m: m(r(B, T, D), initial_state=m.init_state(B).to("meta")),
        ("state is on meta, x on cpu", "state.to(device)"),
    ),
    "state of double precision": (
        lambda m: m(r(B, T, D), initial_state=m.init_state(B).to(torch.float64)),
        ("torch.float64", "state.to(dtype)"),
    ),
    "rows below 0": (lambda m: m.init_state(-1), ("batch is -1", "0 or more")),
    "half a row": (lambda m: m.init_state(2.5), ("batch is 2.5", "0 or more")),
    "a step of two tokens": (lambda m: m.step(r(B, 2, D), m.init_state(B)), ("x_t has shape", "[B,16]")),
    "a step of a list": (lambda m: m.step([1.0], m.init_state(B)), ("x_t is a list", "[B,16]")),
    "a step of another width": (lambda m: m.step(r(B, D + 1), m.init_state(B)), ("width 17",)),
    "a step of other rows": (lambda m: m.step(r(B, D), m.init_state(1)), ("1 rows",)),
    "a step from nowhere": (lambda m: m.step(r(B, D), None), ("state is a NoneType", "init_state(batch)")),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_does_not_fit_is_refused(name: str) -> None:
    call, words = CALLS[name]
    m = layer()
    before = {k: x.clone() for k, x in m.state_dict().items()}
    with refused(*words):
        call(m)
    assert all(torch.equal(x, before[k]) for k, x in m.state_dict().items())


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", sf.names())
def test_every_layer_refuses_what_is_no_input(name: str) -> None:
    m = layer(name)
    for x in (r(T, D), r(B, T, D + 1), torch.ones(B, T).long(), r(B, T, D).double(), spoiled((0, 0)), r(B, T, D) + 0j):
        with refused("x "):
            m(x)
    with refused("belongs to"):
        m(r(B, T, D), initial_state=layer("retention" if name == "linear" else "linear").init_state(B))
    with refused("hole"):
        m(r(B, T, D), attention_mask=holed())


@pytest.mark.parametrize("name", sf.names())
def test_masked_positions_are_not_looked_at(name: str) -> None:
    m, keep = layer(name), mask(r1=(4, 7))
    with torch.no_grad():
        y, state = m(spoiled((1, 3)), attention_mask=keep, return_state=True)
        assert bool(torch.isfinite(y).all())
        for key, x in state.tensors.items():  # the weight of what is hidden is 0
            assert bool((x.isfinite() | (x == -torch.inf) if key == "log_weight" else x.isfinite()).all())


# -- options ------------------------------------------------------------------------------------------------------

# By the type in the signature; then values of the right type that do not fit, by name.
WRONG_TYPE: dict[object, tuple[object, ...]] = {
    int: (2.5, "8", True, NAN),
    float: ("x", True, NAN, [1.0]),
    bool: ("yes", 1, 0.0),
    str: (1, b"x"),
}
SIZE = (0, -1)
POSITIVE = (0, -1.0, INF)
WRONG_VALUE: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("d_model", "d_state", "expand", "dt_rank", "gate_rank"), SIZE),
    **dict.fromkeys(("mix_rank", "decay_rank", "rate_rank", "value_rank"), SIZE),
    **dict.fromkeys(("n_heads", "n_kv_heads", "n_groups", "d_head"), (*SIZE, 3)),
    **dict.fromkeys(("rope_base", "gate_temperature", "gate_cap", "c", "max_phase", "norm_eps"), POSITIVE),
    **dict.fromkeys(("least_ridge", "ridge_ratio"), POSITIVE),
    **dict.fromkeys(("base_lr", "beta"), POSITIVE),
    **dict.fromkeys(("block", "rows", "updates"), SIZE),
    "d_conv": (*SIZE, 1),
    "dt_min": (*POSITIVE, 1.0),
    "dt_max": (*POSITIVE, 1e-4),
    "r_min": (-0.1, 1.0),
    "r_max": (0.0, 1.1),
}
ODD = ("softmax", "retention", "s4d", "s5")
"""Layers whose keys come in pairs."""
DIVIDED = (
    "softmax", "linear", "normalized", "retention", "gla", "deltanet", "gated_deltanet", "mlstm", "rg_lru",
    "hopfield", "ttt_linear",
)  # fmt: skip
"""Layers whose width is divided among heads."""


def misfits(name: str) -> Iterator[tuple[str, object]]:
    """Options of a layer with values that they cannot have."""
    cls = REGISTRY[name].cls
    for option, hint in get_type_hints(cls.__init__).items():
        if option not in accepted(cls):
            continue
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if type(None) not in kinds:
            yield option, None
        for kind in kinds:
            wrong = ("nothing of the kind",) if get_origin(kind) is Literal else WRONG_TYPE.get(kind, ())
            yield from ((option, value) for value in wrong)
        yield from ((option, value) for value in WRONG_VALUE.get(option, ()))
    if name in DIVIDED:
        yield "d_model", D - 1
    if name in ODD:
        yield "d_state", 3


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", sf.names())
def test_every_option_is_checked(name: str) -> None:
    for option, value in misfits(name):
        with pytest.raises(sf.StateformError) as caught:
            layer(name, **{option: value})
        text = str(caught.value)
        assert "expected" in text or "is not divisible by" in text
        assert "\n" not in text


def test_numbers_of_other_libraries_are_plain_ones() -> None:
    m = sf.build("gla", d_model=np.int64(D), n_heads=np.int32(2), gate_temperature=np.float32(8))
    assert m.fingerprint == sf.build("gla", d_model=D, n_heads=2, gate_temperature=8.0).fingerprint
    assert m(r(B, T, D)).shape == (B, T, D)


# -- build and register -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a user: the current folder, too."""
    layer_file = (
        "import torch, stateform as sf\nfrom torch import nn\n"
        "class {name}(sf.Layer):\n"
        "    def __init__(self, d_model: int, width: int = 1):\n"
        "        super().__init__(d_model)\n        {init}\n        self.proj = nn.Linear(d_model, {out})\n"
        "    def system(self, u, past=None):\n        {body}\n"
    )
    body = "k = self.proj(u).unsqueeze(2); return sf.System(k, k, k)"
    fields = {"name": "Mine", "init": "pass", "out": "d_model", "body": body}
    sources = {
        "good": layer_file.format(**fields),
        "two": layer_file.format(**fields) + "class Other(nn.Module): pass\n",
        "none": "x = 1\n",
        "syntax": "def f(:\n",
        "missing": "import no_such_module\n",
        "leaves": "import sys; sys.exit(3)\n",
        "wild": layer_file.format(**{**fields, "init": "raise ZeroDivisionError('no\\nwidth')"}),
        "raises": layer_file.format(**{**fields, "body": "raise RuntimeError('boom\\nand more')"}),
        "nothing": layer_file.format(**{**fields, "body": "return None"}),
        "wide": layer_file.format(**{**fields, "out": "2 * d_model"}),
        "short": layer_file.format(**{**fields, "body": body.replace("self.proj(u)", "self.proj(u[:, 1:])")}),
        "grows": layer_file.format(**{**fields, "body": body.replace("k, k, k", "k, k, k, log_decay=u.new_ones(1)")})
        + "    contractive = True\n",
        "narrow": layer_file.format(**fields).replace("u, past=None", "u"),
        "interrupts": layer_file.format(
            **{**fields, "body": f"import os; u.shape[1] > 2 and os.kill(os.getpid(), {int(signal.SIGINT)}); {body}"}
        ),
    }
    for name, text in sources.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "a folder (old)").mkdir()
    (tmp_path / "a folder (old)" / "good.py").write_text(sources["good"])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 10)
    (tmp_path / "nan.csv").write_text("1,2\nnan,4\n")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    np.save(tmp_path / "numbers.npy", np.ones((5, 3)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


BUILDS: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "unknown": ("mamb", {}, ("unknown layer 'mamb'", "did you mean mamba, mamba3, mamba2")),
    "far from all": ("zzzzz", {}, ("known names:", "deltanet, ")),
    "empty": ("", {}, ("unknown layer ''", "known names")),
    "brackets": ("qlstm(reversed=True", {}, ("cannot read", "name(option=value, ...)")),
    "no value": ("qlstm(reversed=yes)", {}, ("cannot read", "qlstm(reversed=True)")),
    "no option": ("qlstm(True)", {}, ("cannot read",)),
    "options in a dict": ("qlstm(**{'expand': 2})", {}, ("cannot read",)),
    "twice": ("qlstm(expand=1, expand=2)", {}, ("cannot read",)),
    "a call": ("qlstm(reversed=print(1))", {}, ("cannot read",)),
    "unknown option": ("softmax", {"nheads": 2}, ("softmax has no option 'nheads'", "n_heads, n_kv_heads")),
    "unknown option in brackets": ("qlstm(revers=True)", {}, ("no option 'revers'", "did you mean reversed?")),
    "missing option": ("softmax", {"d_model": None}, ("softmax needs a value for d_model",)),
    "None": (None, {}, ("cannot build a layer from None", "softmax")),
    "a list": (["softmax"], {}, ("cannot build a layer from ['softmax']",)),
    "a path": (Path("good.py"), {}, ("cannot build a layer from", "path/file.py:Class")),
    "no layer": (dict, {}, ("cannot build a layer from dict",)),
    "a layer with options": (nn.Linear(2, 2), {}, ("Linear is a layer already",)),
    "a class with other options": (nn.Linear, {}, ("Linear has no option 'd_model'",)),
    "no file": ("absent.py", {}, ("there is no file absent.py", "path/file.py:Class")),
    "no file with that class": ("absent.py:Mine", {}, ("there is no file absent.py",)),
    "syntax": ("syntax.py", {}, ("syntax.py could not be run: SyntaxError", "line 1")),
    "import": ("missing.py", {}, ("ModuleNotFoundError: No module named 'no_such_module'",)),
    "exit": ("leaves.py", {}, ("SystemExit: 3",)),
    "no layers": ("none.py", {}, ("none.py defines no layer", "stateform.Layer")),
    "several": ("two.py", {}, ("two.py defines 2 layers (Mine, Other)", "two.py:Class")),
    "another class": ("good.py:Mime", {}, ("good.py has no layer 'Mime'", "did you mean Mine?")),
    "option of a file": ("good.py(widht=2)", {}, ("no option 'widht'", "did you mean width?")),
    "type of an option of a file": ("good.py(width='x')", {}, ("width is 'x'", "a whole number")),
    "a layer that cannot be made": ("wild.py", {}, ("wild.py could not be made: ZeroDivisionError: no width",)),
    "a system without past": ("narrow.py", {}, ("Mine defines system(self, u)", "system(self, u, past=None)")),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", BUILDS)
def test_what_cannot_be_built_is_refused(name: str) -> None:
    spec, options, words = BUILDS[name]
    options = {k: v for k, v in {"d_model": D, **options}.items() if v is not None}
    with refused(*words):
        sf.build(spec, **options)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("spec", ["good.py", "good.py:Mine", "good.py:Mine(width=2)", "a folder (old)/good.py:Mine"])
def test_a_file_is_built(spec: str) -> None:
    assert sf.build(spec, d_model=D)(r(B, T, D)).shape == (B, T, D)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing.py", ("Mine.system gave a NoneType", "expected a System")),
        ("wide.py", ("y of shape [2, 7, 32]", "x of shape [2, 7, 16]", "out_proj")),
        ("short.py", ("y of shape [2, 6, 16]", "as long as u")),
        ("grows.py", ("Mine promises a contraction", "exp(1), above 1", "contractive")),
    ],
)
def test_a_layer_that_breaks_its_word_is_refused(spec: str, words: tuple[str, ...]) -> None:
    m = sf.build(spec, d_model=D)
    with refused(*words):
        m(r(B, T, D))
    if spec == "grows.py":
        with sf.validate(False):
            m(r(B, T, D))
        report = sf.check(spec, d_model=8)
        assert "promise: with its own parameters: Mine promises a contraction" in str(report.failures)


@pytest.mark.parametrize("name", [n for n in sf.names() if REGISTRY[n].cls.contractive])  # type: ignore[attr-defined]
def test_a_decay_that_is_no_number_is_named(name: str) -> None:
    m, x = layer(name), r(B, T, D)
    with torch.no_grad():
        for p in m.parameters():
            p.fill_(NAN)
        decay = m.system(x).tensors().get("log_decay")
    if decay is None or not decay.isnan().any():
        m(x)  # its decays are constants
        return
    with refused("a decay of", "is not a number", "parameters"):
        m(x)


def test_names_are_registered_once() -> None:
    with refused("the name 'softmax' is taken by Softmax", "choose another"):
        sf.register("softmax")(nn.Linear)
    for name in ("", "a b", "a(b)", "a.py", 3, nn.Linear):
        with refused("the name of a layer is", '@register("my_layer")'):
            sf.register(name)(nn.Linear)  # type: ignore[arg-type]
    for thing in (len, nn.Linear(2, 2), dict):
        with refused("no class of layers"):
            sf.register("something")(thing)  # type: ignore[type-var]
    assert "something" not in sf.names()


def test_short_convolutions_are_checked() -> None:
    for width in (1, 0, 2.5, "4"):
        with refused("taps", "2 or more"):
            sf.ShortConv(D, width, "conv")  # type: ignore[arg-type]
    with refused("activation is 'relu'"):
        sf.ShortConv(D, 4, "conv", activation="relu")
    with refused("cannot be named 'S'"):
        sf.ShortConv(D, 4, "S")


# -- State --------------------------------------------------------------------------------------------------------


STATES: dict[str, tuple[Callable[[sf.State], object], tuple[str, ...]]] = {
    "a number": (lambda _: sf.State({"S": 3}), ("'S' of this state is a int", "tensor")),  # type: ignore[dict-item]
    "no rows": (lambda _: sf.State({"S": torch.tensor(1.0)}), ("a tensor of shape []", "[rows, ...]")),
    "no name": (lambda _: sf.State({3: r(2)}), ("3 of this state", "expected a name")),  # type: ignore[dict-item]
    "rows that differ": (lambda _: sf.State({"S": r(2, 3), "x": r(3)}), ("'x' of this state has 3 rows, 'S' has 2",)),
    "a list": (lambda _: sf.State([r(2)]), ("made of a list", "dict")),  # type: ignore[arg-type]
    "unknown name": (lambda s: s["T"], ("no 'T'", "S")),
    "a row too far": (lambda s: s.select([2]), ("rows [2]", "among the 2")),
    "half a row": (lambda s: s.select([0.5]), ("rows are [0.5]", "indices")),  # type: ignore[list-item]
    "one row": (lambda s: s.select(1), ("rows are 1", "list or tensor")),  # type: ignore[arg-type]
    "mask of other rows": (lambda s: s.select(torch.ones(3).bool()), ("3 entries", "2 rows")),
    "copies below 0": (lambda s: s.repeat(-1), ("n is -1",)),
    "half a copy": (lambda s: s.repeat(2.5), ("n is 2.5",)),  # type: ignore[arg-type]
    "cast to integers": (lambda s: s.to(torch.int32), ("torch.int32", "floating")),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    call, words = STATES[name]
    with refused(*words):
        call(layer("mamba2").init_state(2))


def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    state = layer("lru").init_state(2)
    state.save(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-10])
    (tmp_path / "cut at the head").write_bytes(data[:5])
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("These are words, and no numbers at all. " * 50)
    save_file({"S": r(2)}, tmp_path / "foreign")
    for name, words in {
        "absent": ("there is no such file",),
        "cut": ("not a whole safetensors file",),
        "cut at the head": ("not a whole safetensors file",),
        "empty": ("not a whole safetensors file",),
        "text": ("not a whole safetensors file",),
        "foreign": ("not a state", "State.save"),
        "": ("it is a folder",),
    }.items():
        with refused(str(tmp_path / name), *words):
            sf.State.load(tmp_path / name)


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = layer("lru").init_state(2)
    state.save(tmp_path / "kept")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with refused("cannot write", "give a path in a folder"):
        state.save(tmp_path / "absent" / "state")
    with refused("it is a folder"):
        state.save(tmp_path)
    with refused("device meta"):
        state.to("meta").save(tmp_path / "kept")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)  # as late as it can fail
    with refused("cannot write", "No space left on device"):
        layer("lru").init_state(3).save(tmp_path / "kept")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# -- nothing to do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sf.names())
@torch.no_grad()
def test_empty_input(name: str) -> None:
    m, x = layer(name), r(B, T, D)
    _, state = m(x, return_state=True)

    def same(a: sf.State, b: sf.State) -> bool:
        return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)

    blank = m.init_state(B)
    for options in ({}, {"attention_mask": torch.ones(B, 0)}):
        y, after = m(x[:, :0], return_state=True, **options)
        assert y.shape == (B, 0, D) and same(after, blank)
        y, after = m(x[:, :0], initial_state=state, return_state=True, **options)
        assert y.shape == (B, 0, D) and same(after, state)
    for options in ({}, {"attention_mask": torch.ones(0, T)}):
        y, after = m(x[:0], return_state=True, **options)
        assert y.shape == (0, T, D) and after.rows == 0
    # Every token masked: nothing was seen.
    y, after = m(x * NAN, attention_mask=torch.zeros(B, T), return_state=True)
    assert torch.equal(y, torch.zeros(B, T, D)) and same(after, blank)
    y, after = m(x * NAN, attention_mask=torch.zeros(B, T), initial_state=state, return_state=True)
    assert same(after, state)
    # One row masked: the other as if alone.
    half = mask(r0=(0, 0))
    y, after = m(x, attention_mask=half, return_state=True)
    want, alone = m(x[1:], return_state=True)
    assert torch.equal(y[0], torch.zeros(T, D))
    torch.testing.assert_close(y[1:], want)
    for k in alone:
        torch.testing.assert_close(after.select([1])[k], alone[k])
        if k not in CACHES:
            assert torch.equal(after.select([0])[k], blank.select([0])[k])
    # Packs of no sequences, and of empty ones.
    y, after = m(x[:1, :0], cu_seqlens=ends(0), return_state=True)
    assert y.shape == (1, 0, D) and after.rows == 0
    y, after = m(x[:1, :0], cu_seqlens=ends(0, 0, 0), return_state=True)
    assert y.shape == (1, 0, D) and same(after, blank)
    y, after = m(x[:1], cu_seqlens=ends(0, 0, T, T), return_state=True)
    assert same(after.select([0]), blank.select([0])) or "values" in after
    torch.testing.assert_close(y, m(x[:1]))


@pytest.mark.parametrize("name", sf.names())
@torch.no_grad()
def test_one_token(name: str) -> None:
    m, x = layer(name), r(B, 1, D)
    want, state = m.step(x[:, 0], m.init_state(B))
    for options in ({}, {"attention_mask": torch.ones(B, 1)}, {"initial_state": m.init_state(B)}):
        y, after = m(x, return_state=True, **options)
        torch.testing.assert_close(y[:, 0], want)
        for k in state:
            torch.testing.assert_close(after[k], state[k])
    for form, why_not in m.system(x).forms().items():
        if why_not is None:
            torch.testing.assert_close(m(x, form=form)[:, 0], want)
    torch.testing.assert_close(m(x[:1], cu_seqlens=ends(0, 1))[:, 0], want[:1])


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.parametrize("shape", [(B, 0), (0, T), (0, 0)])
@torch.no_grad()
def test_systems_of_nothing(name: str, shape: tuple[int, int]) -> None:
    s = layer(name, **({"d_state": 2} if name in ("mamba2", "s4d") else {})).system(r(*shape, D))
    assert shape == (s.B, s.T)
    assert f"B={shape[0]}, T={shape[1]}" in repr(s)
    whole = sf.run(s)
    for form, why_not in s.forms().items():
        if why_not is None:
            y, state = sf.run(s, form, return_state=True)
            assert y.shape == whole.shape and state.rows == shape[0]  # type: ignore[union-attr]
    assert s.contributions().shape[:1] == shape[:1]
    assert s.spectrum(normalised=True).shape[-2:] == (s.H, s.n) or s.readout.cached
    if s.readout.linear and s.log_b is None:
        assert s.matrices(normalised=True).Lambda.shape[:2] == shape


# -- the command line ---------------------------------------------------------------------------------------------


def command(*words: str) -> tuple[int, str, str]:
    """Run the command in this process: exit code, stdout, stderr."""
    done = program(*words)
    return done.returncode, done.stdout, done.stderr


COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown layer": ("compare mamb", ("did you mean mamba, mamba3, mamba2",)),
    "unknown option": ("compare qlstm(revers=True)", ("did you mean reversed?",)),
    "broken brackets": ("compare qlstm(reversed=True", ("cannot read",)),
    "no text": ("compare linear --text absent.txt", ("cannot read the text absent.txt",)),
    "empty text": ("compare linear --text empty.txt", ("empty.txt is empty",)),
    "one byte": ("compare linear --text one.txt", ("one.txt has 1 byte", "at least 2")),
    "text is a folder": ("compare linear --text .", ("cannot read the text",)),
    "an array as text": ("compare linear --text numbers.npy", ("an array of numbers, not a text", "--data")),
    "a text as numbers": ("compare linear --data text.txt", ("text.txt is no file of numbers", ".npy, .csv, .wav")),
    "no numbers": ("compare linear --data absent.csv", ("cannot read the numbers absent.csv",)),
    "numbers with NaN": ("compare linear --data nan.csv", ("nan.csv holds nan at step 1, number 0",)),
    "ragged rows": ("compare linear --data ragged.csv", ("line 2 of ragged.csv has 1 cells, line 1 has 2",)),
    "numbers of another width": ("compare linear --data numbers.npy", ("has 3 numbers a step", "64", "--project")),
    "a text and numbers": ("compare linear --text text.txt --data numbers.npy", ("a text and numbers were given",)),
    "analyze: another width": ("analyze linear --data numbers.npy", ("has 3 numbers a step", "linear reads 64")),
    "check: numbers with NaN": ("check linear --data nan.csv", ("nan.csv holds nan",)),
    "check: another width": ("check linear --data numbers.npy", ("has 3 numbers a step", "linear reads 32")),
    "check: numbers for a model": ("check ./absent --data numbers.npy", ("./absent is a pretrained model", "--data")),
    "open: numbers with NaN": ("open absent --data nan.csv", ("nan.csv holds nan",)),
    "reduce: numbers with NaN": ("reduce absent --data nan.csv", ("nan.csv holds nan",)),
    "reduce: a text and numbers": ("reduce absent --text text.txt --data nan.csv", ("a text and numbers were given",)),
    "no folder for the page": ("compare linear --html absent/x.html", ("cannot write absent/x.html", "no folder")),
    "the page is a folder": ("compare linear --html .", ("cannot write", "folder")),
    "no folder for the numbers": ("compare linear --json absent/x.json", ("cannot write absent/x.json", "no folder")),
    "the numbers are a folder": ("compare linear --json .", ("cannot write", "folder")),
    "dtype": ("compare linear --dtype float8", ("dtype is 'float8'", "float32")),
    "no length": ("compare linear --max-length 0", ("max_length is 0", "2 tokens or more")),
    "a length below 0": ("compare linear --max-length -4", ("max_length is -4",)),
    "no repeats": ("compare linear --repeats 0", ("repeats is 0",)),
    "no width": ("compare linear --d-model 0", ("d_model is 0",)),
    "a width that does not divide": ("compare linear --d-model 30", ("30 is not divisible by n_heads = 4",)),
    "no heads": ("compare linear --n-heads 0", ("n_heads is 0",)),
    "no keys": ("compare linear --d-state 0", ("d_state is 0",)),
    "no file": ("compare absent.py", ("there is no file absent.py",)),
    "file of no layers": ("compare none.py", ("none.py defines no layer",)),
    "file of several": ("compare two.py", ("two.py defines 2 layers",)),
    "file with an error": ("compare syntax.py", ("syntax.py could not be run: SyntaxError",)),
    "file that exits": ("compare leaves.py", ("SystemExit: 3",)),
    "layer that cannot be made": ("compare wild.py", ("wild.py could not be made: ZeroDivisionError",)),
    "compare: a seed of 71 bits": (f"compare linear --seed {2**70}", (f"seed is {2**70}", "64 bits")),
    "check: a seed of 71 bits": (f"check linear --seed {2**70}", (f"seed is {2**70}", "64 bits")),
    "analyze: a seed of 71 bits": (f"analyze linear --seed {2**70}", (f"seed is {2**70}", "64 bits")),
    "bench: a seed of 71 bits": (f"bench --layers linear --seed {2**70}", (f"seed is {2**70}", "64 bits")),
    "bench: no repeats": ("bench --layers linear --repeats 0", ("repeats is 0; expected 1 or more",)),
    "bench of a model: a seed": (f"bench --model absent --seed {2**70}", (f"seed is {2**70}", "64 bits")),
    "bench of a model: no repeats": ("bench --model absent --repeats 0", ("repeats is 0; expected 1 or more",)),
    "check: unknown layer": ("check mamb", ("did you mean mamba, mamba3, mamba2",)),
    "check: unknown layer after a known one": ("check linear mamb", ("did you mean mamba, mamba3, mamba2",)),
    "check: no width": ("check linear --d-model 0", ("d_model is 0",)),
    "check: file of no layers": ("check none.py", ("none.py defines no layer",)),
    "check: file with an error": ("check syntax.py", ("SyntaxError",)),
    "check: no file": ("check absent.py", ("there is no file absent.py",)),
}


RAISES: dict[str, tuple[str, ...]] = {
    "raises.py": ("raises.py", "RuntimeError: boom"),
    "nothing.py": ("nothing.py", "expected a System"),
    "wide.py": ("wide.py", "y of shape", "out_proj"),
    "grows.py": ("grows.py", "promises a contraction"),
}


@pytest.mark.parametrize("name", RAISES)
def test_a_layer_that_raises_is_refused_before_the_comparison(name: str, folder: Path) -> None:
    refuses(f"compare linear {name} --max-length 64", RAISES[name], folder)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_be_run_is_refused(name: str, folder: Path) -> None:
    refuses(*COMMANDS[name], folder)


def refuses(text: str, words: tuple[str, ...], folder: Path) -> None:
    before = sorted(folder.iterdir())
    code, out, err = command(*text.split())
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("stateform: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert [p for p in sorted(folder.iterdir()) if p.name != "__pycache__"] == before


@pytest.mark.usefixtures("folder")
def test_a_layer_that_raises_fails_its_check() -> None:
    code, out, err = command("check", "raises.py", "--d-model", "8")
    assert code == 1
    assert err == ""
    assert "BROKEN" in out
    assert "RuntimeError: boom" in out
    assert "Traceback" not in out


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_comparison_gives_what_was_finished(folder: Path) -> None:
    """The second layer sends SIGINT while the first one is finished."""
    words = "compare linear interrupts.py --max-length 64 --text text.txt --json found.json --html found.html"
    done = program(*words.split(), cwd=folder)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "nterrupted" in done.stderr
    found = json.loads((folder / "found.json").read_text())
    assert found["complete"] is False
    assert [row["name"] for row in found["layers"]] == ["linear"]
    assert "linear" in (folder / "found.html").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_check_gives_what_was_finished(folder: Path) -> None:
    done = program("check", "linear", "interrupts.py", "--d-model", "8", cwd=folder)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "linear: the contract holds" in done.stdout
    assert "Interrupted after 1 of 2 layers" in done.stderr


# -- text files of the user ---------------------------------------------------------------------------------------

SETTINGS = '# größer\ntask = "mqar"\n[train]\nsteps = 3\n'
WRITTEN = {
    "plain": SETTINGS.encode(),
    "with a byte-order mark": SETTINGS.encode("utf-8-sig"),
    "lines of Windows": SETTINGS.replace("\n", "\r\n").encode(),
    "UTF-16": SETTINGS.encode("utf-16"),
    "UTF-16 of the other kind": codecs.BOM_UTF16_BE + SETTINGS.encode("utf-16-be"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_toml_file_is_read_however_an_editor_saved_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(WRITTEN[name])
    assert read_toml(tmp_path / "a.toml") == {"task": "mqar", "train": {"steps": 3}}


TOMLS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "another encoding": (SETTINGS.encode("cp1252"), ("is no text in UTF-8", "byte 4 is 0xf6", "save it in UTF-8")),
    "half a letter": (codecs.BOM_UTF16_LE + b"a", ("is no text in UTF-16-LE",)),
    "nested": (b"x = " + b"[" * 10**5, ("as TOML", "nested too deeply")),
    "a number of 40 digits": (b"x = [1, {y = " + b"9" * 40 + b"}]", ("whole number of 133 bits", "64 at most")),
    "a number of 5000 digits": (b"x = " + b"9" * 5000, ("as TOML",)),
    "a long number": (b"x = 0x" + b"f" * 5000, ("whole number of 20000 bits", "64 at most")),
    "no value": (b"x = ", ("as TOML", "Invalid value")),
}


@pytest.mark.parametrize("name", TOMLS)
def test_a_toml_file_that_cannot_be_used_is_refused(name: str, tmp_path: Path) -> None:
    data, words = TOMLS[name]
    (tmp_path / "a.toml").write_bytes(data)
    with refused("a.toml", *words):
        read_toml(tmp_path / "a.toml")


def test_a_value_that_is_none_in_toml_is_a_word() -> None:
    assert [read_value(text) for text in ("3", "linear", "[" * 10**5, "")] == [3, "linear", "[" * 10**5, ""]
