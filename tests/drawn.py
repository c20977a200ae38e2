"""Systems of every combination of parts, drawn at random and held against the definition.

A Recipe says in plain values which parts a system has; `made` turns it into tensors, and `differences` computes it in
every form and compares. A recipe that fails is one line to keep as a test. To draw many and count their structures:

    python -m tests.drawn 20000 --seed 0
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import stateform as sf
from stateform.contract.definition import defined, defined_coefficients
from stateform.forms import exists
from stateform.system.precision import HALF, UNIT, relative_error, tolerance

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TEMPERS = ("own", "forgetful", "lasting", "reset", "growing")
LAYOUTS = ("contiguous", "transposed", "strided", "expanded", "conjugate")
PER_TOKEN = ("q", "d", "eta", "eta_floor", "forget", "bias", "sink", "sink_value", "ridge", "mix")
OF_ONE_LAYOUT = ("distance", "blocks", "sink_value")
INPUTS = 2
"""Of w_in."""
LARGEST = 2**25
"""Numbers of the matrix form that are still computed."""


@dataclass(frozen=True)
class Recipe:
    """What a system is made of; its printed form shows what differs from the plainest one."""

    dtype: str = "float64"
    B: int = 1
    T: int = 3
    H: int = 1
    n: int = 1
    p: int = 1
    micro: int = 1
    readout: str = "linear"
    q: str = "vector"
    """vector, outputs, none"""
    v: bool = True
    w_in: bool = False
    w_out: bool = False
    decay: str = "identity"
    """identity, scalar, diagonal, product, product diagonal, dense"""
    temper: str = "own"
    sign: str = ""
    phase: str = ""
    """scalar, diagonal"""
    feedback: str = ""
    """delta, keys, any"""
    strength: str = ""
    """b, log_b"""
    spread: float = 1.0
    """Standard deviation of log_b."""
    unwritten: bool = False
    """The first tokens and some others write nothing: log_b = -inf."""
    d: bool = False
    eta: str = ""
    """sum, given"""
    floor: str = ""
    """number, tensor"""
    exclusive: bool = False
    positive: bool = False
    window: int | None = None
    causal: bool = True
    sharp: float = 1.0
    """A factor of the logits of softmax."""
    outside: tuple[str, ...] = ()
    """What is added to them: forget, bias, hidden (a bias that hides tokens), distance, blocks, sink; sink_value."""
    cap: float | None = None
    relative: bool = False
    mix: bool = False
    diagonal_ridge: bool = False
    solver: str = ""
    constant: tuple[str, ...] = ()
    """Parts without a time axis."""
    shared: tuple[tuple[str, int], ...] = ()
    """Heads of the parts that have fewer than H."""
    is_complex: tuple[str, ...] = ()
    layout: str = "contiguous"
    state: str = ""
    """S, scaled, prefix"""
    pack: tuple[int, ...] = ()
    """Lengths of packed sequences."""
    seed: int = 0

    def __repr__(self) -> str:
        plain = Recipe()
        given = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return f"Recipe({', '.join(f'{name}={x!r}' for name, x in given if x != getattr(plain, name))})"

    def parts(self) -> Iterator[str]:
        """What differs from the plainest one, sizes and random numbers aside."""
        for f in fields(self):
            x = getattr(self, f.name)
            if f.name in ("B", "T", "H", "n", "p", "seed") or x == f.default:
                continue
            if f.name in ("constant", "is_complex", "shared", "outside"):
                yield from (f"{f.name} {part if isinstance(part, str) else part[0]}" for part in x)
            else:
                yield f.name if f.name == "pack" else f"{f.name} {x}"
        if self.has_exponential_gates:  # which have a mechanism of their own
            yield "exponential gates"

    @property
    def has_exponential_gates(self) -> bool:
        """True if the state has a scale of its own (see `stabilise`)."""
        return self.readout == "linear" and self.strength == "log_b" and self.eta == "sum"

    def tags(self) -> Iterator[str]:
        """The structures that a recipe counts for."""
        yield f"readout {self.readout}"
        yield f"decay {self.decay}" + (", constant" if "log_decay" in self.constant else "")
        yield f"dtype {self.dtype}"
        yield f"eta {self.eta or 'none'}" + (f", floor {self.floor}" if self.floor else "")
        yield next(f"T up to {top}" for top in (0, 1, 8, 64, 200, 1000) if top >= self.T)
        yield f"layout {self.layout}"
        if self.B == 0:
            yield "B = 0"
        if self.sharp > 1:
            yield f"logits times {self.sharp:g}, {self.dtype}"
        if self.decay not in ("identity", "dense"):
            yield f"temper {self.temper}"
        for name in ("sign", "phase", "feedback", "strength", "solver", "state"):
            if getattr(self, name):
                yield f"{name} {getattr(self, name)}"
        for name in ("d", "exclusive", "w_in", "w_out", "window", "relative", "mix", "pack", "shared", "is_complex",
                     "unwritten"):  # fmt: skip
            if getattr(self, name):
                yield name
        if self.has_exponential_gates:
            yield "exponential gates" + (", feedback" if self.feedback else "")
        if self.micro > 1:
            yield "micro"
        for name in self.outside:
            yield f"outside {name}"
        if self.cap:
            yield "cap"
        if self.readout == "exp" and (self.feedback or self.sign or self.decay != "identity"):
            yield "inside softmax: " + ", ".join(filter(None, (self.decay, self.sign and "sign", self.phase and "phase",
                                                               self.feedback and "feedback")))  # fmt: skip
        if not self.causal:
            yield "not causal"
        if not self.v:
            yield "v none"
        if self.q != "vector":
            yield f"q {self.q}"


# -- the strategy ----------------------------------------------------------------------------------------------------

LENGTHS = (
    *[range(10)] * 18, *[range(2, 25)] * 9, *[(31, 40, 63, 64, 65)] * 2,
    (65, 66, 70, 80, 129, 150, 200, 257, 400, 1000),
)  # fmt: skip


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes of systems that exist."""
    return recipe_of(lambda options: draw(st.sampled_from(options)))


