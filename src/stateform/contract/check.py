"""The contract, for any layer: the whole sequence, chunk by chunk and step by step give the same outputs and states.

`check` draws parameters, shapes, splits, precisions, packings and paddings, and compares every form with the float64
recurrence. A failure says which form and split, which position differs first, and by how much.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import build
from ..errors import StateformError, require, require_finite_weights, require_seed, validate
from ..forms import backend, exists, run
from ..layer import Layer
from ..models import LanguageModel, SequenceModel
from ..system import System
from ..system.precision import GRADIENT, HALF, PROJECTED, UNIT, relative_error, tolerance, wide
from ..system.state import State
from .definition import defined, defined_coefficients
from .draws import REGIMES, copied, drawn, in_regime, sensitivity
from .foreign import check_model, is_language_model
from .outcome import REMEMBERS_NOTHING
from .outcome import Outcome as Outcome
from .outcome import Report as Report

# -- the parts of the contract ------------------------------------------------------------------------------------


def check(
    thing: str | type[nn.Module] | nn.Module, *, seed: int = 0, exhaustive: bool = False,
    on_progress: Callable[[str], None] | None = None, **options: Any,
) -> Report:  # fmt: skip
    """Check the contract on a layer, or on a causal language model, ours or of the package transformers.

    A layer is compared with the three equations of its systems and with its recurrence in float64; a model with its own
    forward over each text alone, without cache, padding and packing.

    Args:
        thing: a registered name, a file `path/file.py:Class`, a class, or a module y = layer(x) that takes
            `initial_state` and `return_state` (and, where offered, `attention_mask`, `cu_seqlens`, `form`, `step`,
            `init_state`, `system`); or a causal language model of transformers, or a LanguageModel (which needs the
            extra `hub`). A module is copied, not changed.
        seed: of all random draws.
        exhaustive: more shapes and longer sequences (up to 1000 tokens).
        on_progress: called with the name of each part before it runs.
        options: for `build`, e.g. d_model (default 32).

    Returns:
        A Report; print it.

    Raises:
        StateformError: if `thing` is neither.
    """
    require_seed(seed)
    if isinstance(thing, LanguageModel):
        thing = _as_transformers_has_it(thing)
    if is_language_model(thing):
        require(not options, f"a model is checked as it is; leave out {', '.join(options)}")
        return check_model(thing, seed=seed, exhaustive=exhaustive, on_progress=on_progress)
    opened = not isinstance(thing, nn.Module) and isinstance(getattr(thing, "model", None), nn.Module)
    require(not opened, f"a {type(thing).__name__} was given; give .model of what was opened")
    if not isinstance(thing, nn.Module):
        options.setdefault("d_model", 32)
        torch.manual_seed(seed)
    require(
        not isinstance(thing, SequenceModel),
        f"a {type(thing).__name__} has one answer for a text; check its layers, e.g. sf.check(model.blocks[0].mixer)",
    )
    layer = copied(build(thing, **options)).double().eval()
    require(
        hasattr(layer, "d_model"),
        f"{type(layer).__name__} has no d_model; expected a layer y = layer(x), x [B,T,d_model]",
    )
    name = thing if isinstance(thing, str) else type(layer).__name__
    missing = [x for x in ("initial_state", "return_state") if x not in _arguments(layer)]
    require(not missing, f"{name} does not take {' and '.join(missing)}; expected both, as in sf.Layer.forward")
    require_finite_weights(layer)
    report, generator = Report(name), torch.Generator().manual_seed(seed)
    with validate(False):
        for part, function in PARTS.items():
            if on_progress is not None:
                on_progress(part)
            try:
                function(_Bench(layer, report, part, generator, exhaustive))
            except StateformError as error:
                report.expect(part, False, f"raised: {error}")
            except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
                report.expect(part, False, f"raised {type(error).__name__}: {error}")
    return report


def _as_transformers_has_it(model: LanguageModel) -> nn.Module:
    """A LanguageModel with the arguments and outputs of transformers, by which models are checked."""
    try:
        from ..models.auto import StateformConfig, StateformForCausalLM
    except ImportError as error:
        raise StateformError(f"a model is checked by the names of transformers: {error}") from None
    return StateformForCausalLM(StateformConfig(**asdict(model.config)), model)


def _arguments(layer: nn.Module) -> set[str]:
    """What a layer's forward takes; with **kwargs, everything that Layer.forward takes."""
    known = inspect.signature(layer.forward).parameters
    passed_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    return {*known, *(inspect.signature(Layer.forward).parameters if passed_on else ())}


