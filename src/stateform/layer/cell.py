"""Cell: a nonlinear recurrence as a layer. It says what one step is; System, forms, states and gradients follow."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import StateformError, require
from ..forms import compute
from ..forms.newton import Newton, Trajectory, each, linearized, scanned, solve
from ..graph import Tensors, any_length, over_time, require_exportable
from ..loops.backend import current_backend, transformed
from ..system import System
from ..system.precision import without_autocast
from ..system.state import State
from .base import Layer
from .checks import check_input, check_output
from .parts import precise, widened
from .past import Past


class Cell(Layer):
    """A layer whose state obeys s_t = cell(s_{t-1}, x_t), x = inputs(u); subclasses give `cell`, and usually `inputs`.

    The form `recurrent` takes one step after another; `newton` finds all states at once (see `forms.newton`), and says
    so if it cannot; `scan` and `matrix` compute the System along the trajectory, as `linearize` gives it. All have the
    same values and gradients.

    Args:
        d_model: width.
        n: numbers in the state of a head.
        n_heads: heads; none may see the state of another.
    """

    newton: Newton = Newton()
    """How the form `newton` solves: assign another to the class or to a layer."""

    def __init__(self, d_model: int, n: int, n_heads: int = 1) -> None:
        super().__init__(d_model)
        require(min(n, n_heads) >= 1, f"the state has {n_heads} heads of {n} numbers; expected 1 or more")
        self.n, self.n_heads = n, n_heads

    # -- what an architecture says -------------------------------------------------------------------------------

    def inputs(self, u: Tensor, past: Past | None = None) -> Any:
        """Give what the cell sees of the input u [B,T,d_model], for all tokens at once: a tensor [B,T,...] or a tuple.

        `past` is for short convolutions, as in `Layer.system`.
        """
        return u

    def cell(self, s: Tensor, x: Any) -> Tensor:
        """Take one step, from the state s [...,n_heads,n] and the inputs there to the next state of the same shape.

        Any axes may come before these ([B], or [B,T] for all steps at once); no in-place operations.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what a step is: define cell(self, s, x)")

    def start(self) -> Tensor | None:
        """Give the state before the first token [n_heads,n]; None for zero."""
        return None

    def loop(self, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor] | None:
        """Take the same steps by a library's own loop over time, where there is one (the form `auto` uses it).

        Args:
            u: the layer's input [B,T,d_model], T > 1. s: the state before it [B,n_heads,n].

        Returns:
            What `output` needs of the states [B,T,n_heads,.], and the last state; or None.
        """
        return None

    def output(self, y: Tensor, u: Tensor, system: System | None = None, past: Past | None = None) -> Tensor:
        """Turn the states y [B,T,n_heads,n] into the layer's output [B,T,d_model]."""
        y = y.flatten(2)
        out_proj = getattr(self, "out_proj", None)
        return y if out_proj is None else out_proj(y)

    # -- what follows --------------------------------------------------------------------------------------------

    def system(self, u: Tensor, past: Past | None = None) -> System:
        """Give the System along the trajectory of u, see `forms.newton.linearized`; from the zero state where there is
        no past (then the first input carries what the cell starts from).
        """
        past = past or Past()
        wide, s0, x = self._prepared(u, past)
        with without_autocast(u.device):
            with torch.no_grad():
                states = wide._one_by_one(s0, x)
            return linearized(wide.cell, states, s0, x, from_zero=past.state is None)

    def init_state(self, batch: int = 1) -> State:
        state, start = super().init_state(batch), self.start()
        if start is None:
            return state
        S = start.detach().to(state["S"]).unsqueeze(-1).expand_as(state["S"]).clone()
        return State({**state.tensors, "S": S}, state.fingerprint)

    def linearize(self, u: Tensor, *, initial_state: State | None = None) -> System:
        """Give the System whose states are those of the cell on u [B,T,d_model], and whose gradients are too.

        Raises:
            StateformError: as `forward` does.
        """
        check_input(u, self.d_model, self._weight())
        return self.system(u, Past(self._checked_state(initial_state, u, u.shape[0])))

    def solve(self, u: Tensor, newton: Newton | None = None, *, initial_state: State | None = None) -> Trajectory:
        """Find the states of the cell on u [B,T,d_model] by Newton's method, without gradients; it may not converge.

        Args:
            newton: how; default `self.newton`.
        """
        check_input(u, self.d_model, self._weight())
        wide, s0, x = self._prepared(u, Past(self._checked_state(initial_state, u, u.shape[0])))
        with without_autocast(u.device):
            return solve(wide.cell, s0, x, u.shape[1], newton or self.newton)

    def forms(self, x: Tensor) -> list[str]:
        return [*super().forms(x), "newton"]

    def _finite(self, x: Tensor) -> bool:
        return True

    def _run(
        self, x: Tensor, state: State | None, form: str, shared: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        if x.shape[0] == 0 or x.shape[1] == 0:
            return super()._run(x, state, form, shared)
        past = Past(state, shared)
        with without_autocast(x.device):
            found = self._looped(x, past) if form == "auto" else None
        if found is None:
            wide, s0, inputs = self._prepared(x, past)
            with without_autocast(x.device):
                if form in ("auto", "recurrent"):
                    states = wide._one_by_one(s0, inputs)
                else:
                    states = self._by_system(wide, s0, inputs, form, x.shape[1])
            found = states, states[:, -1]
        states, last = found
        y = check_output(self.output(states.to(x.dtype), x, None, past), x, self)
        position = torch.full((x.shape[0],), x.shape[1], device=x.device)
        position = position if past.position is None else past.position + position
        new = {"S": last.unsqueeze(-1), "position": position}
        return y, State({**new, **past.kept}, self.fingerprint)

    def _by_system(self, wide: Cell, s0: Tensor, x: Any, form: str, length: int) -> Tensor:
        if form == "newton" or any_length(length):
            why = "it is computed along a trajectory, from values and derivatives that torch does not trace"
            require_exportable(f"the form {form!r} of a cell", why, "expected the form 'auto' or 'recurrent'")
        if form == "newton":
            found = solve(wide.cell, s0, x, length, self.newton)
            if not found.converged:
                raise StateformError(
                    f"Newton's method {found}; use form='recurrent', or another {type(self).__name__}.newton, "
                    "e.g. Newton(damped=True)"
                )
            states = found.states
            if not torch.is_grad_enabled():
                return states
        else:
            with torch.no_grad():
                states = wide._one_by_one(s0, x)
        system = linearized(wide.cell, states, s0, x)
        return scanned(system, s0) if form == "newton" else compute(system, form, s0.unsqueeze(-1))[0]

    def _one_by_one(self, s: Tensor, x: Any) -> Tensor:
        """Find the states of every step, [B,T,H,n]."""
        first, states = x[0] if isinstance(x, tuple) else x, []
        if any_length(first.shape[1]):
            return self._in_a_graph(s, x)
        for t in range(first.shape[1]):
            s = self.cell(s, each(x, partial(Tensor.select, dim=1, index=t)))
            states.append(s)
        return torch.stack(states, 1) if states else s.unsqueeze(1)[:, :0]

    def _in_a_graph(self, s: Tensor, x: Any) -> Tensor:
        """Do the same in a graph for every length."""

        def step(state: Tensors, now: Tensors) -> tuple[Tensors, Tensors]:
            after = (self.cell(state[0], now if isinstance(x, tuple) else now[0]),)
            return after, after

        return over_time(step, (s,), x if isinstance(x, tuple) else (x,))[1][0]

    def _looped(self, u: Tensor, past: Past) -> tuple[Tensor, Tensor] | None:
        """Run `loop`, where it is for whole sequences and eager tensors on a CPU: cuDNN's loops multiply float32 in
        TF32, and the gradients too.
        """
        if (
            u.device.type != "cpu"
            or u.shape[1] == 1
            or torch.compiler.is_compiling()  # before the backend, which cannot be asked in a traced graph
            or transformed()
            or current_backend() == "torch"
        ):
            return None
        u = precise(u)
        return widened(self).loop(u, self._before(u, past))

    def _prepared(self, u: Tensor, past: Past) -> tuple[Cell, Tensor, Any]:
        """Give the cell with weights of the state's precision, the state before u, and the inputs in that precision."""
        x = each(self.inputs(u, past), precise)
        return widened(self), self._before(x[0] if isinstance(x, tuple) else x, past), x

    def _before(self, x: Tensor, past: Past) -> Tensor:
        """Give the state before the first step [B,n_heads,n], in the precision of x."""
        start = self.start()
        if past.state is not None:
            return past.state["S"].squeeze(-1).to(x.dtype)
        if start is not None:
            return start.to(x).expand(x.shape[0], -1, -1)
        return x.new_zeros(x.shape[0], self.n_heads, self.n)
