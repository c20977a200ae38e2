"""Asking modules of whatever class for their Systems."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform.layer import has_state, has_system, system_of


class Foreign(nn.Module):
    """No Layer, but it says what its System is."""

    def system(self, u: Tensor, past: sf.Past | None = None) -> sf.System:
        return sf.System(u.unsqueeze(2), u.unsqueeze(2), u.unsqueeze(2))


class Numbered(nn.Module):
    system = 3


def test_a_layer_of_any_class_has_a_system() -> None:
    layer, foreign, u = sf.build("gla", d_model=8), Foreign(), torch.randn(1, 3, 8)
    assert [has_system(x) for x in (layer, foreign, nn.Linear(2, 2), Numbered(), None)] == [True, True, *3 * [False]]
    assert [has_state(x) for x in (layer, foreign)] == [True, False]
    assert system_of(foreign, u).T == system_of(layer, u).T == 3
    with pytest.raises(AssertionError, match=r"Linear has no method system\(u\)"):
        system_of(nn.Linear(2, 2), u)