def recipe_of(choose: Callable[[Sequence[Any]], Any]) -> Recipe:
    """A recipe of a system that exists, by choices of one among several."""

    def one(*of: Any) -> Any:
        return choose(of)

    def yes(of: int = 2) -> bool:
        return one(*[False] * (of - 1), True)

    readout = one("linear", "linear", "linear", "exp", "ridge")
    H = one(1, 2, 2, 3, 4, 6)
    out: dict[str, Any] = {
        "readout": readout, "H": H, "T": choose(choose(LENGTHS)), "B": one(1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0),
        "n": one(1, 2, 3, 4, 5), "p": one(1, 2, 3, 4),
        "dtype": one("float64", "float64", "float32", "float32", "float16", "bfloat16"),
        "temper": one(*TEMPERS), "layout": one("contiguous", *LAYOUTS), "d": yes(3), "positive": yes(),
        "seed": choose(range(2**31)), "strength": one("", "b", "log_b", "log_b"),
        "spread": one(0.5, 2.0, 8.0, 25.0) if readout == "linear" else 0.5,
    }  # fmt: skip
    out |= {"linear": _linear, "exp": _exp, "ridge": _ridge}[readout](out, one, yes)
    if out["decay"] in ("identity", "dense") and "forget" not in out.get("outside", ()):
        del out["temper"]
    if out["eta"]:
        out["floor"] = one("", "", "number", "tensor")
    wide = out.get("decay") in ("diagonal", "product diagonal", "dense") or "diagonal" in (
        out.get("sign"), out.get("phase")
    )  # fmt: skip
    if readout == "linear" and out["strength"] == "log_b" and out["eta"] == "sum":
        if wide or out["micro"] > 1:  # refused by `stabilise`
            out["strength"] = "b"
        else:
            out["unwritten"] = yes(4)
    if out["strength"] != "log_b":
        del out["spread"]
    there = _names(out)
    varying = ("q", "k", "v") if readout == "exp" else ("v",) if "v" in there else ("k",)
    still = yes(8)  # as a convolution needs it
    out["constant"] = tuple(x for x in there if x not in varying and (still or yes(3)))
    if yes() and H > 1:
        divisors = [h for h in range(1, H) if H % h == 0]
        whole = one(*[x for x in ("q", "k", "v") if x in there])
        out["shared"] = tuple((x, one(*divisors)) for x in there if x != whole and yes())
    if readout != "ridge" and yes(3):
        of = ("q", "k") if readout == "exp" else ("q", "k", "v", "f", "w", "transition")
        out["is_complex"] = tuple(x for x in of if x in there and yes())
    if out.get("causal", True):
        out["state"] = one("", "", "prefix") if readout == "exp" else one("", "", "S", "scaled", "prefix")
        if out["state"] != "prefix" and yes(4):
            ends = sorted(choose(range(out["T"] + 1)) for _ in range(one(0, 1, 2, 3, 4)))
            out |= {"B": 1, "pack": tuple(b - a for a, b in zip([0, *ends], [*ends, out["T"]], strict=True))}
    return Recipe(**out)


