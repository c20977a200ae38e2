"""One graph for many lengths: torch.compile with dynamic shapes, and torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stateform as sf

from .test_contract import quick_unless

D = 8
LAYERS = ["softmax", "linear", "gla", "mamba", "mamba2", "s4d", "mlstm", "gated_softmax"]
LAYERS += ["deltanet", "gated_deltanet", "sliding_window"]
FEW = {"softmax", "mamba", "deltanet", "sliding_window"}


@pytest.mark.parametrize("name", quick_unless(set(LAYERS) - FEW, LAYERS))
@torch.no_grad()
def test_one_graph_for_every_length(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    m = sf.build(name, d_model=D).eval()
    graphs: list[Any] = []

    def counted(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    f = torch.compile(m, backend=counted, dynamic=True, fullgraph=True)
    for T in (5, 9, 70, 300):
        x = torch.randn(2, T, D)
        torch.testing.assert_close(f(x), m(x))
    assert len(graphs) == 1


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


@pytest.mark.parametrize("name", quick_unless({*LAYERS, "a model"} - FEW, [*LAYERS, "a model"]))
@torch.no_grad()
def test_exported_for_every_length(name: str) -> None:
    torch.manual_seed(0)
    if name == "a model":
        m: nn.Module = Logits(sf.LanguageModel("mamba softmax", d_model=D, vocab_size=11)).eval()
        inputs = {T: torch.randint(0, 11, (2, T)) for T in (12, 9, 150)}
    else:
        m = sf.build(name, d_model=D).eval()
        inputs = {T: torch.randn(2, T, D) for T in (12, 9, 150)}
    length = torch.export.Dim("T", min=8, max=4096)
    program = torch.export.export(m, (inputs.pop(12),), dynamic_shapes=({1: length},)).module()
    for x in inputs.values():
        torch.testing.assert_close(program(x), m(x))
