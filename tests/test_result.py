"""What is found is given in one way: by `Result`, whatever was asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stateform as sf
from stateform.hub import Acceleration, Replacement
from stateform.result import Paged, Record, Result, Steps, header, until_interrupted
from stateform.sweep.results import Results
from stateform.timing import ModelBench
from stateform.train import Outcome

SOURCE = Path(sf.__file__).parent
FOUND = (
    sf.Analysis, sf.Bench, sf.Card, sf.Comparison, sf.Lift, sf.ModelReduction, sf.Report, sf.Zoo,
    Acceleration, ModelBench, Outcome, Replacement, Results,
)  # fmt: skip


@pytest.mark.parametrize("cls", FOUND, ids=lambda cls: str(cls.__name__))
def test_each_is_a_result(cls: type[Result]) -> None:
    assert issubclass(cls, Result)
    for method in ("to_dict", "__rich_console__"):
        assert getattr(cls, method) is not getattr(Result, method), method
    assert cls.save_json is Result.save_json


def test_results_are_saved_shown_and_headed_in_one_place() -> None:
    """No other file has a writer of JSON or of pages, a version and a time on top, or a count of steps."""
    written = re.compile(
        r"def (save_json|save_html|_repr_html_)\(|datetime\.now\(\)\.iso|nonlocal done|lambda what, done"
    )
    found = {
        str(path.relative_to(SOURCE)): words
        for path in SOURCE.rglob("*.py")
        if (words := sorted({m.group() for m in written.finditer(path.read_text(encoding="utf-8"))}))
    }
    notebook = found.pop("report/notebook.py")
    assert notebook == ["def _repr_html_("]  # of the plotting library, which is no result
    assert list(found) == ["result.py"]


class Told(Record, Paged):
    """Something found."""

    def html(self, plotlyjs: str = "inline") -> str:
        return f"<p>{self.result['n']} {plotlyjs}</p>"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield f"n is {self.result['n']}, " + "word " * 30


def test_a_result_gives_itself_in_every_way(tmp_path: Path) -> None:
    told = Told({"n": 3, "complete": True})
    assert told.complete and told.to_dict() == told.result and told == Told(dict(told.result))
    assert str(told).startswith("n is 3, word") and max(map(len, str(told).splitlines())) <= 80
    told.save_json(tmp_path / "n.json")
    assert (tmp_path / "n.json").read_text() == json.dumps(told.result, indent=1) + "\n"
    told.save_html(tmp_path / "n.html")
    assert (tmp_path / "n.html").read_text() == "<p>3 inline</p>" and list(tmp_path.glob("*.js")) == []
    assert "3 inline" in told._repr_html_()


def test_steps_are_told_as_they_begin_and_after_the_last() -> None:
    heard: list[tuple[str, int, int]] = []
    step = Steps(lambda *said: heard.append(said), 3)
    step("one")
    step("two")
    step.end()  # the work was cut short, and there is nothing left to wait for
    assert heard == [("one", 0, 3), ("two", 1, 3), ("done", 3, 3)]
    silent = Steps(None, 1)
    silent("one")
    silent.end()


def test_an_interruption_keeps_what_was_found() -> None:
    result: dict[str, Any] = {**header(), "complete": False}
    assert set(result["machine"]) >= {"cpu", "threads", "torch", "device"} and result["created"][10] == "T"
    with until_interrupted(result):
        result["n"] = 1
        raise KeyboardInterrupt
    assert result["n"] == 1 and result["complete"] is False
    with pytest.raises(ZeroDivisionError), until_interrupted(result):
        raise ZeroDivisionError
    assert result["complete"] is False
    with until_interrupted(result):
        pass
    assert result["complete"] is True
