"""Long inputs: computed stretch by stretch in memory that does not grow, the state carried, to the same result."""

from __future__ import annotations

import gc
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.analysis import peak_bytes
from stateform.layer import Convolved, Layer, streaming
from stateform.models import generation
from stateform.system.precision import relative_error, tolerance, wide

D, V = 16, 29


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of more than seven tokens are long."""
    monkeypatch.setattr(streaming, "LEAST", 7)
    monkeypatch.setattr(streaming, "STRETCH", {"cpu": 1})


def finite(name: str) -> bool:
    system = sf.build(name, d_model=D).system(torch.zeros(1, 1, D))
    return not system.readout.cached or system.window is not None


FINITE = [name for name in sf.names() if finite(name)]


def lengths(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the stretches that the layer computes from now on."""
    seen: list[int] = []
    plain = layer._run

    def counted(x: Tensor, *args: Any) -> Any:
        seen.append(x.shape[1])
        return plain(x, *args)

    monkeypatch.setattr(layer, "_run", counted)
    return seen


def same(got: Tensor, want: Tensor, length: int, dtype: torch.dtype = torch.float64) -> bool:
    got, want = wide(got.detach()), wide(want.detach())
    return got.shape == want.shape and float(relative_error(got, want).max()) < tolerance(dtype, length)


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.usefixtures("short_stretches")
def test_stretches_give_what_the_whole_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = sf.build(name, d_model=D).double(), torch.randn(2, 40, D, dtype=torch.float64)
    _, begun = layer(torch.randn(2, 3, D, dtype=torch.float64), return_state=True)
    mask = torch.ones(2, 40)
    mask[0, :9], mask[1, 37:] = 0, 0
    packs: list[dict[str, Any]] = [{}, {"initial_state": begun}, {"attention_mask": mask, "initial_state": begun}]
    wholes = [layer(x, return_state=True, **call) for call in packs]
    seen = lengths(layer, monkeypatch)
    with torch.no_grad():
        for (want, end), call in zip(wholes, packs, strict=True):
            seen.clear()
            y, state = layer(x, return_state=True, **call)
            assert (max(seen) == 7) is (name in FINITE), seen
            assert same(y, want.detach(), 40)
            for key, z in end.tensors.items():
                assert z.shape == state[key].shape
                assert z.dtype == state[key].dtype
                assert same(state[key], z.detach(), 40)


@pytest.mark.usefixtures("short_stretches")
def test_forms_that_go_forward_are_computed_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = sf.build("s4d", d_model=D, d_state=4).double(), torch.randn(1, 40, D, dtype=torch.float64)
    seen, want = lengths(layer, monkeypatch), {"recurrent": 7, "chunkwise": 7, "scan": 7, "matrix": 40}
    with torch.no_grad():
        for form, longest in {**want, "convolution": 40, "auto": 7}.items():
            seen.clear()
            y = layer(x, form=form)
            assert max(seen) == longest, form
            assert same(y, layer(x, form="recurrent"), 40), form


@pytest.mark.usefixtures("short_stretches")
def test_what_needs_the_whole_gets_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = sf.build("retention", d_model=D), torch.randn(1, 40, D)
    seen = lengths(layer, monkeypatch)
    with torch.no_grad():
        for form in ("matrix", "chunkwise"):
            layer(x, form=form)
    assert seen == [40, *[7] * 5, 5]
    seen.clear()
    layer(x)  # for gradients of the weights
    layer.requires_grad_(False)(x.requires_grad_())
    _, state = layer(x[:, :1], return_state=True)
    layer(x.detach(), initial_state=state)
    assert seen == [40, 40, 1, 40]
    seen.clear()
    layer(x.detach())  # nothing asks for a gradient
    torch.func.vmap(lambda u: layer(u))(x.detach()[None])
    assert seen == [*[7] * 5, 5, 40]
    seen.clear()
    lstm = sf.build("lstm", d_model=D)
    seen = lengths(lstm, monkeypatch)
    with torch.no_grad():
        lstm(x, form="newton")
        lstm(x)
    assert seen == [40, *[7] * 5, 5]


