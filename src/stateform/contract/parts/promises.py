"""What a layer says of itself, what the other parts rest on, and inputs without rows or tokens."""

from __future__ import annotations

import torch

from ...errors import StateformError, validate
from ..draws import drawn
from ..layer import LayerRunner
from ..outcome import REMEMBERS_NOTHING


def parts_matter(b: LayerRunner) -> None:
    """Check that with the parameters drawn, state, decay, feedback and eta each change y by over 1%."""
    if not b.ours:
        return _memory_matters(b)
    _, changes = drawn(b.layer, b.input(2, 48), b.generator)
    for name, change in changes.items():
        text = f"without {name}, y changes by {change:.2g} only: the checks could not see it"
        b.report.expect(b.part, change > 0.01, text)
    return None


def _memory_matters(b: LayerRunner) -> None:
    """Note it where the last output of a module, whose parameters are not drawn, depends on the last token alone."""
    x = b.input(2, 9)
    other = torch.cat([b.input(2, 8), x[:, 8:]], 1)
    with torch.no_grad():
        y, z = (b.call(u)[0] for u in (x, other))
    if torch.equal(y[:, -1], z[:, -1]):
        b.report.note(REMEMBERS_NOTHING)


def contractive(b: LayerRunner) -> None:
    """Check that a layer said to be contractive has no decay above 1, with its own parameters and with those drawn."""
    if not (b.ours and getattr(b.layer, "contractive", False)):
        return
    for which, layer in (("its own", b), ("drawn", b.drawn())):
        broken = ""
        try:
            with validate(True), torch.no_grad():
                layer.call(layer.input(2, 9))
        except StateformError as error:
            broken = str(error)
        b.report.expect(b.part, not broken, f"with {which} parameters: {broken}")


def empty(b: LayerRunner) -> None:
    """Run no rows, no tokens and one token: an empty result, the state unchanged."""
    layer = b.drawn()
    with torch.no_grad():
        _, state = layer.call(layer.input(2, 9))
        y, same = layer.call(layer.input(2, 0), initial_state=state)
        b.report.expect(b.part, tuple(y.shape) == (2, 0, layer.d_model), f"T = 0 gave shape {list(y.shape)}")
        b.report.expect(b.part, all(torch.equal(same[k], state[k]) for k in state), "T = 0 changed the state")
        y, _ = layer.call(layer.input(0, 5))
        b.report.expect(b.part, tuple(y.shape) == (0, 5, layer.d_model), f"B = 0 gave shape {list(y.shape)}")
