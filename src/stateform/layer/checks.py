"""What a layer refuses: inputs, masks, states, outputs and decays that are not as it says, before any work is done."""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from ..errors import StateformError, require, values_checked
from ..system import System
from ..system.precision import one_dtype
from ..system.state import State


def check_input(x: Tensor, d_model: int, weight: Tensor | None) -> None:
    """Raise unless x is [B,T,d_model], real, of the dtype and on the device of the weight."""
    if not isinstance(x, Tensor):
        raise StateformError(f"x is a {type(x).__name__}; expected a tensor [B,T,{d_model}]")
    if not (x.is_floating_point() or x.is_complex()):
        raise StateformError(f"x has dtype {x.dtype}; expected a floating dtype (embed tokens first)")
    if x.ndim != 3:
        raise StateformError(f"x has shape {list(x.shape)}; expected [B,T,{d_model}]")
    if x.shape[2] != d_model:
        raise StateformError(f"x has width {x.shape[2]}; expected d_model = {d_model}")
    if x.is_complex():
        raise StateformError(f"x has dtype {x.dtype}; expected real numbers: give x.real, or both parts side by side")
    if weight is None:
        return
    if x.device != weight.device:
        raise StateformError(f"x is on {x.device}, the layer on {weight.device}; move one with .to(device)")
    if x.dtype != weight.dtype and not one_dtype(x, weight):
        raise StateformError(f"x has dtype {x.dtype}, the layer {weight.dtype}; cast one with .to(dtype)")


def check_token(x_t: Tensor, state: State, d_model: int) -> None:
    """Raise unless x_t is a tensor [B,d_model], and state a State."""
    if not (isinstance(x_t, Tensor) and x_t.ndim == 2):
        given = f"has shape {list(x_t.shape)}" if isinstance(x_t, Tensor) else f"is a {type(x_t).__name__}"
        raise StateformError(f"x_t {given}; expected a tensor [B,{d_model}], one token a row")
    if not isinstance(state, State):
        raise StateformError(f"state is a {type(state).__name__}; begin with layer.init_state(batch)")


def check_mask(mask: Tensor, x: Tensor) -> None:
    """Raise unless a mask has the shape and the device of x [B,T,d_model]."""
    if not (isinstance(mask, Tensor) and mask.shape == x.shape[:2] and not mask.is_complex()):
        tensor = isinstance(mask, Tensor)
        given = f"{mask.dtype} of shape {list(mask.shape)}" if tensor else f"a {type(mask).__name__}"
        raise StateformError(
            f"attention_mask is {given}; expected a tensor {list(x.shape[:2])}, 1 for a token and 0 for padding"
        )
    if mask.device != x.device:
        raise StateformError(f"attention_mask is on {mask.device}, x on {x.device}; move it with .to(device)")


def check_state(state: State | None, fingerprint: str, x: Tensor, rows: int) -> State | None:
    """Raise unless the state is that of the layer with this fingerprint, of so many rows, and where x is; give it."""
    if state is None:
        return None
    if not isinstance(state, State):
        raise StateformError(f"initial_state is a {type(state).__name__}; expected the State of this layer")
    if state.fingerprint != fingerprint:
        raise StateformError(
            f"this state belongs to {state.fingerprint or 'a bare system'}, this layer is {fingerprint}; "
            "expected the same class, options and sizes: use a state of this layer, or layer.init_state(batch)"
        )
    if state.rows != rows:
        raise StateformError(f"the state has {state.rows} rows, the input {rows}; expected one row a sequence")
    device = next((t.device for t in state.tensors.values()), x.device)
    if device != x.device:
        raise StateformError(f"the state is on {device}, x on {x.device}; use state.to(device)")
    return state


def check_output(y: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
    """Raise unless the y of a layer has the shape of x; give it."""
    if y.shape != x.shape:
        raise StateformError(
            f"{type(layer).__name__} gave y of shape {list(y.shape)} for x of shape {list(x.shape)}; expected the "
            "same: a system as long as u, and an out_proj (or output) from the values of all heads to d_model"
        )
    return y


def check_contraction(system: System, layer: nn.Module) -> None:
    """Raise if a decay of the layer's System is above 1, where values are looked at."""
    decay = system.log_decay
    log, rate = decay if isinstance(decay, tuple) else (decay, None)
    if log is None or not values_checked(log) or not log.numel():
        return
    ends = [[x.item() for x in part.detach().aminmax()] for part in (log, rate) if part is not None]
    tops = [math.prod(factors) for factors in itertools.product(*ends)]  # largest where each is at an end
    top = next((x for x in tops if math.isnan(x)), max(tops))
    name = type(layer).__name__
    require(not math.isnan(top), f"a decay of {name} is not a number; look for NaN in its parameters or its state")
    if top > 1e-6:
        raise StateformError(
            f"{name} promises a contraction, but here a decay is exp({top:.3g}), above 1; "
            "check the parameters of its decay, or leave out `contractive = True`"
        )
