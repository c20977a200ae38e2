"""The algebra of structured transitions, every pair of structures against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stateform.system.precision import cis, upcast
from stateform.system.transition import Dense, Diagonal, Feedback, Identity, Transition, associative_scan

N, P = 5, 3
SHAPE = (2, 4)


def r(*shape: int) -> Tensor:
    return torch.randn(*SHAPE, *shape, dtype=torch.float64)


def make(kind: str) -> Transition:
    match kind:
        case "identity":
            return Identity(r(1))
        case "scalar":
            return Diagonal(-r(1).abs())
        case "diagonal":
            return Diagonal(-r(N).abs())
        case "signed":
            return Diagonal(-r(N).abs(), r(N).sign())
        case "sign alone":
            return Diagonal(None, r(N).sign())
        case "complex":
            return Diagonal(-r(N).abs(), cis(r(N)))
        case "dense":
            return Dense(r(N, N))
        case "feedback":
            return Feedback(Identity(r(1)), r(N), r(N))
        case "scalar + feedback":
            return Feedback(Diagonal(-r(1).abs()), r(N), r(N))
        case "complex + feedback":
            return Feedback(Diagonal(-r(N).abs(), cis(r(N))), r(N), r(N))
    raise AssertionError(kind)


KINDS = [
    "identity", "scalar", "diagonal", "signed", "sign alone", "complex", "dense", "feedback", "scalar + feedback",
    "complex + feedback",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_apply_transpose_and_spectrum_are_those_of_the_dense_matrix(kind: str) -> None:
    torch.manual_seed(0)
    A, S = make(kind), r(N, P)
    dense = A.dense(N)
    torch.testing.assert_close(A.apply(S), dense @ S.to(dense.dtype))
    torch.testing.assert_close(A.transpose().dense(N).expand_as(dense), dense.mT)
    values = A.spectrum(N)
    for power in (1, 2, 3):
        trace = torch.linalg.matrix_power(dense, power).diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close(values.pow(power).sum(-1).expand_as(trace), trace + 0j)


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_every_product_is_that_of_the_dense_matrices(first: str, second: str) -> None:
    torch.manual_seed(0)
    A, B = make(first), make(second)
    want = (B.dense(N) + 0j) @ (A.dense(N) + 0j)
    torch.testing.assert_close(B.after(A, N).dense(N) + 0j, want)


def test_diagonal_products_stay_diagonal_and_feedback_stays_rank_one() -> None:
    assert isinstance(make("complex").after(make("signed"), N), Diagonal)
    assert isinstance(make("feedback").after(make("diagonal"), N), Feedback)
    assert isinstance(make("diagonal").after(make("feedback"), N), Feedback)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 9, 64, 100])
def test_a_scan_gives_all_prefixes(length: int) -> None:
    torch.manual_seed(0)
    M = torch.randn(2, length, 3, 3, dtype=torch.float64) / 2
    (got,) = associative_scan(lambda a, b: (b[0] @ a[0],), (M,))
    product, want = torch.eye(3, dtype=torch.float64).expand(2, 3, 3), []
    for t in range(length):
        product = M[:, t] @ product
        want.append(product)
    assert got.shape == M.shape
    if length:
        torch.testing.assert_close(got, torch.stack(want, 1))


def test_angles_are_reduced_in_float64() -> None:
    angle = torch.tensor([1e6, -3.0, 12345.678], dtype=torch.float32)
    got = cis(angle)
    assert got.dtype == torch.complex64
    for a, z in zip(angle.tolist(), got.tolist()):
        assert abs(z - complex(math.cos(a), math.sin(a))) < 1e-6


def test_states_are_kept_in_float32_at_least() -> None:
    assert upcast(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert upcast(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert upcast(torch.zeros(1, dtype=torch.complex64)).dtype == torch.complex64
