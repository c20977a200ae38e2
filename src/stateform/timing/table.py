"""The table of pairs: layers at the sizes of released models of their kind, and what one would use instead.

Pairs with modules of transformers come from the files of the foreign families (`stateform.hub.families`).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from ..hub.twin import TWINS, Twin
from .pair import Operation, Pair, Rival, like
from .rivals import fla as of_fla
from .rivals import mambapy as of_mambapy
from .rivals import torch as of_torch
from .rivals import transformers as of_transformers

MORE = {
    "mamba": Rival("MambaBlock", "mambapy", of_mambapy.mamba_block),
    "softmax/gpt2": Rival("scaled_dot_product_attention", "torch", of_torch.fused_attention),
}
"""By pair: a rival besides those of transformers."""


def foreign(twin: type[Twin]) -> Pair:
    """Make the pair of our layer and a module of transformers, run in each of its ways."""
    rivals = tuple(
        Rival(twin.kind() + way.behind, way.package, partial(of_transformers.party, twin, **way.settings))
        for way in twin.ways
    )
    more = (MORE[twin.pair],) if twin.pair in MORE else ()
    return Pair(twin.pair, twin.layer, (*rivals, *more))


_ALL: tuple[Pair | Operation, ...] = (
    *(foreign(TWINS[name]) for name in sorted(TWINS)),
    Pair("lstm", like("lstm"), (Rival("nn.LSTM", "torch", of_torch.recurrent(nn.LSTM)),)),
    Pair("gru", like("gru"), (Rival("nn.GRU", "torch", of_torch.recurrent(nn.GRU)),)),
    *of_fla.OPERATIONS,
)
PAIRS = {pair.name: pair for pair in _ALL}
"""Every pair by its name."""
PACKAGES = tuple(dict.fromkeys(rival.package for pair in PAIRS.values() for rival in pair.rivals))
"""Every package that has rivals."""