def covering(recipes: Sequence[Recipe], number: int) -> list[Recipe]:
    """Choose the recipes that together hold the most threes of parts: each time the one with the most new ones."""
    threes = [set(itertools.combinations(sorted(x.parts()), 3)) for x in recipes]
    waiting = [(-len(new), i) for i, new in enumerate(threes)]
    heapq.heapify(waiting)
    chosen: list[Recipe] = []
    held: set[tuple[str, ...]] = set()
    while waiting and len(chosen) < number:
        counted, i = heapq.heappop(waiting)
        new = threes[i] - held
        if len(new) < -counted:  # others were chosen since
            heapq.heappush(waiting, (-len(new), i))
        else:
            held |= new
            chosen.append(recipes[i])
    return chosen


def _linear(out: dict[str, Any], one: Callable[..., Any], yes: Callable[..., bool]) -> dict[str, Any]:
    more = {
        "decay": one("identity", "scalar", "scalar", "diagonal", "product", "product diagonal", "dense"),
        "feedback": one("", "", "delta", "keys", "any"), "exclusive": yes(3), "micro": one(1, 1, 1, 2, 3),
        "q": one("vector", "vector", "vector", "outputs", "none"), "v": not yes(5),
        "eta": one("", "sum", "sum", "given"),
    }  # fmt: skip
    if more["decay"] != "dense":
        more |= {"sign": one("", "", "", "scalar", "diagonal"), "phase": one("", "", "", "scalar", "diagonal")}
    if yes(4):  # exponential gates: few of the others have all that they take
        more |= {
            "strength": "log_b", "eta": "sum", "micro": 1, "q": one("vector", "vector", "outputs"),
            "decay": one("identity", "scalar", "scalar", "product"), "sign": one("", "", "scalar"),
            "phase": one("", "", "scalar"),
        }  # fmt: skip
    if more["q"] == "none":
        more |= {"eta": one("", "given"), "w_out": not more["v"] and yes(3)}
    # Layout "expanded" has other numbers: k would no longer be w_in u.
    more["w_in"] = not more["v"] and more["feedback"] != "keys" and out["layout"] != "expanded" and yes(3)
    return more


def _exp(out: dict[str, Any], one: Callable[..., Any], yes: Callable[..., bool]) -> dict[str, Any]:
    more: dict[str, Any] = {
        "phase": one("", "scalar", "diagonal"), "eta": one("", "sum", "sum", "sum", "given"), "causal": not yes(6),
        "cap": one(None, None, None, 0.5, 5.0), "decay": "identity",
    }  # fmt: skip
    more |= {"sharp": one(1.0, 1.0, 4.0, 30.0)} if more["eta"] == "sum" else {}
    chosen = [one("", "", "bias", "hidden"), one("", "", "", "blocks")]
    if more["eta"] == "sum" and yes(3):
        chosen += ["sink", one("", "sink_value")]
    if more["causal"]:
        chosen += [one("", "", "forget"), one("", "", "", "distance")]
        more["window"] = one(None, None, 1, 3, 50)
        if yes():  # transitions inside
            more |= {
                "decay": one("identity", "scalar", "diagonal", "product", "product diagonal"),
                "sign": one("", "", "scalar", "diagonal"), "feedback": one("", "delta", "delta", "keys", "any"),
            }  # fmt: skip
    else:
        more["window"] = one(None, 1, 3, 50)
    return more | {"outside": tuple(filter(None, chosen))}


