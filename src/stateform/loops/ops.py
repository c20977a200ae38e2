"""What the operators of the compiled loops have in common: tensors as C sees them, calls, gradients.

Each operator has a fake kernel (torch.compile traces it without breaking the graph), and a reference in plain torch:
what it computes, and how a second derivative is taken.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .build import library

TILE = 32
"""Steps between the states kept for the gradient, as in loops.c."""
LANES = {torch.float32: 16, torch.float64: 8}
"""Numbers that lie side by side in a vector."""


class Strided(ctypes.Structure):
    """Where a tensor lies: its address, and its strides along batch, time, G, R, the last axis and pieces."""

    _fields_ = [("at", ctypes.c_void_p), *((name, ctypes.c_int64) for name in (*"btgrn", "piece"))]


def strided(x: Tensor, axes: str) -> Strided:
    """Describe a tensor as the loops see it; an axis of size 1 is repeated."""
    return Strided(x.data_ptr(), *_steps(axes, x.shape, x.stride()))


@functools.lru_cache(maxsize=4096)
def _steps(axes: str, shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    found = {axis: 0 if size == 1 else step for axis, size, step in zip(axes, shape, strides, strict=True)}
    return [found.get(axis, 1 if axis == "n" else 0) for axis in "btgrn"]


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operator of torch, and keep the function itself for `call`."""

    def made(loops: Callable[..., Any]) -> Any:
        op: Any = torch.library.custom_op(name, mutates_args=())(loops)
        op.register_vmap(functools.partial(_one_by_one, op))
        op.loops = loops
        return op

    return made


def _one_by_one(op: Any, info: Any, axes: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Call an operator under vmap, one call for each entry of the axis. (The vmap of `is_grads_batched` has no rules;
    it does the same for operators whose results are a tuple, as they are here.)
    """
    found = [
        op(*(x if axis is None else x.select(axis, i) for x, axis in zip(args, axes, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    results = tuple(torch.stack(xs) for xs in zip(*found, strict=True))
    return results, (0,) * len(results)


def call(op: Any, *args: Any) -> Any:
    """Call an operator without torch's dispatch, which takes longer than a step of the loops, where nothing but
    the results is wanted: no gradient, no graph, no mode that looks on.
    """
    return op.loops(*args) if alone(args) else op(*args)


def alone(args: Iterable[Any]) -> bool:
    """True if of tensors (and what else a call has) nothing but the numbers in their memory is wanted."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
        return False
    gradients = torch.is_grad_enabled()
    for x in args:
        if isinstance(x, Tensor) and (
            type(x) not in (Tensor, nn.Parameter)
            or x.is_neg()  # a lazy sign is not in memory
            or (gradients and x.requires_grad)
        ):
            return False
    return True


def call_loops(job: ctypes.Structure, name: str, dtype: torch.dtype) -> None:
    """Run a loop of the library of a precision."""
    run: Any = getattr(library(64 if dtype == torch.float64 else 32), name)
    if run(ctypes.byref(job)):
        raise MemoryError("the compiled loops could not get their scratch memory")


def rows(*xs: Any) -> list[Any]:
    """Lay out with a contiguous last axis, as the loops over channels need them."""
    return [x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in xs]


def whole(x: Tensor | None) -> Tensor | None:
    """Make contiguous what is there."""
    return None if x is None else x.contiguous()


def differentiable(op: Any, backward: Callable[..., Any], reference: Callable[..., Any], inputs: int) -> None:
    """Register the gradient of an operator whose first `inputs` arguments are tensors (or None).

    One with three results gives what it keeps for the gradient as the last of them, and has `keep` for its last
    argument. Where a gradient of the gradient is wanted it is taken through the reference.
    """

    def setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        kept = ()
        if isinstance(output, tuple) and len(output) > 2:
            inputs = inputs[:-1]
            kept = output[2:]
            ctx.mark_non_differentiable(*kept)
        ctx.rest, ctx.kept = inputs[count:], len(kept)
        ctx.arguments = len(inputs) + len(kept)
        ctx.save_for_backward(*inputs[:count], *kept)

    def pull(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: activation checkpointing makes them anew at the first look, and only then
        given, kept = saved[:count], saved[count:]
        grads = grads[: len(grads) - ctx.kept]
        needed = [x is not None and need for x, need in zip(given, ctx.needs_input_grad, strict=False)]
        if torch.is_grad_enabled():
            out = gradients(lambda *xs: reference(*xs, *ctx.rest), given, needed, grads)
        else:
            all_of_them = backward(*grads, *given, *kept, *ctx.rest)
            rows = zip(given, all_of_them, needed, strict=True)
            out = [g.sum_to_size(x.shape) if need else None for x, g, need in rows]
        return (*out, *([None] * (ctx.arguments - count)))

    count = inputs
    op.register_autograd(pull, setup_context=setup)


def gradients(
    f: Callable[..., Any], given: Sequence[Tensor | None], needed: Sequence[bool], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Compute the gradients of f(*given) along `grads`, which have gradients themselves; None where none is needed, or
    is 0.
    """
    # Each tensor under a name of its own: where one was computed from another, that way would be counted here too.
    apart = [None if x is None else x.view_as(x) for x in given]
    results = f(*apart)
    results = results if isinstance(results, tuple) else (results,)
    pairs = [(y, g) for y, g in zip(results, grads, strict=True) if y.requires_grad]
    if not pairs:
        return [None] * len(needed)
    wanted = [x for x, need in zip(apart, needed, strict=True) if need and x is not None]
    ys, gs = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]
