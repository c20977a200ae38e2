"""Imports inside the package run downwards only. The table below is the one place that states the order."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from .source import FILES, MODULES, PACKAGE, SOURCE, imports, name_of

# From the bottom up: a part, its modules, and the parts that it may import besides itself. Imports inside functions
# and those for type checking count like any other.
LOW = "low report result loops system"
HOUSE = [
    ("low", "errors clock files text series machine former graph", ""),
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
ROOMS = {
    "system": [
        "lazy precision readout transition words",
        "discretise shapes state",
        "system",
        "chain core",
        "tree",
    ],
    "forms": [
        "compiled cost cost.constants form packing pairs stabilise step",
        "coefficients newton opaque",
        "chunkwise convolution matrix recurrent scan",
        "cost.work outside scores",
        "cost.predict linear softmax",
        "ridge run",
        "cost.calibrate dense",
    ],
}
"""In these rooms, from the bottom up, the files of each level: they import files of lower levels, and not each other.
The room's own `__init__` is above them all."""
ALLOWED = {part: {part, *below.split()} for part, _, below in HOUSE}


def part_of(module: str) -> str:
    """The part to which a module directly under the package belongs."""
    for part, patterns, _ in HOUSE:
        if any(fnmatchcase(module, pattern) for pattern in patterns.split()):
            return part
    pytest.fail(f"{PACKAGE}.{module} has no place in the house: give it one in {Path(__file__).name}")


def violations(source: str, path: Path) -> list[str]:
    """The imports in `source`, the text of the file at `path` (relative to the package), that the table forbids."""
    part = part_of(path.parts[0].removesuffix(".py"))
    found = imports(ast.parse(source), list(path.parent.parts))
    tops = [(line, inner.split(".")[0] or "__init__") for line, inner, _ in found]
    return [
        f"{path}:{line}: {part} may not import {part_of(module)} ({module})"
        for line, module in tops
        if part_of(module) not in ALLOWED[part] and (str(path), module) != DELEGATES
    ]


def level_of(module: str) -> int:
    """Find the level in its room, from the bottom, of a module of `system` or `forms`."""
    room, _, name = module.partition(".")
    for level, names in enumerate(ROOMS[room]):
        if name in names.split():
            return level
    if not name:
        return len(ROOMS[room])
    pytest.fail(f"{PACKAGE}.{module} has no place in its room: give it one in {Path(__file__).name}")


def not_below(source: str, path: Path) -> list[str]:
    """List the imports in `source`, the text of the file at `path`, of files of its own room on no lower level."""
    module = name_of(SOURCE / path)
    room = path.parts[0]
    return [
        f"{path}:{line}: {module} may not import {inner}"
        for line, inner, _ in imports(ast.parse(source), list(path.parent.parts))
        if inner.split(".")[0] == room and level_of(inner) >= level_of(module)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downwards(path: Path) -> None:
    found = violations(path.read_text(encoding="utf-8"), path.relative_to(SOURCE))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_import_lower_files(room: str) -> None:
    paths = [path.relative_to(SOURCE) for name, path in MODULES.items() if name.split(".")[0] == room]
    found = [x for path in paths for x in not_below((SOURCE / path).read_text(encoding="utf-8"), path)]
    assert not found, "\n".join(found)
    placed = [f"{room}.{name}" for names in ROOMS[room] for name in names.split()]
    assert sorted([room, *placed]) == sorted(name for name in MODULES if name.split(".")[0] == room)


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


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("system/precision.py", "from .system import System"),
        ("system/core.py", "from . import System"),
        ("system/shapes.py", "def f():\n    from . import state"),
        ("system/transition.py", "if TYPE_CHECKING:\n    from stateform.system.core import Core"),
        ("forms/scan.py", "from .chunkwise import chunkwise"),
        ("forms/cost/work.py", "from ..softmax import attend"),
        ("forms/softmax.py", "from . import run"),
    ],
)
def test_an_import_from_no_lower_file_is_found(path: str, source: str) -> None:
    assert len(not_below(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("system/core.py", "from .system import System\nfrom ..errors import require"),
        ("forms/cost/predict.py", "from .. import scan\nfrom .work import work\nfrom ...system import System"),
        ("forms/__init__.py", "from .run import run"),
    ],
)
def test_an_import_from_a_lower_file_is_not(path: str, source: str) -> None:
    assert not_below(source, Path(path)) == []
