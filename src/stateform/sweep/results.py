"""Results: the runs in a store as rows, tables, files and a page."""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StateformError, nearest, require
from ..files import write_atomically
from ..result import Paged
from ..train.config import read_value
from .claims import SEED, Claim, ClaimVerdict, judge
from .rows import Run
from .store import Store
from .summary import markdown, tables

if TYPE_CHECKING:
    from ..report.page import Page

ORDER = ("waiting", "running", "failed")
Row = dict[str, Any]


@dataclass
class Results(Paged):
    """Some runs of a store: `print(results)`, `.rows`, `.table()`, `.save_csv(...)`, `.save_html(...)`, ..."""

    runs: Sequence[Run]
    source: str = ""
    complete: bool = True
    """False if the sweep was interrupted."""
    x: str | None = None
    """The column on the horizontal axis of the figures; None: the size of the state."""
    claims: Sequence[Claim] = ()
    """Published findings to be held against these numbers."""

    @cached_property
    def rows(self) -> list[Row]:
        """Give a flat dict for each run: sweep, label, settings by dotted names, numbers (None where it has none)."""
        rows = [_row(run) for run in self.runs]
        _name_tasks(rows, {name for run in self.runs for name in run.settings})
        names = list(dict.fromkeys(name for row in rows for name in row))
        return [{name: row.get(name) for name in names} for row in rows]

    @property
    def failed(self) -> list[Run]:
        """List the runs that failed."""
        return [run for run in self.runs if run.status == "failed"]

    @property
    def varied(self) -> list[str]:
        """List the settings that differ between runs, but for the seed; runs are grouped by them.

        A setting that no axis varied is among them if the file was changed between runs. So is `sweep`, where there
        are several.
        """
        given = [name for run in self.runs for name in run.settings]
        alike: dict[tuple[str, str], dict[str, set[str]]] = {}
        for row in self.rows:
            values = alike.setdefault((row["label"], row["task"]), {})
            for name in row:
                if name.startswith(("model.", "train.")):
                    values.setdefault(name, set()).add(_text(row[name]))
        changed = [name for values in alike.values() for name, several in values.items() if len(several) > 1]
        names = dict.fromkeys(["sweep", "task", *given, *changed])
        return [n for n in names if n != SEED and len({_text(row.get(n)) for row in self.rows}) > 1]

    def table(self, x: str | None = None, by: str = "label") -> list[Row]:
        """Compute mean and spread over the seeds, of the runs that are done.

        Args:
            x: the column to group by, e.g. "model.d_state"; None: all settings that were varied.
            by: another such column.

        Returns:
            For each group a dict: `by`, the varied settings (or x), the metric's name, n (runs), mean, std (0 of one),
            low, high, state_size and seconds (means).

        Raises:
            StateformError: no such column.
        """
        names = list(dict.fromkeys([by, *(self.varied if x is None else ["sweep", "task", x])]))
        for name in names:
            self._require_column(name)
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            if row["status"] == "done" and row["score"] is not None:
                groups.setdefault((*(_text(row.get(n)) for n in names), row["metric"]), []).append(row)
        found = []
        for rows in groups.values():
            values = [row["score"] for row in rows]
            found.append({
                **{n: rows[0].get(n) for n in names}, "metric": rows[0]["metric"], "n": len(rows),
                "mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0,
                "low": min(values), "high": max(values),
                **{n: _mean(row.get(n) for row in rows) for n in ("state_size", "seconds")},
            })  # fmt: skip
        return found

    def _require_column(self, name: str) -> None:
        known = list(self.rows[0]) if self.rows else [name]
        require(name in known, f"the results have no column {name!r}: {nearest(name, known)}")

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, from which the page and the tables are made."""
        if self.x is not None:
            self._require_column(self.x)
        return {
            "stateform": importlib.metadata.version("stateform"),
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "source": self.source, "sweeps": list(dict.fromkeys(run.sweep for run in self.runs)),
            "complete": self.complete, "x": self.x, "varied": self.varied, "rows": self.rows, "groups": self.table(),
            "claims": [verdict.to_dict() for verdict in self.verdicts],
            "machines": self.machines,
        }  # fmt: skip

    @property
    def verdicts(self) -> list[ClaimVerdict]:
        """Judge each claim by these numbers."""
        return [judge(claim, self.rows) for claim in self.claims]

    @property
    def machines(self) -> list[str]:
        """Name the machines and versions that computed the runs, each once."""
        names = []
        for run in self.runs:
            m = (run.outcome or {}).get("metrics", {})
            if on := m.get("machine"):
                has = {**dict.fromkeys(("cpu", "cores", "threads", "device", "torch", "python"), "unknown"), **on}
                names.append(f"{has['cpu']}, {has['cores']} cores ({has['threads']} threads a run), device "
                             f"{has['device']}, torch {has['torch']}, Python {has['python']}, stateform "
                             f"{m.get('stateform')}")  # fmt: skip
        return list(dict.fromkeys(names))

    # -- files -----------------------------------------------------------------------------------------------------

    def save_csv(self, path: str | Path) -> None:
        """Write the rows as comma-separated values, whole or not at all."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else ["sweep"])
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in self.rows)
        write_atomically(Path(path), text.getvalue().encode())

    def save_parquet(self, path: str | Path) -> None:
        """Write the rows as a Parquet file, whole or not at all.

        Raises:
            StateformError: without PyArrow.
        """
        pa = arrow()
        columns = {}
        for name in self.rows[0] if self.rows else ():
            values = [row[name] for row in self.rows]
            kinds = {type(value) for value in values if value is not None}
            if len(kinds) > 1 and not kinds <= {int, float}:  # a column has one type
                values = [None if value is None else _text(value) for value in values]
            columns[name] = pa.array([float(v) if float in kinds and isinstance(v, int) else v for v in values])
        out = io.BytesIO()
        importlib.import_module("pyarrow.parquet").write_table(pa.table(columns), out)
        write_atomically(Path(path), out.getvalue())

    def to_markdown(self) -> str:
        """Write the claims, the machines and the table of means as Markdown."""
        return markdown(self.to_dict())

    def save_markdown(self, path: str | Path) -> None:
        """Write the Markdown into a file, whole or not at all."""
        write_atomically(Path(path), self.to_markdown().encode())

    def page(self) -> Page:
        from .figures import page  # Plotly is slow to import and not needed until now

        return page(self.to_dict())

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from tables(self.to_dict())


