"""Fuzzy in-context recall: keys and values of one to three tokens; the value of a key that came before is answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...errors import require
from ..base import Batch, Split, register_task
from ..recall import Ints, distinct, first_seen, whole_numbers, with_answers
from .setting import SOURCE, MADOfKeys


@register_task("mad_fuzzy_recall", source=SOURCE)
@dataclass(frozen=True, kw_only=True)
class MADFuzzyRecall(MADOfKeys):
    """Fuzzy in-context recall: keys and values of one to three tokens; the value of a key that came before is answered.

    With vocab_size=10 (keys of 0 to 3, values of 4 to 8, padding 9), keys of 2 tokens and values of up to 2:

        inputs  9 9 9 1 3 8 0 2 4 6 1 3 8 0 2 4
        labels  . . . . . . . . . . . 8 . . 4 6

    A key or value has no token twice; its number of tokens is drawn, for the keys of the valid and test splits it is
    always the largest. A key with its value is drawn to be the last (the probe), and put somewhere into the sequence
    if it does not come by itself. Padding is in front. In training every next token is asked for (`all_tokens`). In
    about one example of fifty the original never shows the probe before it asks for it; here it is always shown.
    """

    length: int = 128
    """Tokens of an example: more than twice the longest pair."""
    k_motif_size: int = 3
    """Tokens of the longest key."""
    v_motif_size: int = 3
    """Tokens of the longest value."""

    @property
    def n_keys(self) -> int:
        """Count the tokens that keys are made of; the others but one make values."""
        return (self.vocab_size - 1) // 2

    def check(self) -> None:
        super().check()
        k, v, n_values = self.k_motif_size, self.v_motif_size, self.vocab_size - 1 - self.n_keys
        require(k >= 1 and v >= 1, f"k_motif_size is {k} and v_motif_size is {v}; expected 1 or more")
        require(
            self.n_keys >= k and n_values >= v,
            f"keys of {k} and values of {v} different tokens need vocab_size {2 * max(k, v) + 1} or more; it is "
            f"{self.vocab_size}",
        )

    def check_length(self, length: int) -> None:
        super().check_length(length)
        longest = self.k_motif_size + self.v_motif_size
        require(
            length > 2 * longest,
            f"a pair has up to {longest} tokens and comes twice: expected length {2 * longest + 1} or more; length is "
            f"{length}",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        longest_key, longest_value = self.k_motif_size, self.v_motif_size
        shortest = 2 if split == "train" else longest_key + 1
        count = -(-length // shortest)  # as many pairs as can fit
        rows = np.arange(n)[:, None]

        def motifs(low: int, choices: int, longest: int) -> tuple[Ints, Ints]:
            """Draw different tokens from `low` on [n,1+count,longest], and how many of them are used [n,1+count]."""
            tokens = low + distinct(rng, choices, n * (1 + count), longest).reshape(n, 1 + count, longest)
            return tokens, 1 + whole_numbers(rng, longest, n, 1 + count)

        # Pair 0 is the probe; a key that comes again has the value that it had first.
        keys, key_size = motifs(0, self.n_keys, longest_key)
        values, value_size = motifs(self.n_keys, self.vocab_size - 1 - self.n_keys, longest_value)
        if split != "train":
            key_size[:] = longest_key
        digits = np.where(np.arange(longest_key) < key_size[:, :, None], 1 + keys, 0)
        codes = digits @ (self.n_keys + 1) ** np.arange(longest_key)
        first = first_seen(codes)
        values, value_size = values[rows, first], value_size[rows, first]
        size = key_size + value_size

        # Pairs follow until this many tokens are there; the probe comes at a random token, or by chance before that.
        limit = length - size[:, :1] - longest_key - longest_value
        starts = np.cumsum(size[:, 1:], axis=1) - size[:, 1:]
        due = np.floor(rng.random_sample((n, 1)) * (length - 2 * size[:, :1]))
        place = np.minimum((starts < due).sum(1), (starts < limit).sum(1) - 1)[:, None]
        by_chance = ((first[:, 1:] == 0) & (np.arange(count) < place)).any(1, keepdims=True)
        which = np.tile(np.arange(1, count + 1), (n, 1))
        which[rows, place] = np.where(by_chance, which[rows, place], 0)
        starts = np.cumsum(size[rows, which], axis=1) - size[rows, which]
        used = np.concatenate([starts < limit, np.ones((n, 1), dtype=bool)], axis=1)
        which = np.concatenate([which, np.zeros((n, 1), dtype=np.int64)], axis=1)  # the probe comes last

        again = first_seen(np.where(used, codes[rows, which], -1 - np.arange(count + 1))) < np.arange(count + 1)
        width = np.where(used, size[rows, which], 0)
        starts = length + 1 - np.cumsum(width[:, ::-1], axis=1)[:, ::-1]
        inputs = np.full((n, length + 1), self.vocab_size - 1, dtype=np.int64)
        asked = np.zeros((n, length + 1), dtype=bool)
        for tokens, sizes, offset, value in ((keys, key_size, 0, False), (values, value_size, key_size, True)):
            offsets = np.broadcast_to(offset, size.shape)[rows, which]
            row, pair, j = np.nonzero((np.arange(tokens.shape[2]) < sizes[rows, which][:, :, None]) & used[:, :, None])
            at = starts[row, pair] + offsets[row, pair] + j
            inputs[row, at] = tokens[row, which[row, pair], j]
            asked[row, at] = again[row, pair] & value
        return self.batch(inputs, asked, split)

    def oracle(self, batch: Batch) -> Tensor:
        found = []
        for row in batch.inputs.tolist():
            value_of: dict[tuple[int, ...], list[int]] = {}
            answers: dict[int, int] = {}
            t = next(i for i, token in enumerate(row) if token != self.vocab_size - 1)
            while t < len(row):
                end = t
                while end < len(row) and row[end] < self.n_keys:
                    end += 1
                key, t = tuple(row[t:end]), end
                while end < len(row) and row[end] >= self.n_keys:
                    end += 1
                value = value_of.setdefault(key, row[t:end])
                answers.update(enumerate(value, start=t - 1))
                t = end
            found.append(answers)
        return with_answers(batch, found)