@dataclass
class _Bench:
    """What a part of the contract works with."""

    layer: nn.Module
    report: Report
    part: str
    generator: torch.Generator
    exhaustive: bool

    def __post_init__(self) -> None:
        self.ours = hasattr(self.layer, "system")
        self.takes = _arguments(self.layer)
        self.device = next((p.device for p in self.layer.parameters()), torch.device("cpu"))

    def offers(self, what: str) -> bool:
        there = what in self.takes or hasattr(self.layer, what)
        if not there and what not in self.report.not_offered:
            self.report.not_offered.append(what)
        return there

    def input(self, B: int, T: int, dtype: torch.dtype = torch.float64) -> Tensor:
        x = torch.randn(B, T, int(self.layer.d_model), generator=self.generator, dtype=torch.float64)  # type: ignore[arg-type]
        return x.to(self.device, dtype)

    def drawn(self, T: int = 48) -> nn.Module:
        if not self.ours:
            return self.layer
        return drawn(self.layer, self.input(2, T), self.generator)[0]

    def forms(self, layer: nn.Module, x: Tensor) -> list[str]:
        if not self.ours or "form" not in self.takes:
            return ["auto"]
        with torch.no_grad():
            return layer.forms(x)  # type: ignore[operator]

    def call(self, layer: nn.Module, x: Tensor, form: str = "auto", **kwargs: Any) -> tuple[Tensor, State]:
        if "form" in self.takes:
            kwargs["form"] = form
        out = layer(x, return_state=True, **kwargs)
        assert isinstance(out, tuple)
        return out

    def oracle(self, layer: nn.Module, x: Tensor, **kwargs: Any) -> tuple[Tensor, State]:
        return self.call(layer, x, "recurrent" if self.ours else "auto", **kwargs)

    def cuts(self, T: int, n: int) -> list[int]:
        inner = torch.randperm(max(T - 1, 0), generator=self.generator)[: n - 1] + 1
        return [0, *sorted(inner.tolist()), T]

    def lengths(self, short: Sequence[int], long: Sequence[int]) -> Sequence[int]:
        return long if self.exhaustive else short

    def states(self, where: str, got: State, want: State, allowed: float) -> None:
        for key in want:
            if key not in got:
                self.report.expect(self.part, False, f"{where}: the state has no {key}")
            else:
                logs = key in ("log_scale", "log_weight")  # -inf: nothing yet, or nothing any more
                self.report.compare(
                    self.part, f"{where}, state {key}", got[key], want[key], allowed, infinite=logs
                )  # fmt: skip


def _parts_matter(b: _Bench) -> None:
    """The parameters drawn below make state, decay, feedback and eta each change y by over 1%."""
    if not b.ours:
        return _memory_matters(b)
    _, changes = drawn(b.layer, b.input(2, 48), b.generator)
    for name, change in changes.items():
        b.report.expect(
            b.part, change > 0.01, f"without {name}, y changes by {change:.2g} only: the checks could not see it"
        )
    return None


def _memory_matters(b: _Bench) -> None:
    """Note it where the last output of a module, whose parameters are not drawn, depends on the last token alone."""
    x = b.input(2, 9)
    other = torch.cat([b.input(2, 8), x[:, 8:]], 1)
    with torch.no_grad():
        y, z = (b.call(b.layer, u)[0] for u in (x, other))
    if torch.equal(y[:, -1], z[:, -1]):
        b.report.note(REMEMBERS_NOTHING)


