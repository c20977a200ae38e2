"""The path of a test is the path of what it tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .source import SOURCE

TESTS = Path(__file__).parents[1]
FOLDERS = {
    "laws": "what holds for all of the package",
    "independent": "layers against computations that share no code with them",
    "fixtures": "what other tests are given",
}
"""Folders of tests that mirror nothing, and what they are."""
FILES = {
    "test_first_version.py": "scripts and files of the first version",
    "test_packaging.py": "the wheel",
    "test_readme.py": "the README",
    "contract/test_proofs.py": "what check, lift and equivalent call a proof",
    "contract/test_repro.py": "scripts that show what sf.check has to find",
    "hub/test_gguf.py": "files that hub/load leaves to transformers",
    "hub/test_page.py": "the page docs/pretrained.md",
    "models/test_auto_suite.py": "the suite of transformers, put to models/auto",
}
"""Files of tests that mirror none, and what they test."""


def mirrors(test: Path, source: Path) -> bool:
    """True if `room/test_x.py` has the file `room/x.py`, the folder `room/x`, or the name of its whole room."""
    name = test.stem.removeprefix("test_")
    return (source / test.parent / f"{name}.py").is_file() or (source / test.parent / name).is_dir() or (
        name == test.parent.name and (source / test.parent).is_dir()
    )  # fmt: skip


def test_each_test_has_its_file() -> None:
    tests = [path.relative_to(TESTS) for path in sorted(TESTS.rglob("test_*.py"))]
    own = [path for path in tests if path.parts[0] not in FOLDERS]
    assert sorted(str(path) for path in own if not mirrors(path, SOURCE)) == sorted(FILES)


@pytest.mark.parametrize(
    ("test", "found"),
    [
        ("system/test_state.py", True),
        ("hub/test_reduction.py", True),
        ("forms/test_forms.py", True),
        ("test_clock.py", True),
        ("forms/test_state.py", False),
        ("rooms/test_rooms.py", False),
        ("test_state.py", False),
    ],
)
def test_what_mirrors(test: str, found: bool) -> None:
    assert mirrors(Path(test), SOURCE) == found
