"""Data sets: files made here for each format and each fault, the real ones where they are, and any text."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
import types
import wave
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stateform.errors import StateformError
from stateform.tasks import SPLITS, Batch, Split, Task, make_task
from stateform.tasks.data import Stored
from stateform.tasks.text import read_hub


def everything(task: Task, split: Split) -> Batch:
    found = task.whole(split)
    assert found is not None
    return found[:]


def real(folder: str) -> None:
    if not (Path(os.environ.get("STATEFORM_DATA", "nowhere")) / folder).is_dir():
        pytest.skip(f"no folder {folder} in STATEFORM_DATA (see docs/data.md)")


@pytest.mark.parametrize("name", ["smnist", "pmnist", "spoken_digits"])
def test_without_data(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STATEFORM_DATA", raising=False)
    task = make_task(name)
    with pytest.raises(
        StateformError, match=f"no data: give path=..., or set STATEFORM_DATA to a folder in which {task.folder}/"
    ):
        task.sample(1)
    monkeypatch.setenv("STATEFORM_DATA", str(tmp_path))
    with pytest.raises(StateformError, match=f"there is no folder .*{task.folder}; give path"):
        task.sample(1)
    with pytest.raises(StateformError, match="path is '/no/such', where nothing is; expected"):
        make_task(name, {"path": "/no/such"})


def test_stored_rows_are_what_tasks_give() -> None:
    numbers = torch.tensor([[0, 51], [255, 102]], dtype=torch.uint8)
    stored = Stored(numbers, torch.tensor([[1], [2]]), torch.ones(2, 2, dtype=torch.bool), scale=1 / 255)
    row = stored[1:]
    assert row.inputs.shape == (1, 2, 1) and row.inputs.dtype == torch.float32
    assert torch.allclose(row.inputs.flatten(), torch.tensor([1.0, 0.4]))
    moved = stored.to("cpu")
    assert not isinstance(moved, Stored) and moved.inputs.shape == (2, 2, 1) and len(stored) == 2
    assert Stored(numbers, numbers)[torch.tensor([1, 0])].inputs.tolist() == [[255, 102], [0, 51]]


# -- images -----------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the IDX format."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def write_mnist(place: Path, n_train: int = 24, n_test: int = 5) -> dict[str, np.ndarray]:
    """Random images and labels in the four files: those of training packed, those of the test not."""
    rng = np.random.RandomState(0)
    out = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        out[f"{part}-images"] = rng.randint(256, size=(n, 28, 28))
        out[f"{part}-labels"] = rng.randint(10, size=n)
        for what, n_dims in (("images", 3), ("labels", 1)):
            content = idx(out[f"{part}-{what}"])
            name = f"{part}-{what}-idx{n_dims}-ubyte"
            if part == "train":
                (place / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (place / name).write_bytes(content)
    return out


def test_images_become_sequences(tmp_path: Path) -> None:
    data = write_mnist(tmp_path, 120)
    task, permuted = make_task("smnist", {"path": str(tmp_path)}), make_task("pmnist", {"path": str(tmp_path)})
    assert [len(everything(task, split)) for split in SPLITS] == [110, 10, 5]
    train, valid, test = (everything(task, split) for split in SPLITS)
    images = torch.from_numpy(data["train-images"]).float().reshape(120, 784, 1) / 255
    assert torch.allclose(torch.cat([train.inputs, valid.inputs]), images)
    assert torch.cat([train.labels, valid.labels]).flatten().tolist() == data["train-labels"].tolist()
    assert torch.allclose(test.inputs[3, 28 * 2 + 7, 0], torch.tensor(data["t10k-images"][3, 2, 7] / 255).float())
    order = np.random.RandomState(92916).permutation(784)
    assert torch.equal(everything(permuted, "test").inputs, test.inputs[:, order])
    other = make_task("pmnist", {"path": str(tmp_path), "permutation": 1})
    assert not torch.equal(everything(other, "test").inputs, everything(permuted, "test").inputs)
    drawn = task.sample(110)
    assert not torch.equal(drawn.inputs, train.inputs)
    assert torch.allclose(drawn.inputs.sum(0), train.inputs.sum(0)), "without replacement while there are enough"
    assert len(task.sample(200)) == 200


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("smnist(length=100)", "length is 100; expected 784: an image has 28 by 28 pixels"),
        ("pmnist(permutation=-1)", "permutation is -1; expected a seed"),
        ("spoken_digits(rate=3000)", "rate is 3000; expected a divisor of 8000"),
        ("spoken_digits(rate=0)", "rate is 0"),
        ("text(path='/no/such')", "cannot read the text /no/such"),
    ],
)
def test_what_does_not_go_together(spec: str, message: str) -> None:
    with pytest.raises(StateformError, match=message):
        make_task(spec)


IMAGES = np.zeros((24, 28, 28))


def zipped(content: bytes) -> bytes:
    """The same bytes at any time: the tests are named by them, and two processes must name them alike."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train-images-idx3-ubyte.gz",
            None,
            "there is no .*train-images-idx3-ubyte.gz, nor without .gz; expected MNIST's",
        ),
        ("train-images-idx3-ubyte.gz", b"no gzip", "cannot read .*images-idx3-ubyte.gz: .* fetch it again"),
        ("train-images-idx3-ubyte.gz", zipped(idx(IMAGES))[:-30], "cannot read .*fetch it again"),
        ("train-images-idx3-ubyte.gz", zipped(b""), "starts with nothing; an IDX file starts with 00 00 08 03"),
        ("train-images-idx3-ubyte.gz", zipped(idx(IMAGES[0])), "starts with 00 00 08 02; an IDX file"),
        ("train-images-idx3-ubyte.gz", zipped(idx(IMAGES)[:9]), "ends within its header"),
        ("train-images-idx3-ubyte.gz", zipped(idx(IMAGES)[:-1]), "has 18831 bytes; its header says 18832"),
        ("train-images-idx3-ubyte.gz", zipped(idx(IMAGES) + b"0"), "has 18833 bytes; its header says 18832"),
        ("train-images-idx3-ubyte.gz", zipped(idx(IMAGES[:, :27])), r"are \(27, 28\); expected 28 by 28"),
        ("train-labels-idx1-ubyte.gz", zipped(idx(np.zeros(23))), "has 24 images and 23 labels"),
        ("train-labels-idx1-ubyte.gz", zipped(idx(np.full(24, 10))), "has the label 10; expected 0 to 9"),
    ],
)
def test_images_of_another_format(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write_mnist(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StateformError, match=message):
        make_task("smnist", {"path": str(tmp_path)}).sample(1)


def test_the_real_mnist() -> None:
    real("mnist")
    task = make_task("smnist")
    train, valid, test = (everything(task, split) for split in SPLITS)
    assert (len(train), len(valid), len(test)) == (55_000, 5_000, 10_000)
    # The published checksums of the files without their headers: every pixel and label, in order.
    for one, images, labels in [
        ((test,), "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
        ((train, valid), "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
    ]:
        pixels = np.concatenate([np.rint(b.inputs.numpy() * 255).astype(np.uint8).reshape(-1, 28, 28) for b in one])
        digits = np.concatenate([b.labels.numpy().flatten() for b in one])
        assert hashlib.md5(idx(pixels)).hexdigest() == images
        assert hashlib.md5(idx(digits)).hexdigest() == labels


# -- recordings -------------------------------------------------------------------------------------------------------


def sound(samples: np.ndarray, rate: int = 8000, channels: int = 1, width: int = 2) -> bytes:
    """A .wav file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2" if width == 2 else "u1").tobytes())
    return out.getvalue()


def write_recordings(place: Path, n: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    out = {}
    for digit in (3, 7):
        for number in range(n):
            out[f"{digit}_ann_{number}.wav"] = rng.randint(-2000, 2000, size=20 + 7 * number + digit)
    for name, samples in out.items():
        (place / name).write_bytes(sound(samples))
    return out


def test_recordings_become_sequences(tmp_path: Path) -> None:
    data = write_recordings(tmp_path)
    task = make_task("spoken_digits", {"path": str(tmp_path), "length": 80, "normalize": False})
    sizes = {split: len(everything(task, split)) for split in SPLITS}
    assert sizes == {"train": 4, "valid": 10, "test": 10}, "numbers 10 and 11, 5 to 9, 0 to 4 of two digits"
    names = {"test": range(5), "valid": range(5, 10), "train": (10, 11)}
    for split in SPLITS:
        batch = everything(task, split)
        expected = {f"{digit}_ann_{number}.wav" for digit in (3, 7) for number in names[split]}
        assert batch.mask is not None
        for row, digit, mask in zip(batch.inputs, batch.labels.flatten().tolist(), batch.mask):
            match = [
                name for name in expected
                if name[0] == str(digit) and np.allclose(row[:20, 0] * 32768, data[name][:20])
            ]  # fmt: skip
            assert len(match) == 1
            samples = data[match[0]][:80]
            assert int(mask.sum()) == len(samples)
            assert np.allclose(row[: len(samples), 0] * 32768, samples) and not row[len(samples) :].any()
            expected.remove(match[0])
        assert not expected


def test_slower_rates_are_means(tmp_path: Path) -> None:
    samples = np.array([100, 300, -5, 7, 40, 60, 9])
    (tmp_path / "1_bob_0.wav").write_bytes(sound(samples))
    options = {"path": str(tmp_path), "length": 4, "rate": 4000}
    plain = everything(make_task("spoken_digits", {**options, "normalize": False}), "test")
    assert torch.allclose(plain.inputs.flatten() * 32768, torch.tensor([200.0, 1.0, 50.0, 0.0]))
    assert plain.mask is not None and plain.mask.tolist() == [[True, True, True, False]]
    loud = everything(make_task("spoken_digits", options), "test")
    assert torch.allclose(loud.inputs.flatten(), torch.tensor([1.0, 0.005, 0.25, 0.0]), atol=1e-4)


@pytest.mark.parametrize("ending", ["xz", "gz"])
def test_an_archive_of_recordings(tmp_path: Path, ending: str) -> None:
    (tmp_path / "wav").mkdir()
    write_recordings(tmp_path / "wav")
    archive = tmp_path / f"recordings.tar.{ending}"
    with tarfile.open(archive, f"w:{ending}") as out:  # type: ignore[call-overload]
        out.add(tmp_path / "wav", "recordings")
    ways = [{"path": str(place), "length": 80} for place in (tmp_path / "wav", archive, tmp_path)]
    batches = [everything(make_task("spoken_digits", options), "test") for options in ways]
    assert all(torch.equal(batches[0].inputs, batch.inputs) for batch in batches)
    content = archive.read_bytes()
    broken = tmp_path / f"broken.tar.{ending}"
    for cut in (content[: len(content) // 2], b"no archive"):
        broken.write_bytes(cut)
        with pytest.raises(StateformError, match=r"cannot read .*broken.*fetch it again"):
            make_task("spoken_digits", {"path": str(broken), "length": 80}).sample(1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("seven.wav", sound(np.ones(5)), "has a file seven.wav; expected names such as 7_jackson_32.wav"),
        ("1_ann_0.wav", b"no sound", "1_ann_0.wav in .* is no .wav file"),
        ("1_ann_0.wav", sound(np.ones(5))[:-3], "1_ann_0.wav in .* (has 3 samples; it says 5|is no .wav file)"),
        ("1_ann_0.wav", sound(np.ones(0)), "has 0 samples"),
        (
            "1_ann_0.wav",
            sound(np.ones(6), channels=2),
            "2 channels of 16 bits, 8000 samples a second; expected 1 channel",
        ),
        ("1_ann_0.wav", sound(np.ones(6), width=1), "1 channels of 8 bits"),
        ("1_ann_0.wav", sound(np.ones(6), rate=16000), "16000 samples a second; expected"),
        ("1_ann_9.wav", sound(np.ones(6)), "no recording for the split test, whose numbers start at 0"),
        ("readme.txt", b"", "holds neither .wav files nor recordings.tar.xz"),
    ],
)
def test_recordings_of_another_format(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StateformError, match=message):
        make_task("spoken_digits", {"path": str(tmp_path), "length": 8}).sample(1, split="test")


def test_the_real_recordings() -> None:
    real("spoken-digits")
    task = make_task("spoken_digits(rate=1000, length=1000)")
    for split, n in (("train", 2400), ("valid", 300), ("test", 300)):
        batch = everything(task, split)
        assert batch.mask is not None
        assert Counter(batch.labels.flatten().tolist()) == {digit: n // 10 for digit in range(10)}
        sizes = batch.mask.sum(1)
        assert int(sizes.min()) > 140 and int(sizes.max()) <= 1000
        assert torch.allclose(batch.inputs.abs().amax((1, 2)), torch.ones(n), atol=1e-3)
        assert not batch.inputs[~batch.mask].any()


# -- text -------------------------------------------------------------------------------------------------------------


def test_labels_are_the_next_bytes(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    content = np.random.RandomState(0).randint(256, size=2000).astype(np.uint8).tobytes()
    file.write_bytes(content)
    task = make_task("text", {"path": str(file), "length": 50})
    places = {"train": (0, 1800), "valid": (1800, 1900), "test": (1900, 2000)}
    for split in SPLITS:
        low, high = places[split]
        starts = set()
        batch = task.sample(2000, split=split)
        for row, labels in zip(batch.inputs.tolist(), batch.labels.tolist()):
            start = content.find(bytes(row))
            assert bytes(labels) == content[start + 1 : start + 51] and low <= start and start + 51 <= high
            starts.add(start)
        if split != "train":
            assert starts == set(range(low, high - 50)), "every window comes"
    with pytest.raises(
        StateformError, match=r"length is 100; the shortest part of .*some\.txt, a twentieth, has 100 bytes"
    ):
        task.sample(1, length=100)
    with pytest.raises(StateformError, match="length is 500"):
        make_task("text", {"path": str(file), "length": 500})
    file.write_bytes(b"another text, " * 500)
    assert b"another" in bytes(task.sample(1).inputs[0].tolist()), "a file that changed is read again"
    file.write_bytes(b"")
    with pytest.raises(StateformError, match="is empty"):
        task.sample(1)


def test_the_default_text_is_english() -> None:
    batch = make_task("text").sample(20)
    letters = Counter(bytes(batch.inputs.flatten().tolist()).decode().lower())
    assert letters[" "] > letters["e"] > letters["q"]


class Column:
    """One split of a data set: what the package `datasets` gives, as far as it is used."""

    def __init__(self, rows: list[str]) -> None:
        self.rows, self.column_names = rows, ["text", "title"]

    def __getitem__(self, name: str) -> list[str]:
        return self.rows


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """In place of the package: `asked` holds what was asked for, `gives` what is given."""
    package: Any = types.SimpleNamespace(asked=[], gives={})

    def load_dataset(*args: Any) -> Any:
        package.asked.append(args)
        if isinstance(package.gives, Exception):
            raise package.gives
        return package.gives

    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)
    read_hub.cache_clear()
    yield package
    read_hub.cache_clear()


def test_texts_of_the_hub(hub: Any) -> None:
    hub.gives = {"train": Column(["ab", "cdefgh"]), "validation": Column(["xyzw"]), "test": Column(["é" * 9])}
    task = make_task("hf_text(length=3)")
    assert hub.asked == [], "nothing is fetched before it is needed"
    batch = task.sample(40)
    assert hub.asked == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    pairs = {(bytes(x), bytes(y)) for x, y in zip(batch.inputs.tolist(), batch.labels.tolist())}
    whole = b"abcdefgh"
    assert pairs == {(whole[i : i + 3], whole[i + 1 : i + 4]) for i in range(5)}
    assert bytes(task.sample(1, split="valid").inputs[0].tolist()) == b"xyz"
    assert set(task.sample(9, split="test").inputs.flatten().tolist()) == set("é".encode())
    assert len(hub.asked) == 1, "it is read once"
    with pytest.raises(
        StateformError, match="the part valid of the text has 4 bytes; a window has 4 and the one after"
    ):
        task.sample(1, split="valid", length=4)


def test_a_data_set_with_one_split_is_cut(hub: Any) -> None:
    hub.gives = {"train": Column(["a" * 90 + "b" * 5, "c" * 5])}
    task = make_task("hf_text(dataset='some', config=None, length=4)")
    assert hub.asked == []
    for split, letter in zip(SPLITS, b"abc"):
        assert set(task.sample(3, split=split).labels.flatten().tolist()) == {letter}
    assert hub.asked == [("some", None)]


def test_what_the_hub_does_not_have(hub: Any) -> None:
    hub.gives = {"train": Column(["abc"])}
    with pytest.raises(StateformError, match="has the columns text, title; there is no 'body'"):
        make_task("hf_text(column='body')").sample(1)
    hub.gives = {"test": Column(["abc"])}
    with pytest.raises(StateformError, match="has the splits test; expected train"):
        make_task("hf_text").sample(1)
    hub.gives = ConnectionError("no network")
    with pytest.raises(StateformError, match=r"cannot load the data set 'Salesforce/wikitext' \(.*\): no network"):
        make_task("hf_text").sample(1)


def test_without_the_package(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StateformError, match=r"needs the package datasets: pip install 'stateform\[data\]'"):
        make_task("hf_text").sample(1)
