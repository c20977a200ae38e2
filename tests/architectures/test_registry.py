"""How architectures are found: one a file, in a folder for its family; its words and its paper are the file's."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

import stateform as sf
from stateform import architectures
from stateform.architectures import REGISTRY, described, family_of, place
from stateform.architectures.families import ORDER

FOLDER = Path(architectures.__file__).parent
FILES = sorted(FOLDER.glob("*/*.py"))
OURS = {e.cls.__module__: e for e in REGISTRY.values() if e.cls.__module__.startswith(architectures.__name__)}


def registered(tree: ast.Module) -> list[ast.Call]:
    """The calls of `register` over the classes of a file."""
    calls = [d for c in tree.body if isinstance(c, ast.ClassDef) for d in c.decorator_list]
    return [d for d in calls if isinstance(d, ast.Call) and getattr(d.func, "id", "") == "register"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(FOLDER)))
def test_a_file_is_one_architecture_named_as_it_is(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    calls = registered(tree)
    if not calls:  # the family's title, or what several of its members share
        return
    (call,) = calls
    assert ast.literal_eval(call.args[0]) == file.stem
    assert not call.keywords, "the paper is in the docstring"
    entry = REGISTRY[file.stem]
    assert entry.paper
    assert entry.summary.endswith(".")
    assert described(entry.cls)[2], "equations"
    assert family_of(entry.cls) == (file.parent.name, (ast.get_docstring(ast.parse(
        (file.parent / "__init__.py").read_text(encoding="utf-8"))) or "").split("\n")[0].rstrip("."))  # fmt: skip


def test_every_family_has_its_place_in_the_order() -> None:
    assert {family_of(entry.cls)[0] for entry in OURS.values()} == set(ORDER)


def test_no_architecture_is_made_of_another_but_its_special_cases() -> None:
    """A file imports another that registers only for its base class, and says why."""
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        stems = [n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module]
        others = [s for s in stems if registered(ast.parse((file.parent / f"{s}.py").read_text(encoding="utf-8")))]
        assert not others or "hence the base class" in " ".join((ast.get_docstring(tree) or "").split()), file


def test_the_words_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(sf.Layer):
        """Sum of the past.

        y_t = y_{t-1} + u_t.

        Args:
            d_model: width.
        """

    class Heir(Mine):
        pass

    for cls in (Mine, Heir):
        assert described(cls) == ("Sum of the past.", "", "y_t = y_{t-1} + u_t.")
    file = ModuleType("file", "Leak: a decay.  arXiv 1234.56789\n\n    h_t = a h_{t-1} + u_t\n\nMore.\n")
    monkeypatch.setitem(sys.modules, "file", file)
    Mine.__module__ = "file"
    for cls in (Mine, Heir):
        assert described(cls) == ("Leak: a decay.", "arXiv 1234.56789", "    h_t = a h_{t-1} + u_t\n\nMore.")
    file.__doc__ = "Things of mine, see arXiv 1234.56789 for why.\n"
    assert described(Mine)[0] == "Sum of the past."


def test_families_are_listed_in_their_order_and_members_by_date() -> None:
    listed = sorted(OURS.values(), key=lambda e: place(e.cls))
    words = list(dict.fromkeys(family_of(e.cls)[0] for e in listed))
    assert tuple(words) == ORDER
    delta = [e.name for e in listed if family_of(e.cls)[0] == "delta"]
    assert delta == ["deltanet", "gated_deltanet", "deltaproduct", "comba", "kda", "gated_deltanet2"]
    assert place(nn.Linear) > place(listed[-1].cls)
