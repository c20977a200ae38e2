"""Lyapunov exponents: how fast differences between states grow or fade, a token, along real input.

    lambda_i = lim 1/T log sigma_i(A_T ... A_1)

by the QR method: Q_t R_t = A_t Q_{t-1}, and lambda_i is the mean of log |(R_t)_ii| (Benettin et al., Meccanica 15,
1980; Geist, Parlitz, Lauterborn, Prog. Theor. Phys. 83, 1990). A_t is the transition of a System, so for a nonlinear
cell (whose System is its linearisation along the trajectory) the Jacobian, and for a whole model the derivative of its
joint state. With constant A the exponents are log |eigenvalue|, with diagonal A_t the means of log |a_t|: no QR is
needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import require
from ...layer import has_system, system_of
from ...system import System
from ...system.core import fold
from ...system.state import State
from ..attention.coefficients import systems_of
from ..attention.stream import is_model
from ..structure import constant_transition, token_transitions

BLOCKS = 16
"""Stretches of the text whose means give the standard error."""
SEED = 0
"""Of the first Q: any directions will do that are not special."""
METHODS = {
    "eigenvalues": "log |eigenvalue| of a constant transition: exact",
    "diagonal": "mean of log |decay|: exact on this text",
    "qr": "QR method",
    "jvp": "QR method on derivatives of the joint state",
}


@dataclass(frozen=True)
class Lyapunov:
    """Lyapunov exponents in nats a token, the largest first. Below 0 differences fade, above 0 they grow."""

    exponents: Tensor
    """[B,H,k]; for a model [B,1,k], of the joint state of its layers."""
    error: Tensor
    """Standard error [B,H,k], from the means of stretches of the text: how far another text could be. 0 if A is
    constant; NaN if the text is too short to tell. What QR finds is off by some nats / tokens besides, as Q takes time
    to turn to its directions: take a longer text, or burn_in."""
    running: Tensor
    """Means up to token t, [B,points,H,k], for t in `at`."""
    at: list[int]
    method: str
    """How they were found: "eigenvalues", "diagonal", "qr" or "jvp"."""
    tokens: int
    """Averaged over so many tokens, after `burn_in`."""
    burn_in: int
    layers: dict[str, Lyapunov] = field(default_factory=dict)
    """Of a model: the exponents of its layers with a finite state. A layer's state never acts on the layers below, so
    the joint Jacobian is block triangular, and the joint exponents are those of all layers together (softmax adds
    zeros: a cache is kept as it is)."""

    @property
    def largest(self) -> float:
        """The largest of all."""
        return float(self.exponents.max())

    @property
    def timescale(self) -> float:
        """Tokens until the slowest difference has changed e-fold: 1 / |largest|."""
        return math.inf if self.largest == 0 else 1 / abs(self.largest)

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers; means over the batch."""
        return {
            "exponents": self.exponents.mean(0).tolist(), "error": self.error.mean(0).tolist(),
            "largest": self.largest, "method": self.method, "tokens": self.tokens, "burn_in": self.burn_in,
            "layers": {i: layer.to_dict() for i, layer in self.layers.items()},
        }  # fmt: skip

    def __str__(self) -> str:
        top = self.exponents[..., 0].flatten()
        at = int(top.argmax())
        error = float(self.error[..., 0].flatten()[at])
        verb = "fade" if self.largest < 0 else "grow" if self.largest > 0 else "stay"
        spread = f"{float(self.exponents.min()):.4g} to {self.largest:.4g}"
        lines = [
            f"largest Lyapunov exponent {self.largest:.5g} +- {error:.2g} nats a token: differences {verb}"
            + (f", e-fold in {self.timescale:.3g} tokens" if self.largest else ""),
            f"all {self.exponents.shape[-1]} a head: {spread}; {METHODS[self.method]}, {self.tokens} tokens",
        ]
        lines += [f"  {i}: largest {layer.largest:.5g} ({layer.method})" for i, layer in self.layers.items()]
        return "\n".join(lines)