def _ridge(out: dict[str, Any], one: Callable[..., Any], yes: Callable[..., bool]) -> dict[str, Any]:
    return {
        "decay": one("identity", "scalar", "scalar", "product"), "eta": one("", "", "given"), "exclusive": yes(3),
        "q": one("vector", "vector", "outputs"), "relative": yes(3), "mix": yes(3), "diagonal_ridge": yes(3),
        "solver": one("", "", "", "cg", "chebyshev"),
    }  # fmt: skip


def _names(recipe: dict[str, Any]) -> list[str]:
    """The parts that a system of these choices has."""
    there = ["k"] + ["q"] * (recipe.get("q") != "none") + ["v"] * recipe.get("v", True)
    decay = recipe["decay"]
    there += {"identity": [], "dense": ["transition"]}.get(decay, ["log_decay"] + ["rate"] * ("product" in decay))
    there += [name for name in ("sign", "phase", "d", "mix") if recipe.get(name)]
    there += ["f", "w"] * bool(recipe.get("feedback")) + [recipe["strength"]] * bool(recipe["strength"])
    there += ["bias" if name == "hidden" else name for name in recipe.get("outside", ()) if name not in OF_ONE_LAYOUT]
    there += ["eta"] * (recipe["eta"] == "given") + ["eta_floor"] * (recipe.get("floor") == "tensor")
    return there + ["ridge"] * (recipe["readout"] == "ridge")


# -- its tensors -----------------------------------------------------------------------------------------------------