def _equations(b: _Bench) -> None:
    """The recurrence of the layer's own systems, and their coefficients, against the definition: a plain loop over the
    three equations. Inputs ten times as large, in float32 too, give finite numbers and are their definition as well.
    """
    if not b.ours:
        return
    for T in b.lengths((1, 33), (1, 2, 63, 130)):
        layer = b.drawn()
        with torch.no_grad():
            for regime in REGIMES:
                exact = in_regime(layer.system(b.input(2, T)).to(torch.float64), regime, b.generator)  # type: ignore[operator]
                if exact is not None:
                    _is_defined(b, exact, f"{regime} decays, T = {T}")
            for dtype in (torch.float64, torch.float32):
                large = copied(layer).to(dtype).system(10 * b.input(2, T, dtype))  # type: ignore[operator]
                _is_defined(b, large, f"inputs times 10, {_short(dtype)}, T = {T}")


def _is_defined(b: _Bench, system: System, where: str) -> None:
    """Compare the recurrence in torch of one system, from some state, with its definition."""
    start = None if system.readout.cached else _some_state(system, b)
    with backend("torch"):
        y, end = run(system, "recurrent", initial_state=start, return_state=True)
    want, S = defined(system, initial_state=start)
    noise, double = 2.0**-30, system.k.dtype in (torch.float64, torch.complex128)
    near, near_S = defined(system, initial_state=start, noise=noise)
    dtype = torch.float64 if double else torch.float32

    def compare(what: str, *results: Tensor) -> None:
        got, want, near = results
        lost = 4 * float(relative_error(near, want, heads=True).max()) / noise
        b.report.compare(b.part, what, got, want, tolerance(dtype, system.T) + lost * UNIT[dtype], heads=True)

    compare(f"y, {where}", y, want, near)
    if S is not None and near_S is not None:
        got = end["S"] * end["log_scale"].exp()[..., None, None] if "log_scale" in end else end["S"]
        got = got.repeat_interleave(system.H // got.shape[1], 1)
        compare(f"the state, {where}", *(x.transpose(1, 2) for x in (got, S, near_S)))  # heads on axis 2
    if double and system.v is not None and system.q is not None and system.q.ndim in (2, 4):
        alpha, near_alpha = (defined_coefficients(system, noise=x).squeeze(2) for x in (0.0, noise))
        found = (system.coefficients().real, alpha, near_alpha)
        compare(f"the coefficients, {where}", *(x.transpose(1, 2) for x in found))


def _forms(b: _Bench) -> None:
    """Every form of the layer's own systems, in every regime and precision, against the float64 recurrence in torch."""
    if not b.ours:
        return
    for T in b.lengths((1, 97), (1, 2, 63, 64, 65, 200, 1000)):
        layer = b.drawn()
        with torch.no_grad():
            own: System = layer.system(b.input(2, T)).to(torch.float64)  # type: ignore[operator]
            for regime in REGIMES:
                exact = in_regime(own, regime, b.generator)
                if exact is None:
                    continue
                lost = 4 * sensitivity(exact, _some_state(exact, b), b.generator)
                for dtype in (torch.float64, torch.float32, torch.bfloat16):
                    unit = UNIT[torch.float32 if dtype in HALF else dtype]
                    given = _cast(exact, dtype)
                    oracle = _cast(given, torch.float64)
                    start = _some_state(oracle, b)
                    with backend("torch"):
                        want, end = run(oracle, "recurrent", initial_state=start, return_state=True)
                    low = None if start is None else _cast_state(start, dtype)
                    for form in exists(given):
                        got, state = run(given, form, initial_state=low, return_state=True)
                        where = f"form {form}, {regime} decays, {_short(dtype)}, T = {T}"
                        rounded = 4 if given.readout.cached else 1  # fused attention rounds q, k, the weights and y
                        allowed = tolerance(dtype, T, rounded=rounded) + lost * unit
                        b.report.compare(b.part, where, got, want, allowed, heads=True)
                        kept = torch.float32 if dtype in HALF and "S" in end else dtype
                        b.states(where, state, end, tolerance(kept, T))


def _gradients(b: _Bench) -> None:
    """Gradients of outputs and final state to every input and the initial state: each form against the recurrence
    in torch, and the recurrence against finite differences.
    """
    if not b.ours:
        return
    T = 200 if b.exhaustive else 70
    layer = b.drawn()
    with torch.no_grad():
        system: System = layer.system(b.input(2, T)).to(torch.float64).detach()  # type: ignore[operator]
        start = _some_state(system, b)
    weights: dict[str, Tensor] = {}

    def loss(s: System, state: State | None, form: str) -> Tensor:
        y, end = run(s, form, initial_state=state, return_state=True)
        total = torch.zeros((), dtype=torch.float64, device=y.device)
        last = {k: x for k, x in end.tensors.items() if k in ("S", "keys", "values")}
        if "log_scale" in end:  # the coordinates of the state may change, the state itself may not
            last["S"] = end["S"] * end["log_scale"].exp()[..., None, None]
        for key, x in (("y", y), *last.items()):
            x = torch.view_as_real(x) if x.is_complex() else x
            if key not in weights:
                weights[key] = torch.randn(x.shape, generator=b.generator, dtype=torch.float64).to(x.device)
            total = total + (x * weights[key]).sum()
        return total

    def grads(form: str) -> tuple[dict[str, Tensor], Tensor]:
        leaf = system.map(lambda _, x: x.detach().clone().requires_grad_())
        inputs = dict(leaf.tensors())
        state = start
        if start is not None and "S" in start:
            state = State(
                {k: x.detach().clone().requires_grad_(k == "S") for k, x in start.tensors.items()}, start.fingerprint
            )
            inputs["initial state"] = state["S"]
        value = loss(leaf, state, form)
        out = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)
        found = {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(inputs.items(), out, strict=True)}
        return {k: g for k, g in found.items() if k not in ("w_in", "sign")}, value.detach()

    with backend("torch"):
        want, _ = grads("recurrent")
    for name, g in want.items():
        b.report.expect(b.part, bool(g.abs().max() > 0), f"the gradient of {name} is zero")
    for form in exists(system):
        got, _ = grads(form)
        for name, g in want.items():
            where, allowed = f"form {form}, gradient of {name}", GRADIENT * tolerance(torch.float64, T)
            b.report.compare(b.part, where, got[name], g, allowed, floor=_floor(want.values()))
    # A directional derivative of the recurrence by central differences: error about h^2 plus rounding over h.
    h = 1e-5
    for name, x in system.tensors().items():
        if name in ("w_in", "sign") or (name in ("log_decay", "forget") and bool(torch.isinf(x).any())):
            continue
        direction = torch.randn(x.shape, generator=b.generator, dtype=torch.float64).to(x)
        with torch.no_grad():
            up, down = (loss(_shifted(system, name, direction * sign), start, "recurrent") for sign in (h, -h))
        slope = (up - down) / (2 * h)
        expected = (
            (torch.view_as_real(want[name]) * torch.view_as_real(direction)).sum()
            if x.is_complex()
            else (want[name] * direction).sum()
        )
        size = float(want[name].abs().max() * direction.abs().sum().sqrt())
        text = f"along a direction the gradient of {name} says {float(expected):.8g}, differences {float(slope):.8g}"
        b.report.expect(b.part, abs(float(slope - expected)) <= 1e-5 * max(size, abs(float(expected))), text)


