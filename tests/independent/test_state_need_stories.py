"""How much state the heads of a trained language model need on a text that it wrote itself."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F

import stateform as sf
from stateform.analysis import state_need
from stateform.convert import reduce_varying

from .helpers import recorded
from .test_stories import continued, read_model

LENGTH = 400


@cache
def systems() -> list[sf.System]:
    """The systems of the five layers, eight heads each, on 400 tokens."""
    model = read_model(recorded("stories260k") / "stories260K.bin", torch.float64)
    w, found = model.weights, []
    with torch.no_grad():
        tokens, _ = continued(model, [1], LENGTH)
        x = w["embedding"][torch.tensor([tokens])]
        for i, layer in enumerate(model.attention):
            u = model.norm(x, w["attention_norm"][i])
            found.append(layer.system(u))
            x = x + layer(u)
            u = model.norm(x, w["mlp_norm"][i])
            x = x + (F.silu(u @ w["gate"][i].T) * (u @ w["up"][i].T)) @ w["down"][i].T
    assert all(system.T == LENGTH and system.H == 8 for system in found)
    return found


def test_forty_heads_need_at_most_six_states_for_a_tenth_of_the_operator() -> None:
    """At every fifth token, of the whole operator's norm; three splits are checked by a dense decomposition."""
    table = []
    for system in systems():
        found = state_need(system, 0.1, splits=range(5, LENGTH, 5))
        table.append(found.per_head())
        least, most = found.ranks()
        alpha = system.coefficients()
        for t in (50, 200, 350):
            sigma = torch.linalg.svdvals(alpha[..., t:, :t]).square()
            tails = F.pad(sigma, (0, 1)).flip(-1).cumsum(-1).flip(-1)
            true = (tails <= 0.01 * alpha.square().sum((-2, -1)).unsqueeze(-1)).int().argmax(-1)
            assert (least[..., t // 5 - 1] <= true).all() and (true <= most[..., t // 5 - 1]).all()
    assert torch.tensor(table).shape == (5, 8)
    assert max(map(max, table)) <= 6, table


def test_of_each_block_by_itself_they_need_more() -> None:
    """Relative to the block alone, which also counts what hardly weighs in the output: three splits, all exact."""
    most = 0
    for system in systems():
        found, alpha = state_need(system, 0.1, relative="block", splits=[50, 200, 350]), system.coefficients()
        assert found.exact
        for at, t in enumerate(found.splits):
            sigma = torch.linalg.svdvals(alpha[..., t:, :t]).square()
            tails = F.pad(sigma, (0, 1)).flip(-1).cumsum(-1).flip(-1)
            true = (tails <= 0.01 * tails[..., :1]).int().argmax(-1)
            assert torch.equal(true, found.ranks()[0][..., at])
            most = max(most, int(true.max()))
    assert most > 6


def test_a_finite_state_speaks_for_a_layer_of_softmax_heads() -> None:
    """A linear system in the place of a layer's attention: its weights are within the tenth that was asked for."""
    system = systems()[3]
    found = reduce_varying(system, 0.1)
    alpha = system.coefficients()
    off = (found.system.coefficients() - alpha).norm(dim=(-2, -1)) / alpha.norm(dim=(-2, -1))
    torch.testing.assert_close(off, found.relative)
    assert found.ok and float(off.max()) <= 0.1
