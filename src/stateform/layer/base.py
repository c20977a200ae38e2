"""Layer: projections u -> System, and everything that follows from the System.

A layer says what its System is (`system`) and what becomes of its reads (`output`). Continuing from a state, single
steps, padding and packed sequences are here, once for all.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import StateformError, readable, require, require_finite, values_checked
from ..forms import blank_state, compute, exists, known_form, nothing_of, put_rows
from ..forms.packing import check_cu_seqlens, from_mask, groups
from ..loops.backend import compiled_for
from ..loops.conv import MOST_TAPS, conv_token, short_conv, short_conv_reference
from ..loops.ops import alone, call
from ..system import System
from ..system.precision import HALF, one_dtype
from ..system.state import State, unchecked
from .options import check_options

OURS = ("S", "log_scale", "keys", "values", "log_weight", "angle", "position")
"""Names in a State that a short convolution cannot have."""
TILED = ("auto", "recurrent", "chunkwise", "scan")
"""Forms that go forward in time, so that a long input may be computed stretch by stretch."""
TILE = {"cpu": 2**21}
"""Bytes of the input to a stretch, in the precision of the state. What a layer makes of them is ten times as much and
should stay in the cache; and memory that large tensors leave goes back to the system, so that the next ones pay for
every page anew.
"""
TILE_ELSEWHERE = 2**26
"""The same on an accelerator, which wants much work at a time and keeps its memory."""
LEAST = 128
"""Tokens that a stretch has at least: below, the calls cost more than the numbers."""


class Past:
    """What a layer has seen before the input at hand: its state, the windows of its short convolutions, the position.

    Reading a window records the next one, so that the layer's new state is complete when `system` returns; reading it
    again for the same input gives the same.
    """

    def __init__(self, state: State | None = None, shared: dict[str, Tensor] | None = None) -> None:
        self.state = state
        """The layer's state before the input; None at the start of every row."""
        self.kept: dict[str, Tensor] = {}
        """What the layer's new state holds besides that of its System: `system` may add to it, one row a sequence."""
        self.shared: dict[str, Tensor] = {} if shared is None else shared
        """What the layers of one model hand on for this input, [B,T,...] each, by name."""
        self.made: dict[str, Tensor] = {}
        """What `system` made of this input and `output` needs too, by name."""

    @property
    def position(self) -> Tensor | None:
        """Tokens seen before, per row [B]; None at the start of every row."""
        return None if self.state is None else self.state["position"]

    def window(self, name: str, x: Tensor, width: int) -> Tensor:
        """The `width` steps that came before x [B,T,c] (zeros at the start), [B,width,c]."""
        if self.state is None:
            window = x.new_zeros(x.shape[0], width, x.shape[2])
        else:
            window = self.state[name]
            window = window if window.dtype == x.dtype else window.to(x.dtype)
        T = x.shape[1]
        # A copy: a view would keep all of x alive in the state. In a graph what holds for every length.
        inside = not torch.compiler.is_compiling() and width <= T
        self.kept[name] = x[:, T - width :].clone() if inside else torch.cat([window, x], 1)[:, T:]
        return window

    def extend(self, name: str, x: Tensor, width: int) -> Tensor:
        """x [B,T,c] behind the `width` steps that came before it (zeros at the start): [B,width+T,c]."""
        return torch.cat([self.window(name, x, width), x], 1)


class ShortConv(nn.Module):
    """Causal depthwise convolution over the last `width` tokens; weights as in nn.Conv1d(groups=channels).

    Args:
        channels: c, for inputs [B,T,c].
        width: taps; 0 or 1 taps would be no convolution, so at least 2.
        name: of its window in the State.
        activation: "silu" or None.
    """

    def __init__(
        self, channels: int, width: int, name: str, *, bias: bool = False, activation: str | None = "silu"
    ) -> None:
        super().__init__()
        require(isinstance(width, int) and width >= 2, f"a short convolution has {width!r} taps; expected 2 or more")
        require(activation in ("silu", None), f"activation is {activation!r}; expected 'silu' or None")
        require(name not in OURS, f"a short convolution cannot be named {name!r}: the State has that name already")
        self.name, self.width, self.activation = name, width, activation
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, 1, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, past: Past | None) -> Tensor:
        return convolve(x, past, self.name, self.weight, self.bias, self.activation == "silu")


