"""What kind a thing is, is asked in the room of that kind alone."""

from __future__ import annotations

import ast

from .source import MODULES, tree_of

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
