"""The objects that Lightning runs: the model with its loss and optimizer, the rounds, the files of checkpoints.

Imported when training begins, as Lightning is slow to import. Its own callbacks for stopping and for checkpoints each
keep a record of their own. `Rounds` keeps one, written in one file at once: a kill cannot leave two that differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import StateformError
from ..files import DamagedError, write_atomically
from ..models import Classifier, LanguageModel
from ..result import Progress
from ..tasks import Batch
from .checkpoint import BEST, CHECKPOINT, keep_previous, read, write
from .config import Experiment, Training
from .data import Batches, held_out, pieces, pool
from .scores import Score, better, score


class Trainee(L.LightningModule):
    """The model, its batches and its loss."""

    def __init__(self, model: LanguageModel | Classifier, experiment: Experiment) -> None:
        super().__init__()
        self.model, self.experiment = model, experiment
        self.pool = pool(experiment)
        self.valid = held_out(experiment.task, "valid", experiment.train.eval_examples)
        self.learned: Score | None = None
        self.validated: Score | None = None

    def train_dataloader(self) -> Any:
        """Load the batches of the next round; the last round may have fewer."""
        train, done = self.experiment.train, self.trainer.global_step
        steps = max(0, min(train.eval_every, train.steps - done))
        batches = Batches(self.experiment, done * train.accumulate, steps * train.accumulate, self.pool)
        return DataLoader(batches, batch_size=None, shuffle=False, collate_fn=_parts)

    def val_dataloader(self) -> Any:
        examples = list(pieces(self.valid[self._rows()], self.experiment.train.batch_size))
        return DataLoader(examples, batch_size=None, shuffle=False, collate_fn=_parts)  # type: ignore[arg-type]

    def _rows(self) -> slice:
        """Select the rows of a batch that this process computes."""
        return slice(self.trainer.global_rank, None, self.trainer.world_size)

    def training_step(self, parts: tuple[Any, ...], number: int) -> Tensor:
        batch = Batch(*parts)
        found = self._score(batch[self._rows()])
        # Processes average their gradients. Each divides its sum by (answers of all / processes), so that the average
        # is the loss per answer of all.
        loss = found.loss / (batch.asked.sum().clamp(min=1) / self.trainer.world_size)
        everyones = loss.detach().clone()
        if self.trainer.world_size > 1:  # all stop together, or those that go on would wait for the others
            everyones = self.trainer.strategy.reduce(everyones, reduce_op="mean")
        self.require_finite(float(everyones), f"the loss is {{}} at step {self.trainer.global_step}")
        self.learned = _plus(self.learned, found)
        return loss

    def validation_step(self, parts: tuple[Any, ...], number: int) -> None:
        self.validated = _plus(self.validated, self._score(Batch(*parts)))

    def _score(self, batch: Batch) -> Score:
        return score(self.model, self.experiment.task, batch, self.experiment.train.bptt)

    @staticmethod
    def require_finite(loss: float, what: str) -> None:
        """Raise unless the loss is finite; `what` is the error's text, with {} in the place of the loss."""
        if not math.isfinite(loss):
            raise StateformError(
                f"{what.format(loss)}; try a lower lr, a smaller clip or another seed. What was saved last is kept"
            )

    def totals(self, found: Score | None) -> Score:
        """Add up the scores of all processes."""
        assert found is not None
        sums = torch.stack([x.double() for x in (found.loss, found.points, found.asked, found.whole)])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return Score(*sums, examples=found.examples)  # type: ignore[misc]

    def configure_optimizers(self) -> Any:
        train = self.experiment.train
        decay = train.weight_decay
        groups = self.model.parameter_groups(decay)
        if train.decay_all:
            groups = [{"params": list(self.model.parameters()), "weight_decay": decay}]
        # Lightning cannot clip gradients under mixed precision before a fused step.
        one_pass = self.device.type == "cpu" and not train.precision.endswith("mixed")
        optimizer = torch.optim.AdamW(groups, train.lr, betas=(train.beta1, train.beta2), fused=one_pass or None)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Rate(train))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Rate:
    """The learning rate at a step, as a share of the highest: up in equal steps, then down as the schedule says."""

    def __init__(self, train: Training) -> None:
        self.steps, self.warm = train.steps, round(train.warmup * train.steps)
        self.schedule, self.final = train.schedule, train.final_lr

    def __call__(self, step: int) -> float:
        if step < self.warm:
            return (step + 1) / self.warm
        done = min(1.0, (step - self.warm) / max(1, self.steps - self.warm))
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[self.schedule]
        return self.final + (1 - self.final) * left