def _floor(gradients: Iterable[Tensor]) -> float:
    """The least scale on which gradients are compared. One that cancels to nothing (the bias of softmax's keys, say)
    still carries the rounding of what cancelled, which is of the size of the other gradients.
    """
    return 1e-3 * max(float(g.abs().max()) for g in gradients if g.numel())


def _splits(b: _Bench) -> None:
    """The layer over the whole sequence against the same in pieces, each piece in every form."""
    for T, dtype in _sizes(b):
        exact = b.drawn()
        layer = copied(exact).to(dtype)
        x = b.input(2, T, dtype)
        allowed = tolerance(dtype, T, rounded=PROJECTED)
        with torch.no_grad():
            if b.ours and (own := exact.system(wide(x)).to(torch.float64)).readout.gram:  # type: ignore[operator]
                # solving its equations costs the digits of their condition number
                lost = 4 * sensitivity(own, _some_state(own, b), b.generator)
                allowed += lost * UNIT[torch.float32 if dtype in HALF else dtype]
            want, end = b.oracle(layer, x)
            for form in b.forms(layer, x):
                got, state = b.call(layer, x, form)
                where = f"whole, form {form}, {_short(dtype)}, T = {T}"
                b.report.compare(b.part, where, got, want, allowed)
                b.states(where, state, end, allowed)
                cuts = b.cuts(T, 3)
                got, state = _in_pieces(b, layer, x, cuts, form)
                where = f"split at {cuts[1:-1]}, form {form}, {_short(dtype)}, T = {T}"
                b.report.compare(b.part, where, got, want, allowed)
                b.states(where, state, end, allowed)
        if dtype == torch.float64:
            _split_gradient(b, layer, x)


