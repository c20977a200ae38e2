"""What kind a thing is, is asked in the room of that kind alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from stateform.architectures.registry import REGISTRY
from stateform.forms import FORMS
from stateform.tasks import TASKS

from .source import MODULES, SOURCE, tree_of

READOUTS = {"linear", "exp", "ridge"}


def test_readouts_are_compared_with_strings_nowhere_else() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if module.split(".")[0] not in ("system", "forms")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Compare)
        if any(isinstance(x, ast.Attribute) and x.attr == "readout" for x in (node.left, *node.comparators))
        if any(isinstance(x, ast.Constant) and x.value in READOUTS for x in (node.left, *node.comparators))
    ]
    assert found == []


def test_figures_are_drawn_with_the_kit_alone() -> None:
    """What is found is drawn by the question that asked for it, with `report/`; what finds it gives numbers."""
    drawing = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if module.split(".")[0] != "report"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [x.name for x in node.names])
        if name.partition(".")[0] == "plotly"
    ]
    methods = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.name == "plot"
    ]
    assert drawing == [] and methods == []


def lists_of(names: set[str], room: str, tree: ast.AST, module: str) -> Iterator[str]:
    """Where a list, tuple, set or dict of a module outside the room names two of these or more."""
    for node in ast.walk(tree) if module.split(".")[0] != room else ():
        items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []
        items = node.keys if isinstance(node, ast.Dict) else items
        named = [x.value for x in items if isinstance(x, ast.Constant) and x.value in names]
        if len(named) > 1:
            yield f"{module}:{node.lineno}: {named}"


ELSEWHERE = {"parity", "counting", "softmax", "delta"}
"""Names that other rooms have, too: of what a layer expresses, of families of architectures."""
LISTED = {
    "forms": set(FORMS),
    "tasks": {name for name, cls in TASKS.items() if cls.__module__.startswith("stateform.")} - ELSEWHERE,
    "architectures": {name for name, entry in REGISTRY.items() if entry.cls.__module__.startswith("stateform.")},
    "hub": {path.stem for path in (SOURCE / "hub" / "families").glob("*.py")} - {"__init__", *ELSEWHERE},
}
"""The rooms of kinds, and the names of what is in them."""


@pytest.mark.parametrize("room", LISTED)
def test_no_list_of_kinds_is_kept_outside_their_room(room: str) -> None:
    found = [x for module, path in MODULES.items() for x in lists_of(LISTED[room], room, tree_of(path), module)]
    assert found == []


def test_a_list_of_kinds_is_found() -> None:
    tree = ast.parse('A = ("recurrent", "scan")\nB = {"scan": 1, "matrix": 2}\nC = ["scan"]')
    assert len(list(lists_of(set(FORMS), "forms", tree, "studies.words"))) == 2
    assert not list(lists_of(set(FORMS), "forms", tree, "forms.softmax"))
