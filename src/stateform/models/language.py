"""LanguageModel: a trunk and a head over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import StateformError, require, values_checked
from ..layer.parts import plain, precise
from ..system.state import State
from . import beside
from .config import ModelConfig
from .generation import Generating

IGNORED = -100
"""The label of a token that is not to be predicted."""


@dataclass(frozen=True)
class ModelOutput:
    """The output of a model: `logits`, the `loss` if there were labels, `state` and `hidden_states` if asked for."""

    logits: Tensor
    loss: Tensor | None = None
    state: State | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    @property
    def past_key_values(self) -> State | None:
        """Give the state, under the name that it has in transformers."""
        return self.state


class LanguageModel(Generating):
    """A causal language model around any mixers.

        x = embedding(ids)  (+ learned positions)
        x = x + mixer(norm(x)),  x = x + mlp(norm(x))        for each block; see `models.blocks`
        logits = head(norm(x))

    Args:
        config: a ModelConfig, or its pattern: `LanguageModel("mamba2*3 softmax", d_model=64, vocab_size=256)`.
        settings: the other fields of ModelConfig; other names are options of the mixers (n_heads, d_state, ...).

    Raises:
        StateformError: see ModelConfig; no vocab_size.
    """

    def _require(self, config: ModelConfig) -> None:
        require(config.vocab_size is not None, "a language model needs vocab_size (or tokenizer='bytes')")
        for name in ("d_input", "n_classes"):
            require(
                getattr(config, name) is None, f"{name} is a setting of classifiers; leave it out, or use Classifier"
            )

    def _add_head(self, config: ModelConfig) -> None:
        if not config.tie_embeddings:
            self.head = nn.Linear(config.d_model, config.vocab_size or 0, bias=False)

    def _known_as(self) -> dict[str, Any]:
        return {**super()._known_as(), "auto_map": beside.AUTO_MAP}

    def _beside(self) -> dict[str, bytes]:
        return beside.files(self.config.tokenizer)

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the head: [...,vocab_size] from [...,d_model]."""
        if self.head is not None:
            logits: Tensor = self.head(hidden)
            return logits
        return F.linear(hidden, self._table(hidden.device))

    def _table(self, device: torch.device) -> Tensor:
        """Give the vectors of all tokens, [vocab_size,d_model], as the embedding computes them."""
        assert self.embedding is not None
        if plain(self.embedding, nn.Embedding):
            return self.embedding.weight
        table: Tensor = self.embedding(torch.arange(self.config.vocab_size or 0, device=device))
        return table

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *, labels: Tensor | None = None,
        initial_state: State | None = None, return_state: bool = False, cu_seqlens: Tensor | None = None,
        form: str = "auto", logits_to_keep: int = 0, chunk: int | None = None, inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False, num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput:  # fmt: skip
        """Run the model.

        Args:
            input_ids: integers [B,T].
            attention_mask: [B,T] of 0 and 1, padding on the left or right: a masked token is absent, whatever its id.
            labels: [B,T], usually input_ids: the model shifts them, so that logits t are for label t + 1; -100 (and
                padding, and the first token of a packed sequence) is not predicted.
            initial_state: the State to go on from, as an earlier output's `.state`.
            return_state: give the state after the last token too.
            cu_seqlens: integer [N+1], the ends of N sequences packed into one row (B = 1); states have N rows then.
            form: how to compute every mixer, see `sf.run`.
            logits_to_keep: the number of last tokens whose logits are given, as in transformers; 0: all.
            chunk: tokens that are read at a time: a long prompt takes the memory of one chunk.
            inputs_embeds: [B,T,d_model], in the place of input_ids: what the embedding would give for them.
            output_hidden_states: give what each block reads and what the final norm gives too.
            num_items_in_batch: divide the sum of the losses by so many tokens, for instance those of all batches of a
                step; default: those predicted here.

        Returns:
            `.logits` [B,T,vocab_size] (of the tokens kept); `.loss`, the mean cross-entropy in nats over the tokens
            predicted (0 if there are none); `.state`, all layers' states as one; `.hidden_states`, n_layers + 1 of
            [B,T,d_model].

        Raises:
            StateformError: as `sf.Layer.forward`; ids or labels out of the vocabulary (where values are checked);
                labels without all logits; packed sequences in chunks; not one of input_ids and inputs_embeds.
        """
        inputs, embedded = _one_of(input_ids, inputs_embeds)
        if labels is not None:
            self._check_labels(labels, inputs)
        _check_counts(logits_to_keep, chunk)
        require(labels is None or not logits_to_keep, "the loss needs all logits; leave out labels or logits_to_keep")
        require(cu_seqlens is None or chunk is None, "packed sequences are read at once; leave out cu_seqlens or chunk")
        require(
            chunk is None or not (embedded or output_hidden_states),
            "chunks of ids are read for their logits and their state; leave out inputs_embeds, output_hidden_states or "
            "chunk",
        )
        between: list[Tensor] | None = [] if output_hidden_states else None
        if chunk is None:
            hidden, state = self.hidden(
                inputs, attention_mask=attention_mask, initial_state=initial_state, return_state=return_state,
                cu_seqlens=cu_seqlens, form=form, embedded=embedded, between=between,
            )  # fmt: skip
            logits = self.logits(hidden[:, -logits_to_keep:])
        else:
            self._check(inputs, attention_mask, initial_state, None)
            first, kept, state = inputs.shape[1] - logits_to_keep if logits_to_keep else 0, [], None
            for at, hidden, after in self.hidden_by_chunks(
                inputs, chunk, attention_mask=attention_mask, initial_state=initial_state, form=form
            ):
                kept.append(self.logits(hidden[:, max(0, first - at.start) :]))
                state = after if return_state else None
            logits = torch.cat(kept, 1)
        loss = None if labels is None else _loss(logits, labels, attention_mask, cu_seqlens, num_items_in_batch)
        return ModelOutput(logits, loss, state, None if between is None else tuple(between))

    def _check_labels(self, labels: Tensor, inputs: Tensor) -> None:
        if not (isinstance(labels, Tensor) and isinstance(inputs, Tensor) and labels.shape == inputs.shape[:2]):
            given = f"of shape {list(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
            raise StateformError(f"labels is {given}; expected the shape of the input; the model shifts them itself")
        require(labels.dtype == torch.long, f"labels is {labels.dtype}; expected torch.int64")
        if values_checked(labels):
            self._check_ids(labels[labels != IGNORED], "labels")