def _split_gradient(b: _Bench, layer: nn.Module, x: Tensor) -> None:
    r = torch.randn(x.shape, generator=b.generator, dtype=torch.float64).to(x.device)
    cuts = b.cuts(x.shape[1], 3)
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    whole, _ = b.oracle(layer, leaves[0])
    want = torch.autograd.grad((whole * r).sum(), leaves, allow_unused=True)
    pieces, _ = _in_pieces(b, layer, leaves[0], cuts, "auto")
    got = torch.autograd.grad((pieces * r).sum(), leaves, allow_unused=True)
    floor = _floor(w for w in want if w is not None)
    for name, g, w in zip(["x", *(n for n, _ in layer.named_parameters())], got, want, strict=True):
        if g is None or w is None:
            b.report.expect(
                b.part, g is None and w is None, f"split at {cuts[1:-1]}: {name} has a gradient on one side only"
            )
            continue
        where, allowed = f"split at {cuts[1:-1]}, gradient of {name}", GRADIENT * tolerance(torch.float64, x.shape[1])
        b.report.compare(b.part, where, g, w, allowed, floor=floor)
    b.report.expect(b.part, want[0] is not None and bool(want[0].abs().max() > 0), "the gradient of x is zero")


def _steps(b: _Bench) -> None:
    """Token by token from init_state, and continuing by steps after a prefix; the given state stays as it was."""
    if not (b.offers("step") and b.offers("init_state")):
        return
    for dtype in (torch.float64, torch.float32):
        layer, T = b.drawn().to(dtype), 24
        x = b.input(2, T, dtype)
        allowed = tolerance(dtype, T)
        with torch.no_grad():
            want, end = b.oracle(layer, x)
            for begin in (0, 9):
                state: State = layer.init_state(2) if begin == 0 else b.call(layer, x[:, :begin])[1]  # type: ignore[operator]
                outputs = [want[:, :begin]]
                for t in range(begin, T):
                    kept = state.clone()
                    y, new = layer.step(x[:, t], state)  # type: ignore[operator]
                    same = all(torch.equal(kept[k], state[k]) for k in kept)
                    b.report.expect(b.part, same, f"step at position {t} changed the state it was given")
                    outputs.append(y.unsqueeze(1))
                    state = new
                b.report.compare(
                    b.part, f"steps from position {begin}, {_short(dtype)}", torch.cat(outputs, 1), want, allowed
                )
                b.states(f"steps from position {begin}, {_short(dtype)}", state, end, allowed)


