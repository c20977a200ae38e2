"""States of different ages in one batch: rows that have seen different lengths go on together, each as if alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform.system.precision import relative_error, tolerance, wide

AGES = (0, 1, 5, 19, 5)
"""Tokens that each row has seen; the last two rows come in one State."""
MORE = 4
VARIANTS = (
    "sliding_window(window=4)", "softmax(n_kv_heads=2, positions='none')", "ttt_linear(averaged=False, block=7)",
    "ttt_linear(share_qk=True)", "mlstm(gate_cap=None)", "rg_lru(reset_first=True)", "deltaproduct(n_h=3)",
)  # fmt: skip


def seen(module: Any, xs: list[Tensor]) -> sf.State:
    """The state of all rows together, after what each has seen."""
    alone = [module(x, return_state=True)[1] if x.shape[1] else module.init_state(1) for x in xs[:-2]]
    last = torch.nn.utils.rnn.pad_sequence([x[0] for x in xs[-2:]], batch_first=True, padding_side="left")
    mask = torch.tensor([[False] * (last.shape[1] - x.shape[1]) + [True] * x.shape[1] for x in xs[-2:]])
    return sf.State.cat([*alone, module(last, attention_mask=mask, return_state=True)[1]])


def far(got: Tensor, want: Tensor, length: int) -> float:
    """The largest difference over what rounding may do."""
    return float(relative_error(got, want).max()) / tolerance(torch.float64, length)


@pytest.mark.parametrize("spec", [*sf.names(), *VARIANTS])
def test_rows_of_any_layer_go_on_together(spec: str) -> None:
    torch.manual_seed(0)
    go_on_together(sf.build(spec, d_model=16))


def go_on_together(layer: Any) -> None:
    """Rows of all ages, in every form and one token at a time, against each row alone."""
    layer.double().eval()
    xs = [torch.randn(1, n, 16, dtype=torch.float64) for n in AGES]
    more = torch.randn(len(AGES), MORE, 16, dtype=torch.float64)
    with torch.no_grad():
        state = seen(layer, xs)
        assert state["position"].tolist() == list(AGES)
        alone = [layer(torch.cat([x, m[None]], 1), return_state=True) for x, m in zip(xs, more, strict=True)]
        want = torch.cat([y[:, -MORE:] for y, _ in alone])
        for form in ("auto", *layer.forms(more)):
            y, after = layer(more, initial_state=state, return_state=True, form=form)
            assert far(y, want, 25) <= 1, form
            for row, (_, end) in enumerate(alone):
                own = after.select([row])
                assert {k: x.shape for k, x in own.tensors.items()} == {k: x.shape for k, x in end.tensors.items()}
                assert all(far(wide(own[k]), wide(end[k]), 25) <= 1 for k in own), form
        now, outputs = state, []
        for t in range(MORE):
            y, now = layer.step(more[:, t], now)
            outputs.append(y)
        assert far(torch.stack(outputs, 1), want, 25) <= 1
        order = [3, 0, 3]
        y = layer(more[order], initial_state=state.select(order))
        assert far(y, want[order], 25) <= 1


class Forgetting(sf.Layer):
    """Softmax attention whose weights decay, a window of 12 tokens."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.q_proj, self.k_proj, self.g_proj = (nn.Linear(d_model, n) for n in (d_model, d_model, 2))

    def system(self, u: Tensor, past: Any = None) -> sf.System:
        q, k = (f(u).unflatten(-1, (2, -1)) for f in (self.q_proj, self.k_proj))
        return sf.System(
            q, k, k, forget=-self.g_proj(u).exp(), phase=torch.tensor([[0.3]]), readout="exp", eta="sum", window=12
        )


def test_weights_that_decay_behind_a_window() -> None:
    go_on_together(Forgetting(16))


def test_bare_systems() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 20, 2, 4, dtype=torch.float64) for _ in range(3))
    system = sf.System(q, k, v, readout="exp", eta="sum")
    states = [sf.run(system[:n], return_state=True)[1] for n in (3, 11)]
    rest = system[15:]
    both = sf.System(*(x[:, 15:].expand(2, -1, -1, -1) for x in (q, k, v)), readout="exp", eta="sum")
    want = torch.cat([sf.run(rest, initial_state=state) for state in states])
    for form in ("recurrent", "chunkwise", "matrix"):
        assert far(sf.run(both, form, initial_state=sf.State.cat(states)), want, 20) <= 1


