"""Layer: projections u -> System, and everything that follows from the System.

A layer says what its System is (`system`) and what becomes of its reads (`output`). Continuing from a state, single
steps, padding and packed sequences are here, once for all.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import StateformError, require, require_finite
from ..forms import blank_state, compute, exists, known_form, nothing_of
from ..forms.packing import check_cu_seqlens, from_mask
from ..forms.step import token
from ..system import System
from ..system.state import State, unchecked
from .checks import check_contraction, check_input, check_mask, check_output, check_state, check_token
from .options import recorded
from .parts import first_parameter
from .past import Past, under
from .streaming import Shared, by_rows, by_stretches, owning, stretch_length


class Layer(nn.Module):
    """A sequence layer y = layer(u), both [B,T,d_model]. Subclasses give `system`, and `output` if they need another.

    The default `output` puts the heads side by side and applies `self.out_proj` if there is one.
    """

    contractive: ClassVar[bool] = False
    """Promise that no decay exceeds 1; checked where values are."""
    later: ClassVar[Mapping[str, Any]] = {}
    """Options that came after states of the layer were saved, with the values at which it is what it was."""
    config: dict[str, Any]
    """The arguments the layer was made with."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        require(isinstance(d_model, int) and d_model >= 1, f"d_model is {d_model!r}; expected a positive integer")
        self.d_model = d_model

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_signature(cls, "system", "u, past=None")
        _check_signature(cls, "output", "y, u, system, past=None")
        if "__init__" in cls.__dict__:
            cls.__init__ = recorded(cls.__init__)  # type: ignore[method-assign]

    # -- what an architecture says -------------------------------------------------------------------------------

    def system(self, u: Tensor, past: Past | None = None) -> System:
        """Give the System of the input u [B,T,d_model]; `past` is for short convolutions (None: from the start)."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say what its system is: define system(self, u, past=None)"
        )

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        """Turn the reads y [B,T,H,p] into the layer's output [B,T,d_model]; `past` as it was given to `system`."""
        y = y.flatten(2)
        out_proj = getattr(self, "out_proj", None)
        return y if out_proj is None else out_proj(y)

    # -- what follows --------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        *,
        initial_state: State | None = None,
        return_state: bool = False,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        form: str = "auto",
        shared: Shared | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Run the layer.

        Args:
            x: [B,T,d_model].
            initial_state: the state to go on from (any number of tokens); one row a sequence.
            return_state: give the state after the last token too.
            attention_mask: [B,T] of 0 and 1 (or bool), padding on the left or right: a masked token is absent (no
                decay, no write, skipped by convolutions and positions), its output is 0, its value is never looked at.
            cu_seqlens: integer [N+1], the ends of N sequences packed into one row (B = 1).
            form: how to compute, see `sf.run`.
            shared: what the layers of a model hand on, by name (RWKV-7's `v_first`): the first layer fills it, later
                ones read it. Give one dict to all layers of a model in a call, empty at first.

        Returns:
            y [B,T,d_model], and the State if asked for.

        Raises:
            StateformError: wrong rank, width, dtype or device; a state of another layer; a mask with holes; bad
                cu_seqlens; NaN or inf at unmasked positions (where values are checked, see `sf.validate`).
        """
        check_input(x, self.d_model, self._weight())
        known_form(form)
        if attention_mask is None and cu_seqlens is None:
            require_finite(x, "x")
            y, state = self._piece(x, self._checked_state(initial_state, x, x.shape[0]), form, shared)
        else:
            kept, ends = _sequences(x, attention_mask, cu_seqlens)
            before = self._checked_state(initial_state, x, len(ends) - 1)
            blank = self.init_state(len(ends) - 1) if before is None else before
            y, state = by_rows(self._piece, x, kept, ends, before, blank, form, shared)
            if not len(kept):
                y = y + nothing_of((x, *self.parameters()))
        return (y, state) if return_state else y

    def step(
        self, x_t: Tensor, state: State, *, inplace: bool = False, shared: Shared | None = None
    ) -> tuple[Tensor, State]:
        """Take one token: x_t [B,d_model] and the state before it give y_t [B,d_model] and the state after it.

        Args:
            inplace: write the new state into the tensors of `state` (a cache that grows is still replaced).
            shared: as in `forward`.
        """
        check_token(x_t, state, self.d_model)
        y, new = self(x_t.unsqueeze(1), initial_state=state, return_state=True, form="recurrent", shared=shared)
        if inplace and all(state[k].shape == x.shape and state[k].dtype == x.dtype for k, x in new.tensors.items()):
            for k, x in new.tensors.items():
                state[k].copy_(x)
            new = state
        return y.squeeze(1), new

    def init_state(self, batch: int = 1) -> State:
        """Make the state before anything was seen, `batch` rows."""
        require(isinstance(batch, int) and batch >= 0, f"batch is {batch!r}; expected a number of rows, 0 or more")
        weight = self._weight()
        weight = torch.empty(0) if weight is None else weight
        past = Past()
        with torch.no_grad():
            system = self.system(torch.zeros(1, 1, self.d_model, dtype=weight.dtype, device=weight.device), past)
        kept = {name: torch.zeros_like(x).expand(batch, *x.shape[1:]) for name, x in past.kept.items()}
        blank = dict(blank_state(system, batch).tensors)
        for name, inner in past.inner.items():
            kept.update(under(name, blank_state(inner, batch)))
        return State({name: x.clone() for name, x in {**blank, **kept}.items()}, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Tell states of this layer from those of another: by class, options and shapes of weights, as they are when
        this is first asked for.
        """
        known = self.__dict__.get("_fingerprint")
        if known is None:
            shapes = [(name, tuple(p.shape)) for name, p in self.named_parameters()]
            config = getattr(self, "config", {}).items()
            options = sorted((k, repr(v)) for k, v in config if k not in self.later or v != self.later[k])
            known = f"{type(self).__name__}-{zlib.crc32(repr((shapes, options)).encode()):08x}"
            self.__dict__["_fingerprint"] = known
        return known

    def forms(self, x: Tensor) -> list[str]:
        """List the forms in which this layer can be computed on x [B,T,d_model]."""
        return exists(self.system(x))

    def _piece(self, x: Tensor, state: State | None, form: str, shared: Shared | None) -> tuple[Tensor, State]:
        """Run the layer, stretch by stretch where that is the same: then only y and x are as long as T."""
        length = stretch_length(x, form)
        if length < x.shape[1] and self._divisible(x, state, shared):
            y, state = by_stretches(self._run, length, x, state, form, shared)
        else:
            y, state = self._run(x, state, form, shared)
        return y, state if x.shape[1] == 1 else owning(state)

    def _divisible(self, x: Tensor, state: State | None, shared: Shared | None) -> bool:
        """True if no gradient goes through time, and the state does not grow with it."""
        if torch.is_grad_enabled():
            given = (x, *(state.tensors.values() if state else ()), *(shared or {}).values(), *self.parameters())
            if any(z.requires_grad for z in given):
                return False
        return self._finite(x)

    def _finite(self, x: Tensor) -> bool:
        """True if the state does not grow with T (false for softmax without a window)."""
        with torch.no_grad():
            system = self.system(x[:1, :1])
        return system.causal and not system.growth

    def _run(self, x: Tensor, state: State | None, form: str, shared: Shared | None = None) -> tuple[Tensor, State]:
        """Run one stretch in one piece."""
        if x.shape[0] == 0 or x.shape[1] == 0:
            y = x.new_zeros(x.shape) + nothing_of((x, *self.parameters()))
            return y, self.init_state(x.shape[0]) if state is None else state
        past = Past(state, shared, form)
        system = self.system(x, past)
        if not isinstance(system, System):
            raise StateformError(f"{type(self).__name__}.system gave a {type(system).__name__}; expected a System")
        y, new = self._computed(system, form, state)
        y = check_output(self.output(y, x, system, past), x, self)
        return y, unchecked({**new, **past.kept}, self.fingerprint)

    def _computed(self, system: System, form: str, state: State | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        if state is not None and form in ("auto", "recurrent"):
            found = token(system, state.get("S"))
            if found is not None:
                y, S, grows = found
                if grows and self.contractive:
                    check_contraction(system, self)
                return y, {"S": S, "position": state["position"] + 1}
        if self.contractive:
            check_contraction(system, self)
        y, new = compute(system, form, state)
        return y, new.tensors

    def _weight(self) -> Tensor | None:
        """Find a weight whose dtype and device the input must have, if there is one."""
        return first_parameter(self)

    def _checked_state(self, state: State | None, x: Tensor, rows: int) -> State | None:
        return None if state is None else check_state(state, self.fingerprint, x, rows)


def _check_signature(cls: type[Layer], method: str, expected: str) -> None:
    """Raise if a class defines a method that cannot be called with what is expected."""
    if method not in cls.__dict__:
        return
    signature = inspect.signature(getattr(cls, method))
    try:
        signature.bind(*(None,) * (2 + expected.count(",")))
    except TypeError:
        raise StateformError(
            f"{cls.__name__} defines {method}{signature}; expected {method}(self, {expected})"
        ) from None


def _sequences(x: Tensor, attention_mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Find the places in x of the tokens of all sequences, one behind the other, and where each begins and ends."""
    require(attention_mask is None or cu_seqlens is None, "give attention_mask or cu_seqlens, not both")
    if attention_mask is not None:
        check_mask(attention_mask, x)
        kept, ends = from_mask(attention_mask)
        require_finite(torch.where(attention_mask.bool().unsqueeze(-1), x, 0.0), "x (at unmasked positions)")
        return kept, ends
    assert cu_seqlens is not None
    check_cu_seqlens(cu_seqlens, x.shape[1], x.shape[0], x.device)
    require_finite(x, "x")
    return torch.arange(x.shape[1], device=x.device), cu_seqlens
