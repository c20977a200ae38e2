"""The README's code runs as written: each Python block, and each `stateform` command.

A comment just above a block says more about it:

    <!-- continues -->       the block goes on with the names and the folder of the Python block before it
    <!-- file: my.py -->     the block is a file that the commands find in their folder
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.program import Ended, program

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^(?:<!-- *(?P<note>[^\n]*?) *-->\n+)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
NOT_RUN = {"make", "pip", "python", "python3", "py", "git", "cd"}


@dataclass(frozen=True)
class Block:
    """One fenced block: the line of its first statement, its language, the comment above it, and its text."""

    line: int
    language: str
    note: str
    code: str


TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
BLOCKS = [
    Block(TEXT.count("\n", 0, match.start("code")) + 1, match["language"], match["note"] or "", match["code"])
    for match in BLOCK.finditer(TEXT)
]
PYTHON = [block for block in BLOCKS if block.language == "python"]
FILES = {block.note.removeprefix("file:").strip(): block.code for block in BLOCKS if block.note.startswith("file:")}


def shell_lines(block: Block) -> list[str]:
    """The commands of a block, without the prompts and the output of a `console` one."""
    lines = re.sub(r"\s*\\\n\s*", " ", block.code).splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


SHELL = [shell_lines(block) for block in BLOCKS if block.language in ("sh", "console")]
COMMANDS = [[line for line in lines if shlex.split(line, comments=True)[0] == "stateform"] for lines in SHELL]
COMMANDS = [lines for lines in COMMANDS if lines]


def chain(index: int) -> list[int]:
    """The Python blocks that block number `index` continues, in order, and itself."""
    start = index
    while start and PYTHON[start].note == "continues":
        start -= 1
    return list(range(start, index + 1))


@pytest.fixture(scope="module")
def chains() -> dict[int, tuple[dict[str, Any], set[int]]]:
    """For the first block of each chain: the names so far, and the blocks that have run."""
    return {}


@pytest.mark.parametrize("index", range(len(PYTHON)), ids=[f"line{block.line}" for block in PYTHON])
def test_python_block(
    index: int,
    chains: dict[int, tuple[dict[str, Any], set[int]]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = chain(index)
    folder = tmp_path_factory.getbasetemp() / f"readme{blocks[0]}"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    names, done = chains.setdefault(blocks[0], ({"__name__": "readme"}, set()))
    for number in blocks:
        if number not in done:
            # Blank lines in front make the line numbers of an error those of the README.
            code = "\n" * (PYTHON[number].line - 1) + PYTHON[number].code
            exec(compile(code, README, "exec"), names)
            done.add(number)


@pytest.mark.parametrize("commands", COMMANDS, ids=[lines[0] for lines in COMMANDS])
@pytest.mark.parametrize("where", ["here", pytest.param("in processes", marks=pytest.mark.slow)])
def test_commands(where: str, commands: list[str], tmp_path: Path) -> None:
    """The commands of a block, one after the other in one folder."""
    shutil.copy(README, tmp_path)
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        if where == "here":  # without workers: each would import torch
            done = program(*("0" if before == "--workers" else word for before, word in pairwise(["", *arguments])),
                           cwd=tmp_path)  # fmt: skip
        else:
            done = as_a_process(arguments, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def as_a_process(arguments: list[str], folder: Path) -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", "from stateform.cli import main; main()", *arguments], cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def test_the_readme_has_code_to_run() -> None:
    assert PYTHON
    assert COMMANDS
    lines = [line for lines in SHELL for line in lines]
    unknown = [line for line in lines if shlex.split(line)[0] not in NOT_RUN | {"stateform"}]
    assert not unknown, f"neither run here nor known to be left out: {unknown}"


def test_the_table_of_architectures_is_that_of_the_registry() -> None:
    import stateform as sf
    from stateform.architectures import REGISTRY
    from stateform.studies.zoo import insert

    ours = [name for name, entry in REGISTRY.items() if entry.cls.__module__.startswith("stateform.")]
    found = sf.zoo(ours).to_markdown()
    assert insert(TEXT, found) == TEXT, "the table is out of date: run `stateform zoo --into README.md`"
    assert set(re.findall(r"^\| `(\w+)` \|", found, re.M)) == set(ours)