# -- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"max_positions": 40, "d_conv": 3}], ids=str)
def test_a_mixed_model_generates_from_rows_of_any_age(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = sf.LanguageModel(
        "softmax mamba2 sliding_window(window=4)", d_model=16, vocab_size=64, init_std=0.5, **settings
    )
    model = model.double().eval()
    texts = [torch.randint(64, (1, n)) for n in AGES]
    prompts = [torch.randint(64, (1, n)) for n in (3, 1, 2, 3, 1)]
    states = [model(x, return_state=True).state if x.shape[1] else model.init_state(1) for x in texts]
    state = sf.State.cat(states)  # type: ignore[arg-type]
    assert state.position.tolist() == list(AGES) and state.rows == 5
    ids = torch.zeros(5, 3, dtype=torch.long)
    mask = torch.zeros(5, 3, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 3 - prompt.shape[1] :], mask[row, 3 - prompt.shape[1] :] = prompt[0], 1
    got = model.generate(ids, mask, initial_state=state, max_new_tokens=5)[:, 3:]
    whole = [torch.cat([x, p], 1) for x, p in zip(texts, prompts, strict=True)]
    want = [model.generate(x, max_new_tokens=5)[:, x.shape[1] :] for x in whole]
    assert torch.equal(got, torch.cat(want))
    assert len(set(got.flatten().tolist())) > 3
    with torch.no_grad():
        out = model(ids, mask, initial_state=state, return_state=True)
        for row, x in enumerate(whole):
            alone = model(x, return_state=True)
            assert far(out.logits[row : row + 1, -1:], alone.logits[:, -1:], 25) <= 1
            own = out.state.select([row])
            assert own.nbytes == alone.state.nbytes
            again = [model(torch.tensor([[7]]), initial_state=s).logits for s in (own, alone.state)]
            assert far(again[0], again[1], 25) <= 1


def test_a_classifier_goes_on_too() -> None:
    torch.manual_seed(0)
    model = sf.Classifier("softmax mamba2", d_model=16, vocab_size=16, n_classes=3).double().eval()
    texts, more = [torch.randint(16, (1, n)) for n in (2, 9)], torch.randint(16, (2, 4))
    with torch.no_grad():
        state = sf.State.cat([model(x, return_state=True).state for x in texts])  # type: ignore[misc]
        want = torch.cat([model(torch.cat([x, m[None]], 1)).logits for x, m in zip(texts, more, strict=True)])
        assert far(model(more, initial_state=state).logits, want, 13) <= 1


# -- what does not fit --------------------------------------------------------------------------------------------


def test_states_that_do_not_fit_together_are_refused() -> None:
    softmax, linear = (sf.build(name, d_model=8).init_state(1) for name in ("softmax", "linear"))
    for states, said in (
        ([], "no states to join"),
        ([softmax, None], "number 1 of what is joined is a NoneType; expected a State"),
        ([softmax, linear], "state 0 belongs to Softmax-.*, state 1 to Linear-"),
        ([sf.State({"S": torch.zeros(1, 2)}), sf.State({"T": torch.zeros(1, 2)})], "state 0 holds S, state 1 T"),
        (
            [sf.State({"S": torch.zeros(1, 2)}), sf.State({"S": torch.zeros(1, 3)})],
            r"\[1, 2\] on cpu, of state 1 \[1, 3\]",
        ),
        ([sf.State({"S": torch.zeros(1, 2)}), sf.State({"S": torch.zeros(1, 2, device="meta")})], "one device"),
    ):
        with pytest.raises(sf.StateformError, match=said):
            sf.State.cat(states)  # type: ignore[arg-type]


def test_joined_states_are_the_rows_themselves() -> None:
    torch.manual_seed(0)
    layer = sf.build("softmax", d_model=8)
    states = [layer(torch.randn(rows, n, 8), return_state=True)[1] for rows, n in ((2, 3), (1, 9), (1, 1))]
    joined = sf.State.cat(states)
    assert joined.rows == 4 and joined.fingerprint == layer.fingerprint
    for row, want in zip(([0, 1], [2], [3]), states, strict=True):
        got = joined.select(row)
        assert list(got) == list(want) and all(torch.equal(got[k], want[k]) for k in want)
    assert joined.select([]).rows == 0
    assert joined.select([True, False, False, False])["keys"].shape[1] == 3