def _padding(b: _Bench) -> None:
    """Left and right padding full of NaN changes nothing; masked outputs are 0."""
    if not b.offers("attention_mask"):
        return
    for dtype in (torch.float64, torch.float32):
        layer, T = b.drawn().to(dtype), 40
        x = b.input(4, T, dtype)
        spans = [(0, T), (0, 13), (17, T), (5, 31)]
        mask = torch.zeros(4, T, device=x.device)
        for row, (low, high) in enumerate(spans):
            mask[row, low:high] = 1
        spoiled = x.masked_fill(mask[..., None] == 0, math.nan)
        allowed = tolerance(dtype, T)
        with torch.no_grad():
            got, state = b.call(layer, spoiled, attention_mask=mask)
            want = torch.zeros_like(got)
            for row, (low, high) in enumerate(spans):
                want[row : row + 1, low:high], end = b.oracle(layer, x[row : row + 1, low:high])
                tail = {k: v[row : row + 1] for k, v in state.tensors.items()}
                if "keys" in tail:  # caches are aligned at their end
                    tail = {
                        k: v[:, max(0, v.shape[1] - (high - low)) :] if k in ("keys", "values", "log_weight") else v
                        for k, v in tail.items()
                    }
                b.states(f"row {row} padded to [{low},{high}) of {T}, {_short(dtype)}", State(tail), end, allowed)
            b.report.compare(b.part, f"padded rows {spans}, {_short(dtype)}", got, want, allowed)
            extra = b.input(4, 7, dtype)
            got, _ = b.call(layer, extra, initial_state=state)
            parts = []
            for row, (low, high) in enumerate(spans):
                parts.append(
                    b.oracle(layer, torch.cat([x[row : row + 1, low:high], extra[row : row + 1]], 1))[0][
                        :, high - low :
                    ]
                )
            b.report.compare(b.part, f"continuing after padding, {_short(dtype)}", got, torch.cat(parts), allowed)


def _packing(b: _Bench) -> None:
    """Packed sequences are as if alone, in every form; nothing leaks between them, between rows or back in time."""
    layer, T = b.drawn(), 61
    x = b.input(1, T)
    allowed = tolerance(torch.float64, T)
    with torch.no_grad():
        if b.offers("cu_seqlens"):
            ends = [0, 1, 20, 20, 39, T]
            cu = torch.tensor(ends, device=x.device)
            pairs = list(itertools.pairwise(ends))
            for form in b.forms(layer, x):
                got, state = b.call(layer, x, form, cu_seqlens=cu)
                again, _ = b.call(layer, x, form, cu_seqlens=cu, initial_state=state)
                want, want_again = torch.zeros_like(got), torch.zeros_like(got)
                for row, (low, high) in enumerate(pairs):
                    if high > low:
                        want[:, low:high], end = b.oracle(layer, x[:, low:high])
                        want_again[:, low:high], _ = b.oracle(layer, x[:, low:high], initial_state=end)
                        if "S" in end:
                            b.report.compare(
                                b.part,
                                f"packed, form {form}, state of sequence {row}",
                                state["S"][row : row + 1],
                                end["S"],
                                allowed,
                            )
                b.report.compare(b.part, f"packed at {ends}, form {form}", got, want, allowed)
                b.report.compare(b.part, f"packed at {ends}, form {form}, continued", again, want_again, allowed)
            other = x.clone()
            other[:, 20:39] = b.input(1, 19)
            got, changed = (b.call(layer, z, cu_seqlens=cu)[0] for z in (x, other))
            keep = torch.ones(T, dtype=torch.bool)
            keep[20:39] = False
            b.report.compare(b.part, "another sequence of the pack changed", changed[:, keep], got[:, keep], allowed)
        rows = b.input(3, 30)
        other = rows.clone()
        other[1] = b.input(1, 30)[0]
        other[2, 11:] = b.input(1, 19)[0]
        got, changed = (b.call(layer, z)[0] for z in (rows, other))
        b.report.compare(b.part, "another row of the batch changed", changed[:1], got[:1], allowed)
        b.report.compare(b.part, "the future changed", changed[2:, :11], got[2:, :11], allowed)


