"""Files: whole or not there at all, on the disk before anybody is told that they are; JSON of any kind is read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stateform as sf
from stateform import StateformError
from stateform.files import DamagedError, make_folder, read_json, rename_durably, write_atomically, write_json
from stateform.sweep.store import Store
from stateform.train import Experiment, Machine, train


class Watch:
    """What is synchronised and renamed, in order: ("sync", inode) and ("name", inode of the file, of its folder)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Any, ...]] = []
        sync, rename = os.fsync, os.replace

        def synced(handle: int) -> None:
            self.seen.append(("sync", os.fstat(handle).st_ino))
            sync(handle)

        def renamed(a: Any, b: Any) -> None:
            self.seen.append(("name", os.stat(a).st_ino, os.stat(Path(b).parent).st_ino))
            rename(a, b)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", renamed)

    def durable(self) -> int:
        """How many files got their name; each was on the disk before it, and its folder after it."""
        places = [i for i, event in enumerate(self.seen) if event[0] == "name"]
        for i in places:
            _, file, folder = self.seen[i]
            assert ("sync", file) in self.seen[:i], "the name before the content"
            assert ("sync", folder) in self.seen[i:], "the name is not on the disk"
        return len(places)


def save_state(path: Path) -> None:
    layer = sf.build("linear", d_model=4)
    layer(torch.randn(1, 3, 4), return_state=True)[1].save(path / "state")


def save_model(path: Path) -> None:
    sf.LanguageModel("linear", d_model=8, vocab_size=5).save_pretrained(path / "model")


def train_one(path: Path) -> None:
    values = {
        "task": "mqar(length=8, n_pairs=2, vocab_size=12)", "model": {"pattern": "linear", "d_model": 8},
        "train": {"steps": 4, "batch_size": 2, "eval_every": 2, "eval_examples": 2, "test_examples": 2, "keep": "best"},
    }  # fmt: skip
    train(Experiment.from_dict(values), path / "run", machine=Machine("cpu", loggers=()))


@pytest.mark.parametrize(
    "save, least",
    [
        (lambda path: write_atomically(path / "x", b"1"), 1), (lambda path: write_json(path / "x", {}), 1),
        (save_state, 1), (save_model, 2),
        (train_one, 6),  # the experiment, two checkpoints, the best weights, the model in two files, the outcome
    ],
    ids=["bytes", "json", "state", "model", "training"],
)  # fmt: skip
def test_what_is_kept_outlasts_a_loss_of_power(
    save: Callable[[Path], None], least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    save(tmp_path)
    assert watch.durable() >= least


def test_a_draft_of_another_program_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "draft").write_bytes(b"1")
    watch = Watch(monkeypatch)
    rename_durably(str(tmp_path / "draft"), tmp_path / "x")
    assert watch.durable() == 1 and (tmp_path / "x").read_bytes() == b"1"


def test_new_folders_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    make_folder(tmp_path / "a" / "b")
    assert [("sync", os.stat(folder).st_ino) for folder in (tmp_path / "a", tmp_path)] == watch.seen
    make_folder(tmp_path / "a" / "b")
    assert len(watch.seen) == 2


def test_what_is_committed_to_a_store_is_on_the_disk(tmp_path: Path) -> None:
    with Store(tmp_path / "store.db", create=True) as store:
        assert store.connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"


@pytest.mark.parametrize("fails", [0, 1])
def test_a_disk_that_cannot_keep_it_says_so(fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"old")
    calls = 0

    def broken(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 + fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StateformError, match=f"cannot write .*{os.strerror(errno.EIO)}"):
        write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == (b"new" if fails else b"old")
    assert {x.name for x in tmp_path.iterdir()} == {"x"}


def test_a_disk_that_cannot_synchronise_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", no_folders)
    write_atomically(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_names_that_cannot_be_are_one_clear_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(StateformError, match="cannot write"):
        write_atomically(tmp_path / name, b"1")
    with pytest.raises(StateformError, match="cannot make the folder"):
        make_folder(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("n" * 250), b"1")
    write_atomically(tmp_path / ("é" * 127), b"1")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"1" * 5000])
def test_what_is_no_table_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"x\.json"):
        read_json(path)
    written = {"a": [1, None], "b": 2**70}  # a number of any size, as only others' files are held to 64 bits
    write_json(path, written)
    assert read_json(path) == written == json.loads(path.read_bytes())
