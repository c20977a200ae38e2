"""Softmax heads as systems with a finite state: fits that can be good are, and what is measured is what runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import stateform as sf
from stateform import StateformError
from stateform.hub.replacement import fit, softmax_to_state
from stateform.hub.runs import perplexity


def tokens(rows: int = 2, length: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (rows, length), generator=torch.Generator().manual_seed(seed))


def small_model(**options: Any) -> sf.LanguageModel:
    torch.manual_seed(0)
    return sf.LanguageModel("softmax mamba2", d_model=16, vocab_size=32, n_heads=2, **options).eval()


def softmax(length: int = 48, scale: float = 1.0, **parts: Any) -> sf.System:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 2, 4) for _ in range(3))
    return sf.System(scale * q, k, v, readout="exp", eta="sum", **parts)


def off(system: sf.System, new: sf.System) -> float:
    want, got = system.coefficients(), new.coefficients()
    return float((want - got).abs().sum(-1).mean())  # of weights that sum to 1


def test_weights_that_features_can_have_are_found() -> None:
    """Uniform weights, and weights that fade by a constant factor (ALiBi), need one feature."""
    flat = softmax(scale=0.0)
    assert off(flat, fit(flat, 2, steps=150).system(flat)) < 0.15
    fading = softmax(scale=0.0, forget=torch.tensor([-0.1, -1.0]))
    assert off(fading, fit(fading, 2, steps=150).system(fading)) < 0.15


def test_a_fit_is_nearer_than_none_and_sums_to_one() -> None:
    system = softmax()
    made = fit(system, 8, steps=80)
    new = made.system(system)
    assert made.n == new.n == 8 and new.readout.linear
    assert torch.allclose(new.coefficients().sum(-1), torch.ones(2, 2, 48, dtype=torch.float64).float(), atol=1e-4)
    flat = replace(system, q=0 * system.q) if system.q is not None else system
    assert off(system, new) < 0.8 * off(system, flat)
    few, again = (vars(fit(system, 2, steps=3, seed=1)).values() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(few, again, strict=True))


def test_the_experiment() -> None:
    model, ids = small_model(), tokens(4)
    seen: list[str] = []
    found = softmax_to_state(
        model, ids[:2], ids[2:], sizes=(2, 40), methods=("fitted", "window", "lag", "random"), steps=20, each=True,
        on_progress=lambda what, done, total: seen.append(what),
    )  # fmt: skip
    assert found.complete and found.heads == ("blocks.0.mixer:0", "blocks.0.mixer:1") and found.tokens == (80, 80)
    assert found.nats == perplexity(model, ids[2:]).nats
    by = {(row.method, row.n): row for row in found.rows}
    assert len(by) == 8 and by["window", 2].numbers == 2 * 16 and by["fitted", 2].numbers == 2 * 9
    # a window of all tokens is the model itself
    assert by["window", 40].nats == pytest.approx(found.nats, abs=1e-5)
    assert by["window", 2].nats != pytest.approx(found.nats, abs=1e-5)
    assert set(found.alone) == set(found.heads) and seen[-1] == "done"
    assert "features with decays, fitted" in str(found) and found.to_dict()["most"] == 40
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_heads_that_are_named_alone_are_replaced() -> None:
    model, ids = small_model(), tokens(4)
    found = softmax_to_state(
        model, ids[:2], ids[2:], heads=["0:1"], sizes=(4,), methods=("fitted",), steps=5, each=True
    )
    assert found.heads == ("blocks.0.mixer:1",)
    assert found.alone["blocks.0.mixer:1"] == pytest.approx(found.rows[0].nats, abs=1e-9)


def test_interrupted_it_keeps_what_is_done() -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("window"):
            raise KeyboardInterrupt

    ids = tokens(2)
    found = softmax_to_state(small_model(), ids[:1], ids[1:], sizes=(2,), steps=2, on_progress=stop)
    assert not found.complete and [row.method for row in found.rows] == ["fitted"] and "Interrupted" in str(found)


def test_a_model_of_transformers_with_shared_keys() -> None:
    pytest.importorskip("transformers")
    from tests.fixtures.foreign import small

    model, ids = small("llama"), tokens(4, 20)
    found = softmax_to_state(model, ids[:2], ids[2:], sizes=(20,), methods=("fitted", "window"), steps=3)
    assert found.rows[1].nats == pytest.approx(found.nats, abs=1e-4) and found.rows[0].nats != found.nats


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: softmax_to_state(m, x, x, methods=("prony",)), "unknown method 'prony'"),
        (lambda m, x: softmax_to_state(m, x, x, sizes=()), "sizes are"),
        (lambda m, x: softmax_to_state(m, x, x, sizes=(0,)), "sizes are"),
        (lambda m, x: softmax_to_state(m, x, x, heads=["1:0"]), "no layer with softmax heads"),
        (lambda m, x: softmax_to_state(m, x, x, heads=["0:9"]), "has heads 0..1"),
        (lambda m, x: softmax_to_state(m, x, x, heads=["nine"]), 'expected "layer:head"'),
        (lambda m, x: softmax_to_state(m, x, x, heads=[]), "no heads are named"),
        (lambda m, x: softmax_to_state(m, x + 32, x), "expected 0..31"),
        (lambda _, x: softmax_to_state(sf.LanguageModel("lru", d_model=8, vocab_size=32), x, x), "no causal softmax"),
        (
            lambda _, x: softmax_to_state(sf.Classifier("softmax", d_model=8, vocab_size=32, n_classes=2), x, x),
            "no loss",
        ),
        (lambda *_: fit(softmax(), 0), "n is 0"),
        (lambda *_: fit(softmax(), 2, steps=0), "steps is 0"),
        (lambda *_: fit(replace(softmax(), readout="linear"), 2), "readout"),
    ],
)
def test_bad_input(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(StateformError, match=message):
        call(small_model(), tokens())