@torch.no_grad()
def lyapunov(
    thing: System | nn.Module,
    u: Tensor | None = None,
    *,
    k: int | None = None,
    burn_in: int | None = None,
    method: Literal["auto", "qr"] = "auto",
) -> Lyapunov:
    """Lyapunov exponents of a System, of a layer on u [B,T,d_model], or of a model on tokens [B,T].

    A System's state has p columns (values) that all see the same A_t: its exponents count p times. The windows of
    short convolutions are forgotten after a few tokens and left out. Computed in float64.

    Args:
        thing: a System (then without u), a layer with `system(u)` (cells too: their Jacobians), or a model.
        u: the input of the layer, or the tokens of the model.
        k: how many, the largest ones (default: all n; of a model's joint state, 1).
        burn_in: tokens left out of the mean, while Q turns to its directions (default: a tenth; 0 without QR).
        method: "auto" takes the exact answer for constant and diagonal transitions; "qr" never does.

    Raises:
        StateformError: an exp readout (its state is the growing cache: nothing is multiplied), an input that is missing
            or too short, or a k that the state does not have.
    """
    require(method in ("auto", "qr"), f"method is {method!r}; expected 'auto' or 'qr'")
    if isinstance(thing, System):
        require(u is None, "a System holds its input already; leave out u")
        return _of_system(thing, k, burn_in, method)
    require(isinstance(u, Tensor), "give the input: u [B,T,d_model] of a layer, or the tokens [B,T] of a model")
    assert isinstance(u, Tensor)
    if is_model(thing):
        return _of_model(thing, u, k or 1, burn_in)
    require(has_system(thing), f"a {type(thing).__name__} does not say what its System is; expected a System, a "
            "Layer or a model")  # fmt: skip
    return _of_system(system_of(thing, u), k, burn_in, method)


