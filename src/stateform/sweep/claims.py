"""Claims: published findings beside measurements. A rule set beforehand makes each confirmed, reversed or neither.

In the file of a sweep:

    [[claims]]
    text = "Normalized attention recalls more than linear attention"
    source = "arXiv 2405.15731, section 5.1"
    above = {label = "normalized", than = "linear", x = "model.d_state"}

There are four kinds, each on the score (or another `column`, such as "test.256"):

- `above {label, than, x}`: runs are paired by x and seed. Confirmed if the mean difference is above twice its standard
  error, reversed if it is below minus that.
- `approaches {label, to, x}`: the gap between the two closes as x grows. Confirmed if at the smallest x it is above
  twice its standard error, and at the largest x at most half as wide; reversed if it grows by twice its error.
- `between {label, low, high, x}`: above `low` and below `high`, as `above` has it: confirmed if both hold, reversed if
  one of them is reversed.
- `reaches {label, at_least}` and `stays {label, at_most}`: of the mean over the seeds at every x.

Runs that failed or have not run yet are left out, and the numbers say how many they are.

Numbers are compared as they are: for a task scored by mse or bits, the lower one is the better model.

Other settings than x and the seed may have been varied (a learning rate): then each label at each x takes those with
the best mean validation, as published work does. `where` restricts a claim to some runs: {"task.name" = "parity"}.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import nearest, require

SEED = "train.seed"
"""The setting in which runs of one group differ."""
KINDS = {
    "above": ("label", "than", "x"), "approaches": ("label", "to", "x"), "between": ("label", "low", "high", "x"),
    "reaches": ("label", "at_least", "x"), "stays": ("label", "at_most", "x"),
}  # fmt: skip
LABELS = ("label", "than", "to", "low", "high")
Row = Mapping[str, Any]
Points = dict[Any, dict[Any, float]]
"""Scores by x and seed."""


@dataclass(frozen=True)
class Claim:
    """A published finding, and the rule that tests it.

    Args:
        text: the finding.
        source: who published it.
        kind: the rule.
        about: what the rule is applied to.
        column: of the results: "score", "valid", "test.256".
        where: columns and values of the runs that count.
    """

    text: str
    source: str
    kind: str
    about: Mapping[str, Any]
    column: str = "score"
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on a claim: a word, and the numbers behind it."""

    claim: Claim
    word: Literal["confirmed", "not confirmed", "reversed", "not measured"]
    numbers: str

    def to_dict(self) -> dict[str, Any]:
        """Give the texts of the claim and its verdict."""
        return {"text": self.claim.text, "source": self.claim.source, "verdict": self.word, "numbers": self.numbers}


def read_claims(tables: Any, labels: Sequence[str]) -> Iterator[Claim]:
    """Read the claims of a file.

    Raises:
        StateformError: a table that is no claim, of no known kind, or about a label that the sweep does not have.
    """
    require(isinstance(tables, list) and all(isinstance(t, Mapping) for t in tables),
            f"claims is {tables!r}; expected tables [[claims]]")  # fmt: skip
    for table in tables:
        text = table.get("text")
        require(isinstance(text, str) and text, f"a claim has the text {text!r}; expected a sentence")
        kinds = [name for name in table if name in KINDS]
        for name in table:
            known = ("text", "source", "column", "where", *KINDS)
            require(name in known, f"the claim {text!r} has no part {name!r}: {nearest(name, known)}")
        require(len(kinds) == 1, f"the claim {text!r} has the kinds {kinds}; expected one of {', '.join(KINDS)}")
        (kind,) = kinds
        about = table[kind]
        require(isinstance(about, Mapping), f"{kind} of the claim {text!r} is {about!r}; expected a table")
        for name in about:
            require(name in KINDS[kind], f"{kind} of the claim {text!r} has no {name!r}: {nearest(name, KINDS[kind])}")
        for name in KINDS[kind]:
            require(name in about or name == "x", f"{kind} of the claim {text!r} needs {name}")
            if name in LABELS:
                near = nearest(str(about[name]), labels)
                require(about[name] in labels, f"the claim {text!r} is about {about[name]!r}: {near}")
            elif name in about:
                number, given = name.startswith("at_"), about[name]
                fits = isinstance(given, int | float) and type(given) is not bool if number else isinstance(given, str)
                require(
                    fits, f"{name} of the claim {text!r} is {given!r}; expected a {'number' if number else 'column'}"
                )
        for name in ("source", "column"):
            require(isinstance(table.get(name, ""), str),
                    f"{name} of the claim {text!r} is {table.get(name)!r}; expected a text")  # fmt: skip
        where = table.get("where", {})
        require(isinstance(where, Mapping), f"where of the claim {text!r} is {where!r}; expected a table")
        yield Claim(text, table.get("source", ""), kind, about, table.get("column", "score"), where)


