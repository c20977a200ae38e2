"""A question is one file, found by its folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import stateform as sf
from stateform.report import Column, Grid, GridRow
from stateform.studies import questions
from stateform.studies.questions import BESIDE, QUESTIONS, Beside, Lineup, Question


def test_each_file_is_a_question() -> None:
    files = {file.name for file in pkgutil.iter_modules(questions.__path__)} - {"question"}
    found = {name: vars(getattr(questions, name)) for name in files}
    assert {name for name, held in found.items() if not {"QUESTION", "BESIDE"} & set(held)} == set()
    asked = {name: held["QUESTION"] for name, held in found.items() if "QUESTION" in held}
    assert {name: one.name for name, one in asked.items()} == {name: name for name in asked}  # the file has its name
    assert set(QUESTIONS) == set(asked) and len(BESIDE) == sum("BESIDE" in held for held in found.values())


def test_each_has_a_place_of_its_own_and_something_to_tell() -> None:
    orders = [one.order for one in QUESTIONS.values()]
    assert orders == sorted(set(orders)) and [b.order for b in BESIDE] == sorted({b.order for b in BESIDE})
    for one in QUESTIONS.values():
        assert isinstance(one, Question) and one.title.endswith("?") and (one.layer or one.model)
        assert one.heads or one.depth or one.figures is not Question.figures, one.name
    for beside in BESIDE:
        assert isinstance(beside, Beside)
        assert beside.tables is not Beside.tables or beside.figures is not Beside.figures
        assert (beside.layer is None) == (beside.where == ())
        assert (beside.together is None) == (beside.steps is Beside.steps)
    places = [one.where for one in BESIDE if one.where]
    assert len(set(places)) == len(places) >= 5


def test_what_is_put_beside_is_measured_and_told_by_its_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def heaviest(lineup: Lineup, result: dict[str, Any], step: Callable[[str], None]) -> None:
        step("weigh all")
        result["heaviest"] = max(result["layers"], key=lambda row: row["dynamics"]["weights"]["kept"])["name"]
        assert list(lineup.layers) == [row["name"] for row in result["layers"]]

    def table(result: Mapping[str, Any]) -> Grid:
        rows = [GridRow((row["name"], str(row["dynamics"]["weights"]["kept"]))) for row in result["layers"]]
        return Grid("weights", "How heavy is each?", (Column("Layer"), Column("Weights")), tuple(rows), ())

    new = Beside(
        "dynamics", 75, lambda result, lengths: [table(result)], where=("dynamics", "weights"),
        layer=lambda one: {"kept": sum(p.numel() for p in one.layer.parameters()), "tokens": one.first.shape[1]},
        together=heaviest, steps=lambda lineup: 1,
    )  # fmt: skip
    for reader in ("compare", "comparison"):
        monkeypatch.setattr(f"stateform.studies.{reader}.BESIDE", [*BESIDE, new])
    told: list[tuple[str, int, int]] = []
    found = sf.compare(["linear", "gla"], d_model=8, max_length=12, repeats=1, on_progress=lambda *x: told.append(x))
    for name, row in zip(("linear", "gla"), found.result["layers"], strict=True):
        weights = sum(p.numel() for p in sf.build(name, d_model=8).parameters())
        assert row["dynamics"]["weights"] == {"kept": weights, "tokens": 12}
        assert set(row["dynamics"]) == {"coefficients", "eigenvalues", "horizon", "weights"}
    assert found.result["heaviest"] == "gla"
    assert "How heavy is each?" in str(found) and "How heavy is each?" in found.html()
    steps = [what for what, _, _ in told]
    assert "gla: weights" in steps and "weigh all" in steps and steps[-1] == "done"
    assert [done for _, done, _ in told] == list(range(len(told))) and {total for *_, total in told} == {len(told) - 1}