@pytest.mark.usefixtures("short_stretches")
def test_what_layers_hand_on_is_whole() -> None:
    torch.manual_seed(0)
    first, second = (Convolved(sf.build("rwkv7", d_model=D), 3).double() for _ in range(2))
    x = torch.randn(2, 30, D, dtype=torch.float64)
    mask = torch.ones(2, 30)
    mask[0, :4] = 0
    for call in ({}, {"attention_mask": mask}):
        shared: list[dict[str, Tensor]] = [{}, {}]
        want = second(first(x, shared=shared[0], **call), shared=shared[0], **call)
        with torch.no_grad():
            got = second(first(x, shared=shared[1], **call), shared=shared[1], **call)
        assert set(shared[1]) == {"v_first"}
        assert same(shared[1]["v_first"], shared[0]["v_first"].detach(), 30)
        assert same(got, want.detach(), 30)


@pytest.mark.usefixtures("short_stretches")
def test_stretches_under_autocast_keep_its_dtype() -> None:
    torch.manual_seed(0)
    layer, x = sf.build("mamba2", d_model=D), torch.randn(2, 40, D)
    with torch.autocast("cpu", torch.bfloat16):
        want, end = layer(x, return_state=True)
        with torch.no_grad():
            y, state = layer(x, return_state=True)
    assert y.dtype == want.dtype
    assert {k: z.dtype for k, z in state.tensors.items()} == {k: z.dtype for k, z in end.tensors.items()}
    assert float(relative_error(y.float(), want.detach().float()).max()) < tolerance(torch.bfloat16, 40, rounded=8)


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.drawn(0.3)
def test_only_the_output_grows_with_the_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STRETCH", {"cpu": 1})
    layer = sf.build(name, d_model=D)
    x = torch.randn(1, 5 * streaming.LEAST, D)

    def peak(length: int) -> int:
        with torch.no_grad():
            return peak_bytes(lambda: layer(x[:, :length], return_state=True))

    assert peak(5 * streaming.LEAST) - peak(3 * streaming.LEAST) == 2 * streaming.LEAST * D * x.element_size()


