"""Search: Optuna proposes what to try next. Its studies are in the store's file, so that a killed search goes on."""

from __future__ import annotations

import importlib
import sqlite3
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StateformError
from .plan import Combination, Plan, Planned, Space
from .rows import Run

_KEY = "key"
"""The attribute of a trial that names its run."""


class Search:
    """The searches of a sweep: a study for each combination of its grid and variants.

    Args:
        path: the store's file.
        plan: the sweep.

    Raises:
        StateformError: without Optuna, or if its tables in the file are of another version.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        try:
            optuna: Any = importlib.import_module("optuna")
            pool = importlib.import_module("sqlalchemy.pool")
        except ImportError:
            raise StateformError('a sweep with [search] needs Optuna: pip install "stateform[sweep]"') from None
        self.optuna, self.plan = optuna, plan
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        where = path.absolute()
        self.space = {name: self._distribution(space) for name, space in plan.space.items()}
        # Opened by its path, as in a URL some letters of a folder's name (? % {}) would have a special meaning.
        options = {"creator": lambda: sqlite3.connect(where, timeout=60), "poolclass": pool.NullPool}
        try:
            self.storage = optuna.storages.RDBStorage("sqlite:///store.db", engine_kwargs=options)
        except Exception as error:  # any error of SQLAlchemy, Alembic or Optuna
            raise StateformError(
                f"Optuna cannot use {path}: {' '.join(str(error).split())}; name another store"
            ) from None
        self.studies = [(cell, self._study(cell)) for cell in plan.cells]
        self.open: dict[str, list[tuple[Any, int]]] = {}
        """By key of a run: the trials that wait for its value."""

    def _distribution(self, space: Space) -> Any:
        d = self.optuna.distributions
        if space.choices:
            return d.CategoricalDistribution(space.choices)
        if space.whole:
            return d.IntDistribution(int(space.low), int(space.high), log=space.log, step=int(space.step or 1))
        return d.FloatDistribution(space.low, space.high, log=space.log, step=space.step)

    def _study(self, cell: Combination) -> Any:
        name = f"{self.plan.name}: {cell.name}"
        better = "maximize" if cell.planned(self._start()).experiment.task.metric == "accuracy" else "minimize"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            study = self.optuna.create_study(
                storage=self.storage, study_name=name, direction=better, load_if_exists=True
            )
            # A new seed at each start: the same one would propose what was tried already.
            study.sampler = self.optuna.samplers.TPESampler(seed=len(study.get_trials(False)), constant_liar=True)
        return study

    def _start(self) -> dict[str, Any]:
        return {name: space.ends[0] for name, space in self.plan.space.items()}

    def resume(self) -> list[Planned]:
        """List the runs of every trial so far, also of trials that a kill left without one.

        Raises:
            StateformError: the search was begun in a space of another kind (other bounds are allowed).
        """
        found = []
        states = self.optuna.trial.TrialState
        for cell, study in self.studies:
            for trial in study.get_trials(False):
                if set(trial.params) != set(self.space):
                    if trial.state == states.RUNNING:  # killed while it was being asked for
                        study.tell(trial.number, state=states.FAIL)
                    continue
                for name, was in trial.distributions.items():
                    try:
                        self.optuna.distributions.check_distribution_compatibility(was, self.space[name])
                    except ValueError:
                        raise StateformError(
                            f"the search {self.plan.name} was begun with other values of {name}; give the sweep a new "
                            "name, or keep the values"
                        ) from None
                run = cell.planned(trial.params)
                if trial.state == states.RUNNING:
                    self._keep(study, trial.number, run)
                found.append(run)
        return found

    def ask(self) -> Planned | None:
        """Ask for the next run to try; None once all trials have been asked for."""
        asked = [(sum(set(t.params) == set(self.space) for t in study.get_trials(False)), cell, study)
                 for cell, study in self.studies]  # fmt: skip
        left = [(n, cell, study) for n, cell, study in asked if n < self.plan.trials]
        if not left:
            return None
        _, cell, study = min(left, key=lambda one: one[0])
        trial = study.ask(self.space)
        run = cell.planned(trial.params)
        self._keep(study, trial.number, run)
        return run

    def _keep(self, study: Any, number: int, run: Planned) -> None:
        self.open.setdefault(run.experiment.key, []).append((study, number))

    def tell(self, run: Run) -> None:
        """Tell the value of a run that is over to every trial that waits for it."""
        states = self.optuna.trial.TrialState
        for study, number in self.open.pop(run.key, []):
            value = score(run)
            if value is None:
                study.tell(number, state=states.FAIL, skip_if_finished=True)
            else:
                study.tell(number, value, skip_if_finished=True)

    def close(self) -> None:
        """Close the file."""
        self.storage.engine.dispose()


def score(run: Run) -> float | None:
    """Read what a search improves: the metric on the validation; None where there is none."""
    metrics: Mapping[str, Any] = (run.outcome or {}).get("metrics", {})
    value = metrics.get("valid")
    return float(value) if isinstance(value, int | float) else None
