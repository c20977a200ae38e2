"""Scoring a model on a task: the loss it learns from, the metric that is reported, and the test of a trained one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import StateformError, require, validate
from ..files import read_json
from ..layer.parts import precise
from ..models import Classifier, LanguageModel
from ..tasks import Batch, Task
from .data import held_out, pieces
from .folder import load_trained
from .parent import EXPERIMENT
from .process import say
from .sources import changes, sources


@dataclass(frozen=True)
class Score:
    """Sums over the answers that were asked for, so that scores of batches can be added.

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
        """Give the loss per answer."""
        return self.loss / self.asked.clamp(min=1)

    @property
    def metric(self) -> float:
        """Give the accuracy, the mean squared error or the bits per answer."""
        return float(self.points / self.asked.clamp(min=1))


def score(model: LanguageModel | Classifier, task: Task, batch: Batch, bptt: int | None = None) -> Score:
    """Run the model on a batch and score its answers. Gradients of the loss go back at most `bptt` tokens.

    The head is applied only where an answer is asked. Padding follows the tokens and no layer looks ahead, so it is
    read like tokens and left out afterwards.
    """
    hidden = read(model, as_read(model, batch.inputs), bptt)  # [B,T,d_model]
    labels = batch.labels
    if task.answers == "sequence":
        logits = model.logits(hidden, batch.mask) if isinstance(model, Classifier) else model.logits(hidden)
        logits = logits.unflatten(-1, (task.n_labels, task.n_out)).flatten(0, 1)  # [B n_labels,n_out]
        owner = torch.arange(len(batch), device=labels.device).repeat_interleave(task.n_labels)  # the example of each
        labels = labels.flatten()
    else:
        keep = batch.asked  # [B,T]
        logits, labels = model.logits(hidden[keep]), labels[keep]  # [asked,n_out], [asked]
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
    misses = torch.zeros(len(batch), dtype=torch.long, device=labels.device).index_add(0, owner, wrong.long())  # [B]
    return Score(loss, asked - wrong.sum(), asked, (misses == 0).sum(), len(batch))


def read(model: LanguageModel | Classifier, inputs: Tensor, bptt: int | None) -> Tensor:
    """Compute `model.hidden` of the inputs, [B,T,d_model], and cut its gradients every `bptt` tokens.

    Of each piece, only its inputs and the state before it are kept: the backward pass computes it again.
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
    """Cast numbers to the precision of the model's weights; token ids stay as they are."""
    return inputs.to(model.dtype) if inputs.is_floating_point() else inputs


@torch.no_grad()
def test(
    model: LanguageModel | Classifier, task: Task, lengths: tuple[int, ...], n: int, batch_size: int
) -> dict[str, dict[str, float]]:
    """Compute the metric on test examples of each length: `"64": {"accuracy": 0.98, "whole": 0.9, "examples": 1024}`.

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
    """True if `new` is a better value of the task's metric than `old`, or `old` is None."""
    return old is None or (new > old if task.metric == "accuracy" else new < old)


def evaluate(
    folder: str | Path, *, lengths: Sequence[int] | None = None, examples: int | None = None,
    batch_size: int | None = None, device: str = "cpu",
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Test a trained model at some lengths, on examples that no training saw.

    Args:
        folder: what a training wrote.
        lengths: tokens an example; default: those at which it was tested.
        examples: how many at each length; default: as it was tested.
        batch_size: how many at once; default: that of the training.
        device: where.

    Returns:
        By length: the metric and, for accuracies, `whole`, the share of examples with every answer right.

    Raises:
        StateformError: see `load_trained`; a length for which the task does not exist.
    """
    experiment, model = load_trained(folder)
    changed, _ = changes(read_json(Path(folder) / EXPERIMENT).get("sources"), sources(experiment), experiment)
    if changed is not None:
        say(f"{changed} the training in {folder}: this tests on what is there now")
    task, given = experiment.task, experiment.train
    lengths = tuple(experiment.test_lengths if lengths is None else lengths)
    require(lengths, "lengths is empty; expected one or more")
    for length in lengths:
        task.check_length(length)
    limit = model.config.max_positions
    require(limit is None or max(lengths) <= limit,
            f"the model has learned {limit} positions; ask for lengths up to that, not {max(lengths)}")  # fmt: skip
    n = given.test_examples if examples is None else examples
    rows = given.batch_size if batch_size is None else batch_size
    for name, value in (("examples", n), ("batch_size", rows)):
        require(isinstance(value, int) and value >= 1, f"{name} is {value!r}; expected a whole number, 1 or more")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise StateformError(f"cannot use the device {device!r}: {str(error).splitlines()[0]}") from None
    return test(model, task, lengths, n, rows)


@torch.no_grad()
def state_size(model: LanguageModel | Classifier, task: Task) -> int:
    """Count the numbers that the model keeps after one example of the training length (a complex one counts twice)."""
    example = task.sample(1)
    _, state = model.eval().hidden(as_read(model, example.inputs.to(model.device)), return_state=True)
    assert state is not None
    kept = [x for name, x in state.tensors.items() if not name.endswith("position")]
    return sum(x.numel() * (2 if x.is_complex() else 1) for x in kept)