class _Maker:
    def __init__(self, recipe: Recipe) -> None:
        self.of = recipe
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.heads = dict(recipe.shared)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def shape(self, name: str, *inner: int) -> tuple[int, ...]:
        x = self.of
        heads = (self.heads.get(name, x.H), *inner)
        return heads if name in x.constant else (x.B, x.T * (1 if name in PER_TOKEN else x.micro), *heads)

    def vector(self, name: str, *inner: int) -> Tensor:
        shape = self.shape(name, *inner)
        x = self.random(*shape)
        if name in self.of.is_complex:
            return torch.complex(x, self.random(*shape))
        return x.abs() + 0.05 if self.of.positive and name in ("q", "k") else x

    def coarse(self, *shape: int) -> Tensor:
        """Numbers of ten bits: sums of a few products are exact in float32."""
        x = (2**10 * self.uniform(*shape)).floor() / 2**9 - 1
        return x.abs() if self.of.positive else x

    def log_decay(self, shape: tuple[int, ...]) -> Tensor:
        u = self.uniform(*shape)
        match self.of.temper:
            case "forgetful":
                return (1e-4 + 0.1 * u).log()
            case "lasting":
                return (0.99 + 0.01 * u).log()
            case "growing":
                return 0.002 * u
            case "reset":
                return torch.where(self.uniform(*shape) < 0.1, -math.inf, -0.02 * u)
        return -2 * u

    def parts(self) -> dict[str, Any]:
        x, out = self.of, dict[str, Any]()
        n, p = x.n, x.p
        if x.w_in:
            shape = self.heads.get("k", x.H), n, INPUTS
            out["w_in"] = self.coarse(*shape)
            if "k" in x.is_complex:
                out["w_in"] = torch.complex(out["w_in"], self.coarse(*shape))
        k = self.vector("k", n) if not x.w_in else (out["w_in"] * inputs(x).unsqueeze(-2)).sum(-1)
        k = normalize(k, dim=-1) if x.readout == "ridge" or x.feedback == "keys" else k
        if x.q != "none":
            out["q"] = self.vector("q", *((2, n) if x.q == "outputs" else (n,)))
            if x.readout == "exp":
                out["q"] = x.sharp * out["q"]
        out["k"], out["v"] = k, self.vector("v", p) if x.v else None
        if x.decay == "dense":
            out["transition"] = self.vector("transition", n, n) / (1.5 * n)
        elif x.decay != "identity":
            inner = (n,) if x.decay == "diagonal" else ()
            g = self.log_decay(self.shape("log_decay", *inner))
            if x.decay.startswith("product"):
                rate = 0.5 + self.uniform(self.heads.get("rate", x.H), *((n,) if "diagonal" in x.decay else ()))
                out["log_decay"] = (-g.clamp_min(-30.0), -rate)
            else:
                out["log_decay"] = g
        for name in ("sign", "phase"):
            if kind := getattr(x, name):
                shape = self.shape(name, *((n,) if kind == "diagonal" else ()))
                out[name] = 3 * self.random(*shape) if name == "phase" else self.random(*shape).sign()
        self._feedback(out)
        if x.strength == "b":
            out["b"] = 0.1 + self.uniform(*self.shape("b"))
        elif x.strength == "log_b":
            out["log_b"] = x.spread * self.random(*self.shape("log_b"))
            if x.unwritten and "log_b" not in x.constant:
                out["log_b"][:, :3] = -math.inf
                out["log_b"][self.uniform(*self.shape("log_b")) < 0.1] = -math.inf
        if x.d:
            out["d"] = self.random(*self.shape("d"))
        if x.eta == "given":
            out["eta"] = self.random(*self.shape("eta")).exp() * (1 if x.positive else -1)
        if x.floor:
            out["eta_floor"] = 0.5 if x.floor == "number" else 0.1 + self.uniform(*self.shape("eta_floor"))
        if x.readout == "ridge":
            inner = (n,) if x.diagonal_ridge else ()
            out["ridge"] = 0.3 + self.uniform(*self.shape("ridge", *inner))
            out["mix"] = self.uniform(*self.shape("mix")) if x.mix else None
        if x.w_out:
            out["w_out"] = self.random(3, x.H, n)
        return out | self._outside()

    def _outside(self) -> dict[str, Any]:
        out = dict[str, Any]()
        for name in self.of.outside:
            match name:
                case "forget":
                    out["forget"] = self.log_decay(self.shape("forget"))
                case "distance":
                    out["distance"] = self.random(self.of.H, 1 + self.of.seed % 5)
                case "blocks":
                    out["block"] = 1 + self.of.seed % 7
                    out["blocks"] = self.random(*self.shape("blocks", 1 + self.of.T // out["block"]))
                    out["blocks"][self.uniform(*out["blocks"].shape) < 0.3] = -math.inf
                case "sink" | "sink_value":
                    out[name] = self.random(*self.shape(name, *[self.of.p] * (name == "sink_value")))
                case _:
                    out["bias"] = self.random(*self.shape("bias"))
                    if name == "hidden":
                        out["bias"][self.uniform(*self.shape("bias")) < 0.3] = -math.inf
        return out

    def _feedback(self, out: dict[str, Any]) -> None:
        x = self.of
        if x.feedback == "keys":  # f is k, as the delta rule has it
            out["f"], w = out["k"], out["k"].conj() if out["k"].is_complex() else out["k"]
            out["w"] = -self.uniform(*w.shape[:-1], 1) * w
        elif x.feedback:
            w = normalize(self.vector("w", x.n), dim=-1)
            f = normalize(self.vector("f", x.n), dim=-1)
            if x.feedback == "delta" and f.shape == w.shape:
                f = -2 * self.uniform(*w.shape[:-1], 1) * (w.conj() if w.is_complex() else w)
            elif x.T > 40:
                f = 0.1 * f
            out["f"], out["w"] = f, w

    def laid_out(self, x: Tensor) -> Tensor:
        """The same numbers in another layout of memory (expanded: those of the first entry throughout)."""
        match self.of.layout:
            case "transposed" if x.ndim > 1:
                return x.mT.contiguous().mT
            case "strided":
                wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
                wide[..., ::2] = x
                return wide[..., ::2]
            case "expanded" if x.ndim > 2 and x.numel():
                return x[:, :1].expand_as(x)
            case "conjugate" if x.is_complex():
                return x.resolve_conj().conj().resolve_conj().conj()
        return x

    def state(self, system: sf.System) -> sf.State | Tensor | None:
        x = self.of
        rows = len(x.pack) or x.B
        shape = (rows, system.state_heads, system.n, system.columns)
        S = self.random(*shape)
        if system.is_complex:
            S = torch.complex(S, self.random(*shape))
        if x.positive and x.eta == "sum":
            S = S.abs().to(S.dtype)
        if x.readout == "ridge":
            G = S[..., x.p :]
            S = torch.cat([S[..., : x.p], G @ G.mT / x.n], -1)
        half = system.k.dtype in HALF or system.k.dtype == torch.complex64
        S = S.to((torch.complex64 if S.is_complex() else torch.float32) if half or x.dtype != "float64" else S.dtype)
        if x.state == "S":
            return S
        parts = {"S": S}
        if x.strength == "log_b" and x.eta == "sum":
            parts["log_scale"] = 5 * self.random(*shape[:2]).to(S.real.dtype)
        return sf.State(parts)


def inputs(recipe: Recipe) -> Tensor:
    """What w_in maps to k, [B,T*micro,1,i]."""
    return _Maker(replace(recipe, seed=recipe.seed + 1)).coarse(recipe.B, recipe.T * recipe.micro, 1, INPUTS)


def made(recipe: Recipe) -> tuple[sf.System, sf.State | Tensor | None, Tensor | None]:
    """The system in its precision, its initial state, and the ends of its packed sequences."""
    maker = _Maker(recipe)
    parts = maker.parts()
    options: dict[str, Any] = {
        "readout": recipe.readout, "exclusive": recipe.exclusive, "micro": recipe.micro, "window": recipe.window,
        "causal": recipe.causal, "cap": recipe.cap, "relative": recipe.relative,
        "solver": sf.Solver(recipe.solver) if recipe.solver else None,  # type: ignore[arg-type]
    }  # fmt: skip
    if recipe.eta == "sum":
        parts["eta"] = "sum"
    q, k, v = (parts.pop(name, None) for name in ("q", "k", "v"))
    same = parts.get("f") is k
    system = sf.System(q, k, v, **parts, **options).to(DTYPES[recipe.dtype])
    system = system.map(lambda _, x: maker.laid_out(x))
    system = replace(system, f=system.k) if same else system
    state = maker.state(system) if recipe.state in ("S", "scaled") else None
    ends = torch.tensor([0, *recipe.pack]).cumsum(0) if recipe.pack else None
    return system, state, ends


# -- the comparison --------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What came of comparing one system with its definition."""

    failures: list[str]
    compared: Counter[str]
    loose: int = 0
    """Comparisons whose bound exceeds 1%: the system itself loses the digits."""
    lost: int = 0
    """Comparisons in which no digit is left to compare."""
    out_of_range: bool = False
    """The values exceed what the precision can hold."""


def differences(recipe: Recipe) -> Found:
    """Every form, whole or in two pieces, and the coefficients, against the definition."""
    system, state, ends = made(recipe)
    found = Found([], Counter())
    dtype = DTYPES[recipe.dtype]
    low = torch.float32 if dtype in HALF else dtype
    # An exp readout keeps its keys in the precision of the system, real, with b and phase multiplied in.
    absorbed = dtype in HALF and recipe.readout == "exp" and (recipe.strength or recipe.phase or recipe.is_complex)
    unit = HALF[dtype] if absorbed else UNIT[low]
    want, S = defined(system, initial_state=state, cu_seqlens=ends)
    if any(_largest(x) > most for x, most in ((want, 0.1 * torch.finfo(dtype).max), (S, 1e30)) if x is not None):
        found.out_of_range = True
        return found
    lost: dict[tuple[str, bool, int], float] = {}
    small = min(2.0**-30, unit)  # where feedback erases far larger writes, anything above a rounding changes all of y

    def compare(what: str, where: str, got: Tensor, truth: Tensor, noisy: Callable[..., Tensor | None],
                kept: torch.dtype) -> None:  # fmt: skip
        found.compared[where] += 1
        if got.shape != truth.shape:
            found.failures.append(f"{where}: {what} has shape {list(got.shape)}, by definition {list(truth.shape)}")
            return
        worst = _apart(got, truth, torch.finfo(kept).tiny)
        allowed = tolerance(kept, recipe.T * recipe.micro, rounded=4 if recipe.readout == "exp" else 1)
        if worst > allowed:
            summed = not all(form.startswith("recurrent") for form in where.split(", then "))
            for seeds in (range(4), range(4, 16)):  # more draws where a few are not enough
                for seed in seeds:
                    key = what, summed, seed
                    if key not in lost:
                        lost[key] = _apart(noisy(noise=small, seed=seed, summed=summed), truth, 0.0) / small
                known = max(x for key, x in lost.items() if key[:2] == (what, summed))
                if worst <= allowed + 4 * known * unit:
                    break
            allowed += 4 * known * unit
        found.loose += allowed > 0.01
        found.lost += allowed >= 1
        if allowed < 1 and not worst <= allowed:  # above 1 no digit is left, and a sum may be 0
            found.failures.append(f"{where}: {what} is off by {worst:.3g}, allowed {allowed:.3g}")

    again = partial(defined, system, initial_state=state, cu_seqlens=ends)
    for where, y, end in _computed(recipe, system, state, ends):
        compare("y", where, y, want, lambda **noise: again(**noise)[0], dtype)
        if S is not None:
            compare("the state", where, _true_state(end, S.shape[1]), S, lambda **noise: again(**noise)[1], low)
    if state is None and ends is None and 0 < recipe.T <= 24:
        for name, alpha, noisy in _weights(system):
            compare(name, name, alpha, noisy(), noisy, dtype if recipe.readout == "exp" else low)
        if recipe.T <= 8 and _has_matrices(recipe):
            empty = recipe.exclusive and not (recipe.d or recipe.floor)  # the sum that the first token is divided by
            plain = recipe.eta == "sum" and (recipe.q == "outputs" or empty)
            for normalised in (False,) if plain else (False, True):
                y = _by_matrices(recipe, system, want, normalised)
                compare("y", f"matrices, normalised: {normalised}", y, want, lambda **noise: again(**noise)[0], low)
    return found


def _largest(x: Tensor) -> float:
    return float(x.abs().nan_to_num(0.0, math.inf).max()) if x.numel() else 0.0


def _computed(
    recipe: Recipe, system: sf.System, state: sf.State | Tensor | None, ends: Tensor | None
) -> Iterator[tuple[str, Tensor, sf.State | None]]:
    """y and the last state in every form; the recurrence in torch and by the compiled loops."""
    forms = [form for form in exists(system) if form != "matrix" or not recipe.causal or _numbers(recipe) < LARGEST]
    for i, form in enumerate(forms):
        for backend in ("auto", "torch") if form == "recurrent" else ("auto",):
            with sf.backend(backend):  # type: ignore[arg-type]
                where = form if form != "recurrent" else f"{form} ({backend})"
                if not recipe.causal:
                    yield where, sf.run(system, form), None
                    continue
                given = {"return_state": True, "cu_seqlens": ends}
                if recipe.state != "prefix":
                    yield where, *sf.run(system, form, initial_state=state, **given)
                    continue
                at, other = recipe.seed % (recipe.T + 1), forms[i - 1]  # going on in another form
                first, middle = sf.run(system[:at], other, **given)
                second, end = sf.run(system[at:], form, initial_state=middle, **given)
                yield f"{other}, then {where}", torch.cat([first, second], 1), end


def _numbers(recipe: Recipe) -> int:
    """Numbers of the matrix form: a weight for every pair of steps, for every key where their decays differ."""
    wide = recipe.decay in ("diagonal", "product diagonal", "dense") or "diagonal" in (recipe.sign, recipe.phase)
    return recipe.B * recipe.H * (recipe.T * recipe.micro) ** 2 * (recipe.n if wide else 1)


def _true_state(state: sf.State | None, heads: int) -> Tensor:
    assert state is not None
    S = state["S"].to(torch.complex128 if state["S"].is_complex() else torch.float64)
    if "log_scale" in state:
        S = S * state["log_scale"].double().exp()[..., None, None]
    return S.repeat_interleave(heads // S.shape[1], 1)


def _weights(system: sf.System) -> Iterator[tuple[str, Tensor, Callable[..., Tensor]]]:
    """What `coefficients` or `contributions` say, and the same by definition."""

    def contributions(**noise: Any) -> Tensor:
        parts = defined_coefficients(system, **noise).movedim(2, -1)
        if system.w_out is None:
            return parts
        return torch.einsum("bhijn,ohn->bijo", parts + 0j, system.w_out.to(torch.complex128)).real.unsqueeze(1)

    heads, queries = [system.H - 1, 0][: system.H], [system.T - 1, 0]
    if system.v is None:
        yield "contributions", system.contributions(), contributions
    elif system.q is not None and system.q.ndim in (2, 4):
        some = system.coefficients(heads=heads, queries=queries)
        yield (
            "some coefficients",
            some.real,
            lambda **noise: defined_coefficients(system, **noise).squeeze(2)[:, heads][:, :, queries],
        )
        yield (
            "coefficients",
            system.coefficients().real,
            lambda **noise: defined_coefficients(system, **noise).squeeze(2),
        )


def _has_matrices(recipe: Recipe) -> bool:
    direct = recipe.d and (recipe.q != "vector" or recipe.micro > 1 or recipe.w_in)
    if recipe.w_in and (recipe.micro > 1 or DTYPES[recipe.dtype] in HALF):  # k is rounded after the map
        return False
    return recipe.readout == "linear" and recipe.strength != "log_b" and not direct and recipe.n * recipe.p <= 8


def _by_matrices(recipe: Recipe, system: sf.System, like: Tensor, normalised: bool) -> Tensor:
    """y by the matrices written out."""
    B, T, r = system.B, system.T, system.micro
    v = inputs(recipe) if recipe.w_in else torch.ones(B, T * r, 1, 1, dtype=system.dtype)
    v = v if system.v is None else system.v
    v = v.repeat_interleave(system.H // v.shape[2], 2)
    y = system.matrices(normalised=normalised).run(v.unflatten(1, (T, r)).movedim(2, 3).flatten(3))
    y = y if system.w_out is None else y.sum(2, keepdim=True)
    return (y if like.is_complex() else y.real).reshape(like.shape)


def _apart(got: Tensor | None, want: Tensor, floor: float) -> float:
    """The relative error; NaN where both are is none."""
    assert got is not None
    both = torch.isnan(got) & torch.isnan(want)
    got, want = (torch.where(both, 0.0, x.to(torch.promote_types(x.dtype, torch.float64))) for x in (got, want))
    return float(relative_error(got, want, heads=True, floor=floor).nan_to_num(math.inf).max()) if want.numel() else 0.0


# -- many of them ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Draw many, print what failed and how many of each structure there were."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("systems", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    choose, seen = random.Random(given.seed).choice, set[Recipe]()
    counts: Counter[str] = Counter()
    failures: list[str] = []
    while len(seen) < given.systems:
        recipe = recipe_of(choose)
        if recipe in seen:
            continue
        seen.add(recipe)
        try:
            found = differences(recipe)
        except Exception as error:  # the run goes on: all that fails is wanted
            found = Found([f"{type(error).__name__}: {error}"], Counter())
        counts.update(["systems", *recipe.tags()])
        counts.update({f"compared: {where.split(', then ')[-1]}": n for where, n in found.compared.items()})
        counts.update({"comparisons": found.compared.total(), "with a bound above 1%": found.loose,
                       "without a digit": found.lost,
                       "beyond the range of the precision": int(found.out_of_range)})  # fmt: skip
        for text in found.failures:
            failures.append(f"{recipe!r}: {text}")
            print(failures[-1], flush=True)
        if counts["systems"] % 200 == 0:
            print(f"{counts['systems']} systems, {len(failures)} failures", file=sys.stderr, flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:8d}  {name}")
    print(f"{len(failures)} failures in {counts['comparisons']} comparisons of {counts['systems']} systems")


if __name__ == "__main__":
    main()
