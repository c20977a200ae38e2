"""Imports inside the package run downwards only. The table below is the one place that states the order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "stateform"
SOURCE = Path(__file__).parents[2] / "src" / PACKAGE
FILES = sorted(SOURCE.rglob("*.py"))

# From the bottom up: a part, its modules, and the parts that it may import besides itself. Imports inside functions
# and those for type checking count like any other.
LOW = "low report result loops system"
HOUSE = [
    ("low", "errors clock files text machine former graph", ""),
    ("report", "report", "low"),
    ("result", "result", "low report"),
    ("loops", "loops", "low"),
    ("system", "system", "low loops"),
    ("forms", "forms", LOW),
    ("layer", "layer", f"{LOW} forms"),
    ("architectures", "architectures", f"{LOW} forms layer"),
    ("tasks", "tasks", f"{LOW} forms layer architectures"),
    ("models", "models", f"{LOW} forms layer architectures"),
    ("analysis", "analysis", f"{LOW} forms layer architectures models"),
    ("contract", "contract", f"{LOW} forms layer architectures models analysis"),
    ("convert", "convert", f"{LOW} forms layer architectures models analysis contract"),
    ("hub", "hub", f"{LOW} forms layer architectures models analysis contract convert"),
    ("train", "train", f"{LOW} forms layer architectures tasks models hub"),
    ("sweep", "sweep", f"{LOW} forms layer architectures tasks models train"),
    ("timing", "timing", f"{LOW} forms layer architectures models analysis contract convert hub"),
    ("studies", "studies", f"{LOW} forms layer architectures tasks models analysis contract convert hub train timing"),
    (
        "top",
        "__init__ __main__ public cli",
        f"{LOW} forms layer architectures tasks models analysis contract convert hub train sweep timing studies",
    ),
]
DELEGATES = ("system/system.py", "forms")
"""The one exception: methods of System that hand over to functions of the forms."""
ALLOWED = {part: {part, *below.split()} for part, _, below in HOUSE}


def part_of(module: str) -> str:
    """The part to which a module directly under the package belongs."""
    for part, patterns, _ in HOUSE:
        if any(fnmatchcase(module, pattern) for pattern in patterns.split()):
            return part
    pytest.fail(f"{PACKAGE}.{module} has no place in the house: give it one in {Path(__file__).name}")


def modules_imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """The line and the module directly under the package (`__init__` for the package itself) of each inner import.

    Args:
        tree: the parsed source of one file.
        package: the dotted name, as a list, of the package that relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            start = [*start, *(node.module or "").split(".")] if node.module else start
            names = [[*start, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == PACKAGE:
                is_module = len(name) > 1 and ((SOURCE / name[1]).is_dir() or (SOURCE / f"{name[1]}.py").is_file())
                yield node.lineno, name[1] if is_module else "__init__"


def violations(source: str, path: Path) -> list[str]:
    """The imports in `source`, the text of the file at `path` (relative to the package), that the table forbids."""
    part = part_of(path.parts[0].removesuffix(".py"))
    package = [PACKAGE, *path.parent.parts]
    return [
        f"{path}:{line}: {part} may not import {part_of(module)} ({module})"
        for line, module in modules_imported(ast.parse(source), package)
        if part_of(module) not in ALLOWED[part] and (str(path), module) != DELEGATES
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downwards(path: Path) -> None:
    found = violations(path.read_text(encoding="utf-8"), path.relative_to(SOURCE))
    assert not found, "\n".join(found)


def test_each_part_names_only_parts_below_it() -> None:
    below: set[str] = set()
    for part, _, names in HOUSE:
        assert set(names.split()) <= below, part
        below.add(part)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("system/transition.py", "from ..layer import Layer"),
        ("errors.py", "from . import system"),
        ("system/core.py", "def f():\n    from .. import run"),
        ("system/system.py", "def f():\n    import stateform.architectures"),
        ("system/system.py", "if TYPE_CHECKING:\n    from stateform.architectures import Mamba"),
        ("forms/scan.py", "from ..architectures import names"),
        ("analysis/memory.py", "from ..hub import lift"),
        ("architectures/mamba.py", "import stateform as sf"),
        ("report/page.py", "from ..studies.compare import compare"),
    ],
)
def test_an_import_upwards_is_found(path: str, source: str) -> None:
    assert len(violations(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("system/core.py", "from .transition import Identity\nimport torch"),
        ("forms/scan.py", "from ..system import System\nfrom .choice import run\nfrom . import matrix"),
        ("architectures/mamba.py", "from .. import system\nfrom ..forms import run"),
        ("cli/look.py", "from .. import studies, __version__"),
    ],
)
def test_an_import_downwards_is_not(path: str, source: str) -> None:
    assert violations(source, Path(path)) == []
