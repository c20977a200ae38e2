"""Generation: a prompt in, token after token out; a state of fixed size where the layers have one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import StateformError, require, require_finite, require_seed
from ..system.state import State
from .trunk import SequenceModel

PREFILL = 2048
"""Tokens of all rows together that are read at a time, unless said otherwise: enough to keep a machine busy."""


class Streamer(Protocol):
    """What `generate` can be given to hear of tokens as they come, as in transformers."""

    def put(self, value: Tensor) -> None:
        """First the prompt [B,T], then each step's tokens [B]."""

    def end(self) -> None:
        """After the last token."""


@dataclass(frozen=True)
class Sampler:
    """From logits to tokens: the likeliest, or drawn from softmax(logits / temperature), cut to the `top_k` likeliest
    and then to the fewest whose probabilities sum to `top_p` or more.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        t, k, p = self.temperature, self.top_k, self.top_p
        require(
            t is None or (_number(t) and 0 < t < math.inf),
            f"temperature is {t!r}; expected a number above 0, or None for the likeliest token",
        )
        whole = isinstance(k, int) and not isinstance(k, bool) and k >= 1
        require(k is None or whole, f"top_k is {k!r}; expected a whole number, 1 or more")
        require(p is None or (_number(p) and 0 < p <= 1), f"top_p is {p!r}; expected a number above 0, up to 1")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature is None and self.top_k is None and self.top_p is None

    def __call__(self, logits: Tensor) -> Tensor:
        """[B,vocab_size] to [B]."""
        if self.greedy:
            return logits.argmax(-1)
        order = (logits.double() / (self.temperature or 1.0)).sort(stable=True, descending=True)
        p = order.values[:, : self.top_k].softmax(-1)
        if self.top_p is not None:
            p = p.masked_fill(p.cumsum(-1) - p >= self.top_p, 0.0)  # keeps the token that reaches top_p
        drawn = torch.multinomial(p, 1, generator=self.generator)
        return order.indices.gather(-1, drawn).squeeze(-1)


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


@dataclass(frozen=True)
class _Plan:
    """A generation, checked: prompts padded on the left, and what to do with them."""

    ids: Tensor
    mask: Tensor | None
    sampler: Sampler
    steps: int
    ends: Tensor | None
    pad: int
    use_cache: bool
    chunk: int
    state: State | None


class Generating(SequenceModel):
    """A sequence model that has `logits`: it goes on from a prompt, whole or token by token."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [...,vocab_size] from [...,d_model]."""
        raise NotImplementedError

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, streamer: Streamer | None = None,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        """The prompts and what follows them. Ctrl-C ends it early: what there is by then is returned.

        Args:
            input_ids: integers [B,T], prompts of one token or more.
            attention_mask: [B,T] of 0 and 1 for prompts of different lengths, padded on the left or right. Each row
                goes on as it would alone.
            streamer: an object whose `.put(prompt)`, `.put(tokens)` at each step and `.end()` are called.
            options: those of `stream`.

        Returns:
            [B,T+N]: the prompts (moved to the right if they were padded on the right) and the N new tokens; after a
            row's end, padding.

        Raises:
            StateformError: as `stream`, before anything is computed.
        """
        stream = self.stream(input_ids, attention_mask, **options)
        tokens = [padded_left(input_ids, attention_mask)[0]]
        if streamer is not None:
            streamer.put(tokens[0].cpu())
        try:
            for new in stream:
                tokens.append(new.unsqueeze(1))
                if streamer is not None:
                    streamer.put(new.cpu())
        except KeyboardInterrupt:
            pass
        if streamer is not None:
            streamer.end()
        return torch.cat(tokens, 1)

    def stream(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, max_new_tokens: int = 64,
        temperature: float | None = None, top_k: int | None = None, top_p: float | None = None,
        seed: int | None = None, generator: torch.Generator | None = None,
        eos_token_id: int | list[int] | None = None, pad_token_id: int | None = None, use_cache: bool = True,
        prefill_chunk: int | None = None, initial_state: State | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The new tokens of all rows, [B] at a time, as they come.

        Args:
            input_ids: as for `generate`.
            attention_mask: as for `generate`.
            max_new_tokens: how many at most.
            temperature: with any of temperature, top_k and top_p, tokens are drawn (at temperature 1 if not given);
                with none of them, the likeliest is taken.
            top_k: only from so many of the likeliest.
            top_p: only from the likeliest whose probabilities sum to so much.
            seed: of the draws; or
            generator: a torch.Generator on the model's device.
            eos_token_id: a row ends with this token (or one of these).
            pad_token_id: what follows in a row that has ended; default: eos_token_id (the first).
            use_cache: False computes everything anew for each token: the same tokens, slowly.
            prefill_chunk: read prompts in pieces of so many tokens, whose memory is all that a prompt takes besides
                the state; default: 2,048 of all rows together.
            initial_state: the State that prompts go on from.

        Raises:
            StateformError: an empty prompt, ids out of the vocabulary, options that cannot be used, more tokens than
                the model has positions for, a model in training mode with dropout; before anything is computed.
                NaN or inf in logits, where values are checked.
        """
        for name, value in (("max_new_tokens", max_new_tokens), ("prefill_chunk", prefill_chunk)):
            if not (value is None and name == "prefill_chunk"):
                whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
                require(whole, f"{name} is {value!r}; expected a whole number, 1 or more")
        require(seed is None or generator is None, "give seed or generator, not both")
        if seed is not None:
            require_seed(seed)
            generator = torch.Generator(self.device).manual_seed(seed)
        sampler = Sampler(temperature, top_k, top_p, generator)
        require(
            not (self.training and self.config.dropout),
            f"the model is in training mode, with dropout {self.config.dropout}: call model.eval() first",
        )
        self._check(input_ids, attention_mask, initial_state, None)
        self._check_ids(input_ids if attention_mask is None else input_ids[attention_mask.bool()], "the prompt")
        require(
            use_cache or (initial_state is None and prefill_chunk is None),
            "use_cache=False computes all from the start, at once: leave out initial_state and prefill_chunk",
        )
        ends = _ids(eos_token_id, "eos_token_id", self)
        pad = _ids(pad_token_id, "pad_token_id", self) or ends or [0]
        ids, mask, longest = padded_left(input_ids, attention_mask)
        limit = self.config.max_positions
        before = int(initial_state["position"].max()) if limit and initial_state is not None else 0
        require(
            limit is None or before + longest + max_new_tokens - 1 <= limit,
            f"{before + longest} tokens and {max_new_tokens} new ones are more than max_positions = {limit}; ask for "
            f"max_new_tokens = {(limit or 0) - before - longest + 1} or fewer, or give a shorter prompt",
        )
        stop = torch.tensor(ends, device=self.device) if ends else None
        chunk = (prefill_chunk or max(PREFILL // len(ids), 1)) if use_cache else longest
        plan = _Plan(ids, mask, sampler, max_new_tokens, stop, pad[0], bool(use_cache), chunk, initial_state)
        tokens: Iterator[Tensor] = self._tokens(plan)
        return tokens

    @torch.no_grad()
    def _tokens(self, plan: _Plan) -> Iterator[Tensor]:
        ids, mask, state = plan.ids, plan.mask, None
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if plan.use_cache:
            chunks = self.hidden_by_chunks(ids, plan.chunk, attention_mask=mask, initial_state=plan.state)
            for _, read, after in chunks:
                hidden, state = read, after
        else:
            hidden, _ = self.hidden(ids, attention_mask=mask)
        for step in range(plan.steps):
            logits = self.logits(hidden[:, -1])
            require_finite(logits, "the model's logits")
            token = plan.sampler(logits)
            if plan.ends is not None:
                token = token.masked_fill(done, plan.pad)
                done = done | torch.isin(token, plan.ends)
            yield token
            if step == plan.steps - 1 or (plan.ends is not None and bool(done.all())):
                return
            if plan.use_cache:
                hidden, state = self.hidden(token.unsqueeze(1), initial_state=state, return_state=True)
            else:
                ids = torch.cat([ids, token.unsqueeze(1)], 1)
                mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                hidden, _ = self.hidden(ids, attention_mask=mask)


def _ids(given: int | list[int] | None, name: str, model: SequenceModel) -> list[int]:
    """Token ids as a list, none or more, each in the vocabulary."""
    several = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    size = model.config.vocab_size or 0
    for i in several:
        inside = isinstance(i, int) and not isinstance(i, bool) and 0 <= i < size
        require(inside, f"{name} is {given!r}; expected a token id, 0..{size - 1}")
    return several


def padded_left(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    """Prompts with their padding on the left, the mask (None if there is no padding), and the longest one's length."""
    B, T = ids.shape
    require(B > 0, "there is no prompt: input_ids has no rows")
    require(T > 0, "the prompt is empty; expected one token or more, for instance one that begins a text")
    if mask is None:
        return ids, None, T
    lengths = mask.bool().sum(1)
    row = int(lengths.argmin())
    if int(lengths[row]) == 0:
        raise StateformError(f"the prompt in row {row} is empty; expected one token or more in every row")
    longest = int(lengths.max())
    new = ids.new_zeros(B, longest)
    place = torch.arange(longest, device=ids.device) >= longest - lengths[:, None]
    new[place] = ids[mask.bool()]
    return new, None if bool(place.all()) else place.to(mask.dtype), longest
