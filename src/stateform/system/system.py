"""System: one representation for attention, state-space models and recurrent networks.

For each batch element and head, with a state S_t of n keys by p values:

    S_t = A_t S_{t-1} + b_t k_t v_t^T                    state update
    y_t = (readout(S_t, q_t) + d_t v_t) / eta_t          readout
    A_t = decay_t + f_t w_t^T                            open-loop decay + rank-1 state feedback

Source: the Dynamical Systems Framework (arXiv 2405.15731, eq. 11: h_i = Lambda_i h_{i-1} + B_i u_i,
y_i = C_i h_i + D_i u_i, with h = vec(S)) and Coefficient Dynamics (arXiv 2510.09389).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from math import lcm
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import StateformError, require, require_above, require_finite, require_values
from ..loops.backend import compiled_for
from ..loops.conv import peaks
from ..loops.ops import alone, call
from ..loops.token import PARTS as TOKEN_PARTS
from ..loops.token import TokenPlan
from .core import Core
from .lazy import Lazy
from .precision import DOUBLE, complex_dtype, real_dtype, upcast
from .readout import Solver
from .shapes import (
    DECAYS,
    PER_TOKEN,
    TENSORS,
    check_shapes,
    label,
    layout,
    select_heads,
    signature,
    split_heads,
    spread_heads,
)
from .transition import associative_scan

if TYPE_CHECKING:
    from ..forms.dense import Matrices

Decay = Tensor | tuple[Tensor, Tensor]
_OF_SHAPES = ("_layouts", "_head_counts", "B", "T", "H", "state_heads", "is_complex", "decay_kind", "_token_plan")
_KNOWN: dict[Any, dict[str, Any]] = {}
"""What follows from the signatures of systems that were checked."""
_MOST_KNOWN = 4096


@dataclass(frozen=True, eq=False, repr=False)
class System:
    """A linear time-varying system, one per batch element and head. Frozen, validated on construction, a pytree.

    Shapes: B batch, T time (T * micro where noted *), H heads (any head axis may be a divisor of H: shared), n keys,
    p values, o outputs. A constant part drops batch and time.

    Args:
        q: read vector [B,T,H,n], [B,T,H,o,n] with an output axis, constant [H,n] or [H,o,n]; None reads the whole
            state, y_t = S_t.
        k: write vector* [B,T,H,n] or constant [H,n].
        v: values* [B,T,H,p]; None means p = 1 and v_t = 1 (k is then the whole input).
        log_decay: log |decay|*, scalar [B,T,H] or [H], diagonal [B,T,H,n] or [H,n], or a product (dt [B,T,H], a [H,n]).
            -inf is a hard reset; its gradient is 0.
        phase: angle of the decay* in radians, shapes of log_decay.
        sign: of the decay*, +1 or -1, shapes of log_decay.
        transition: dense decay* [B,T,H,n,n] or [H,n,n], instead of the three above.
        f: feedback f_t w_t^T* [B,T,H,n] or [H,n] (a plain transpose).
        w: its other half.
        b: write strength* [B,T,H] or [H].
        log_b: its logarithm instead, for exponential gates (see `stabilise`).
        d: direct term [B,T,H] or [H], added before the division; with eta = "sum" it acts on the normaliser too.
        eta: None, "sum" (of the weights: a column of ones appended to v) or a tensor [B,T,H] or [H].
        eta_floor: eta = max(|eta|, eta_floor); a number, [H] or [B,T,H].
        readout: "linear" (q^T S), "exp" (softmax: the state is the growing cache of keys and values) or "ridge" (as
            linear, with (G_t + R_t)^{-1} q_t for q_t, G_t = decay_t G_{t-1} + b_t k_t k_t^T: the state is [S | G]).
        exclusive: the read takes S_{t-1}, before the write.
        micro: write steps per token; the read comes after the last (exclusive: before the first).
        window: with readout "exp", only the last `window` tokens are seen.
        causal: False (readout "exp", form "matrix") lets every token see every other.
        ridge: R_t of a ridge readout, a multiple of I [B,T,H], [H] or diagonal [B,T,H,n], [H,n]; positive.
        mix: q_t + mix_t ((G_t + R_t)^{-1} q_t - q_t) instead, [B,T,H] or [H]; 0 is the linear readout.
        relative: R_t = ridge ||G_t||_F, which bounds the condition number by 1 + 1/ridge.
        solver: of a ridge readout (see `Solver`); None solves exactly.
        w_in: [H,n,i], the constant map with k = w_in u, where there is one (vector states).
        w_out: [o,H,n], a constant map over all heads, y = Re(w_out S) (vector states with q = None).

    Raises:
        StateformError: shapes, dtypes or devices that do not fit, or parts that exclude each other.
    """

    q: Tensor | None
    k: Tensor
    v: Tensor | None
    log_decay: Decay | None = field(default=None, kw_only=True)
    phase: Tensor | None = field(default=None, kw_only=True)
    sign: Tensor | None = field(default=None, kw_only=True)
    transition: Tensor | None = field(default=None, kw_only=True)
    f: Tensor | None = field(default=None, kw_only=True)
    w: Tensor | None = field(default=None, kw_only=True)
    b: Tensor | None = field(default=None, kw_only=True)
    log_b: Tensor | None = field(default=None, kw_only=True)
    d: Tensor | None = field(default=None, kw_only=True)
    eta: Tensor | Literal["sum"] | None = field(default=None, kw_only=True)
    eta_floor: Tensor | float | None = field(default=None, kw_only=True)
    readout: Literal["linear", "exp", "ridge"] = field(default="linear", kw_only=True)
    exclusive: bool = field(default=False, kw_only=True)
    micro: int = field(default=1, kw_only=True)
    window: int | None = field(default=None, kw_only=True)
    causal: bool = field(default=True, kw_only=True)
    ridge: Tensor | None = field(default=None, kw_only=True)
    mix: Tensor | None = field(default=None, kw_only=True)
    relative: bool = field(default=False, kw_only=True)
    solver: Solver | None = field(default=None, kw_only=True)
    w_in: Tensor | None = field(default=None, kw_only=True)
    w_out: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """What follows from shapes, dtypes and options is found once for all systems that have the same: for a token of
        decoding the checks would take longer than the numbers.
        """
        if torch.compiler.is_compiling():  # a graph is traced once, and torch 2.11 cannot trace the rest
            check_shapes(self)
            return
        key = signature(self)
        known = None if key is None else _KNOWN.get(key)
        if known is None:
            check_shapes(self)
            known = {name: getattr(self, name) for name in _OF_SHAPES}
            if key is not None:
                if len(_KNOWN) >= _MOST_KNOWN:
                    _KNOWN.clear()
                _KNOWN[key] = known
        self.__dict__.update(known)

    # -- sizes ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name; a product decay counts as `log_decay` (dt) and `rate` (a)."""
        return dict(self._parts)

    @Lazy
    def _parts(self) -> dict[str, Tensor]:
        out = {name: x for name in TENSORS if isinstance(x := getattr(self, name), Tensor)}
        if isinstance(self.log_decay, tuple):
            out["log_decay"], out["rate"] = self.log_decay
        return out

    @Lazy
    def _layouts(self) -> dict[str, str]:
        return {name: layout(name, x) for name, x in self._parts.items()}

    def is_constant(self, name: str) -> bool:
        """Whether the part `name` has no time axis."""
        return "B" not in self._layouts[name]

    def _varying(self) -> tuple[Tensor, bool]:
        for name, x in self._parts.items():
            if not self.is_constant(name):
                return x, name in PER_TOKEN
        raise StateformError("every part of this system is constant; give v (or k) a batch and a time axis")

    @Lazy
    def B(self) -> int:
        """Batch size."""
        return self._varying()[0].shape[0]

    @Lazy
    def T(self) -> int:
        """Length in tokens."""
        x, per_token = self._varying()
        return x.shape[1] if per_token else x.shape[1] // self.micro

    @Lazy
    def H(self) -> int:
        """Heads."""
        return max(self._head_counts.values())

    @Lazy
    def state_heads(self) -> int:
        """Heads of the state: those of k, v, decay and feedback broadcast together."""
        return lcm(*(h for name, h in self._head_counts.items() if name not in PER_TOKEN))

    @Lazy
    def _head_counts(self) -> dict[str, int]:
        return {name: x.shape[self._layouts[name].index("H")] for name, x in self._parts.items()}

    @property
    def n(self) -> int:
        """Keys of the state."""
        return self.k.shape[-1]

    @property
    def p(self) -> int:
        """Values of the state (without the column of the normaliser)."""
        return 1 if self.v is None else self.v.shape[-1]

    @property
    def columns(self) -> int:
        """Columns of the state: p, and that of the normaliser or the n of the Gram matrix where there is one."""
        return self.p + (self.n if self.readout == "ridge" else 1 if self.eta == "sum" else 0)

    @property
    def _outputs(self) -> int:
        return self.n if self.q is None else self.q.shape[-2] if self.q.ndim in (3, 5) else 1

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the output (real: that of v, else that of k)."""
        x = self.k if self.v is None or self.v.is_complex() else self.v
        return real_dtype(x.dtype)

    @property
    def device(self) -> torch.device:
        """Device of all parts."""
        return self.k.device

    @Lazy
    def is_complex(self) -> bool:
        """Whether the state is complex."""
        written = ("k", "v", "f", "w", "transition")
        return self.phase is not None or any(self._parts[x].is_complex() for x in written if x in self._parts)

    @Lazy
    def decay_kind(self) -> Literal["identity", "scalar", "diagonal", "dense"]:
        """Structure of the open-loop decay."""
        if self.transition is not None:
            return "dense"
        decays = {name: self._parts[name] for name in DECAYS if name in self._parts}
        if not decays:
            return "identity"
        wide = any(self._layouts[name][-1] == "n" and x.shape[-1] > 1 for name, x in decays.items())
        return "diagonal" if wide else "scalar"

    @property
    def time_invariant(self) -> bool:
        """Whether decay, feedback, k, q, b and eta are all constant (v is the input; for v = None and n = 1, k is)."""
        inputs = {"v", "d"} | ({"k"} if self.v is None and self.n == 1 else set())
        varying = [x for x in self._parts if x not in inputs and not self.is_constant(x)]
        return not varying and self.eta != "sum" and self.readout == "linear" and self.micro == 1

    @property
    def state_size(self) -> int:
        """Real numbers in the state of one row: H n columns, two for a complex entry.
        With readout "exp" it is the size of one cached token: the state grows by it with each token.
        """
        if self.readout == "exp":
            counts = self._head_counts
            paired = self.is_complex or (self.q is not None and self.q.is_complex())
            heads = lcm(*(counts[x] for x in ("k", "b", "log_b", "phase") if x in counts))
            return heads * self.n * (2 if paired else 1) + counts["v"] * self.p
        return self.state_heads * self.n * self.columns * (2 if self.is_complex else 1)

    # -- parts of it ---------------------------------------------------------------------------------------------

    def map(self, fn: Callable[[str, Tensor], Tensor]) -> System:
        """A system with `fn(name, tensor)` in place of each tensor."""
        new: dict[str, Any] = {name: fn(name, x) for name, x in self._parts.items()}
        if "rate" in new:
            new["log_decay"] = (new["log_decay"], new.pop("rate"))
        return replace(self, **new)

    def __getitem__(self, at: slice) -> System:
        """A stretch of tokens, `system[start:stop]`."""
        require(
            isinstance(at, slice)
            and at.step in (None, 1)
            and all(x is None or hasattr(x, "__index__") for x in (at.start, at.stop)),
            f"a system is sliced in time, system[start:stop] with whole numbers; got {at!r}",
        )
        start, stop, _ = at.indices(self.T)
        return self.gather(lambda x, r: x[:, start * r : max(start, stop) * r])

    def gather(self, fn: Callable[[Tensor, int], Tensor]) -> System:
        """A system with `fn(tensor, steps per token)` in place of each part that varies with batch and time."""

        def one(name: str, x: Tensor) -> Tensor:
            if self.is_constant(name):
                return x
            return fn(x, 1 if name in PER_TOKEN else self.micro)

        return self.map(one)

    def select_heads(self, heads: Sequence[int] | int) -> System:
        """The system of some heads."""
        H = self.H
        index = torch.tensor(indices(heads, H, "heads"), device=self.device)
        require(len(index) > 0, f"no heads are named; expected some of the {H} heads 0..{H - 1}")
        return self.map(lambda name, x: select_heads(name, x, index, H))

    def to(self, *args: Any, **kwargs: Any) -> System:
        """Move or cast as `Tensor.to` does; complex parts stay complex."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        require(
            dtype is None or dtype.is_floating_point or dtype.is_complex,
            f"a system cannot be cast to {dtype}; expected a floating dtype",
        )

        def move(name: str, x: Tensor) -> Tensor:
            if dtype is None:
                return x.to(device)
            if name in (*DECAYS, "log_b"):  # exponents and angles stay at float32 at least
                return upcast(x.to(device=device, dtype=torch.promote_types(real_dtype(dtype), torch.float32)))
            return x.to(device=device, dtype=complex_dtype(dtype) if x.is_complex() else real_dtype(dtype))

        return self.map(move)

    def detach(self) -> System:
        """Cut from the autograd graph."""
        return self.map(lambda _, x: x.detach())

    def check_values(self) -> None:
        """Raise if a part holds NaN or inf (a log decay or log_b may be -inf), or `sign` other values than its two."""
        for name, x in self._parts.items():
            reset = name == "log_b" or (name == "log_decay" and "rate" not in self._parts)
            require_finite(x, label(name), allow_minus_inf=reset)
        if self.sign is not None:
            require_values(self.sign, "sign", (1, -1), "give the magnitude of the decay as log_decay")
        if self.readout == "ridge":
            require_above(self.ridge, "ridge", 0.0, "it is what makes G + R invertible")
            require_above(self.b, "b", 0.0, "it weighs the keys of a regression", equal=True)

    # -- the normal form -----------------------------------------------------------------------------------------

    def core(self) -> Core:
        """The normal form in which the forms compute: b, the normaliser's column and micro-steps folded in, the
        precision that of the state (float32 at least).
        """
        r, H, hs = self.micro, self.H, self.state_heads
        G = hs if 1 < hs < H else max([x for x in self._head_counts.values() if 1 < x < H] or [H])
        left_out = ("w_in", "w_out", "d", "eta", "eta_floor", "ridge", "mix")
        real = torch.float64 if self.k.dtype in DOUBLE else torch.float32
        axes = {x: split_heads(x, _precise(x, t, real), G, H // G) for x, t in self._parts.items() if x not in left_out}

        if self.f is self.k:  # as the delta rule has it: the loops look for that
            axes["f"] = axes["k"]
        k, v = axes["k"], axes.get("v")
        if v is None:
            v = torch.ones_like(k[:1, :1, :1, :1, :1].real)
        if self.eta == "sum":
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        if self.readout == "ridge":
            front = torch.broadcast_shapes(v.shape[:-1], k.shape[:-1])
            v = torch.cat([v.expand(*front, -1), k.expand(*front, -1)], -1)
        if "b" in axes or "log_b" in axes:
            v = v * (axes["b"] if "b" in axes else axes["log_b"].exp())
        q = axes.get("q")
        if q is None:
            q = torch.eye(self.n, dtype=real_dtype(k.dtype), device=k.device)[None, None, None, None]
        elif r > 1:
            # The read of a token happens at one of its micro-steps; elsewhere q is zero.
            at = 0 if self.exclusive else r - 1
            q = q.expand(q.shape[0], self.T, *q.shape[2:])
            steps = [q if i == at else torch.zeros_like(q) for i in range(r)]
            q = torch.stack(steps, 2).flatten(1, 2)
        shared = (1, 1) if hs == 1 else (G, 1) if hs == G < H else (G, H // G)
        names = {"log_decay": "log", "transition": "matrix"}
        rest = {names.get(x, x): axes.get(x) for x in ("log_decay", "rate", "phase", "sign", "transition", "f", "w")}
        return Core(
            q, k, v, **rest, exclusive=self.exclusive, real=self.q is not None, whole=self.q is None,
            length=self.T * r, batch=self.B, heads=(G, H // G), state_heads=shared,
        )  # fmt: skip

    def gate(self, name: Literal["b", "log_b", "d", "eta", "eta_floor"], default: float = 0.0) -> Tensor:
        """A number per step and head as [B|1, T|1, H|1] in the precision of the state; `default` where not given."""
        x = getattr(self, name)
        if not isinstance(x, Tensor):
            x = torch.full(
                (1,), default if x is None else x, dtype=real_dtype(upcast(self.k).dtype), device=self.device
            )
        x = upcast(x)
        return spread_heads(x if x.ndim == 3 else x.view(1, 1, -1), self.H)

    @Lazy
    def _token_plan(self) -> TokenPlan | None:
        """How to compute one token of real numbers from S and these parts as they are, where there is such a way."""
        parts, dtype = self._parts, self.k.dtype
        plain = (
            self.readout == "linear" and self.eta is None and self.micro == self.T == 1 and self.B > 0
            and dtype in (torch.float32, torch.float64) and self.state_heads == self.H
            and {"q", "k", "v"} <= parts.keys() <= TOKEN_PARTS and self._layouts["q"] in ("BtHn", "Hn")
            and all(x.dtype == dtype for x in parts.values())
        )  # fmt: skip
        if not plain:
            return None
        shapes = {name: x.shape for name, x in parts.items()}
        return TokenPlan(self._layouts, shapes, (self.B, self.H, self.n, self.p), self.exclusive)

    def token(self, S: Tensor | None) -> tuple[Tensor, Tensor, bool] | None:
        """y and the next state of a system of one token, by one call of the compiled loops, and whether a decay exceeds
        1 (or is not a number); None where they cannot, or where more than numbers is wanted (gradients, a graph).
        """
        plan = self._token_plan
        if plan is None or S is None or S.shape != plan.state or S.dtype != self.k.dtype or not S.is_contiguous():
            return None
        parts = tuple(self._parts.values())
        return plan(parts, S) if compiled_for(S) and alone((S, *parts)) else None

    def finish(self, raw: Tensor) -> Tensor:
        """From the Core's reads [B,T*micro,H,o,p'] to y: direct term, real part, division, output map, dtype."""
        r = self.micro
        at = slice(0, None, r) if self.exclusive else slice(r - 1, None, r)
        y = raw if r == 1 else raw[:, at]
        if self.readout == "ridge":
            y = y[..., : self.p]
        if y.is_complex() and self.q is not None:
            y = y.real
        eta: Tensor | None = None
        if self.eta == "sum":
            y, eta = y[..., :-1], y[..., -1:]
        if self.d is not None:
            v = y.new_ones(1, 1, 1, 1) if self.v is None else upcast(self.v)
            v, d = (
                spread_heads(v if r == 1 or self.v is None else v[:, at], self.H).unsqueeze(-2),
                self.gate("d")[..., None, None],
            )
            if y.dtype == v.dtype == d.dtype and not y.is_complex():
                y = torch.addcmul(y, d, v)  # one pass
            else:
                y = y + (d * v if self.q is None else (d * v).real)
            eta = eta if eta is None else eta + d.real
        if eta is None and self.eta is not None:
            eta = self.gate("eta")[..., None, None]
        if eta is not None:
            if self.eta_floor is not None:
                eta = torch.maximum(eta.abs(), self.gate("eta_floor")[..., None, None])
            y = y / eta
        if self.v is None:
            y = y.squeeze(-1)
        elif self.q is not None and self.q.ndim in (2, 4):
            y = y.squeeze(-2)
        if self.w_out is not None:
            y = torch.einsum("bthn,ohn->bto", y, upcast(self.w_out).to(y.dtype)).unsqueeze(2)
            y = y.real if y.is_complex() else y
        dtype = complex_dtype(self.dtype) if y.is_complex() else self.dtype
        return y if y.dtype == dtype else y.to(dtype)

    # -- what can be asked of it ---------------------------------------------------------------------------------

    def forms(self) -> dict[str, str | None]:
        """Every form, with None where it exists for this system and else the reason why not."""
        from ..forms.form import FORMS

        return {name: form.refuses(self) for name, form in FORMS.items()}

    def coefficients(
        self, *, heads: Sequence[int] | int | None = None, queries: Sequence[int] | None = None,
        limit: float = 1e9,
    ) -> Tensor:  # fmt: skip
        """The effective attention alpha_ij = phi(q_i^T A_i ... A_{j+1} b_j k_j) / eta_i, the weight of v_j in y_i.

        Args:
            heads: the heads wanted (default all). queries: the tokens i wanted (default all).
            limit: bytes allowed for the result; a larger one is refused before any work.

        Returns:
            [B,H,queries,T * micro], the direct term on its diagonal.

        Raises:
            StateformError: for vector states (see `contributions`), and where the result would be too large.
        """
        require(self.v is not None and self.q is not None and self.q.ndim in (2, 4),
                "coefficients are scalar weights of values; for vector states use contributions()")  # fmt: skip
        return self._weights_of_inputs(heads, queries, limit).squeeze(2)

    def contributions(
        self, *, heads: Sequence[int] | int | None = None, queries: Sequence[int] | None = None,
        limit: float = 1e9,
    ) -> Tensor:  # fmt: skip
        """What each token j adds to y_i: [B,H,queries,T * micro,o], whose sum over j is y (from a zero state).

        For scalar weights o = p and the entry is alpha_ij v_j; for vector states (v = None), C A_i ... A_{j+1} k_j.
        With `w_out` the heads are mapped together and H = 1. Arguments and errors as for `coefficients`.
        """
        scalar = self.v is not None and self.q is not None and self.q.ndim in (2, 4)
        require(scalar or self.v is None, "contributions of a matrix read need q without an output axis, or v = None")
        width = self.p if scalar else self._outputs
        alpha = self._weights_of_inputs(heads, queries, limit / max(1, width))
        system = self if heads is None else self.select_heads(heads)
        if system.v is not None:
            v = spread_heads(upcast(system.v), system.H)
            parts = alpha.squeeze(2).unsqueeze(-1) * v.movedim(1, 2).unsqueeze(2)
            return parts.real if parts.is_complex() else parts
        parts = alpha.movedim(2, -1)
        if system.w_out is not None:
            w_out = upcast(system.w_out).to(parts.dtype)
            parts = torch.einsum("bhijn,ohn->bijo", parts, w_out).unsqueeze(1)
            parts = parts.real if parts.is_complex() else parts
        return parts

    def _weights_of_inputs(
        self, heads: Sequence[int] | int | None, queries: Sequence[int] | None, limit: float
    ) -> Tensor:
        """alpha with the output axis, [B,H,o,queries,T*micro]."""
        system = self if heads is None else self.select_heads(heads)
        queries = None if queries is None else indices(queries, system.T, "queries")
        rows = system.T if queries is None else len(queries)
        size = system.B * system.H * rows * system.T * system.micro * upcast(system.k).element_size()
        require(
            size <= limit,
            f"coefficients [{system.B},{system.H},{rows},{system.T * system.micro}] would take {size / 1e9:.2g} GB; "
            f"the limit is {limit / 1e9:.2g} GB: choose heads=, queries=, a shorter system[start:stop], or limit=; for "
            "the last tokens of every query without T x T, analysis.influence_band",
        )
        if size == 0:
            shape = (system.B, system.H, system._outputs, rows, system.T * system.micro)
            real = real_dtype(upcast(system.k).dtype)
            whole = system.is_complex and system.q is None
            return torch.zeros(shape, dtype=complex_dtype(real) if whole else real, device=system.device)
        if system.log_b is not None and system.eta == "sum" and system.readout == "linear":
            system = stabilise(system)[0]  # the weights do not depend on the coordinates of the state
        from ..forms.form import WEIGHTS

        return WEIGHTS[system.readout](system, queries)

    def matrices(self, *, normalised: bool = False, limit: float = 1e9) -> Matrices:
        """The DSF's dense Lambda, B, C, D at each token: h_t = Lambda_t h_{t-1} + B_t u_t, y_t = C_t h_t + D_t u_t,
        with h = vec(S) (key-major, N = n p) and u_t = v_t (or the layer input where `w_in` is known).

        Args:
            normalised: put the division by eta into Lambda and B (the DSF's own coordinates, eq. 15:
                Lambda_t = eta_{t-1}/eta_t A_t, B_t = 1/eta_t ...) instead of into C and D.
            limit: bytes allowed.

        Raises:
            StateformError: readout "exp" (no finite state), micro-steps with a direct term, a result too large;
                normalised by sums of which the first is empty (exclusive reads), or of which every output has its own.
        """
        from ..forms.dense import matrices

        return matrices(self, normalised=normalised, limit=limit)

    def spectrum(self, *, normalised: bool = False) -> Tensor:
        """Eigenvalues of A_t at every micro-step, complex [B|1, T*micro|1, H, n].

        Args:
            normalised: times eta_{t-1}/eta_t, the eigenvalues of the DSF's own coordinates (arXiv 2510.09379); for
                readout "exp" this is the only eigenvalue there is.
        """
        from ..forms.dense import spectrum

        exponential = self.log_b is not None and self.eta == "sum" and self.readout == "linear"
        # a eta_{t-1}/eta_t is the same in every scale of the state
        return spectrum(stabilise(self)[0] if normalised and exponential else self, normalised=normalised)

    def __repr__(self) -> str:
        kind = {
            "identity": "no decay",
            "scalar": "scalar decay",
            "diagonal": "diagonal decay",
            "dense": "dense transition",
        }
        decay = [x for x in ("log_decay", "rate", "phase", "sign", "transition") if x in self._parts]
        constant = all(self.is_constant(x) for x in decay)
        words = [
            ("constant " if decay and constant else "")
            + ("complex " if self.is_complex else "")
            + kind[self.decay_kind]
        ]
        if self.f is not None:
            words.append("rank-1 feedback")
        if self.micro > 1:
            words.append(f"{self.micro} micro-steps")
        words.append("softmax readout" if self.readout == "exp" and self.eta == "sum" else f"{self.readout} readout")
        if self.exclusive:
            words.append("exclusive")
        if self.eta is not None:
            words.append("eta = sum" if isinstance(self.eta, str) else "eta given")
        if self.readout == "exp":
            state = f"cache of {self.state_size} numbers a token" + (f", last {self.window}" if self.window else "")
        else:
            both = f"({self.p} + {self.n})" if self.readout == "ridge" else f"{self.p}"
            state = f"state {self.state_heads} x {self.n} x {both}"
        sizes = f"B={self.B}, T={self.T}, H={self.H}, n={self.n}, p={self.p}"
        return f"System({', '.join(words)}; {state}; {sizes}; {str(self.dtype).removeprefix('torch.')})"


def stabilise(system: System, log_scale: Tensor | None = None) -> tuple[System, Tensor]:
    """Exponential gates as a change of coordinates S' = exp(-m) S, so that the forms see an ordinary system.

        m_t = max(g_t + m_{t-1}, log b_t)      by a max-plus scan, detached: any m gives the same y
        g'_t = g_t + m_{t-1} - m_t <= 0,       b'_t = exp(log b_t - m_t) <= 1,       eta_floor' = exp(-m_t) eta_floor
        f'_t = exp(m_{t-1} - m_t) f_t          with max(g_t, min(log max |f_t w_t^T|, 0)) for g_t in m_t: feedback
                                               keeps what the decay alone would lose

    Source: xLSTM (arXiv 2405.04517, eq. 15), RWKV-4 (arXiv 2305.13048, appendix D).

    Args:
        system: with log_b, eta = "sum" and a scalar decay (or none).
        log_scale: m before the first step [B,H]; default -inf (nothing written yet).

    Returns:
        The equal system without log_b, and m [B,T,H] (-inf while nothing has been written).

    Raises:
        StateformError: if the system has no log_b, or if y would depend on m.
    """
    require(system.log_b is not None, "stabilise needs log_b, the logarithm of the write strength")
    require(system.eta == "sum", 'stabilise needs eta = "sum": only then are outputs independent of the scale')
    require(
        system.decay_kind in ("identity", "scalar") and system.micro == 1,
        "stabilise needs a scalar decay (or none), micro = 1",
    )
    assert system.log_b is not None
    heads, parts = system.state_heads, system.tensors()

    def per_head(x: Tensor) -> Tensor:  # a number per step and head of the state, [B,T,heads]
        x = x.squeeze(-1) if x.ndim in (2, 4) else x
        x = spread_heads(upcast(x if x.ndim == 3 else x[None, None]), heads)
        return x.expand(system.B, system.T, heads)

    log_b = per_head(system.log_b)
    g = per_head(parts["log_decay"]).to(log_b) if "log_decay" in parts else torch.zeros_like(log_b)
    g = g * per_head(parts["rate"]).to(log_b) if "rate" in parts else g
    d = None if system.d is None else system.gate("d")
    start = log_b.new_full((system.B, log_b.shape[2]), -torch.inf) if log_scale is None else log_scale.to(log_b)
    with torch.no_grad():
        kept = g if system.f is None else torch.maximum(g, per_head(_log_feedback(system)).clamp(max=0.0))
        peaks, first = _peaks(kept, log_b, start.detach()), start.detach().unsqueeze(1)
        before = first if system.T == 1 else torch.cat([first, peaks[:, :-1]], 1)
        # -inf before the first write, where the state is 0 and its decay may be anything.
        shift = torch.nan_to_num(before - peaks, nan=0.0, posinf=0.0, neginf=-torch.inf)
        written = _finite(peaks)
        read = spread_heads(_finite(before) if system.exclusive else written, system.H)
        scale = -read
        if d is not None:  # e^69 times the scale of the state it is all of y, to the last digit: more could overflow
            scale = torch.minimum(scale, 69 - d.abs().log())
        scale = torch.exp(scale)
    floor = None if system.eta_floor is None else system.gate("eta_floor") * scale
    d = d if d is None else d * scale
    f = None if system.f is None else _rescaled(system.f, torch.exp(shift))
    b = torch.exp(log_b - written)
    return replace(system, log_decay=g + shift, log_b=None, b=b, f=f, eta_floor=floor, d=d), peaks


def _log_feedback(system: System) -> Tensor:
    """log of the largest entry of |f_t w_t^T|, [B,T,H] or [H]."""
    f, w = (upcast(x).abs().amax(-1).log() for x in (system.f, system.w))  # type: ignore[arg-type]
    heads = lcm(f.shape[-1], w.shape[-1])
    return spread_heads(f, heads, axis=-1) + spread_heads(w, heads, axis=-1)


def _rescaled(f: Tensor, factor: Tensor) -> Tensor:
    """f [B,T,heads,n] or [heads,n] times a factor [B,T,heads]."""
    f = upcast(f if f.ndim == 4 else f[None, None])
    heads = lcm(f.shape[2], factor.shape[2])
    return spread_heads(f, heads) * spread_heads(factor, heads).to(f.real.dtype).unsqueeze(-1)


def _finite(m: Tensor) -> Tensor:
    """0 in place of -inf."""
    return torch.nan_to_num(m, nan=torch.nan, posinf=torch.inf, neginf=0.0)


def _peaks(g: Tensor, log_b: Tensor, start: Tensor) -> Tensor:
    """m_t = max(m_{t-1} + g_t, log_b_t), [B,T,heads]."""
    if log_b.shape[1] == 1:
        return torch.maximum(start.unsqueeze(1) + g, log_b)
    if compiled_for(start):
        return call(peaks, g, log_b, start)
    steps = (torch.cat([torch.zeros_like(g[:, :1]), g], 1), torch.cat([start[:, None], log_b], 1))
    return associative_scan(lambda x, y: (x[0] + y[0], torch.maximum(x[1] + y[0], y[1])), steps)[1][:, 1:]


def _precise(name: str, x: Tensor, real: torch.dtype) -> Tensor:
    """A part in the precision of the state; a phase in its own."""
    x = upcast(x)
    return x if name == "phase" or x.dtype == real or x.is_complex() else x.to(real)


def indices(given: Sequence[int] | int, size: int, what: str) -> list[int]:
    """Whole numbers as indices 0..size-1; negative ones count from the end."""
    try:
        index = [operator.index(i) for i in ([given] if hasattr(given, "__index__") else given)]
    except TypeError:
        raise StateformError(f"{what} is {given!r}; expected whole numbers") from None
    require(all(-size <= i < size for i in index), f"{what} {index} are not all among the {size}: 0..{size - 1}")
    return [i % size for i in index]


def _flatten(s: System) -> tuple[list[Tensor], tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]]:
    parts = s._parts
    rest = tuple((f.name, getattr(s, f.name)) for f in fields(s) if f.name not in parts)
    return list(parts.values()), (tuple(parts), rest)


def _unflatten(xs: Any, context: Any) -> System:
    names, rest = context
    parts = dict(zip(names, xs, strict=True))
    new = {**parts, **dict(rest)}
    if "rate" in new:
        new["log_decay"] = (new["log_decay"], new.pop("rate"))
    system = object.__new__(System)  # not validated: transformed leaves need not be tensors
    system.__dict__.update(new, _parts=parts)
    return system


pytree.register_pytree_node(System, _flatten, _unflatten)
