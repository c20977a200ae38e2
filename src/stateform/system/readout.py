"""How outputs are read from what was written. A readout knows its own fields, its state, and whether that is bounded.

    LinearRead     y_t = q_t^T S_t                                   one state S of n keys by p values
    SoftmaxRead    y_t = sum_j exp(Re(q_t^T A_t .. A_{j+1} k_j)) v_j     the cache of keys and values, which grows
    RidgeRead      y_t = S_t^T (G_t + R_t)^{-1} q_t                  S and the Gram matrix G of the keys

"linear", "exp" and "ridge" are short names for them; the fields of each are keywords of `System` too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from math import lcm
from typing import Any, ClassVar, Literal, Self, TypedDict

from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import StateformError, require, require_above


@dataclass(frozen=True)
class Solver:
    """How (G_t + R_t) x_t = q_t is solved.

    Args:
        method: "exact" (Cholesky), "cg" (conjugate gradients from q / diag(G + R)) or "chebyshev" (between the least
            R_t and ||G_t||_F + the largest R_t, which hold all eigenvalues; from their mean).
        steps: of an iterative method; the published layers take 30. None takes as many as the precision of the state
            asks for: for chebyshev they follow from the condition number, cg goes on until its residual says so.

    Gradients are those of the exact solution, whatever the method.
    """

    method: Literal["exact", "cg", "chebyshev"] = "exact"
    steps: int | None = None

    def __post_init__(self) -> None:
        known = self.method in ("exact", "cg", "chebyshev")
        require(known, f"the solver's method is {self.method!r}; expected 'exact', 'cg' or 'chebyshev'")
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool) and self.steps >= 0
        require(self.steps is None or whole, f"the solver's steps are {self.steps!r}; expected 0 or more, or None")
        require(self.steps is None or self.method != "exact",
                f"the exact solver has no steps, {self.steps} are given; expected None, or method 'cg'")  # fmt: skip


class Readout:
    """A way to read. `str()` of one is its short name, which it equals; two are equal that hold the same tensors."""

    name: ClassVar[str]
    """Its short name."""
    cached: ClassVar[bool] = False
    """True if the state is a cache of keys and values, on which no transition acts."""
    linear: ClassVar[bool] = False
    """True if y is q^T S."""
    gram: ClassVar[bool] = False
    """True if the state holds the Gram matrix of the keys beside S."""
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """What is said of its fields beside another readout, {} its name."""
    parts: ClassVar[tuple[str, ...]] = ()
    """The fields that may be tensors, in the layouts of `shapes.SHAPES`."""
    exponents: ClassVar[tuple[str, ...]] = ()
    """Those of them that are exponents, which may be -inf."""

    @property
    def window(self) -> int | None:
        """Count the tokens that are seen; None for all."""
        return None

    @property
    def causal(self) -> bool:
        """True if the future is hidden; false if every token sees every other."""
        return True

    @property
    def bounded(self) -> bool:
        """True if the state does not grow with T."""
        return True

    @property
    def placed(self) -> bool:
        """True if its parts name places in the text, so that a system goes on from its own past alone."""
        return False

    def columns(self, system: Any) -> int:
        """Count the columns of S besides the p values."""
        return 1 if system.eta == "sum" else 0

    def state_size(self, system: Any) -> int:
        """Count the real numbers in the state of one row, two for a complex entry; of one cached token where it is a
        cache.
        """
        return int(system.state_heads * system.n * system.columns) * (2 if system.is_complex else 1)

    def tensors(self) -> dict[str, Tensor]:
        """List the tensors it holds, by name."""
        return {name: x for name in self.parts if isinstance(x := getattr(self, name), Tensor)}

    def refinements(self) -> list[str]:
        """Name what is in its weights beside those of q and k, a window and a forgetting."""
        return []

    def map(self, fn: Callable[[str, Tensor], Tensor]) -> Self:
        """Put `fn(name, tensor)` in place of each tensor."""
        new: dict[str, Any] = {name: fn(name, x) for name, x in self.tensors().items()}
        return replace(self, **new) if new else self  # type: ignore[type-var]

    def check(self, system: Any) -> None:
        """Raise unless the parts of its System go with it."""
        require(system.eta != "sum" or system.q is not None,
                'eta = "sum" is a sum of weights; with q = None there are none')  # fmt: skip

    def check_values(self, system: Any) -> None:
        """Raise if a part of its System has a value that it cannot read with."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Readout):
            return self.name == other
        pairs = [(getattr(self, name), getattr(other, name, None)) for name in vars(self)]
        same = all(x is y or (not isinstance(x, Tensor) and x == y) for x, y in pairs)
        return type(self) is type(other) and same

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not f.default]  # type: ignore[arg-type]
        shown = [f"{name}={list(x.shape) if isinstance(x, Tensor) else repr(x)}" for name, x in given]
        return f"{type(self).__name__}({', '.join(shown)})"


