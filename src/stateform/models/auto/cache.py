"""The State of a model as a cache of transformers."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache

from ...errors import StateformError, require
from ...system.state import State


class StateCache(Cache):
    """A model's State (`.state`, None before the first token) as a cache, which transformers reorders and repeats."""

    def __init__(self, state: State | None = None) -> None:
        super().__init__(layers=[])
        self.state = state
        self.length = 0 if state is None or not state.rows else int(state["position"].max())
        """Columns of input seen, padding too, which the state's own positions leave out."""

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"StateCache({self.length} tokens, {self.state})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else self.state.rows

    @property
    def is_croppable(self) -> bool:
        return False

    def reset(self) -> None:
        self.state, self.length = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state = None if self.state is None else self.state.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.state = None if self.state is None else self.state.repeat(repeats)

    def crop(self, tokens_to_remove: int) -> None:
        """Do nothing for 0 tokens. Raises StateformError for others: a state cannot forget its last tokens."""
        require(
            tokens_to_remove == 0,
            f"a state cannot forget its last {abs(tokens_to_remove)} tokens; keep the state from before them",
        )

    @classmethod
    def of(cls, given: State | Cache | None) -> StateCache:
        """Make a cache: a StateCache is given back, a State wrapped, and None becomes an empty cache."""
        if isinstance(given, StateCache):
            return given
        empty = isinstance(given, Cache) and not getattr(given, "is_initialized", False)
        if given is None or empty:
            return cls()
        if not isinstance(given, State):
            raise StateformError(
                f"past_key_values is a {type(given).__name__}; expected what an earlier output gave, or a State"
            )
        return cls(given)
