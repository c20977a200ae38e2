"""Classifier: a trunk, a pooling over each sequence (or none), a head over classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import StateformError, require, values_checked
from ..layer.parts import precise
from ..system.state import State
from .config import ModelConfig
from .language import IGNORED, ModelOutput, mean_loss
from .trunk import SequenceModel, positions


class Classifier(SequenceModel):
    """One of `n_classes` for each sequence, of token ids (`vocab_size`) or of real numbers (`d_input`).

        logits = head(pool(norm(x)))        pool: the mean over the tokens, the last one, or none: each answers

    Without pooling the logits may as well be `n_classes` numbers that are predicted at each token.

    Args:
        config: a ModelConfig, or its pattern: `Classifier("lru*4", d_model=64, d_input=1, n_classes=10)`.
        settings: the other fields of ModelConfig; other names are options of the mixers.

    Raises:
        StateformError: see ModelConfig; no n_classes, or not exactly one of vocab_size and d_input.
    """

    def _require(self, config: ModelConfig) -> None:
        require(config.n_classes is not None, "a classifier needs n_classes")
        one = (config.vocab_size is None) != (config.d_input is None)
        require(one, "a classifier needs vocab_size (for token ids) or d_input (for real numbers), one of them")

    def _add_head(self, config: ModelConfig) -> None:
        self.head = nn.Linear(config.d_model, config.n_classes or 0)
        nn.init.zeros_(self.head.bias)

    def init_state(self, batch: int = 1) -> State:
        state = super().init_state(batch)
        if self.config.pooling == "none":
            return state
        pooled = precise(torch.zeros(batch, self.config.d_model, dtype=self.dtype, device=self.device))
        return replace(state, tensors={**state.tensors, "pooled": pooled})

    def forward(
        self, inputs: Tensor, attention_mask: Tensor | None = None, *, labels: Tensor | None = None,
        initial_state: State | None = None, return_state: bool = False, cu_seqlens: Tensor | None = None,
        form: str = "auto",
    ) -> ModelOutput:  # fmt: skip
        """Run the model.

        Args:
            inputs: token ids [B,T], or real numbers [B,T,d_input].
            attention_mask: [B,T] of 0 and 1, padding on the left or right: a masked token is absent.
            labels: classes [B] (packed: [N]), integers; without pooling [B,T], -100 where nothing is asked.
            initial_state: the State to go on from: the answer is for the sequence so far, those tokens included.
            return_state: give the state after the last token too.
            cu_seqlens: integer [N+1], the ends of N sequences packed into one row (B = 1).
            form: how to compute every mixer, see `sf.run`.

        Returns:
            `.logits` [B,n_classes] (packed: [N,n_classes]; without pooling: [B,T,n_classes]); `.loss`,
            the mean cross-entropy in nats; `.state`.

        Raises:
            StateformError: as `sf.Layer.forward`; labels that are no classes (where values are checked).
        """
        if labels is not None:
            self._check_labels(labels, inputs, cu_seqlens)
        hidden, state = self.hidden(
            inputs, attention_mask=attention_mask, initial_state=initial_state, return_state=return_state,
            cu_seqlens=cu_seqlens, form=form,
        )  # fmt: skip
        pooled = None
        if self.config.pooling != "none":
            keep = None if attention_mask is None else attention_mask.bool()
            _, seen = positions(inputs, keep, cu_seqlens, initial_state)
            before = None if initial_state is None else initial_state["pooled"]
            pooled = self._pooled(hidden, keep, cu_seqlens, before)
            hidden = self._mean(pooled, seen).to(hidden.dtype)
        assert self.head is not None
        logits = self.head(hidden)
        loss = None if labels is None else mean_loss(logits, labels)
        if state is not None and pooled is not None:
            state = replace(state, tensors={**state.tensors, "pooled": pooled})
        return ModelOutput(logits, loss, state)

    def logits(self, hidden: Tensor, keep: Tensor | None = None) -> Tensor:
        """Apply the pooling and the head to what `hidden` gave, [B,T,d_model].

        Args:
            hidden: of whole sequences. As every layer is causal, padding after them may have been read like tokens.
            keep: [B,T], bool, which are tokens; None: all.
        """
        assert self.head is not None
        if self.config.pooling != "none":
            seen = hidden.new_tensor(hidden.shape[1]) if keep is None else keep.sum(1)
            hidden = self._mean(self._pooled(hidden, keep, None, None), seen).to(hidden.dtype)
        logits: Tensor = self.head(hidden)
        return logits

    def _mean(self, pooled: Tensor, seen: Tensor) -> Tensor:
        return pooled / seen.clamp(min=1).unsqueeze(-1) if self.config.pooling == "mean" else pooled

    def _pooled(self, hidden: Tensor, keep: Tensor | None, cu_seqlens: Tensor | None, before: Tensor | None) -> Tensor:
        """Compute each sequence's sum so far, or last token: [B,d_model] (packed: [N,d_model]), float32 at least."""
        x, number = precise(hidden.flatten(0, 1)), torch.arange(hidden.shape[0], device=hidden.device)  # [B T,d], [B]
        if cu_seqlens is None:
            row = number.repeat_interleave(hidden.shape[1])  # [B T]: the sequence of each token
        else:
            lengths = cu_seqlens.to(hidden.device, torch.long).diff()
            number = torch.arange(len(lengths), device=hidden.device)
            row = torch.repeat_interleave(number, lengths, output_size=hidden.shape[1])
        if keep is not None:
            x, row = x[keep.flatten()], row[keep.flatten()]
        start = x.new_zeros(len(number), x.shape[1]) if before is None else before.to(x.dtype)
        if self.config.pooling == "mean":
            return start.index_add(0, row, x)
        last = torch.full_like(number, -1).scatter_reduce(0, row, torch.arange(len(row), device=row.device), "amax")
        none = torch.cat([x, x.new_zeros(1, x.shape[1])])  # zeros at -1, for sequences without a token here
        return torch.where((last < 0).unsqueeze(-1), start, none[last])

    def _check_labels(self, labels: Tensor, inputs: Tensor, cu_seqlens: Tensor | None) -> None:
        each = self.config.pooling == "none"
        rows = len(inputs) if cu_seqlens is None else len(cu_seqlens) - 1
        shape, what = (inputs.shape[:2], "token") if each else ((rows,), "sequence")
        if not (isinstance(labels, Tensor) and labels.shape == shape and labels.dtype == torch.long):
            given = f"{labels.dtype} of shape {list(labels.shape)}" if isinstance(labels, Tensor) else f"{labels!r}"
            raise StateformError(f"labels is {given}; expected torch.int64 {list(shape)}, a class for each {what}")
        if values_checked(labels):
            labels = labels[labels != IGNORED] if each else labels
            size = self.config.n_classes or 0
            bad = labels[(labels < 0) | (labels >= size)]
            require(len(bad) == 0, f"labels holds the class {int(bad[0]) if len(bad) else ''}; expected 0..{size - 1}")