def results(
    store: str | Path, sweep: str | None = None, where: Mapping[str, Any] | Iterable[str] = (), x: str | None = None,
    claims: Sequence[Claim] = (),
) -> Results:  # fmt: skip
    """Read the runs in a store.

    Args:
        store: its file.
        sweep: only the runs of this sweep.
        where: only runs with these values: a dict {"model.pattern": "linear"} of columns, or texts "column=value".
        x: the column on the horizontal axis of the figures; None: the size of the state.
        claims: published findings to be held against the numbers, as `read_plan(...).claims`.

    Raises:
        StateformError: no such store, sweep or column (with the nearest).
    """
    with Store(store, reading=True) as opened:
        names = opened.sweeps()
        require(sweep is None or sweep in names,
                f"there is no sweep {sweep!r} in {store}"
                + (f": {nearest(str(sweep), names)}" if names else ", which is empty"))  # fmt: skip
        found = Results(opened.runs(sweep), str(store), x=x, claims=claims)
    for name, value in _conditions(where):
        found._require_column(name)
        kept = [run for run, row in zip(found.runs, found.rows) if _text(row[name]) == _text(value)]
        found = Results(kept, found.source, x=x, claims=claims)
    if x is not None:
        found._require_column(x)
    return found


def _conditions(where: Mapping[str, Any] | Iterable[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(where, Mapping):
        yield from where.items()
        return
    for text in [where] if isinstance(where, str) else where:
        name, equals, value = text.partition("=")
        require(equals and name.strip(), f"cannot read {text!r}; expected column=value, e.g. model.pattern=linear")
        yield name.strip(), read_value(value.strip())


def arrow() -> Any:
    """Import PyArrow, or raise an error that names the extra."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise StateformError('a Parquet file needs PyArrow: pip install "stateform[sweep]"') from None


# -- rows --------------------------------------------------------------------------------------------------------------


def _row(run: Run) -> Row:
    metrics = (run.outcome or {}).get("metrics", {})
    task = dict(run.experiment["task"])
    name = metrics.get("metric")
    tests = {length: _tested(value, name) for length, value in (metrics.get("test") or {}).items()}
    lengths = [str(n) for n in run.experiment["train"].get("test_lengths") or ()]
    first = next((tests[n] for n in [str(task.get("length")), *lengths] if tests.get(n) is not None), None)
    row: Row = {
        "sweep": run.sweep, "label": run.label, "status": run.status, "task": run.settings.get("task"),
        "metric": name, "score": metrics.get("valid") if first is None else first, "valid": metrics.get("valid"),
        **{f"test.{length}": value for length, value in tests.items()},
        **{n: metrics.get(n) for n in ("loss", "state_size", "parameters", "steps", "seconds", "stopped")},
    }  # fmt: skip
    for part in ("task", "model", "train"):
        row |= {f"{part}.{k}": v for k, v in run.experiment[part].items()}
    if "from" in run.experiment:
        row["from"] = run.experiment["from"].get("folder")
    row |= {"key": run.key, "attempts": run.attempts, "started": run.started, "finished": run.finished}
    return row | {"error": run.error if run.status == "failed" else None}


def _name_tasks(rows: Sequence[Row], axes: set[str]) -> None:
    """Name the task in each row, with the options in which tasks of that name differ; axes have their own columns."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(row["task.name"], []).append(row)
    for name, several in alike.items():
        options = dict.fromkeys(n for row in several for n in row if n.startswith("task.") and n not in axes)
        differ = [n for n in options if len({_text(row.get(n)) for row in several}) > 1]
        for row in several:
            if row["task"] is None:
                said = ", ".join(f"{n.partition('.')[2]}={row.get(n)!r}" for n in differ)
                row["task"] = f"{name}({said})" if said else name
        if len({row["task"] for row in several}) == 1:
            for row in several:
                row["task"] = name  # the name alone is enough


def _tested(value: Any, metric: str | None) -> float | None:
    """Read the metric at one length: a number, or an entry of a dict."""
    return value.get(metric) if isinstance(value, Mapping) else value


def headline(run: Run) -> str:
    """Tell the outcome of a run in a few words."""
    if run.status == "failed":
        return f"failed: {run.error}"
    row = _row(run)
    write = "{:.3f}" if row["metric"] == "accuracy" else "{:.3g}"
    said = [] if row["score"] is None else [f"{row['metric']} {write.format(row['score'])}"]
    return "   ".join([*said, *([f"{row['seconds']:.0f} s"] if row["seconds"] is not None else [])])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _text(value: Any) -> str:
    """Write a value as a key that tells runs apart: 1 and 1.0 are the same."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) and float(f"{value:g}") == value else str(value)


def _cell(value: Any) -> Any:
    return "" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else value
