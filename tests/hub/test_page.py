"""The page `Your model in Stateform`: its commands and its code run, on small models in the place of those it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stateform.cli import app
from stateform.hub import FAMILIES
from tests.fixtures.foreign import small

pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "pretrained.md"
TEXT = PAGE.read_text(encoding="utf-8")
NAMED = {"state-spaces/mamba-130m-hf": "mamba", "HuggingFaceTB/SmolLM2-135M": "llama", "LiquidAI/LFM2-350M": "lfm2"}
CODE = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S) for line in block.splitlines()
            if line.startswith("stateform ")]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models with a tokenizer of bytes, by the names of the page."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = {}
    for name, kind in NAMED.items():
        made[name] = tmp_path_factory.mktemp(kind)
        small(kind, vocab_size=256).save_pretrained(made[name])
        PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(made[name])
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("The state of a system is what it must remember. " * 3)
    return tmp_path


def placed(text: str, folders: dict[str, Path]) -> str:
    for name, folder in folders.items():
        text = text.replace(name, folder.as_posix())
    return text


def test_the_page_has_commands_and_code() -> None:
    assert len(COMMANDS) >= 6
    assert len(CODE) >= 3
    assert {name for name in NAMED if name in TEXT} == set(NAMED)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(command: str, folders: dict[str, Path], here: Path) -> None:
    short = command.replace("--lengths 512", "--lengths 16 --repeats 1")  # what is timed there is not the point
    found = CliRunner().invoke(app, shlex.split(placed(short, folders))[1:])
    assert found.exit_code == 0, found.output + str(found.exception)
    if " open " in command:
        assert "what their Systems compute" in found.output
    for page in re.findall(r"--html (\S+)", command):
        assert (here / page).stat().st_size > 1000


@pytest.mark.parametrize("code", CODE)
def test_the_code_runs(code: str, folders: dict[str, Path], here: Path) -> None:
    exec(compile(placed(code, folders), str(PAGE), "exec"), {"__name__": "__main__"})


def test_the_page_has_a_place_for_the_types() -> None:
    assert TEXT.count("<!-- families -->") == 1
    assert len(FAMILIES) > 25