class Rounds(L.Callback):
    """The work between rounds: seeds, history, the decision to stop, checkpoints."""

    def __init__(
        self, experiment: Experiment, folder: Path | None, on_progress: Progress | None,
        on_round: Callable[[dict[str, Any]], None] | None,
    ) -> None:  # fmt: skip
        self.experiment, self.folder = experiment, folder
        self.on_progress, self.on_round = on_progress, on_round
        self.history: list[dict[str, Any]] = []
        self.stopped: str | None = None
        self.spent, self.begun = 0.0, time.monotonic()
        self.best: dict[str, Tensor] | None = None

    # -- the books -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "stopped": self.stopped, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.stopped = list(state_dict["history"]), state_dict["stopped"]
        self.spent, self.begun = state_dict["seconds"], time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning writes its counters inside a round, and on resuming misreads them if the next round is shorter.
        del checkpoint["loops"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        progress.optimizer.step.total.completed = checkpoint["global_step"]

    @property
    def seconds(self) -> float:
        """Count the seconds spent on this training, without work that a kill undid."""
        return self.spent + time.monotonic() - self.begun

    @property
    def finished(self) -> bool:
        """True if there is nothing left to train."""
        return self.stopped is not None

    def best_row(self) -> dict[str, Any]:
        """Find the row of the history with the best validation, the first of equals."""
        task, rows = self.experiment.task, self.history
        best = rows[0]
        for row in rows[1:]:
            if better(task, row["valid"], best["valid"]):
                best = row
        return best

    # -- the rounds ----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:
            return
        # Seeded by its number, each round draws the same (dropout), whether the training was resumed or not.
        numbers = [*self.experiment.seeds, trainer.global_step, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
        pl_module.learned = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.on_progress is not None and trainer.is_global_zero:
            last = f"  {self.experiment.task.metric} {self.history[-1]['valid']:.3g}" if self.history else ""
            self.on_progress(f"training{last}", trainer.global_step, self.experiment.train.steps)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.validated = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        task, train = self.experiment.task, self.experiment.train
        learned, validated = pl_module.totals(pl_module.learned), pl_module.totals(pl_module.validated)
        # A step may break the weights although its loss was finite; such weights are not saved.
        pl_module.require_finite(float(validated.loss), f"the loss of the validation is {{}} after step "
                                 f"{trainer.global_step}")  # fmt: skip
        row = {
            "step": trainer.global_step, "loss": float(learned.mean_loss), "valid_loss": float(validated.mean_loss),
            "valid": validated.metric, "lr": trainer.optimizers[0].param_groups[0]["lr"],
        }  # fmt: skip
        self.history.append(row)
        best = self.best_row()
        if best is row and train.keep == "best":
            self._keep(trainer, pl_module.model)
        rounds_since = len(self.history) - 1 - self.history.index(best)
        if train.stop_at is not None and not better(task, train.stop_at, row["valid"]):
            self.stopped = f"reached {train.stop_at:g}"
        elif train.patience is not None and rounds_since >= train.patience:
            self.stopped = f"no better for {train.patience} validations"
        elif trainer.global_step >= train.steps:
            self.stopped = "all steps done"
        trainer.should_stop = self.finished
        for logger in trainer.loggers:
            name = task.metric
            values = {"train/loss": row["loss"], "valid/loss": row["valid_loss"], f"valid/{name}": row["valid"]}
            logger.log_metrics({**values, "lr": row["lr"]}, step=row["step"])
            logger.save()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.folder is not None:
            if trainer.is_global_zero:
                keep_previous(self.folder / CHECKPOINT)
            trainer.save_checkpoint(self.folder / CHECKPOINT)
        if self.on_round is not None and trainer.is_global_zero:  # after saving: what is reported is never lost
            self.on_round(self.history[-1])

    # -- weights -------------------------------------------------------------------------------------------------

    def _keep(self, trainer: L.Trainer, model: torch.nn.Module) -> None:
        weights = {name: x.detach().cpu().clone() for name, x in model.state_dict().items()}
        if self.folder is None:
            self.best = weights
        elif trainer.is_global_zero:
            write_atomically(self.folder / BEST, as_bytes(weights))

    def best_weights(self) -> dict[str, Tensor]:
        """Read the weights of the best validation. Raises DamagedError if they are lost."""
        try:
            weights = self.best if self.folder is None else load_file(self.folder / BEST)
        except (OSError, SafetensorError) as error:
            raise DamagedError(
                f"{self.folder}/{BEST}, the weights of the best validation, cannot be read: {error}"
            ) from None
        assert weights is not None
        return weights

    def use_kept_weights(self, model: torch.nn.Module) -> None:
        """Put the weights that the experiment asks for into the model."""
        if self.experiment.train.keep == "best":
            model.load_state_dict(self.best_weights())


class PlainFiles(CheckpointIO):
    """Lightning's checkpoints as plain data, see `checkpoint`."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        write(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _parts(batch: Any) -> tuple[Any, ...]:
    """Split a batch into a tuple of tensors, which Lightning can move and convert."""
    return batch.inputs, batch.labels, batch.mask


def _plus(total: Score | None, found: Score) -> Score:
    found = Score(found.loss.detach(), found.points, found.asked, found.whole, found.examples)
    return found if total is None else total + found


def loggers(names: tuple[str, ...], folder: Path | None, experiment: Experiment) -> Any:
    """Make Lightning's loggers, which write into the folder; without a folder there are none.

    Raises:
        StateformError: a logger whose package is not installed.
    """
    from pytorch_lightning import loggers as known

    if folder is None:
        return False
    folder = folder.absolute()  # a "~" or "file:" at its beginning would have a special meaning
    made: list[Any] = []
    for name in names:
        try:
            if name == "csv":
                # A training that goes on writes a file of its own: Lightning would empty the one before.
                made.append(known.CSVLogger(folder, name="log", version=_count(folder / "log")))
            elif name == "tensorboard":
                made.append(known.TensorBoardLogger(folder, name="tensorboard", version=0))
            elif name == "wandb":
                made.append(known.WandbLogger(name=experiment.name, save_dir=folder, id=experiment.key))
            else:
                made.append(known.MLFlowLogger(experiment.task.name, tracking_uri=(folder / "mlruns").as_uri()))
        except ImportError as error:
            raise StateformError(f"the logger {name} needs a package that is not installed: {error}") from None
    return made


def _count(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.is_dir() else 0