def judge(claim: Claim, rows: Sequence[Row]) -> ClaimVerdict:
    """Judge a claim by the rows of some results (`Results.rows`)."""
    labels = {claim.about[name] for name in LABELS if name in claim.about}
    asked = [r for r in rows if r["label"] in labels and all(_same(r.get(k), v) for k, v in claim.where.items())]
    done = [r for r in asked if r["status"] == "done"]
    found = _judged(claim, done)
    if len(done) == len(asked):
        return found
    # Said, because runs that fail are often those that would have been worst.
    return replace(found, numbers=f"{found.numbers}; {len(asked) - len(done)} of {len(asked)} runs are not done")


def _judged(claim: Claim, rows: Sequence[Row]) -> ClaimVerdict:
    x = claim.about.get("x")
    scores = {name: _points(rows, claim.about[name], x, claim.column) for name in LABELS if name in claim.about}
    missing = [str(claim.about[name]) for name, points in scores.items() if not points]
    if missing:
        return ClaimVerdict(claim, "not measured", f"no finished runs of {', '.join(missing)}")
    one = scores["label"]
    if claim.kind in ("reaches", "stays"):
        means = {at: statistics.fmean(seeds.values()) for at, seeds in one.items()}
        worst = min(means.values()) if claim.kind == "reaches" else max(means.values())
        held = worst >= claim.about["at_least"] if claim.kind == "reaches" else worst <= claim.about["at_most"]
        told = ", ".join(f"{mean:.3f}" + (f" at {at}" if x else "") for at, mean in means.items())
        return ClaimVerdict(claim, "confirmed" if held else "not confirmed", f"mean over seeds {told}")
    if claim.kind == "approaches":
        return _approaches(claim, one, scores["to"])
    if claim.kind == "above":
        word, numbers = _above(one, scores["than"])
        return ClaimVerdict(claim, word, f"{claim.about['label']} - {claim.about['than']}: {numbers}")
    low, below = _above(one, scores["low"])
    high, over = _above(scores["high"], one)
    label = claim.about["label"]
    word = "reversed" if "reversed" in (low, high) else low if low != "confirmed" else high
    numbers = f"{label} - {claim.about['low']}: {below}; {claim.about['high']} - {label}: {over}"
    return ClaimVerdict(claim, word, numbers)


Word = Literal["confirmed", "not confirmed", "reversed", "not measured"]


def _above(one: Points, other: Points) -> tuple[Word, str]:
    pairs = _differences(one, other)
    if len(pairs) < 2:
        return "not measured", "fewer than two pairs of runs"
    mean, error = _mean(pairs)
    word: Word = "confirmed" if mean > 2 * error else "reversed" if mean < -2 * error else "not confirmed"
    return word, f"{mean:+.3f} ± {error:.3f} over {len(pairs)} pairs"


def _approaches(claim: Claim, one: Points, other: Points) -> ClaimVerdict:
    shared = sorted(x for x in one if x in other)
    if len(shared) < 2:
        return ClaimVerdict(claim, "not measured", "fewer than two values of x that both have")
    gaps, alone = [], False
    for x in (shared[0], shared[-1]):
        pairs = _differences({x: other[x]}, {x: one[x]})
        if not pairs:
            return ClaimVerdict(claim, "not measured", f"no seeds that both have at {x}")
        alone = alone or len(pairs) < 2
        gaps.append(_mean(pairs))
    (first, error), (last, error_last) = gaps
    word: Word = "not confirmed"
    if first > 2 * error and last <= first / 2:
        word = "confirmed"
    elif last - first > 2 * math.hypot(error, error_last):
        word = "reversed"
    numbers = f"gap {first:.3f} ± {error:.3f} at {shared[0]}, {last:.3f} ± {error_last:.3f} at {shared[-1]}"
    if alone:
        word, numbers = "not measured", f"{numbers}; one seed has no error"
    return ClaimVerdict(claim, word, numbers)


def _differences(one: Points, other: Points) -> list[float]:
    """Subtract the scores of runs with the same x and seed."""
    return [one[x][s] - other[x][s] for x in one if x in other for s in one[x] if s in other[x]]


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Compute the mean and its standard error (0 of one value)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def _points(rows: Sequence[Row], label: str, x: str | None, column: str) -> Points:
    """Collect the scores of a label by x and seed, at each x of the settings with the best mean validation."""
    groups: dict[Any, dict[str, list[Row]]] = {}
    for row in rows:
        if row["label"] == label and row.get(column) is not None:
            at = row.get(x) if x else None
            rest = repr([(k, v) for k, v in row.items() if k.startswith(("task.", "model.", "train.")) and k != SEED])
            groups.setdefault(at, {}).setdefault(rest, []).append(row)
    found: Points = {}
    for at, several in groups.items():
        sign = -1 if rows[0]["metric"] in ("mse", "bits") else 1
        best = max(several.values(), key=lambda group: sign * statistics.fmean(row["valid"] for row in group))
        found[at] = {row[SEED]: row[column] for row in best}
    return found


def _same(a: Any, b: Any) -> bool:
    return a == b or str(a) == str(b)
