"""Imports inside the package run downwards only. The table below is the one place that states the order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "stateform"
SOURCE = Path(__file__).parent.parent / "src" / PACKAGE
FILES = sorted(SOURCE.rglob("*.py"))

# From the bottom up: a part, its modules, and the parts that it may import besides itself. Imports inside functions
# and those for type checking count like any other.
BASE = "errors transition kernels system"
CHECKS = "definition draw check equivalence timing"
HOUSE = [
    ("errors", "_errors _files", ""),
    ("transition", "transition", "errors"),
    ("kernels", "kernels", "errors"),
    ("system", "system state core dense attend ridge _[!_]*", "errors transition kernels"),
    ("definition", "definition", "errors system"),
    ("discretise", "discretise", "errors transition"),
    ("tolerances", "tolerances outcome", ""),
    ("report", "report", "errors"),
    ("forms", "forms", f"{BASE} tolerances"),
    ("analysis", "analysis", f"{BASE} discretise tolerances forms"),
    ("layers", "layers", f"{BASE} discretise forms"),
    ("tasks", "tasks", f"{BASE} forms layers"),
    ("models", "models", f"{BASE} forms layers"),
    ("equivalence", "equivalence", f"{BASE} tolerances forms"),
    ("convert", "convert", f"{BASE} discretise tolerances forms analysis layers equivalence"),
    ("hub", "hub", f"{BASE} tolerances forms analysis layers models convert"),
    ("experiments", "experiments", f"{BASE} report forms analysis layers tasks models convert hub"),
    ("draw", "draw", f"{BASE} tolerances forms"),
    ("check", "check", f"{BASE} definition tolerances draw forms analysis layers models hub"),
    ("timing", "timing", f"{BASE} forms analysis layers"),
    ("questions", "questions", f"{BASE} forms analysis layers"),
    ("compare", "compare", f"{BASE} tolerances report forms analysis layers models convert questions {CHECKS}"),
    (
        "analyze",
        "analyze subject",
        f"{BASE} report forms analysis layers models hub experiments questions compare timing",
    ),
    ("bench", "bench", f"{BASE} tolerances report forms analysis layers hub draw"),
    ("zoo", "zoo card", f"{BASE} tolerances forms analysis layers draw"),
    (
        "top",
        "__init__ __main__ public cli",
        f"{BASE} report forms analysis layers tasks models convert hub experiments {CHECKS} questions compare "
        "analyze bench zoo",
    ),
]
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
        if part_of(module) not in ALLOWED[part]
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
        ("transition.py", "from .system import System"),
        ("transition.py", "from . import system"),
        ("system.py", "def f():\n    from . import run"),
        ("system.py", "def f():\n    import stateform.layers"),
        ("system.py", "if TYPE_CHECKING:\n    from stateform.layers import Mamba"),
        ("forms/scan.py", "from ..layers import names"),
        ("analysis/memory.py", "from ..layers.mamba import Mamba2"),
        ("layers/mamba.py", "import stateform as sf"),
        ("report/html.py", "from ..compare import compare"),
    ],
)
def test_an_import_upwards_is_found(path: str, source: str) -> None:
    (SOURCE / "layers").is_dir() or pytest.skip("no layers yet")
    assert len(violations(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("system.py", "from .transition import Identity\nimport torch"),
        ("forms/scan.py", "from ..system import System\nfrom .choice import run\nfrom . import matrix"),
        ("layers/mamba.py", "from .. import system\nfrom ..forms import run"),
        ("cli.py", "from . import compare, __version__"),
    ],
)
def test_an_import_downwards_is_not(path: str, source: str) -> None:
    assert violations(source, Path(path)) == []