def test_packed_and_padded_inputs_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STRETCH", {"cpu": 1})
    layer, T = sf.build("short_conv", d_model=64), 64 * streaming.LEAST
    x, mask = torch.randn(1, T, 64), torch.ones(1, T)
    mask[0, :9] = 0
    size = x.numel() * x.element_size()
    with torch.no_grad(), sf.validate(False):
        for call in ({"attention_mask": mask}, {"cu_seqlens": torch.tensor([0, T // 3, T])}):
            assert peak_bytes(lambda call=call: layer(x, return_state=True, **call)) < 4 * size


@pytest.mark.parametrize("name", FINITE)
def test_a_state_keeps_nothing_but_itself(name: str) -> None:
    layer = sf.build(name, d_model=D)
    _, state = layer(torch.randn(2, 100, D), return_state=True)
    for z in state.tensors.values():
        assert z.untyped_storage().nbytes() <= 2 * z.numel() * z.element_size()


@pytest.mark.usefixtures("short_stretches")
def test_a_thousand_calls_take_the_memory_of_one() -> None:
    layer, x = sf.build("short_conv", d_model=D), torch.randn(1, 8, D)

    def calls(n: int) -> None:
        for _ in range(n):
            layer(x, return_state=True)

    def held() -> tuple[int, int]:
        gc.collect()
        objects = gc.get_objects()
        return len(objects), sum(z.untyped_storage().nbytes() for z in objects if issubclass(type(z), Tensor))

    with torch.no_grad():
        assert peak_bytes(lambda: calls(10)) == peak_bytes(lambda: calls(1))
        calls(10)
        held()  # what Python and torch make once and keep
        found = [held()]
        for _ in range(3):
            calls(1000)
            found.append(held())
    grown = [after[0] - before[0] for before, after in itertools.pairwise(found)]
    assert min(grown) < 100, grown  # what other threads of a long process make comes and goes; a leak is in every round
    assert found[-1][1] == found[0][1]


# -- models -------------------------------------------------------------------------------------------------------


def model(pattern: str = "gated_deltanet mamba2 softmax rwkv7*2") -> sf.LanguageModel:
    torch.manual_seed(0)
    return sf.LanguageModel(pattern, d_model=D, vocab_size=V).double().eval()


def ids(*shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.drawn(0.3)
def test_a_prompt_may_be_read_in_chunks(side: str) -> None:
    m, x = model(), ids(2, 23)
    mask = None
    if side != "none":
        mask = torch.ones_like(x)
        mask[0, slice(0, 9) if side == "left" else slice(14, None)] = 0
    begun = m(ids(2, 3), return_state=True).state
    want = m(x, mask, initial_state=begun, return_state=True, labels=x)
    for chunk in (1, 4, 23, 100):
        got = m(x, mask, initial_state=begun, return_state=True, labels=x, chunk=chunk)
        assert same(got.logits, want.logits, 23)
        assert same(got.loss, want.loss, 23)
        for key, z in want.state.tensors.items():
            assert same(got.state[key], z, 23), key
        for keep in (1, 5, 23, 50):
            last = m(x, mask, initial_state=begun, logits_to_keep=keep, chunk=chunk)
            assert same(last.logits, want.logits[:, -keep:], 23)
            assert last.state is None
    assert torch.equal(m(x, mask, logits_to_keep=5).logits, m(x, mask).logits[:, -5:])
    assert m(x[:, :0], chunk=3).logits.shape == (2, 0, V)


def test_chunks_that_cannot_be_are_refused() -> None:
    m, x = model("lru"), ids(1, 6)
    for call, words in (
        ({"chunk": 0}, "chunk is 0; expected a whole number of tokens, 1 or more"),
        ({"chunk": 2.0}, "chunk is 2.0"),
        ({"logits_to_keep": -1}, "logits_to_keep is -1"),
        ({"logits_to_keep": True}, "logits_to_keep is True"),
        ({"logits_to_keep": 2, "labels": x}, "leave out labels or logits_to_keep"),
        ({"chunk": 2, "cu_seqlens": torch.tensor([0, 6])}, "leave out cu_seqlens or chunk"),
        ({"chunk": 2, "attention_mask": torch.ones(1, 5)}, "attention_mask is of shape [1, 5]"),
    ):
        with pytest.raises(sf.StateformError) as caught:
            m(x, **call)
        assert words in str(caught.value)


def test_generation_reads_long_prompts_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x = model(), ids(2, 40)
    want = m.generate(x, max_new_tokens=6)
    begun = m(x[:, :9], return_state=True).state
    assert torch.equal(m.generate(x[:, 9:], initial_state=begun, max_new_tokens=6), want[:, 9:])
    monkeypatch.setattr(generation, "PREFILL", 14)
    seen, plain = [], m.hidden

    def counted(inputs: Tensor, **call: Any) -> Any:
        seen.append(inputs.shape[1])
        return plain(inputs, **call)

    monkeypatch.setattr(m, "hidden", counted)
    assert torch.equal(m.generate(x, max_new_tokens=6), want)
    assert seen == [*[7] * 5, 5, *[1] * 5]
    seen.clear()
    assert torch.equal(m.generate(x, max_new_tokens=6, use_cache=False), want)
    assert seen == [40, 41, 42, 43, 44, 45]


def test_a_prompt_in_chunks_takes_the_memory_of_one() -> None:
    m, x = model("gated_deltanet mamba2*2"), ids(1, 1024)

    def peak(length: int) -> int:
        with torch.no_grad():
            return peak_bytes(lambda: m(x[:, :length], logits_to_keep=1, chunk=64, return_state=True))

    assert peak(1024) == peak(256)


# -- truncated back-propagation -----------------------------------------------------------------------------------


class Sum(sf.Layer):
    """h_t = a h_{t-1} + w x_t."""

    def __init__(self, d_model: int = 1) -> None:
        super().__init__(d_model)
        self.log_a, self.w = torch.nn.Parameter(torch.tensor([-0.2])), torch.nn.Parameter(torch.tensor([0.7]))

    def system(self, u: Tensor, past: Any = None) -> sf.System:
        one = torch.ones(1, 1, dtype=u.dtype)
        return sf.System(one, one, (self.w * u).unsqueeze(2), log_decay=self.log_a)


def test_the_gradient_of_a_piece_by_hand() -> None:
    layer, x = Sum().double(), torch.linspace(-1, 2, 12, dtype=torch.float64)
    a, w = float(layer.log_a.detach().exp()), float(layer.w.detach())
    state, h = None, 0.0
    for start in range(0, 12, 4):
        y, state = layer(x[None, start : start + 4, None], initial_state=state, return_state=True)
        state = state.detach()
        layer.zero_grad()
        y.sum().backward()
        by_w = sum(a ** (t - s) * x[start + s] for t in range(4) for s in range(t + 1))
        by_log_a = sum((t - s) * a ** (t - s) * w * x[start + s] for t in range(4) for s in range(t + 1))
        by_log_a = by_log_a + sum((t + 1) * a ** (t + 1) * h for t in range(4))  # h is a number here
        assert same(layer.w.grad, by_w.view(1), 12)
        assert same(layer.log_a.grad, by_log_a.view(1), 12)
        h = float(y.detach()[0, -1, 0])


def test_the_gradients_of_a_models_pieces_add_up() -> None:
    m, x = model(), ids(2, 12)
    state = None
    for start in range(0, 12, 4):
        out = m(x[:, start : start + 4], initial_state=state, return_state=True)
        out.logits.square().sum().backward()
        state = out.state.detach()
    got = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    for start in range(0, 12, 4):
        with torch.no_grad():
            before = m(x[:, :start], return_state=True).state
        m(x[:, start : start + 4], initial_state=before).logits.square().sum().backward()
    for g, p in zip(got, m.parameters(), strict=True):
        assert same(g, p.grad, 12 * 16)


DOCS = Path(__file__).parents[2] / "docs" / "long.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.M | re.S) if DOCS.exists() else []


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_page_runs(code: str) -> None:
    exec(code, {})


# -- a million tokens ---------------------------------------------------------------------------------------------


def linear_readout(name: str) -> bool:
    layer = sf.build(name, d_model=D)
    return not isinstance(layer, sf.Cell) and layer.system(torch.zeros(1, 1, D)).readout.linear


LINEAR = [name for name in sf.names() if linear_readout(name)]


def long_run(name: str, length: int) -> None:
    """Two splits of one input give the same, in the memory of the output and a stretch."""
    torch.manual_seed(0)
    layer, x = sf.build(name, d_model=D), torch.randn(1, length, D)
    form = "recurrent" if layer.system(x[:, :1]).decay_kind == "dense" else "auto"
    with torch.no_grad():
        y, end = layer(x, return_state=True, form=form)
        state, start = None, 0
        for stop in (1, length // 3, length):
            part, state = layer(x[:, start:stop], initial_state=state, return_state=True, form=form)
            assert float(relative_error(part, y[:, start:stop], floor=float(y.abs().max())).max()) < tolerance(
                torch.float32, length
            )
            start = stop
    assert bool(torch.isfinite(y).all())
    assert int(end["position"]) == length
    assert state is not None
    for key, z in end.tensors.items():
        assert same(state[key], z, length, torch.float32), key


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.drawn(0.25)
def test_twenty_thousand_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STRETCH", {"cpu": 2**16})
    long_run(name, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR)
def test_a_million_tokens(name: str) -> None:
    long_run(name, 1_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", FINITE)
def test_a_layer_takes_twice_its_inputs_outputs_and_weights_at_most(name: str) -> None:
    layer, x = sf.build(name, d_model=768), torch.randn(1, 16_384, 768)
    own = sum(p.numel() * p.element_size() for p in layer.parameters())
    with torch.no_grad():
        peak = peak_bytes(lambda: layer(x, return_state=True))
    assert peak <= 2 * (2 * x.numel() * x.element_size() + own)