def _promise(b: _Bench) -> None:
    """A layer that says it is contractive has no decay above 1, with its own parameters and with those drawn."""
    if not (b.ours and getattr(b.layer, "contractive", False)):
        return
    for which, layer in (("its own", b.layer), ("drawn", b.drawn())):
        broken = ""
        try:
            with validate(True), torch.no_grad():
                b.call(layer, b.input(2, 9))
        except StateformError as error:
            broken = str(error)
        b.report.expect(b.part, not broken, f"with {which} parameters: {broken}")


def _empty(b: _Bench) -> None:
    """No rows, no tokens, one token: an empty result, the state unchanged."""
    layer = b.drawn()
    with torch.no_grad():
        _, state = b.call(layer, b.input(2, 9))
        y, same = b.call(layer, b.input(2, 0), initial_state=state)
        b.report.expect(b.part, tuple(y.shape) == (2, 0, int(layer.d_model)), f"T = 0 gave shape {list(y.shape)}")  # type: ignore[arg-type]
        b.report.expect(b.part, all(torch.equal(same[k], state[k]) for k in state), "T = 0 changed the state")
        y, _ = b.call(layer, b.input(0, 5))
        b.report.expect(b.part, tuple(y.shape) == (0, 5, int(layer.d_model)), f"B = 0 gave shape {list(y.shape)}")  # type: ignore[arg-type]


PARTS: dict[str, Callable[[_Bench], None]] = {
    "draw": _parts_matter,
    "equations": _equations,
    "forms": _forms,
    "gradients": _gradients,
    "splits": _splits,
    "steps": _steps,
    "padding": _padding,
    "packing": _packing,
    "promise": _promise,
    "empty": _empty,
}


def _sizes(b: _Bench) -> Iterator[tuple[int, torch.dtype]]:
    for T in b.lengths((3, 83), (1, 2, 5, 64, 65, 130, 257, 1000)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            yield T, dtype


def _in_pieces(b: _Bench, layer: nn.Module, x: Tensor, cuts: list[int], form: str) -> tuple[Tensor, State]:
    outputs, state = [], None
    for low, high in itertools.pairwise(cuts):
        kwargs: dict[str, Any] = {} if state is None else {"initial_state": state}
        y, state = b.call(layer, x[:, low:high], form, **kwargs)
        outputs.append(y)
    assert state is not None
    return torch.cat(outputs, 1), state


def _some_state(system: System, b: _Bench) -> State | None:
    """A state as it stands after a few tokens like those of the system."""
    if system.readout.cached and system.T < 2:
        return None
    _, state = run(system[: max(1, system.T // 4)], "recurrent", return_state=True)
    return state.detach()


def _cast(system: System, dtype: torch.dtype) -> System:
    """To a precision; decays and complex parts of a half precision system stay at float32."""
    if dtype not in HALF:
        return system.to(dtype)
    gates = ("log_decay", "forget", "rate", "phase", "log_b", "eta", "eta_floor")
    return system.map(
        lambda name, x: x.to(torch.complex64) if x.is_complex() else x.to(torch.float32 if name in gates else dtype)
    )


def _cast_state(state: State, dtype: torch.dtype) -> State:
    wide = ("S", "log_scale", "log_weight")
    real = torch.float32 if dtype in HALF else dtype

    def one(name: str, x: Tensor) -> Tensor:
        if name in ("position", "angle"):
            return x
        target = real if name in wide else dtype
        return x.to(target.to_complex()) if x.is_complex() else x.to(target)

    return State({k: one(k, x) for k, x in state.tensors.items()}, state.fingerprint)


def _shifted(system: System, name: str, by: Tensor) -> System:
    return system.map(lambda k, x: x + by if k == name else x)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
