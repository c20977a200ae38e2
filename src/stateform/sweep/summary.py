"""The results of sweeps in words and tables, for the terminal, the page and Markdown; made from the dict alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..report import Column, Grid, GridRow, listing, units, visible
from ..report.table import notes, opening

STATE = "state_size"
_ERRORS = 5
Found = Mapping[str, Any]


def tables(result: Found) -> list[RenderableType]:
    """Lay the results out for a terminal: a row for each group of runs that differ only in seeds, then what failed."""
    parts = opening(title(result), subject(result), None)
    for grid in (groups(result), claims(result)):
        if grid is None:
            continue
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for column in grid.columns:
            table.add_column(column.heading, justify="right" if column.numeric else "left", header_style="dim",
                             overflow="fold", no_wrap=column.numeric)  # fmt: skip
        for row in grid.rows:
            table.add_row(*(Text(cell) for cell in row.cells))
        parts += [Text(), table, *notes(grid.notes)]
    wrong = failures(result)
    if wrong:
        parts += [Text(), *(Text(line, style="yellow") for line in wrong)]
    return parts


def title(result: Found) -> str:
    """Name the sweeps."""
    return visible(", ".join(map(str, result.get("sweeps") or []))) or "no runs"


def subject(result: Found) -> str:
    """Count the runs by what became of them."""
    rows = result["rows"]
    text = f"{len(rows)} run{'' if len(rows) == 1 else 's'}"
    counts = [(s, sum(row["status"] == s for row in rows)) for s in ("done", "running", "waiting", "failed")]
    said = [f"{n} {status}" for status, n in counts if n]
    return text + (f" ({', '.join(said)})" if len(said) > 1 or counts[0][1] != len(rows) else "")


def failures(result: Found) -> list[str]:
    """List why runs failed, each reason once."""
    why: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row["status"] == "failed":
            why.setdefault(visible(str(row["error"])), []).append(_called(result, row))
    lines = [f"Failed: {_few(names)}: {reason}" for reason, names in why.items()]
    return lines[:_ERRORS] + ([f"{len(lines) - _ERRORS} more reasons."] if len(lines) > _ERRORS else [])


def _few(names: Sequence[str]) -> str:
    return listing(names) if len(names) <= 3 else f"{listing(names[:2])} and {len(names) - 2} more"


def _called(result: Found, row: Found) -> str:
    """Name a run in a line: the label, what was varied and the seed."""
    named = [n for n in result["varied"] if n != "task" and row.get(n) is not None]
    more = [visible(str(row["task"]))] * ("task" in result["varied"])
    more += [f"{short_name(n)} {value_of(row.get(n))}" for n in named]
    return " ".join([visible(str(row["label"])), *more, f"seed {row.get('train.seed')}"])


def labels(result: Found) -> list[str]:
    """List the labels, in the order in which the runs were planned."""
    return list(dict.fromkeys(visible(str(row["label"])) for row in result["rows"]))


def short_name(name: str) -> str:
    """Name a column without the part it is of."""
    return visible({STATE: "state"}.get(name, name.partition(".")[2] or name))


def value_of(value: Any) -> str:
    """Write a setting."""
    if isinstance(value, int) and not isinstance(value, bool):
        return units.count(value)
    return f"{value:g}" if isinstance(value, float) else units.MISSING if value is None else visible(str(value))


def score_text(value: float | None, metric: str) -> str:
    """Write a score: an accuracy with three decimals."""
    if value is None:
        return units.MISSING
    return f"{value:.3f}" if metric == "accuracy" else units.plain(value)


def groups(result: Found) -> Grid | None:
    """Lay out a row for each group of runs that differ only in seeds."""
    found = result["groups"]
    if not found:
        return None
    names, metrics = result["varied"], list(dict.fromkeys(str(g["metric"]) for g in found))
    metric = metrics[0] if len(metrics) == 1 else "score"
    columns = [Column("Model"), *(Column(short_name(n), numeric=_numeric(found, n)) for n in names)]
    columns += [Column(name, numeric=True) for name in (metric, "lowest", "highest", "runs", "state", "seconds")]
    order, rows = labels(result), []
    for g in found:
        score = [score_text(g[n], str(g["metric"])) for n in ("mean", "low", "high")]
        cells = [visible(str(g["label"])), *(value_of(g.get(n)) for n in names), *score, str(g["n"])]
        state, seconds = g[STATE], g["seconds"]
        cells += [units.count(state if state is None else round(state)), "" if seconds is None else f"{seconds:.0f}"]
        rows.append(GridRow(tuple(cells), order.index(cells[0])))
    note = (
        "Means over the seeds, on the test at the length of training (or the first that was tested). State: numbers "
        "kept after one example."
    )
    return Grid("groups", "What came out", tuple(columns), tuple(rows), (note,))


def runs(result: Found, most: int = 500) -> Grid | None:
    """Lay out a row for each run."""
    rows, names = result["rows"], result["varied"]
    if not rows:
        return None
    lengths = [n for n in rows[0] if n.startswith("test.")] if rows else []
    columns = [Column("Model"), *(Column(short_name(n), numeric=_numeric(rows, n)) for n in names),
               Column("seed", numeric=True), Column("status"), Column("score", numeric=True)]  # fmt: skip
    columns += [Column(f"at {n.removeprefix('test.')}", numeric=True) for n in lengths if len(lengths) > 1]
    columns += [Column("steps", numeric=True), Column("ended")]
    order, made = labels(result), []
    for row in rows[:most]:
        metric = str(row["metric"])
        cells = [visible(str(row["label"])), *(value_of(row.get(n)) for n in names), value_of(row.get("train.seed")),
                 row["status"], score_text(row["score"], metric)]  # fmt: skip
        cells += [score_text(row[n], metric) for n in lengths if len(lengths) > 1]
        cells += [value_of(row["steps"]), visible(str(row["stopped"] or row["error"] or ""))]
        made.append(GridRow(tuple(cells), order.index(cells[0])))
    notes = (f"The first {most} of {len(rows)} runs.",) if len(rows) > most else ()
    return Grid("runs", "Every run", tuple(columns), tuple(made), notes)


def claims(result: Found) -> Grid | None:
    """Lay out a row for each claim: its verdict, and the numbers."""
    found = result.get("claims") or []
    if not found:
        return None
    columns = tuple(Column(name) for name in ("Claim", "source", "here", "measured"))
    rows = [GridRow(tuple(visible(str(c[n])) for n in ("text", "source", "verdict", "numbers"))) for c in found]
    note = "Rules: stateform.sweep.claims. ± is one standard error; confirmed and reversed are beyond two."
    return Grid("claims", "Claims", columns, tuple(rows), (note,))


def markdown(result: Found) -> str:
    """Write the claims, the machines and the means as Markdown."""
    parts = [f"# {title(result)}", f"{subject(result)}, as of {result['created']}."]
    parts += [f"Computed on: {machine}." for machine in result.get("machines") or []]
    seconds = [row["seconds"] for row in result["rows"] if row["seconds"] is not None]
    if seconds:
        parts.append(f"Training and tests took {sum(seconds) / 60:.0f} minutes in all, summed over the runs.")
    for grid in (claims(result), groups(result)):
        if grid is not None:
            lines = [[column.heading for column in grid.columns], ["---"] * len(grid.columns)]
            lines += [[cell.replace("|", "\\|") for cell in row.cells] for row in grid.rows]
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            parts += [f"## {grid.title}", table, *grid.notes]
    parts += failures(result)
    return "\n\n".join(parts) + "\n"


def _numeric(rows: Sequence[Found], name: str) -> bool:
    values = [row.get(name) for row in rows]
    return any(v is not None for v in values) and all(is_number(v) or v is None for v in values)


def is_number(value: Any) -> bool:
    """True if it is a number, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool)
