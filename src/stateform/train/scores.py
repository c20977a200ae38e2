"""How well a model does a task: the loss that is learned from, and the metric that is reported."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import validate
from ..layer.parts import precise
from ..models import Classifier, LanguageModel
from ..tasks import Batch, Task
from .data import held_out, pieces


@dataclass(frozen=True)
class Score:
    """Sums over what was asked, so that scores of batches can be added.

    Args:
        loss: cross-entropy in nats, or squared error.
        points: right answers, squared error, or bits, by the task's metric.
        asked: how many answers were asked for.
        whole: examples with every answer right (of tasks scored by accuracy).
        examples: how many there were.
    """

    loss: Tensor
    points: Tensor
    asked: Tensor
    whole: Tensor
    examples: int

    def __add__(self, other: Score) -> Score:
        return Score(
            self.loss + other.loss, self.points + other.points, self.asked + other.asked, self.whole + other.whole,
            self.examples + other.examples,
        )  # fmt: skip

    @property
    def mean_loss(self) -> Tensor:
        """The loss an answer."""
        return self.loss / self.asked.clamp(min=1)

    @property
    def metric(self) -> float:
        """Accuracy, mean squared error or bits an answer."""
        return float(self.points / self.asked.clamp(min=1))


def score(model: LanguageModel | Classifier, task: Task, batch: Batch, bptt: int | None = None) -> Score:
    """Run the model on a batch and score its answers; the loss has gradients, through at most `bptt` tokens.

    The head is applied where something is asked alone. Padding follows the tokens and no layer looks ahead, so it is
    read like tokens and left out afterwards.
    """
    hidden = read(model, as_read(model, batch.inputs), bptt)
    labels = batch.labels
    if task.answers == "sequence":
        logits = model.logits(hidden, batch.mask) if isinstance(model, Classifier) else model.logits(hidden)
        logits = logits.unflatten(-1, (task.n_labels, task.n_out)).flatten(0, 1)
        owner = torch.arange(len(batch), device=labels.device).repeat_interleave(task.n_labels)
        labels = labels.flatten()
    else:
        keep = batch.asked
        logits, labels = model.logits(hidden[keep]), labels[keep]
        owner = keep.nonzero()[:, 0]
    logits = precise(logits)
    asked = torch.tensor(len(labels), device=labels.device)
    if labels.is_floating_point():
        error = (logits - labels).square().mean(-1).sum()
        return Score(error, error.detach(), asked, torch.zeros_like(asked), len(batch))
    loss = F.cross_entropy(logits, labels, reduction="sum")
    if task.metric == "bits":
        return Score(loss, loss.detach() / math.log(2), asked, torch.zeros_like(asked), len(batch))
    wrong = logits.detach().argmax(-1) != labels
    misses = torch.zeros(len(batch), dtype=torch.long, device=labels.device).index_add(0, owner, wrong.long())
    return Score(loss, asked - wrong.sum(), asked, (misses == 0).sum(), len(batch))


def read(model: LanguageModel | Classifier, inputs: Tensor, bptt: int | None) -> Tensor:
    """`model.hidden` of the inputs [B,T,d_model], its gradients cut every `bptt` tokens.

    A piece keeps its inputs and the state before it alone: the backward pass computes it again, one piece at a time.
    """
    if bptt is None or inputs.shape[1] <= bptt:
        return model.hidden(inputs)[0]
    hidden, state = [], None
    for piece in inputs.split(bptt, 1):
        x, state = checkpoint(model.hidden, piece, initial_state=state, return_state=True, use_reentrant=False)
        state = state.detach()
        hidden.append(x)
    return torch.cat(hidden, 1)


def as_read(model: LanguageModel | Classifier, inputs: Tensor) -> Tensor:
    """Token ids, or numbers in the precision of the model's weights."""
    return inputs.to(model.dtype) if inputs.is_floating_point() else inputs


@torch.no_grad()
def test(
    model: LanguageModel | Classifier, task: Task, lengths: tuple[int, ...], n: int, batch_size: int
) -> dict[str, dict[str, float]]:
    """The metric at each length (`"64": {"accuracy": 0.98, "whole": 0.9, "examples": 1024}`) on examples of the test.

    `whole` is the share of examples with every answer right.
    """
    model.eval()
    found = {}
    with validate(False):
        for length in lengths:
            examples = held_out(task, "test", n, length).to(model.device)
            total = None
            for piece in pieces(examples, batch_size):
                part = score(model, task, piece)
                total = part if total is None else total + part
            assert total is not None
            found[str(length)] = {task.metric: total.metric, "examples": float(total.examples)}
            if task.metric == "accuracy":
                found[str(length)]["whole"] = float(total.whole) / total.examples
    return found


def better(task: Task, new: float, old: float | None) -> bool:
    """Whether a value of the task's metric is better than another (than none: yes)."""
    return old is None or (new > old if task.metric == "accuracy" else new < old)
