"""Files, functions and folders stay small; names say what they are once."""

from __future__ import annotations

import ast
from collections import Counter

from .source import FILES, MODULES, SOURCE, imports_of, tree_of

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_FILES = 12
ROOMS_OF_KINDS = {
    "architectures", "cli", "forms", "hub.families", "hub.formats", "studies.questions", "tasks", "timing.rivals",
}  # fmt: skip
"""Folders with a file for each kind: as many as there are."""


def test_files_are_small() -> None:
    lines = {str(path.relative_to(SOURCE)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_functions_are_small() -> None:
    """Its text, which may be long, is not counted."""
    long = {}
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                said = node.body[0].end_lineno or 0 if ast.get_docstring(node) else node.lineno
                lines = (node.end_lineno or 0) - said
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long[f"{module}.{node.name}"] = lines
    assert long == {}


def test_folders_are_small() -> None:
    count = Counter(".".join(path.relative_to(SOURCE).parent.parts) for path in FILES if path.name != "__init__.py")
    kinds = {x for x in count for room in ROOMS_OF_KINDS if x == room or x.startswith(f"{room}.")}
    assert {folder: n for folder, n in count.items() if n > MOST_FILES and folder not in kinds} == {}


def test_no_module_hides() -> None:
    assert [
        name for name in MODULES if any(part.startswith("_") for part in name.split(".")) and name != "__main__"
    ] == []


def test_what_is_private_stays_in_its_file() -> None:
    taken = [
        f"{module}:{line}: {name} of {other}"
        for module, path in MODULES.items()
        for line, other, name in imports_of(path)
        if name.startswith("_") and not name.startswith("__")
    ]
    assert taken == []


def test_a_public_class_has_its_name_alone() -> None:
    """Retention is a layer, whose name is in states that users have, and what `analysis.retention` gives."""
    named = Counter(
        node.name
        for path in FILES
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, n in named.items() if n > 1] == ["Retention"]
