"""Claims: each rule on numbers made by hand; presets: every one can be planned, and a small point of it trained."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import stateform as sf
from stateform.cli import app
from stateform.sweep.claims import Claim, judge, read_claims
from stateform.sweep.plan import Plan, read_plan
from stateform.sweep.presets import file_of, preset_names
from stateform.train import train
from stateform.train.config import Experiment
from stateform.train.folder import flat


def rows(scores: dict[tuple[str, Any, int], float], **more: Any) -> list[dict[str, Any]]:
    """Finished runs, with their score by label, d_state and seed."""
    return [
        {"status": "done", "label": label, "model.d_state": n, "train.seed": seed, "metric": "accuracy",
         "score": score, "valid": score, **more}
        for (label, n, seed), score in scores.items()
    ]  # fmt: skip


def drawn(means: dict[str, list[float]], spread: float = 0.01) -> list[dict[str, Any]]:
    """Three seeds around a mean for each label at n = 4, 8, ..."""
    shifts = (-spread, 0.0, spread)
    return rows({
        (label, 4 * 2**i, seed): mean + shifts[(seed + i + ord(label)) % 3]
        for label, several in means.items() for i, mean in enumerate(several) for seed in range(3)
    })  # fmt: skip


def claim(kind: str, **about: Any) -> Claim:
    return Claim("a finding", "somebody", kind, {"x": "model.d_state", **about})


ABOVE = claim("above", label="a", than="b")
APPROACHES = claim("approaches", label="a", to="b")
BETWEEN = claim("between", label="a", low="b", high="c")


@pytest.mark.parametrize(
    ("about", "means", "word"),
    [
        (ABOVE, {"a": [0.9, 0.95], "b": [0.5, 0.7]}, "confirmed"),
        (ABOVE, {"a": [0.5, 0.7], "b": [0.9, 0.95]}, "reversed"),
        (ABOVE, {"a": [0.7, 0.701], "b": [0.7, 0.699]}, "not confirmed"),
        (ABOVE, {"a": [0.9, 0.5], "b": [0.5, 0.9]}, "not confirmed"),
        (ABOVE, {"a": [0.9]}, "not measured"),
        (APPROACHES, {"a": [0.5, 0.7, 0.98], "b": [1.0, 1.0, 1.0]}, "confirmed"),
        (APPROACHES, {"a": [0.5, 0.6, 0.6], "b": [1.0, 1.0, 1.0]}, "not confirmed"),
        (APPROACHES, {"a": [0.8, 0.5, 0.3], "b": [1.0, 1.0, 1.0]}, "reversed"),
        (APPROACHES, {"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0]}, "not confirmed"),
        (APPROACHES, {"a": [1.0], "b": [1.0]}, "not measured"),
        (BETWEEN, {"a": [0.7, 0.8], "b": [0.5, 0.6], "c": [1.0, 1.0]}, "confirmed"),
        (BETWEEN, {"a": [0.3, 0.4], "b": [0.5, 0.6], "c": [1.0, 1.0]}, "reversed"),
        (BETWEEN, {"a": [1.0, 1.0], "b": [0.5, 0.6], "c": [0.8, 0.8]}, "reversed"),
        (BETWEEN, {"a": [0.5, 0.6], "b": [0.5, 0.6], "c": [1.0, 1.0]}, "not confirmed"),
        (claim("reaches", label="a", at_least=0.9), {"a": [0.95, 0.92]}, "confirmed"),
        (claim("reaches", label="a", at_least=0.9), {"a": [0.95, 0.85]}, "not confirmed"),
        (claim("stays", label="a", at_most=0.9), {"a": [0.5, 0.85]}, "confirmed"),
        (claim("stays", label="a", at_most=0.9), {"a": [0.5, 0.95]}, "not confirmed"),
    ],
)  # fmt: skip
def test_a_claim_is_judged_by_its_rule(about: Claim, means: dict[str, list[float]], word: str) -> None:
    found = judge(about, drawn(means))
    assert found.word == word, found.numbers


def test_the_numbers_of_a_verdict_are_those_of_the_pairs() -> None:
    found = judge(ABOVE, rows({("a", 4, 0): 0.9, ("a", 4, 1): 0.7, ("b", 4, 0): 0.5, ("b", 4, 1): 0.5, ("b", 4, 2): 0}))
    assert found.numbers == "a - b: +0.300 ± 0.100 over 2 pairs"  # seed 2 has no partner
    assert found.word == "confirmed"


def test_one_seed_has_no_error_to_judge_by() -> None:
    found = judge(APPROACHES, [row for row in drawn({"a": [0.5, 0.98], "b": [1.0, 1.0]}) if row["train.seed"] == 0])
    assert found.word == "not measured" and "one seed" in found.numbers


def test_other_settings_are_those_of_the_best_validation() -> None:
    slow = rows({("a", 4, 0): 0.2, ("a", 4, 1): 0.3}, **{"train.lr": 1e-4})
    fast = rows({("a", 4, 0): 0.8, ("a", 4, 1): 0.7}, **{"train.lr": 1e-2})
    other = rows({("b", 4, 0): 0.6, ("b", 4, 1): 0.5}, **{"train.lr": 1e-2})
    assert judge(ABOVE, [*slow, *fast, *other]).numbers.startswith("a - b: +0.200")


def test_runs_elsewhere_do_not_count() -> None:
    here = rows({("a", 4, s): 0.9 for s in range(3)} | {("b", 4, s): 0.5 for s in range(3)}, **{"task.name": "parity"})
    there = rows({("a", 4, s): 0.1 for s in range(3)}, **{"task.name": "mqar"})
    unfinished = [{**row, "status": "running", "score": None} for row in here]
    only = Claim("a finding", "", "above", ABOVE.about, where={"task.name": "parity"})
    assert judge(only, [*here, *there, *unfinished]).word == "confirmed"
    assert judge(ABOVE, here).numbers + "; 6 of 12 runs are not done" == judge(only, [*here, *unfinished]).numbers
    column = Claim("a finding", "", "above", ABOVE.about, column="test.256")
    assert judge(column, here).word == "not measured"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"above": {"label": "a", "than": "b"}}, "expected a sentence"),
        ({"text": "t", "abov": {"label": "a", "than": "b"}}, "did you mean above"),
        ({"text": "t"}, r"the kinds \[\]; expected one of"),
        ({"text": "t", "above": {"label": "a"}}, "needs than"),
        ({"text": "t", "above": {"label": "a", "than": "c"}}, "is about 'c'"),
        ({"text": "t", "above": {"label": "a", "than": "b", "y": 1}}, "has no 'y'"),
        ({"text": "t", "above": 3}, "expected a table"),
        ({"text": "t", "reaches": {"label": "a", "at_least": "0.9"}}, "at_least .* is '0.9'; expected a number"),
        ({"text": "t", "above": {"label": "a", "than": "b", "x": ["n"]}}, r"x .* is \['n'\]; expected a column"),
        ({"text": "t", "column": 256, "stays": {"label": "a", "at_most": 1}}, "column .* is 256; expected a text"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(sf.StateformError, match=said):
        list(read_claims([table], ["a", "b"]))


# -- presets ---------------------------------------------------------------------------------------------------------


@functools.cache
def planned(name: str) -> Plan:
    """A preset as it is."""
    return read_plan(name)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.drawn(0.5)
def test_every_preset_can_be_planned_and_a_small_point_of_it_trained(name: str, tmp_path: Path) -> None:
    plan = planned(name)
    assert plan.name == name and plan.about and plan.total == len(plan.runs)
    for flag in ("quick", "as_released"):
        if name in ("dsf-small", "state-tracking", "hybrids") and flag == "quick":
            assert 0 < read_plan(name, quick=True).total < plan.total
    small = small_point(name)
    assert {run.experiment.train.steps for run in small.runs} == {2}  # stronger than what a case or a variant sets
    outcome = train(small.runs[0].experiment, tmp_path)
    assert outcome.metrics["steps"] == 2


@pytest.mark.parametrize("name", preset_names())
def test_every_claim_of_a_preset_can_be_judged_by_its_runs(name: str) -> None:
    plan = read_plan(name, overrides=["train.seed=[0, 1]"]) if name == "dsf-paper" else planned(name)  # has one seed
    numbers = {"status": "done", "metric": "accuracy", "score": 0.5, "valid": 0.5, "test.256": 0.5}
    found = [
        {**numbers, "label": r.label, "task": r.experiment.task.spec, **flat(r.experiment.to_dict())} for r in plan.runs
    ]
    for claim in plan.claims:
        assert judge(claim, found).word != "not measured", claim.text


def small_point(name: str) -> Plan:
    """The preset with two steps, few examples and one small size of everything."""
    sizes = ["train.steps=2", "train.eval_examples=8", "train.test_examples=8", "train.batch_size=4"]
    more = {
        "dsf-paper": ["train.examples=16", "task=mqar(length=64, n_pairs=4)", "model.d_model=64", "model.d_state=32",
                      "train.lr=1e-3", "train.test_lengths=[64]"],
        "lra": ["train.examples=8", "task=listops(length=60, shortest=10)", "model.n_layers=1",
                "train.test_lengths=[60]"],
        "mad": ["task=mad_recall(n_train=64)", "train.test_lengths=[128]", "train.lr=1e-3", "train.weight_decay=0.1"],
    }  # fmt: skip
    return read_plan(name, overrides=[*sizes, *more.get(name, [])])


def test_as_released_changes_the_blocks_but_not_the_runs() -> None:
    plan, released = read_plan("dsf-small"), read_plan("dsf-small", as_released=True)
    assert released.name == "dsf-small-as-released" and released.total == plan.total
    without = {run.label for run in released.runs if run.experiment.config.mlp_ratio is None}
    assert without == {run.label for run in plan.runs} - {"normalized"}
    assert all(run.experiment.train.decay_all and run.experiment.train.warmup == 0 for run in released.runs)
    assert all(run.experiment.config.mlp_ratio is not None for run in plan.runs)


def test_presets_are_listed_without_making_their_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = {name: planned(name).total for name in ("demo", "hybrids")}
    monkeypatch.setattr(Experiment, "from_dict", lambda *_, **__: pytest.fail("an experiment was made"))
    shown = CliRunner().invoke(app, ["presets"])
    assert shown.exit_code == 0, shown.output
    lines = {line.split()[0]: line for line in shown.output.splitlines()}
    assert set(lines) == set(preset_names()) and all(f" {totals[name]} runs " in lines[name] for name in totals)


def test_a_preset_that_is_not_there() -> None:
    with pytest.raises(sf.StateformError, match="no preset of that name: did you mean dsf-small"):
        file_of("dsf-smal")
    assert file_of("some/where.toml") == Path("some/where.toml")


def test_cases_change_together_and_are_crossed_with_the_rest() -> None:
    tables: dict[str, Any] = {
        "task": "parity", "model": {"pattern": "linear", "d_model": 8}, "grid": {"train.seed": [0, 1]},
        "cases": [{"set": {"task": "parity(length=8)", "train.batch_size": 4}}, {"set": {"task": "even_pairs"}}],
    }  # fmt: skip
    plan = read_plan(tables)
    found = [(r.experiment.task.spec, r.experiment.train.batch_size, r.experiment.train.seed) for r in plan.runs]
    assert found == [
        ("parity(length=8)", 4, 0),
        ("parity(length=8)", 4, 1),
        ("even_pairs", 64, 0),
        ("even_pairs", 64, 1),
    ]
    with pytest.raises(sf.StateformError, match="both an axis of \\[grid\\] and set by a case"):
        read_plan({**tables, "cases": [{"set": {"train.seed": 3}}]})
    with pytest.raises(sf.StateformError, match="each with `set` alone"):
        read_plan({**tables, "cases": [{"label": "x"}]})
