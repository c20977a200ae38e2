"""Derivatives of every layer, of first and second order, by every way to ask torch for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import stateform as sf
from stateform.architectures import REGISTRY, accepted
from stateform.loops.matrix import matrix

D = 8
ALL = pytest.mark.parametrize("name", sf.names())
SOME = [
    name if name in ("softmax", "slstm", "gated_deltanet", "mamba", "s4d", "rwkv4", "lstm", "mesa")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in sf.names()
]  # fmt: skip
"""A layer of each structure, the others for `make test-all` alone."""
WAYS = pytest.mark.parametrize(
    ("T", "backend", "form"),
    [(1, "auto", "auto"), (1, "torch", "auto"), (5, "auto", "recurrent"), (5, "torch", "auto")],
)
H = 1e-5
"""Step of the differences. They are of fourth order: what is left out is small beside a rounding over H."""
CLOSE = {"rtol": 1e-6, "atol": 1e-7}
"""A rounding over H, of numbers whose scale is up to 1e4."""
ATEN = pytest.mark.filterwarnings(
    "ignore:There is a performance drop because we have not yet implemented the batching rule for aten::"
)
"""Operators of torch without a rule for vmap (fused attention backwards, glu forwards) work, and say that they loop."""


def layer(name: str) -> Any:
    torch.manual_seed(0)
    ranks = dict.fromkeys(("mix_rank", "decay_rank", "rate_rank", "value_rank", "gate_rank"), 2)
    small = {"d_state": 4, "n_heads": 2, **ranks}
    known = accepted(REGISTRY[name].cls)
    return sf.build(name, d_model=D, **{k: v for k, v in small.items() if k in known}).double().eval()


def of_all(m: Any, form: str = "auto") -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The layer as a function of its input and its parameters, and these."""
    names = [name for name, _ in m.named_parameters()]

    def f(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(m, dict(zip(names, parameters, strict=True)), (x,), {"form": form})

    return f, [p.detach() for p in m.parameters()]


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64)


def like(xs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.randn_like(x) for x in xs]


def dot(xs: Sequence[Tensor | None], ys: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(xs, ys, strict=True) if x is not None]).sum()


def slope(f: Callable[..., Tensor], at: Sequence[Tensor], along: Sequence[Tensor]) -> Tensor:
    """The derivative of f along a line, by differences."""

    def there(steps: int) -> Tensor:
        return f(*(x + steps * H * v for x, v in zip(at, along, strict=True)))

    return (8 * (there(1) - there(-1)) - (there(2) - there(-2))) / (12 * H)


@ALL
@WAYS
@pytest.mark.drawn(0.4)
def test_derivatives_are_differences(name: str, T: int, backend: Any, form: str) -> None:
    """Along a line through the input and all parameters: forward, backward, and backward of backward."""
    f, parameters = of_all(layer(name), form)
    at = [x(1, T), *parameters]
    one, other, weight = like(at), like(at), x(1, T)

    def along(*xs: Tensor, again: bool = False) -> Any:
        leaves = [x.clone().requires_grad_() for x in xs]
        found = torch.autograd.grad(f(*leaves), leaves, weight, create_graph=again, allow_unused=True)
        slope = dot(found, one)
        return dot(torch.autograd.grad(slope, leaves, allow_unused=True), other) if again else slope

    with sf.backend(backend):
        want = slope(f, at, one)
        with forward_ad.dual_level():
            y = f(*(forward_ad.make_dual(x, v) for x, v in zip(at, one, strict=True)))
            torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, want, **CLOSE)
        torch.testing.assert_close(along(*at), (want * weight).sum(), **CLOSE)
        torch.testing.assert_close(along(*at, again=True), slope(along, at, other), **CLOSE)


@ALL
@ATEN
@pytest.mark.parametrize("form", ["auto", "recurrent"])
def test_all_rows_of_a_jacobian_at_once(name: str, form: str) -> None:
    f, parameters = of_all(layer(name), form)
    leaves = [p.clone().requires_grad_() for p in (x(1, 3), *parameters)]
    y = f(*leaves)
    rows = torch.randn(2, *y.shape, dtype=y.dtype)
    want = [torch.autograd.grad(y, leaves, row, retain_graph=True) for row in rows]

    def pull(row: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, leaves, row, retain_graph=True)

    batched = torch.autograd.grad(y, leaves, rows, is_grads_batched=True, retain_graph=True)
    mapped = torch.func.vmap(pull)(rows)
    for p, *each in zip(batched, mapped, *want, strict=True):
        torch.testing.assert_close(p, torch.stack(each[1:]))
        torch.testing.assert_close(each[0], torch.stack(each[1:]))


@pytest.mark.parametrize("name", SOME)
@ATEN
def test_functional_transforms_of_every_layer(name: str) -> None:
    m, u = layer(name), x(1, 2)
    rows = x(3, 1, 2)
    torch.testing.assert_close(torch.func.vmap(m)(rows), torch.stack([m(row) for row in rows]))
    want = jacobian(m, u)
    for found in (jacobian(m, u, vectorize=True), torch.func.jacrev(m)(u), torch.func.jacfwd(m)(u)):
        torch.testing.assert_close(found, want)

    def loss(u: Tensor) -> Tensor:
        return m(u).square().sum()

    torch.testing.assert_close(torch.func.hessian(loss)(u), hessian(loss, u))


@pytest.mark.parametrize("name", ["rwkv7", "slstm"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_second_derivatives_where_the_first_ones_end(name: str, scale: float) -> None:
    """A key of 0 has no direction; gates of thousands differ by more than exp can say."""
    m, u = layer(name), (scale * x(1, 3)).requires_grad_()
    leaves = [u, *m.parameters()]
    first = torch.autograd.grad(m(u).square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(dot(first, like(first)), leaves, allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in (*first, *second) if g is not None)


def test_a_tensor_computed_from_another_is_not_counted_twice() -> None:
    """v from k: the second gradient of a compiled loop is taken through its reference, where both are inputs."""
    q, k, S = (torch.randn(shape, dtype=torch.float64) for shape in ((1, 4, 1, 1, 2), (1, 4, 1, 1, 2), (1, 1, 1, 2, 2)))

    def read(k: Tensor) -> Tensor:
        return matrix(q, k, k.sin(), None, None, 0.1 * k, S, 4, False, True)[0]

    k.requires_grad_()
    (plain,) = torch.autograd.grad(read(k).sum(), k)
    (again,) = torch.autograd.grad(read(k).sum(), k, create_graph=True)
    torch.testing.assert_close(again, plain)


def test_a_loop_that_a_gradient_does_not_pass() -> None:
    """One token, read before it is written: y depends on nothing that has a gradient."""
    s, v = x(1, 1, 1), x(1, 1, 1).requires_grad_()
    y = sf.run(sf.System(s, s, v, exclusive=True), "recurrent")
    (first,) = torch.autograd.grad(y.sum(), v, create_graph=True)  # type: ignore[union-attr]
    assert not first.any()
