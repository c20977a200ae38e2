"""The command line as a program: what it imports, what it writes where, how it ends."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import stateform as sf
from stateform.cli import app, common, listing, main
from stateform.studies.questions import QUESTIONS
from stateform.tasks import TASKS
from stateform.timing import MODES

SRC = str(Path(sf.__file__).parent.parent)
SMALL = ["compare", "linear", "--max-length", "32", "--d-model", "16", "--repeats", "1"]


def run(*words: str, cwd: Path, code: str = "", **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, SIGINT as in a terminal."""
    environment = {**os.environ, "PYTHONPATH": SRC, **settings.pop("env", {})}
    program = [sys.executable, "-c", code] if code else [sys.executable, "-m", "stateform"]
    return subprocess.run(
        [*program, *words], cwd=cwd, env=environment, encoding="utf-8", errors="replace", timeout=100,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{"capture_output": True, **settings},
    )  # fmt: skip


# -- what is imported ---------------------------------------------------------------------------------------------

LIGHT = """
import sys
import stateform
dir(stateform), stateform.__version__
from stateform.cli import main
for words in ["--help", "--version", "names", "tasks", *(f"{c} --help" for c in COMMANDS)]:
    sys.argv = ["stateform", *words.split()]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
    assert "torch" not in sys.modules and "numpy" not in sys.modules, words
"""


def test_what_there_is_is_told_without_torch(tmp_path: Path) -> None:
    commands = [str(c.name) for c in app.registered_commands]
    assert {"compare", "train", "sweep", "open", "bench"} < set(commands)
    done = run(cwd=tmp_path, code=f"COMMANDS = {commands}{LIGHT}")
    assert done.returncode == 0, done.stderr
    assert "gated_deltanet" in done.stdout.split("\n") and "mqar " in done.stdout
    assert all(f"stateform {name} " in done.stdout for name in commands)


def test_what_is_told_is_what_there_is() -> None:
    own = {name: entry for name, entry in sf.layers.REGISTRY.items() if entry.cls.__module__.startswith("stateform.")}  # type: ignore[attr-defined]
    assert listing.layers() == sorted(own)
    assert listing.tasks() == {k: v.summary for k, v in sorted(TASKS.items()) if v.__module__.startswith("stateform.")}
    assert listing.questions() == list(QUESTIONS)
    assert listing.constant("timing/pair.py", "MODES") == MODES
    with pytest.raises(LookupError, match="assigns no NOTHING"):
        listing.constant("timing/pair.py", "NOTHING")


ORDERS = """
import pickle, stateform, sys
system = pickle.loads(DATA)
assert "stateform.public" not in sys.modules
assert system.coefficients().shape[-1] == 3 and system.forms()["matrix"] is None  # no form was imported before
import stateform.contract.check, stateform.studies.zoo, stateform.timing  # before anything is asked of the package
from stateform.studies.compare import Comparison
FUNCTIONS = ("analyze", "bench", "check", "compare", "zoo")
for name in FUNCTIONS:
    assert getattr(stateform, name).__name__ == name and callable(getattr(stateform, name)), name
import stateform.studies.analyze, stateform.timing.run
from stateform import *
assert all(globals()[name] is getattr(stateform, name) and callable(globals()[name]) for name in FUNCTIONS)
assert stateform.convert.__name__ == "stateform.convert" and set(stateform.__all__) <= set(dir(stateform))
assert stateform.analysis.horizon and stateform.hub.lift and not hasattr(stateform, "nothing")
"""


def test_functions_that_are_called_as_their_modules_stay_functions(tmp_path: Path) -> None:
    system = sf.System(*(torch.ones(1, 3, 1, 2) for _ in range(3)))
    done = run(cwd=tmp_path, code=f"DATA = {pickle.dumps(system)!r}{ORDERS}")
    assert done.returncode == 0, done.stderr
    assert pickle.loads(pickle.dumps(sf.check)) is sf.check


# -- files first, then the screen ---------------------------------------------------------------------------------


