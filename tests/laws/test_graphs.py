"""One graph for many lengths: torch.compile with dynamic shapes, and torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform.system.precision import GRADIENT, tolerance
from tests.contract.test_layer import quick_unless

D = 8
LAYERS = sf.names()
FEW = {"softmax", "sliding_window", "s4", "lstm"}
MODELS = ["mamba softmax"]
TRAINED = ["lssl", "s4", "mesa", "gated_deltanet", "slstm"]
FORMS = ["linear chunkwise", "gla chunkwise", "mamba2 chunkwise", "deltanet chunkwise", "gated_deltanet chunkwise"]
FORMS += ["s4d convolution", "gla matrix", "lru scan", "block_diagonal recurrent"]


def counting(graphs: list[Any]) -> Any:
    """A backend that keeps the graphs it is given."""

    def counted(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    return counted


@pytest.mark.parametrize("name", quick_unless(set(LAYERS) - FEW, LAYERS))
@torch.no_grad()
def test_one_graph_for_every_length(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    m = sf.build(name, d_model=D).eval()
    graphs: list[Any] = []
    f = torch.compile(m, backend=counting(graphs), dynamic=True, fullgraph=True)
    for T in (5, 9, 70, 300):
        x = torch.randn(2, T, D)
        torch.testing.assert_close(f(x), m(x))
    assert len(graphs) == 1


@torch.no_grad()
def test_exponential_gates_without_compiled_loops_are_one_graph() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    m = sf.build("mlstm", d_model=D).eval()
    graphs: list[Any] = []
    f = torch.compile(m, backend=counting(graphs), dynamic=True, fullgraph=True)
    with sf.backend("torch"):
        for T in (5, 9, 70, 300):
            x = torch.randn(2, T, D)
            torch.testing.assert_close(f(x), m(x))
    assert len(graphs) == 1


class In(nn.Module):
    """A layer in a form."""

    def __init__(self, name: str, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = sf.build(name, d_model=D).eval(), form

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, form=self.form)
        return y


@pytest.mark.parametrize("given", quick_unless({*FORMS} - {"gated_deltanet chunkwise"}, FORMS))
@torch.no_grad()
def test_a_form_in_a_graph_for_every_length(given: str) -> None:
    torch._dynamo.reset()
    m, graphs = In(*given.split()), []
    f = torch.compile(m, backend=counting(graphs), dynamic=True, fullgraph=True)
    length = torch.export.Dim("T", min=8, max=4096)
    program = torch.export.export(m, (torch.randn(2, 12, D),), dynamic_shapes=({1: length},)).module()
    for T in (9, 150):
        x = torch.randn(2, T, D)
        torch.testing.assert_close(f(x), m(x))
        torch.testing.assert_close(program(x), m(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("name", quick_unless({*TRAINED} - {"lssl"}, TRAINED))
def test_gradients_of_a_graph_for_every_length(name: str) -> None:
    torch._dynamo.reset()
    m = In(name, "auto")
    f = torch.compile(m, backend="aot_eager", dynamic=True, fullgraph=True)
    for T in (5, 70):
        x, allowed = torch.randn(2, T, D, requires_grad=True), GRADIENT * tolerance(torch.float32, T)
        got, want = (torch.autograd.grad(g(x).square().sum(), [x, *m.parameters()]) for g in (f, m))
        floor = 1e-3 * max(float(g.abs().max()) for g in want)
        for a, b in zip(got, want, strict=True):
            assert float((a - b).abs().max() / b.abs().max().clamp_min(floor)) < allowed


@torch.no_grad()
def test_the_cache_of_a_window_that_a_graph_gives() -> None:
    """It has one size in a graph for every length, and goes on as any other."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    m = sf.build("sliding_window", d_model=D, window=16).eval()
    f = torch.compile(lambda x: m(x, return_state=True), backend="eager", dynamic=True, fullgraph=True)
    for T in (40, 5):
        x = torch.randn(2, T + 20, D)
        y, state = f(x[:, :T])
        torch.testing.assert_close(torch.cat([y, m(x[:, T:], initial_state=state)], 1), m(x))


class Logits(nn.Module):
    """A model of tensors alone, as torch.export wants it."""

    def __init__(self, model: sf.LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits


@pytest.mark.parametrize("name", quick_unless({*LAYERS, *MODELS} - FEW - {MODELS[0]}, [*LAYERS, *MODELS]))
@torch.no_grad()
def test_exported_for_every_length(name: str) -> None:
    torch.manual_seed(0)
    if name in MODELS:
        m: nn.Module = Logits(sf.LanguageModel(name, d_model=D, vocab_size=11)).eval()
        inputs = {T: torch.randint(0, 11, (2, T)) for T in (12, 9, 150)}
    else:
        m = sf.build(name, d_model=D).eval()
        inputs = {T: torch.randn(2, T, D) for T in (12, 9, 150)}
    length = torch.export.Dim("T", min=8, max=4096)
    program = torch.export.export(m, (inputs.pop(12),), dynamic_shapes=({1: length},)).module()
    for x in inputs.values():
        torch.testing.assert_close(program(x), m(x))


class Called(nn.Module):
    """A layer called with one thing more."""

    def __init__(self, name: str, options: dict[str, Any], more: str) -> None:
        super().__init__()
        self.layer, self.more = sf.build(name, d_model=D, **options).eval(), more

    def forward(self, x: Tensor, given: Any) -> Tensor:
        y: Tensor = self.layer(x, **{self.more: given})
        return y


@pytest.mark.parametrize(
    ("name", "options", "more", "given", "says"),
    [
        ("linear", {}, "attention_mask", torch.ones(1, 12), "attention_mask .* follows from its values; leave it out"),
        ("linear", {}, "cu_seqlens", torch.tensor([0, 5, 12]), "cu_seqlens .* follows from its values; leave it out"),
        ("gru", {}, "form", "newton", "the form 'newton' of a cell .* expected the form 'auto' or 'recurrent'"),
        ("gru", {}, "form", "scan", "the form 'scan' of a cell .* expected the form 'auto' or 'recurrent'"),
        ("mesa", {"solver": "cg"}, "form", "auto", "follow from values .* expected Solver"),
    ],
)
@torch.no_grad()
def test_what_no_export_holds_is_told_in_a_line(
    name: str, options: dict[str, Any], more: str, given: Any, says: str
) -> None:
    length = torch.export.Dim("T", min=8, max=4096)
    sizes = {1: length} if more == "attention_mask" else None
    with pytest.raises(sf.StateformError, match=says):
        torch.export.export(
            Called(name, options, more), (torch.randn(1, 12, D), given), dynamic_shapes=({1: length}, sizes)
        )