def convolve(
    x: Tensor, past: Past | None, name: str, weight: Tensor, bias: Tensor | None = None, activate: bool = False
) -> Tensor:
    """x [B,T,c] convolved with the taps [c,1,width], and the activation silu; `name` is that of the window."""
    past, width = past or Past(), weight.shape[-1]
    same = x.dtype == weight.dtype == (x if bias is None else bias).dtype  # under autocast weights are wider than x
    fits = same and width <= MOST_TAPS and compiled_for(x)
    before = None if past.state is None else past.state[name]
    if fits and before is not None and before.dtype == x.dtype and alone((x, before, weight, bias)):
        found = conv_token(x, before, weight, bias, activate)
        if found is not None:
            y, past.kept[name] = found
            return y
    window = past.window(name, x, width - 1)
    taps = weight.squeeze(1).mT
    if fits:
        return call(short_conv, x, window, taps, bias, activate)
    return short_conv_reference(x, window, taps, bias, activate).to(x.dtype)


class Layer(nn.Module):
    """A sequence layer y = layer(u), both [B,T,d_model]. Subclasses give `system`, and `output` if they need another.

    The default `output` puts the heads side by side and applies `self.out_proj` if there is one.
    """

    contractive: ClassVar[bool] = False
    """Promise that no decay exceeds 1; checked where values are."""
    config: dict[str, Any]
    """The arguments the layer was made with."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        require(isinstance(d_model, int) and d_model >= 1, f"d_model is {d_model!r}; expected a positive integer")
        self.d_model = d_model

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "system" in cls.__dict__:
            parameters = inspect.signature(cls.system)
            try:
                parameters.bind(None, None, None)
            except TypeError:
                raise StateformError(
                    f"{cls.__name__} defines system{parameters}; expected system(self, u, past=None)"
                ) from None
        if "output" in cls.__dict__:
            parameters = inspect.signature(cls.output)
            try:
                parameters.bind(None, None, None, None, None)
            except TypeError:
                raise StateformError(
                    f"{cls.__name__} defines output{parameters}; expected output(self, y, u, system, past=None)"
                ) from None
        if "__init__" not in cls.__dict__:
            return
        init: Callable[..., None] = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording(self: Layer, *args: Any, **options: Any) -> None:
            bound = signature.bind(self, *args, **options)
            bound.apply_defaults()
            check_options(bound, init)
            outermost = "config" not in self.__dict__
            if outermost:
                self.__dict__["config"] = {k: v for k, v in list(bound.arguments.items())[1:]}
            if outermost:
                _drawn_in_full(self, functools.partial(init, *bound.args, **bound.kwargs))
            else:
                init(*bound.args, **bound.kwargs)
            if outermost and not any(is_lazy(p) for p in self.parameters()):
                _ = self.fingerprint  # known from here on: no call computes it, and torch.compile need not trace it

        cls.__init__ = recording  # type: ignore[method-assign]

    # -- what an architecture says -------------------------------------------------------------------------------

    def system(self, u: Tensor, past: Past | None = None) -> System:
        """The System of the input u [B,T,d_model]; `past` is for short convolutions (None: from the start)."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say what its system is: define system(self, u, past=None)"
        )

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        """From the reads y [B,T,H,p] to the layer's output [B,T,d_model]; `past` as it was given to `system`."""
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
        shared: dict[str, Tensor] | None = None,
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
        self._check_input(x)
        known_form(form)
        if attention_mask is None and cu_seqlens is None:
            require_finite(x, "x")
            y, state = self._tiled(x, self._check_state(initial_state, x, x.shape[0]), form, shared)
            return (y, state) if return_state else y
        require(attention_mask is None or cu_seqlens is None, "give attention_mask or cu_seqlens, not both")
        if attention_mask is not None:
            _check_mask(attention_mask, x)
            kept, ends = from_mask(attention_mask)
            require_finite(torch.where(attention_mask.bool().unsqueeze(-1), x, 0.0), "x (at unmasked positions)")
        else:
            assert cu_seqlens is not None
            check_cu_seqlens(cu_seqlens, x.shape[1], x.shape[0], x.device)
            kept, ends = torch.arange(x.shape[1], device=x.device), cu_seqlens
            require_finite(x, "x")
        tokens = x.flatten(0, 1)
        rows = len(ends) - 1
        given = self._check_state(initial_state, x, rows)
        state = given if given is not None else self.init_state(rows)
        y = x.new_zeros(x.shape[0] * x.shape[1], self.d_model)
        if not len(kept):
            y = y + nothing_of((x, *self.parameters()))
        filled: dict[str, Tensor] = {}
        for group in groups(ends, x.device):
            at = kept[group.tokens]
            handed = None if shared is None else {name: z.flatten(0, 1)[at] for name, z in shared.items()}
            before = None if given is None else given.select(group.rows)
            part, s = self._tiled(tokens[at], before, form, handed)
            # In place where nothing looks at what was there: y may be as large as all the rest.
            put = Tensor.index_copy if torch.is_grad_enabled() or not readable(part) else Tensor.index_copy_
            y = put(y.to(part.dtype), 0, at.flatten(), part.flatten(0, 1))
            state = put_rows(state, group.rows, s)
            for name, z in (handed or {}).items():
                blank = filled[name] if name in filled else z.new_zeros(y.shape[0], *z.shape[2:])
                filled[name] = blank.index_copy(0, at.flatten(), z.flatten(0, 1))
        if shared is not None:
            shared.update({name: z.unflatten(0, (x.shape[0], x.shape[1])) for name, z in filled.items()})
        y = y.unflatten(0, (x.shape[0], x.shape[1]))
        return (y, state) if return_state else y

    def step(
        self, x_t: Tensor, state: State, *, inplace: bool = False, shared: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """One token: x_t [B,d_model] and the state before it give y_t [B,d_model] and the state after it.

        Args:
            inplace: write the new state into the tensors of `state` (a cache that grows is still replaced).
            shared: as in `forward`.
        """
        if not (isinstance(x_t, Tensor) and x_t.ndim == 2):
            given = f"has shape {list(x_t.shape)}" if isinstance(x_t, Tensor) else f"is a {type(x_t).__name__}"
            raise StateformError(f"x_t {given}; expected a tensor [B,{self.d_model}], one token a row")
        if not isinstance(state, State):
            raise StateformError(f"state is a {type(state).__name__}; begin with layer.init_state(batch)")
        y, new = self(x_t.unsqueeze(1), initial_state=state, return_state=True, form="recurrent", shared=shared)
        if inplace and all(state[k].shape == x.shape and state[k].dtype == x.dtype for k, x in new.tensors.items()):
            for k, x in new.tensors.items():
                state[k].copy_(x)
            new = state
        return y.squeeze(1), new

    def init_state(self, batch: int = 1) -> State:
        """The state before anything was seen, `batch` rows."""
        require(isinstance(batch, int) and batch >= 0, f"batch is {batch!r}; expected a number of rows, 0 or more")
        weight = self._weight()
        weight = torch.empty(0) if weight is None else weight
        past = Past()
        with torch.no_grad():
            system = self.system(torch.zeros(1, 1, self.d_model, dtype=weight.dtype, device=weight.device), past)
        kept = {name: torch.zeros_like(x).expand(batch, *x.shape[1:]).clone() for name, x in past.kept.items()}
        blank = blank_state(system, batch)
        return State({**{k: x.clone() for k, x in blank.tensors.items()}, **kept}, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """What tells states of this layer from those of another: its class, options and the shapes of its weights (as
        they are when it is first asked for).
        """
        known = self.__dict__.get("_fingerprint")
        if known is None:
            shapes = [(name, tuple(p.shape)) for name, p in self.named_parameters()]
            options = sorted((k, repr(v)) for k, v in getattr(self, "config", {}).items())
            known = f"{type(self).__name__}-{zlib.crc32(repr((shapes, options)).encode()):08x}"
            self.__dict__["_fingerprint"] = known
        return known

    def forms(self, x: Tensor) -> list[str]:
        """The names of the forms in which this layer can be computed on x [B,T,d_model]."""
        return exists(self.system(x))

    def _tiled(
        self, x: Tensor, state: State | None, form: str, shared: dict[str, Tensor] | None
    ) -> tuple[Tensor, State]:
        """`_run`, stretch by stretch where that is the same: y, x and the state are then all that is as long as T."""
        length = self._tile(x, state, form, shared)
        if length >= x.shape[1]:
            y, state = self._run(x, state, form, shared)
            return y, state if x.shape[1] == 1 else _owning(state)
        whole: Tensor | None = None
        made: dict[str, Tensor] = {}
        for start in range(0, x.shape[1], length):
            at = slice(start, start + length)
            handed = None if shared is None else {name: z[:, at] for name, z in shared.items()}
            y, state = self._run(x[:, at], state, form, handed)
            whole = y.new_empty(x.shape) if whole is None else whole
            whole[:, at] = y
            for name, z in (handed or {}).items():
                if name not in (shared or {}):
                    made[name] = made[name] if name in made else z.new_empty(*x.shape[:2], *z.shape[2:])
                    made[name][:, at] = z
        if shared is not None:
            shared.update(made)
        assert whole is not None and state is not None
        return whole, _owning(state)

    def _tile(self, x: Tensor, state: State | None, form: str, shared: dict[str, Tensor] | None) -> int:
        """Tokens to compute at a time: all, where gradients go through time or the form or the state needs them all."""
        if torch.compiler.is_compiling() or x.shape[1] <= LEAST:
            return x.shape[1]
        size = max(x.element_size(), 4) * x.shape[0] * x.shape[2]
        length = max(LEAST, TILE.get(x.device.type, TILE_ELSEWHERE) // max(1, size))
        if x.shape[1] <= length or form not in TILED or not readable(x):
            return x.shape[1]
        if torch.is_grad_enabled():
            given = (x, *(state.tensors.values() if state else ()), *(shared or {}).values(), *self.parameters())
            if any(z.requires_grad for z in given):
                return x.shape[1]
        if not self._finite(x):
            return x.shape[1]
        parts = -(-x.shape[1] // (length - length % LEAST))
        return -(-x.shape[1] // (parts * LEAST)) * LEAST  # of about one size: a short rest would be a poor product

    def _finite(self, x: Tensor) -> bool:
        """Whether the state has a size of its own, however long the input."""
        with torch.no_grad():
            system = self.system(x[:1, :1])
        return system.causal and (system.readout != "exp" or system.window is not None)

    def _run(
        self, x: Tensor, state: State | None, form: str, shared: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """One stretch, at least of one token, in one piece."""
        if x.shape[0] == 0 or x.shape[1] == 0:
            y = x.new_zeros(x.shape) + nothing_of((x, *self.parameters()))
            return y, self.init_state(x.shape[0]) if state is None else state
        past = Past(state, shared)
        system = self.system(x, past)
        if not isinstance(system, System):
            raise StateformError(f"{type(self).__name__}.system gave a {type(system).__name__}; expected a System")
        y, new = self._computed(system, form, state)
        y = self._checked_output(self.output(y, x, system, past), x)
        return y, unchecked({**new, **past.kept}, self.fingerprint)

    def _computed(self, system: System, form: str, state: State | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        if state is not None and form in ("auto", "recurrent"):
            found = system.token(state.get("S"))
            if found is not None:
                y, S, grows = found
                if grows and self.contractive:
                    self._check_contraction(system)
                return y, {"S": S, "position": state["position"] + 1}
        if self.contractive:
            self._check_contraction(system)
        y, new = compute(system, form, state)
        return y, new.tensors

    def _checked_output(self, y: Tensor, x: Tensor) -> Tensor:
        if y.shape != x.shape:
            raise StateformError(
                f"{type(self).__name__} gave y of shape {list(y.shape)} for x of shape {list(x.shape)}; expected the "
                "same: a system as long as u, and an out_proj (or output) from the values of all heads to d_model"
            )
        return y

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise StateformError(f"x is a {type(x).__name__}; expected a tensor [B,T,{self.d_model}]")
        if not (x.is_floating_point() or x.is_complex()):
            raise StateformError(f"x has dtype {x.dtype}; expected a floating dtype (embed tokens first)")
        if x.ndim != 3:
            raise StateformError(f"x has shape {list(x.shape)}; expected [B,T,{self.d_model}]")
        if x.shape[2] != self.d_model:
            raise StateformError(f"x has width {x.shape[2]}; expected d_model = {self.d_model}")
        if x.is_complex():
            raise StateformError(
                f"x has dtype {x.dtype}; expected real numbers: give x.real, or both parts side by side"
            )
        weight = self._weight()
        if weight is None:
            return
        if x.device != weight.device:
            raise StateformError(f"x is on {x.device}, the layer on {weight.device}; move one with .to(device)")
        if x.dtype != weight.dtype and not one_dtype(x, weight):
            raise StateformError(f"x has dtype {x.dtype}, the layer {weight.dtype}; cast one with .to(dtype)")

    def _weight(self) -> Tensor | None:
        """A weight whose dtype and device the input must have; as next(self.parameters(), None), but found at once."""
        return first_parameter(self)

    def _check_state(self, state: State | None, x: Tensor, rows: int) -> State | None:
        if state is None:
            return None
        if not isinstance(state, State):
            raise StateformError(f"initial_state is a {type(state).__name__}; expected the State of this layer")
        if state.fingerprint != self.fingerprint:
            raise StateformError(
                f"this state belongs to {state.fingerprint or 'a bare system'}, this layer is {self.fingerprint}; "
                "expected the same class, options and sizes: use a state of this layer, or layer.init_state(batch)"
            )
        if state.rows != rows:
            raise StateformError(f"the state has {state.rows} rows, the input {rows}; expected one row a sequence")
        device = next((t.device for t in state.tensors.values()), x.device)
        if device != x.device:
            raise StateformError(f"the state is on {device}, x on {x.device}; use state.to(device)")
        return state

    def _check_contraction(self, system: System) -> None:
        decay = system.log_decay
        log, rate = decay if isinstance(decay, tuple) else (decay, None)
        if log is None or not values_checked(log) or not log.numel():
            return
        ends = [[x.item() for x in part.detach().aminmax()] for part in (log, rate) if part is not None]
        tops = [math.prod(factors) for factors in itertools.product(*ends)]  # largest where each is at an end
        top = next((x for x in tops if math.isnan(x)), max(tops))
        name = type(self).__name__
        require(not math.isnan(top), f"a decay of {name} is not a number; look for NaN in its parameters or its state")
        if top > 1e-6:
            raise StateformError(
                f"{name} promises a contraction, but here a decay is exp({top:.3g}), above 1; "
                "check the parameters of its decay, or leave out `contractive = True`"
            )


def _drawn_in_full(layer: Layer, init: Callable[[], None]) -> None:
    """Make a layer. Where the default is half precision, its parameters are computed in float32, then rounded to it."""
    wanted = torch.get_default_dtype()
    if wanted not in HALF:
        init()
        return
    torch.set_default_dtype(torch.float32)
    try:
        init()
    finally:
        torch.set_default_dtype(wanted)
    layer.to(wanted)


def first_parameter(module: nn.Module) -> Tensor | None:
    """Find what next(module.parameters(), None) gives, without what it takes to find all."""
    for p in module._parameters.values():
        if p is not None:
            return p
    for m in module._modules.values():
        found = None if m is None else first_parameter(m)
        if found is not None:
            return found
    return None


def _owning(state: State) -> State:
    """The state without what its tensors are views of: the last of T steps would keep all of them."""

    def own(x: Tensor) -> Tensor:
        return x.clone() if x.untyped_storage().nbytes() > 2 * x.numel() * x.element_size() else x

    return state.map(own) if all(readable(x) for x in state.tensors.values()) else state


def _check_mask(mask: Tensor, x: Tensor) -> None:
    """Raise unless a mask has the shape and the device of x."""
    if not (isinstance(mask, Tensor) and mask.shape == x.shape[:2] and not mask.is_complex()):
        tensor = isinstance(mask, Tensor)
        given = f"{mask.dtype} of shape {list(mask.shape)}" if tensor else f"a {type(mask).__name__}"
        raise StateformError(
            f"attention_mask is {given}; expected a tensor {list(x.shape[:2])}, 1 for a token and 0 for padding"
        )
    if mask.device != x.device:
        raise StateformError(f"attention_mask is on {mask.device}, x on {x.device}; move it with .to(device)")