def test_letters_that_the_output_has_no_code_for_are_replaced(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("wb") as out:
        done = run(*SMALL, "--html", "r.html", "--json", "r.json", cwd=tmp_path, capture_output=False, stdout=out,
                   stderr=subprocess.PIPE, env={"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "r.json").read_text())["complete"] and (tmp_path / "r.html").stat().st_size > 10**6
    said = (tmp_path / "out.txt").read_bytes().decode("cp1252")
    assert "linear" in said and "?" in said and "Report: " in said


def test_a_pipe_that_was_closed_is_no_fault(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = run("names", cwd=tmp_path, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.drawn(0.4)
def test_a_screen_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run("names", cwd=tmp_path, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "stateform: [Errno 28] No space left on device\n")


def test_a_file_that_cannot_be_written_loses_neither_the_others_nor_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Path) -> None:
        raise sf.StateformError("the disk is full")

    files = [("Report", tmp_path / "a", full), ("Numbers", tmp_path / "b", Path.touch), ("None", None, full)]
    with pytest.raises(Exception) as ended:
        common.give(lambda: print("shown"), *files)
    assert getattr(ended.value, "exit_code", None) == 1
    said = capsys.readouterr()
    assert said.out == f"shown\nNumbers: {tmp_path / 'b'}\n" and said.err == "No report: the disk is full\n"


WRITES: dict[str, Callable[[Path], list[str]]] = {
    "compare": lambda f: [*SMALL, "--json", str(f / "x.json"), "--html", str(f / "x.html")],
    "analyze": lambda f: ["analyze", "linear", "--d-model", "16", "--max-length", "32", "--json", str(f / "x.json")],
    "bench": lambda f: ["bench", "--layers", "gru", "--rivals", "torch", "--modes", "forward", "--d-model", "16",
                        "--lengths", "4", "--repeats", "1", "--json", str(f / "x.json"), "--html", str(f / "x.html")],
    "zoo": lambda f: ["zoo", "linear", "--json", str(f / "x.json")],
    "results": lambda f: ["results", str(f / "s"), "--csv", str(f / "x.csv"), "--html", str(f / "x.html")],
    "sweep": lambda f: ["sweep", str(f / "s.toml"), "--workers", "0", "--out", str(f / "s"),
                        "--html", str(f / "x.html")],
    "eval": lambda f: ["eval", str(f / "run"), "--json", str(f / "x.json")],
}  # fmt: skip
SWEEP = """task = "parity(length=8)"
model = {pattern = "linear", d_model = 8}
train = {steps = 1, batch_size = 2, eval_every = 1}
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.drawn(0.3)
def test_every_command_writes_before_it_prints(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.toml").write_text(SWEEP)
    if name == "results":
        assert CliRunner().invoke(app, WRITES["sweep"](tmp_path)).exit_code == 0
        (tmp_path / "x.html").unlink()
    if name == "eval":
        words = ["train", "--config", str(tmp_path / "s.toml"), "--out", str(tmp_path / "run"), "--accelerator", "cpu"]
        assert CliRunner().invoke(app, words).exit_code == 0

    def dies(console: Console, *_: object, **__: object) -> None:
        if not console.stderr:
            raise UnicodeEncodeError("cp1252", "λ", 0, 1, "no such letter")

    monkeypatch.setattr("rich.console.Console.print", dies)
    words = WRITES[name](tmp_path)
    assert isinstance(CliRunner().invoke(app, words).exception, UnicodeEncodeError)
    files = [Path(word) for word in words if Path(word).name.startswith("x.")]
    assert files and all(file.stat().st_size > 100 for file in files)


def test_a_disk_without_room_is_told_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(sf.StateformError, match="4,096 bytes are free"):
        common.check_writable(json=tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


# -- how it ends --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_while_modules_are_imported_ends_without_a_word(module: str, tmp_path: Path) -> None:
    stub = "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(20)\n"
    stub += "except BaseException:\n    pass\n"  # as some imports do
    (tmp_path / f"{module}.py").write_text(stub)
    done = run(*SMALL, cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), SRC])})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_is_as_before_when_a_command_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for words in (["--version"], ["show", "nothing"]):
            monkeypatch.setattr(sys, "argv", ["stateform", *words])
            with pytest.raises(SystemExit):
                main()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["compare", LONG], ["compare", f"{LONG}/{LONG}"], ["compare", "linear", "--text", LONG],
        ["compare", "linear", "--json", LONG], ["compare", "linear", "--html", f"{LONG}/x"], ["analyze", f"{LONG}/a"],
        ["check", LONG], ["open", LONG], ["open", f"./{LONG}"], ["reduce", f"./{LONG}"],
        ["generate", LONG, "--prompt", "a"], ["train", "parity", "--config", LONG],
        ["train", "parity", "--out", LONG, "--model", "linear"], ["sweep", LONG], ["sweep", f"{LONG}.toml"],
        ["results", LONG], ["eval", LONG], ["zoo", "--into", LONG],
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG"),
)  # fmt: skip
def test_a_name_of_300_letters_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stateform", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.count("\n") == 1, said
    assert said.err.startswith("stateform: ")