def _of_system(system: System, k: int | None, burn_in: int | None, method: str) -> Lyapunov:
    require(not system.readout.cached,
            'a System with readout "exp" keeps every token: its state grows and no transition acts on it. Look at '
            "spectrum(system), eta_{t-1}/eta_t, instead")  # fmt: skip
    require(system.causal, "Lyapunov exponents need a causal system")
    n = system.n
    k = n if k is None else k
    require(1 <= k <= n, f"k is {k}; expected 1 to {n}, the keys of the state")
    T = system.T
    require(T > 0 and system.B > 0, "an empty sequence has no exponents")
    system = system.to(torch.float64)
    if method == "auto" and constant_transition(system):
        values = torch.linalg.eigvals(token_transitions(system)).abs().log().sort(-1, descending=True).values[..., :k]
        exponents = values[:, 0].expand(system.B, system.H, k)
        zero = torch.zeros_like(exponents)
        return Lyapunov(exponents, zero, exponents.unsqueeze(1), [T], "eigenvalues", T, 0)
    if method == "auto" and system.f is None and system.transition is None:
        return _averaged(_log_decays(system), "diagonal", burn_in or 0, k)
    return _averaged(_by_qr(system, k), "qr", T // 10 if burn_in is None else burn_in, k)


def _log_decays(system: System) -> Tensor:
    """Compute log |a_t| of every token, [B,T,H,n]: sums of log decays, which do not underflow."""
    core = fold(system)
    log = core.decay_log()
    log = torch.zeros_like(core.k[..., :1].real) if log is None else log
    if core.sign is not None:  # +1 or -1
        log = log + core.sign.abs().log()
    steps = log.expand(core.batch, core.length, *core.heads, core.n).flatten(2, 3)
    return steps.unflatten(1, (-1, system.micro)).sum(2)


def _by_qr(system: System, k: int) -> Tensor:
    """Compute log |(R_t)_ii| of every token, [B,T,H,k]."""
    core, r = fold(system), system.micro
    Q = _directions((core.batch, 1, *core.heads, core.n, k), core.dtype).to(system.device)
    logs = []
    for t in range(system.T):
        for step in range(t * r, (t + 1) * r):
            Q = core.slice(step, step + 1).transition().apply(Q)
        Q, R = torch.linalg.qr(Q)
        logs.append(_log_diagonal(R))
    return torch.cat(logs, 1).flatten(2, 3)


def _log_diagonal(R: Tensor) -> Tensor:
    """Compute log |R_ii|; what one step shrinks to the rounding of its largest is gone, -inf: its digits are noise."""
    size = R.diagonal(dim1=-2, dim2=-1).abs()
    noise = R.abs().amax((-2, -1)).unsqueeze(-1) * R.shape[-1] * torch.finfo(size.dtype).eps
    return torch.where(size > noise, size, 0.0).log()


def _directions(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Orthonormal columns in no special direction."""
    return torch.linalg.qr(torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(SEED)))[0]


def _averaged(logs: Tensor, method: str, burn_in: int, k: int) -> Lyapunov:
    """Average what each token stretches, [B,T,H,n], to exponents and their errors."""
    T = logs.shape[1]
    require(0 <= burn_in < T, f"burn_in is {burn_in} of {T} tokens; expected fewer than there are")
    logs = logs[:, burn_in:]
    kept = logs.shape[1]
    exponents, order = logs.mean(1).sort(-1, descending=True)
    logs = logs.gather(-1, order.unsqueeze(1).expand_as(logs))[..., :k]
    size = kept // BLOCKS
    if size:
        means = logs[:, : size * BLOCKS].unflatten(1, (BLOCKS, size)).mean(2)
        error = means.std(1) / BLOCKS**0.5
    else:
        error = torch.full_like(logs[:, 0], torch.nan)
    at = sorted({int(t) for t in torch.linspace(1, kept, 200)})
    running = logs.cumsum(1)[:, torch.tensor(at, device=logs.device) - 1]
    running = running / torch.tensor(at, device=logs.device)[:, None, None]
    return Lyapunov(exponents[..., :k], error, running, [burn_in + t for t in at], method, kept, burn_in)


# -- a whole model ---------------------------------------------------------------------------------------------------


def _of_model(model: nn.Module, tokens: Tensor, k: int, burn_in: int | None) -> Lyapunov:
    T = tokens.shape[1]
    require(T > 0, "an empty sequence has no exponents")
    found = systems_of(model, tokens)
    layers = {x: _of_system(s, None, burn_in, "auto") for x, s in found.items() if not s.readout.cached}
    joint = _averaged(_joint(model, tokens, k), "jvp", T // 10 if burn_in is None else burn_in, k)
    return replace(joint, layers=layers)


def _joint(model: Any, tokens: Tensor, k: int) -> Tensor:
    """Compute log |(R_t)_ii| of the map from the joint state before token t to that after it, [B,T,1,k]."""
    state = model.init_state(tokens.shape[0]).to(torch.float64 if _double(model) else torch.float32)
    require(not any(name.endswith("log_scale") for name in state),
            "the state of this model is kept in a scale that moves (exponential gates), so that its derivative is not "
            "that of the true state; take lyapunov of each layer, e.g. lyapunov(layer, u)")  # fmt: skip

    def split(tensors: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        moving = {x: z for x, z in tensors.items() if z.is_floating_point() or z.is_complex()}
        return moving, {x: z for x, z in tensors.items() if x not in moving}

    moving, fixed = split(state.tensors)
    like = _numbers_of_rows(moving)
    size = like.shape[1]
    require(size >= k, f"k is {k}; expected at most {size}, the numbers of the state before the first token")
    start = _directions((*like.shape, k), like.dtype).to(like.device)
    tangents = [_unflat(start[..., i], moving) for i in range(k)]
    logs = []
    for t in range(tokens.shape[1]):
        rest: dict[str, Tensor] = {}

        def after(parts: dict[str, Tensor], t: int = t, fixed: Any = fixed, rest: Any = rest) -> dict[str, Tensor]:
            before = State({**parts, **fixed}, model.fingerprint)
            new = model.hidden(tokens[:, t : t + 1], initial_state=before, return_state=True)[1]
            found, others = split(new.tensors)
            rest.update(others)
            return found

        pushed = []
        for tangent in tangents:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
                value, column = torch.func.jvp(after, (moving,), (tangent,))[:2]
            pushed.append(column)
        Q, R = torch.linalg.qr(torch.stack([_numbers_of_rows(x) for x in pushed], -1))
        logs.append(_log_diagonal(R))
        moving, fixed = value, rest
        tangents = [_unflat(Q[..., i], moving) for i in range(k)]
    return torch.stack(logs, 1).unsqueeze(2).double()


def _double(model: nn.Module) -> bool:
    return next(model.parameters()).dtype == torch.float64


def _numbers_of_rows(parts: dict[str, Tensor]) -> Tensor:
    """Lay out the numbers of a state, one row a sequence; a complex one counts twice."""
    real = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in parts.values()]
    return torch.cat([x.flatten(1) for x in real], 1)


def _unflat(row: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    sizes = [x[0].numel() * (2 if x.is_complex() else 1) for x in like.values()]
    out = {}
    for (name, x), part in zip(like.items(), row.split(sizes, 1), strict=True):
        if x.is_complex():
            out[name] = torch.view_as_complex(part.reshape(*x.shape, 2).contiguous()).to(x.dtype)
        else:
            out[name] = part.reshape(x.shape).to(x.dtype)
    return out