def _check_counts(logits_to_keep: int, chunk: int | None) -> None:
    """Raise unless both are whole numbers of tokens."""
    for name, value, least in (("logits_to_keep", logits_to_keep, 0), ("chunk", chunk, 1)):
        if not (value is None and name == "chunk"):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            require(whole, f"{name} is {value!r}; expected a whole number of tokens, {least} or more")


def _one_of(ids: Tensor | None, embeds: Tensor | None) -> tuple[Tensor, bool]:
    """Give the input, and True if it is embedded already; raise unless exactly one was given."""
    if ids is None and embeds is not None:
        return embeds, True
    if ids is None or embeds is not None:
        both = "neither" if ids is None else "both"
        raise StateformError(f"{both} of input_ids and inputs_embeds are given; expected one of them")
    return ids, False


def _loss(
    logits: Tensor, labels: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, count: Tensor | int | None
) -> Tensor:
    """Compute the mean cross-entropy of token t + 1 given those up to t of its sequence; over `count`, if given."""
    target = labels[:, 1:]
    if mask is not None:
        keep = mask.bool()
        target = target.masked_fill(~(keep[:, 1:] & keep[:, :-1]), IGNORED)
    if cu_seqlens is not None:
        first = torch.zeros(labels.shape[1] + 1, dtype=torch.bool, device=labels.device)
        first[cu_seqlens.to(labels.device, torch.long)] = True
        target = target.masked_fill(first[1:-1], IGNORED)
    return mean_loss(logits[:, :-1], target, count)


def mean_loss(logits: Tensor, labels: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Compute the mean cross-entropy in nats of logits [...,classes] over the labels [...] that are not IGNORED.

    Without such labels it is 0. If `count` is given, the sum is divided by that instead.
    """
    total = F.cross_entropy(precise(logits).flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    several = (labels != IGNORED).sum() if count is None else torch.as_tensor(count, device=total.device)
    return total / several.clamp(min=1)
