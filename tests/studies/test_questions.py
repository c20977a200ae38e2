"""A question is one file, found by its folder."""

from __future__ import annotations

import pkgutil

from stateform.studies import questions
from stateform.studies.questions import BESIDE, QUESTIONS, Beside, Question


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
