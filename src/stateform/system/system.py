"""System: one representation for attention, state-space models and recurrent networks.

For each batch element and head, with a state S_t of n keys by p values:

    S_t = A_t S_{t-1} + b_t k_t v_t^T                    state update
    y_t = (readout(S_t, q_t) + d_t v_t) / eta_t          readout
    A_t = decay_t + f_t w_t^T                            open-loop decay + rank-1 state feedback

Source: the Dynamical Systems Framework (arXiv 2405.15731, eq. 11: h_i = Lambda_i h_{i-1} + B_i u_i,
y_i = C_i h_i + D_i u_i, with h = vec(S)) and Coefficient Dynamics (arXiv 2510.09389).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import lcm
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from torch import Tensor

from ..errors import StateformError, require, require_finite, require_values
from .lazy import Lazy
from .precision import asked_of_to, complex_dtype, real_dtype, upcast
from .readout import ReadOptions, Readout, made
from .shapes import (
    EXPONENTS,
    HIDING,
    PER_TOKEN,
    READ,
    TENSORS,
    decay_kind,
    facts,
    indices,
    label,
    layout,
    select_heads,
    spread_heads,
    stretch,
)
from .words import in_words

if TYPE_CHECKING:
    from ..forms.dense import Matrices

Decay = Tensor | tuple[Tensor, Tensor]
_OF_SHAPES = ("layouts", "head_counts", "B", "T", "H", "state_heads", "is_complex", "decay_kind")
"""What follows from the shapes alone."""


@dataclass(frozen=True, eq=False, repr=False, init=False)
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
        readout: a `Readout`, or its short name: "linear" (q^T S), "exp" (softmax) or "ridge".
        exclusive: the read takes S_{t-1}, before the write.
        micro: write steps per token; the read comes after the last (exclusive: before the first).
        w_in: [H,n,i], the constant map with k = w_in u, where there is one (vector states).
        w_out: [o,H,n], a constant map over all heads, y = Re(w_out S) (vector states with q = None).
        read: the fields of the readout as keywords, see `ReadOptions`.

    Raises:
        StateformError: shapes, dtypes or devices that do not fit, or parts that exclude each other.
    """

    q: Tensor | None
    k: Tensor
    v: Tensor | None
    log_decay: Decay | None
    phase: Tensor | None
    sign: Tensor | None
    transition: Tensor | None
    f: Tensor | None
    w: Tensor | None
    b: Tensor | None
    log_b: Tensor | None
    d: Tensor | None
    eta: Tensor | Literal["sum"] | None
    eta_floor: Tensor | float | None
    readout: Readout
    exclusive: bool
    micro: int
    w_in: Tensor | None
    w_out: Tensor | None

    def __init__(
        self, q: Tensor | None, k: Tensor, v: Tensor | None, *,
        log_decay: Decay | None = None, phase: Tensor | None = None, sign: Tensor | None = None,
        transition: Tensor | None = None, f: Tensor | None = None, w: Tensor | None = None, b: Tensor | None = None,
        log_b: Tensor | None = None, d: Tensor | None = None, eta: Tensor | Literal["sum"] | None = None,
        eta_floor: Tensor | float | None = None, readout: Readout | Literal["linear", "exp", "ridge"] = "linear",
        exclusive: bool = False, micro: int = 1, w_in: Tensor | None = None, w_out: Tensor | None = None,
        **read: Unpack[ReadOptions],
    ) -> None:  # fmt: skip
        given = (q, k, v, log_decay, phase, sign, transition, f, w, b, log_b, d, eta, eta_floor, made(readout, read),
                 exclusive, micro, w_in, w_out)  # fmt: skip
        for name, value in zip(_FIELDS, given, strict=True):
            object.__setattr__(self, name, value)
        self.__dict__.update(facts(self, _OF_SHAPES))

    # -- sizes ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Give the tensors that are there, by name; a product decay counts as `log_decay` (dt) and `rate` (a)."""
        return dict(self.parts)

    @Lazy
    def shared(self) -> dict[str, Any]:
        """Facts that follow from the shapes, kept for all systems of these shapes: whoever derives some may add it."""
        return {}

    @Lazy
    def parts(self) -> dict[str, Tensor]:
        """The tensors that are there, as `tensors` gives them; not to be changed."""
        out = {name: x for name in TENSORS if isinstance(x := getattr(self, name), Tensor)}
        if isinstance(self.log_decay, tuple):
            out["log_decay"], out["rate"] = self.log_decay
        return {**out, **self.readout.tensors()}

    @Lazy
    def layouts(self) -> dict[str, str]:
        """The axes of each part, such as "BTHn"."""
        return {name: layout(name, x) for name, x in self.parts.items()}

    def is_constant(self, name: str) -> bool:
        """True if the part `name` has no time axis."""
        return "B" not in self.layouts[name]

    def _varying(self) -> tuple[Tensor, bool]:
        for name, x in self.parts.items():
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
        return max(self.head_counts.values())

    @Lazy
    def state_heads(self) -> int:
        """Heads of the state: those of k, v, decay and feedback broadcast together."""
        return lcm(*(h for name, h in self.head_counts.items() if name not in PER_TOKEN and name not in READ))

    @Lazy
    def head_counts(self) -> dict[str, int]:
        """The heads that each part has."""
        return {name: x.shape[self.layouts[name].index("H")] for name, x in self.parts.items()}

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
        return self.p + self.readout.columns(self)

    @property
    def window(self) -> int | None:
        """Tokens that a read sees; None for all."""
        return self.readout.window

    @property
    def causal(self) -> bool:
        """False if every token sees every other."""
        return self.readout.causal

    @property
    def outputs(self) -> int:
        """Outputs of one read: those of q, or the keys where the whole state is read."""
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
        """True if the state is complex."""
        written = ("k", "v", "f", "w", "transition")
        return self.phase is not None or any(self.parts[x].is_complex() for x in written if x in self.parts)

    @Lazy
    def decay_kind(self) -> Literal["identity", "scalar", "diagonal", "dense"]:
        """Structure of the open-loop decay."""
        return "dense" if self.transition is not None else decay_kind(self.parts, self.layouts)

    @property
    def time_invariant(self) -> bool:
        """True if decay, feedback, k, q, b and eta are all constant (v is the input; for v = None and n = 1, k is)."""
        inputs = {"v", "d"} | ({"k"} if self.v is None and self.n == 1 else set())
        varying = [x for x in self.parts if x not in inputs and not self.is_constant(x)]
        return not varying and self.eta != "sum" and self.readout.linear and self.micro == 1

    @property
    def state_size(self) -> int:
        """Real numbers in the state of one row: H n columns, two for a complex entry.
        With a softmax readout it is the size of one cached token: the state grows by it with each token.
        """
        return self.readout.state_size(self)

    @property
    def held(self) -> int:
        """Real numbers that a row holds whatever the number of tokens (with a window, once it is full)."""
        return self.state_size * (self.window or 1) if self.readout.bounded else 0

    @property
    def growth(self) -> int:
        """Real numbers that each token adds to the state of a row."""
        return 0 if self.readout.bounded else self.state_size

    @property
    def systems(self) -> tuple[System, ...]:
        """This one, after those that a `Chain` has before it."""
        return (self,)

    # -- parts of it ---------------------------------------------------------------------------------------------

    def map(self, fn: Callable[[str, Tensor], Tensor]) -> System:
        """Make a system with `fn(name, tensor)` in place of each tensor."""
        own = {name: x for name, x in self.parts.items() if name not in self.readout.parts}
        new: dict[str, Any] = {name: fn(name, x) for name, x in own.items()}
        if "rate" in new:
            new["log_decay"] = (new["log_decay"], new.pop("rate"))
        return replace(self, **new, readout=self.readout.map(fn))

    def __getitem__(self, at: slice) -> System:
        """Cut out a stretch of tokens, `system[start:stop]`."""
        start, stop = stretch(at, self.T)
        return self.gather(lambda x, r: x[:, start * r : stop * r])

    def gather(self, fn: Callable[[Tensor, int], Tensor]) -> System:
        """Make a system with `fn(tensor, steps per token)` in place of each part that varies with batch and time."""

        def one(name: str, x: Tensor) -> Tensor:
            if self.is_constant(name):
                return x
            return fn(x, 1 if name in PER_TOKEN else self.micro)

        return self.map(one)

    def select_heads(self, heads: Sequence[int] | int) -> System:
        """Select some heads."""
        H = self.H
        index = torch.tensor(indices(heads, H, "heads"), device=self.device)
        require(len(index) > 0, f"no heads are named; expected some of the {H} heads 0..{H - 1}")
        return self.map(lambda name, x: select_heads(name, x, index, H))

    def to(self, *args: Any, **kwargs: Any) -> System:
        """Move or cast as `Tensor.to` does; complex parts stay complex."""
        device, dtype = asked_of_to("system", *args, **kwargs)

        def move(name: str, x: Tensor) -> Tensor:
            if dtype is None:
                return x.to(device)
            if name in EXPONENTS:
                return upcast(x.to(device=device, dtype=torch.promote_types(real_dtype(dtype), torch.float32)))
            return x.to(device=device, dtype=complex_dtype(dtype) if x.is_complex() else real_dtype(dtype))

        return self.map(move)

    def detach(self) -> System:
        """Cut from the autograd graph."""
        return self.map(lambda _, x: x.detach())

    def check_values(self) -> None:
        """Raise if a part holds NaN or inf (an exponent may be -inf), or `sign` other values than its two."""
        for name, x in self.parts.items():
            reset = name in HIDING or (name == "log_decay" and "rate" not in self.parts)
            require_finite(x, label(name), allow_minus_inf=reset)
        if self.sign is not None:
            require_values(self.sign, "sign", (1, -1), "give the magnitude of the decay as log_decay")
        self.readout.check_values(self)

    def gate(self, name: Literal["b", "log_b", "d", "eta", "eta_floor", "sink"], default: float = 0.0) -> Tensor:
        """Give a number per step and head [B|1, T|1, H|1] in the precision of the state; `default` where not given."""
        x = self.parts.get(name, getattr(self, name, None))
        if not isinstance(x, Tensor):
            x = torch.full((1,), default if x is None else x, dtype=upcast(self.k).real.dtype, device=self.device)
        x = upcast(x)
        return spread_heads(x if x.ndim == 3 else x.view(1, 1, -1), self.H)

    # -- what can be asked of it: one line each, computed in `forms` ------------------------------------------------

    def forms(self) -> dict[str, str | None]:
        """List every form, with None where it exists for this system and else the reason why not."""
        from ..forms.form import FORMS

        return {name: form.refuses(self) for name, form in FORMS.items()}

    def coefficients(
        self, *, heads: Sequence[int] | int | None = None, queries: Sequence[int] | None = None, limit: float = 1e9
    ) -> Tensor:
        """Compute the effective attention: alpha_ij = phi(q_i^T A_i ... A_{j+1} b_j k_j) / eta_i weighs v_j in y_i.

        Args:
            heads: the heads wanted (default all). queries: the tokens i wanted (default all).
            limit: bytes allowed for the result; a larger one is refused before any work.

        Returns:
            [B,H,queries,T * micro], the direct term on its diagonal.

        Raises:
            StateformError: for vector states, see `contributions`; a result too large.
        """
        from ..forms.coefficients import coefficients

        return coefficients(self, heads, queries, limit)

    def contributions(
        self, *, heads: Sequence[int] | int | None = None, queries: Sequence[int] | None = None, limit: float = 1e9
    ) -> Tensor:
        """Compute what each token j adds to y_i: [B,H,queries,T * micro,o], whose sum over j is y (from a zero state).

        For scalar weights o = p and the entry is alpha_ij v_j; for vector states (v = None), C A_i ... A_{j+1} k_j.
        With `w_out` the heads are mapped together and H = 1. Arguments and errors as for `coefficients`.
        """
        from ..forms.coefficients import contributions

        return contributions(self, heads, queries, limit)

    def matrices(self, *, normalised: bool = False, limit: float = 1e9) -> Matrices:
        """Write out the DSF's dense Lambda, B, C, D at each token: h_t = Lambda_t h_{t-1} + B_t u_t,
        y_t = C_t h_t + D_t u_t; h = vec(S) (key-major, N = n p), u_t = v_t (the layer input where `w_in` is known).

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
        """Compute the eigenvalues of A_t at every micro-step, complex [B|1, T*micro|1, H, n].

        Args:
            normalised: times eta_{t-1}/eta_t, the eigenvalues of the DSF's own coordinates (arXiv 2510.09379); for
                readout "exp" this is the only eigenvalue there is.
        """
        from ..forms.dense import spectrum

        return spectrum(self, normalised=normalised)

    def __repr__(self) -> str:
        return in_words(self)


_FIELDS = tuple(f.name for f in fields(System))