_TRANSITION = ("log_decay", "rate", "phase", "sign", "f", "w")
"""The parts of a transition that may act inside the scores of softmax."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearRead(Readout):
    """q_t^T S_t: a finite state, and every form there is."""

    name, linear = "linear", True


@dataclass(frozen=True, eq=False, repr=False)
class SoftmaxRead(Readout):
    """Weights exp(c(x_ij) + g_{j+1} + ... + g_i + beta_j + r_{i-j} + m_{i,j/block}), usually with eta = "sum", for the
    logits x_ij = Re(q_i^T A_i ... A_{j+1} b_j k_j): the System's transition acts on the keys, inside the exponential.

    A key is hidden where a bias is -inf. A read that sees nothing is 0.

    Args:
        window: only the last `window` tokens are seen; with causal=False, those less than `window` away on both sides.
        causal: False (form "matrix") lets every token see every other.
        forget: g, log decays outside, on the weights (ALiBi, forgetting attention): [B,T,H] or [H], 0 or less.
        bias: beta, of each key's own weight [B,T,H] or [H].
        distance: r, for each distance 0, 1, ... D - 1, which stands for all beyond (T5): [H,D].
        blocks: m, of each query for each block of keys [B,T,H,M]: 0 and -inf show and hide it (MoBA).
        block: keys in a block, which are counted from the first token of a sequence.
        sink: the logit of one more weight, which takes its share of eta (gpt-oss): [B,T,H] or [H].
        sink_value: the value of that weight [B,T,H,p]; None is 0. With the logarithm of another sum of weights as sink
            and its mean as sink_value, both sums have one normaliser. It is no token's: coefficients leave it out.
        cap: c(x) = cap tanh(x / cap), which bounds the logits (Gemma 2).
    """

    window: int | None = None
    causal: bool = True
    forget: Tensor | None = None
    bias: Tensor | None = None
    distance: Tensor | None = None
    blocks: Tensor | None = None
    block: int | None = None
    sink: Tensor | None = None
    sink_value: Tensor | None = None
    cap: float | None = None

    name, cached = "exp", True
    exponents = ("forget", "bias", "distance", "blocks", "sink")
    parts = (*exponents, "sink_value")
    elsewhere: ClassVar = {
        "window": 'window is for readout "exp"; a {} readout forgets by its decay',
        "causal": 'causal=False is for readout "exp"; a {} readout is causal',
        "forget": 'forget is for readout "exp"; a {} readout takes its decay as log_decay',
        "bias": 'bias is for readout "exp"; a {} readout takes the strength of a write as b or log_b',
        "distance": 'distance is for readout "exp"; a {} readout forgets by its decay',
        "blocks": 'blocks is for readout "exp"; a {} readout forgets by its decay',
        "block": 'block is for readout "exp"; a {} readout forgets by its decay',
        "sink": 'sink is for readout "exp"; a {} readout takes what is added to a sum of weights as d',
        "sink_value": 'sink_value is for readout "exp"; a {} readout takes what is added to a sum of weights as d',
        "cap": 'cap is for readout "exp"; a {} readout has no logits to bound',
    }

    def __post_init__(self) -> None:
        for name, of in (("window", "tokens"), ("block", "keys")):
            x = getattr(self, name)
            whole = isinstance(x, int) and not isinstance(x, bool) and x >= 1
            require(whole or x is None, f"{name} is {x!r}; expected 1 or more {of}")
        require(isinstance(self.causal, bool), f"causal is {self.causal!r}; expected True or False")
        for name in self.parts:
            _check_tensor(name, getattr(self, name))
        limited = self.forget is not None or self.distance is not None
        require(self.causal or not limited,
                "causal=False has no past to look back on: leave out forget and distance")  # fmt: skip
        require((self.blocks is None) == (self.block is None),
                "blocks [B,T,H,M] are of `block` keys each; give both, or neither")  # fmt: skip
        require(self.sink_value is None or self.sink is not None,
                "sink_value is the value of the sink's weight; give sink too")  # fmt: skip
        number = isinstance(self.cap, int | float) and not isinstance(self.cap, bool) and 0 < self.cap < math.inf
        require(self.cap is None or number, f"cap is {self.cap!r}; expected the largest logit, above 0, or None")

    @property
    def bounded(self) -> bool:
        return self.window is not None

    @property
    def placed(self) -> bool:
        return self.blocks is not None

    def refinements(self) -> list[str]:
        plain = ("window", "causal", "forget", "block")
        return [f.name for f in fields(self) if f.name not in plain and getattr(self, f.name) is not None]

    def columns(self, system: Any) -> int:
        return 0

    def state_size(self, system: Any) -> int:
        heads = system.head_counts
        paired = system.is_complex or (system.q is not None and system.q.is_complex())
        keys = lcm(*(heads[x] for x in ("k", "b", "log_b", *_TRANSITION) if x in heads)) * system.n
        return int(keys * (2 if paired else 1) + heads["v"] * system.p)

    def check(self, system: Any) -> None:
        s = system
        require(s.q is not None and s.q.ndim == 4 and s.v is not None and s.k.ndim == 4,
                'readout "exp" needs q and k [B,T,H,n] and v [B,T,H,p]')  # fmt: skip
        require(
            not s.v.is_complex(), 'readout "exp" needs real values v; give their real and imaginary parts side by side'
        )
        require(s.transition is None,
                'readout "exp" takes no dense transition: its scores take log_decay (scalar, diagonal, a product), '
                "sign, phase and feedback f w^T")  # fmt: skip
        moved = [name for name in _TRANSITION if name != "phase" and name in s.head_counts]
        require(
            self.causal or not moved,
            f"causal=False looks ahead, where {' and '.join(moved)} would have to be undone; only a phase can be",
        )
        require(not s.exclusive and s.micro == 1, 'readout "exp" is inclusive and has one step a token')
        require(self.sink is None or s.eta == "sum", 'a sink is one more weight of the sum; it needs eta = "sum"')
        require(self.sink_value is None or not self.sink_value.is_complex(),
                "sink_value is complex, as the values cannot be; expected a real tensor [B,T,H,p]")  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class RidgeRead(Readout):
    """(G_t + R_t)^{-1} q_t in place of q_t, with G_t = decay_t G_{t-1} + b_t k_t k_t^T: the state is [S | G].

    Args:
        ridge: R_t, a multiple of I [B,T,H], [H] or diagonal [B,T,H,n], [H,n]; positive.
        mix: q_t + mix_t ((G_t + R_t)^{-1} q_t - q_t) instead, [B,T,H] or [H]; 0 is the linear readout.
        relative: R_t = ridge ||G_t||_F, which bounds the condition number by 1 + 1/ridge.
        solver: which method solves for x_t; None solves exactly.
    """

    ridge: Tensor | None = None
    mix: Tensor | None = None
    relative: bool = False
    solver: Solver | None = None

    name, gram, parts = "ridge", True, ("ridge", "mix")
    elsewhere = dict.fromkeys(
        ("ridge", "mix", "relative", "solver"),
        "ridge, mix, relative and solver are for readout \"ridge\"; this one is '{}'",
    )

    def __post_init__(self) -> None:
        _check_tensor("ridge", self.ridge)
        _check_tensor("mix", self.mix)
        given = type(self.solver).__name__
        require(self.solver is None or isinstance(self.solver, Solver),
                f"solver is a {given}; expected a Solver, e.g. sf.Solver('cg', steps=30), or None")  # fmt: skip
        require(isinstance(self.relative, bool), f"relative is {self.relative!r}; expected True or False")
        require(self.ridge is not None, 'readout "ridge" needs the ridge R: a tensor [B,T,H], [B,T,H,n], [H,n] or [H]')

    def columns(self, system: Any) -> int:
        return int(system.n)

    def check(self, system: Any) -> None:
        s = system
        require(s.q is not None and s.v is not None, 'readout "ridge" is a regression of values on keys: give q and v')
        real = not s.is_complex and not s.q.is_complex()
        require(real, 'readout "ridge" needs real q, k and v')
        one = s.decay_kind in ("identity", "scalar") and s.f is None
        require(one, 'readout "ridge" takes a scalar decay, [B,T,H] or [H]: with a diagonal or dense one, or feedback, '
                "G_t would not be a weighted sum of k k^T")  # fmt: skip
        require(s.sign is None, 'readout "ridge" weighs its keys by the decay: positive; leave out sign')
        require(s.micro == 1, 'readout "ridge" has one step a token; leave out micro')
        require(s.eta != "sum", 'readout "ridge" is not a sum of weights; leave out eta, or give it as a tensor')

    def check_values(self, system: Any) -> None:
        require_above(self.ridge, "ridge", 0.0, "it is what makes G + R invertible")
        require_above(system.b, "b", 0.0, "it weighs the keys of a regression", equal=True)


KINDS: dict[str, type[Readout]] = {kind.name: kind for kind in (LinearRead, SoftmaxRead, RidgeRead)}
"""By short name."""
OWN = {kind: {f.name: f.default for f in fields(kind)} for kind in KINDS.values()}  # type: ignore[arg-type]
"""The fields of each, with their defaults; looked up here, because torch.compile does not trace the question."""
LINEAR = LinearRead()


class ReadOptions(TypedDict, total=False):
    """The fields of all readouts, as keywords of a System."""

    window: int | None
    causal: bool
    forget: Tensor | None
    bias: Tensor | None
    distance: Tensor | None
    blocks: Tensor | None
    block: int | None
    sink: Tensor | None
    sink_value: Tensor | None
    cap: float | None
    ridge: Tensor | None
    mix: Tensor | None
    relative: bool
    solver: Solver | None


def made(readout: Readout | str, options: ReadOptions) -> Readout:
    """Make the readout that a short name, or a readout, and the fields that are given beside it say.

    Raises:
        StateformError: an unknown name, or a field of another readout.
        TypeError: a keyword that no readout has.
    """
    if not options:
        if readout == "linear":
            return LINEAR
        if isinstance(readout, Readout):
            return readout
    known = ", ".join(repr(name) for name in list(KINDS)[:-1]) + f" or {list(KINDS)[-1]!r}"
    named = isinstance(readout, str) and readout in KINDS
    require(named or isinstance(readout, Readout), f"readout is {readout!r}; expected {known}")
    kind = type(readout) if isinstance(readout, Readout) else KINDS[readout]
    own = OWN[kind]
    for name, value in options.items():
        if name not in own:
            _check_foreign(name, value, kind)
    taken: dict[str, Any] = {name: value for name, value in options.items() if name in own}
    return kind(**taken) if isinstance(readout, str) else replace(readout, **taken)  # type: ignore[type-var]


def _check_foreign(name: str, value: Any, kind: type[Readout]) -> None:
    """Raise if a field that a readout does not have is given another value than its default."""
    owner = next((other for other, known in OWN.items() if name in known), None)
    if owner is None:
        raise TypeError(f"System.__init__() got an unexpected keyword argument {name!r}")
    if value is not OWN[owner][name]:
        raise StateformError(owner.elsewhere[name].format(kind.name))


def _check_tensor(name: str, x: Any) -> None:
    if x is not None and not isinstance(x, Tensor):
        raise StateformError(f"{name} is a {type(x).__name__}; expected a tensor or None")


def _flatten(readout: Any) -> tuple[list[Any], tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]]:
    names = tuple(name for name in readout.parts if getattr(readout, name) is not None)
    rest = tuple((f.name, getattr(readout, f.name)) for f in fields(readout) if f.name not in names)
    return [getattr(readout, name) for name in names], (names, rest)


def _register(kind: type[Readout]) -> None:
    def unflatten(xs: Any, context: Any) -> Readout:
        readout = object.__new__(kind)  # not checked: transformed leaves need not be tensors
        readout.__dict__.update(dict(zip(context[0], xs, strict=True)), **dict(context[1]))
        return readout

    pytree.register_pytree_node(kind, _flatten, unflatten)


for _kind in KINDS.values():
    _register(_kind)
