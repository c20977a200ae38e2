"""Numbers from arrays and files: what is read, and what is refused before any work."""

from __future__ import annotations

import io
import os
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stateform.errors import StateformError
from stateform.series import read_series

DATA = os.environ.get("STATEFORM_DATA")


def npy(values: Any) -> bytes:
    """A .npy file."""
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def wav(raw: bytes, width: int = 2, channels: int = 1, rate: int = 8000) -> bytes:
    """A .wav file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(raw)
    return out.getvalue()


NUMBERS = np.random.RandomState(0).randn(5, 3)


@pytest.mark.parametrize(
    "data",
    [
        NUMBERS, NUMBERS[None], np.asfortranarray(NUMBERS), NUMBERS.astype(">f8"), torch.from_numpy(NUMBERS),
        torch.from_numpy(NUMBERS)[None].requires_grad_(), torch.from_numpy(NUMBERS).to_sparse(),
    ],
    ids=["array", "[1,T,d]", "Fortran", "big-endian", "tensor", "with gradients", "sparse"],
)  # fmt: skip
def test_arrays_are_read(data: Any, tmp_path: Path) -> None:
    assert read_series(data).values.tolist() == NUMBERS.tolist()
    np.save(tmp_path / "a.npy", data.detach().to_dense() if isinstance(data, torch.Tensor) else data)
    series = read_series(tmp_path / "a.npy")
    assert series.values.tolist() == NUMBERS.tolist() and series.values.dtype == torch.float64
    assert (series.width, series.unit, series.rate) == (3, "step", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_floating_dtype_is_read(dtype: torch.dtype) -> None:
    x = torch.from_numpy(NUMBERS).to(dtype)
    assert torch.equal(read_series(x).values, x.double())
    assert read_series(x[:, 0]).values.shape == (5, 1)


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,-4.5e1\n", "a,b\n1,2\n3,-45\n", "a;b\r\n1;2\r\n3;-45", "1\t2\n\n3\t-45\n", "\ufeff1, 2\n3, -45\n",
        '"x, m","y"\n"1","2"\n3,-45\n', "# x, y\n1,2\n3,-45",
    ],
)  # fmt: skip
def test_csv_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    assert read_series(tmp_path / "a.csv").values.tolist() == [[1.0, 2.0], [3.0, -45.0]]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_size_are_read(width: int, tmp_path: Path) -> None:
    top = 2 ** (8 * width - 1)
    samples = [0, 1, -1, top - 1, -top, top // 2]
    raw = b"".join((x + top).to_bytes(1, "little") if width == 1 else x.to_bytes(width, "little", signed=True)
                   for x in samples)  # fmt: skip
    (tmp_path / "a.WAV").write_bytes(wav(raw, width, channels=2, rate=16000))
    series = read_series(str(tmp_path / "a.WAV"))
    assert series.values.tolist() == [[a / top, b / top] for a, b in zip(samples[::2], samples[1::2], strict=True)]
    assert (series.unit, series.rate) == ("sample", 16000)
    assert str(series) == f"3 samples of {tmp_path / 'a.WAV'}, 16,000 a second of 2 numbers"


def holding(change: Callable[[Any], Any]) -> Any:
    """The numbers with one of them changed."""
    out = NUMBERS.copy()
    change(out)
    return out


BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "NaN": (holding(lambda x: x.__setitem__((3, 1), np.nan)), r"holds nan at step 3, number 1 .*fill the gaps"),
    "inf": (holding(lambda x: x.__setitem__((0, 2), -np.inf)), r"holds -inf at step 0, number 2"),
    "integers": (np.ones((4, 2), np.int64), r"holds int64 of shape \[4, 2\]; expected floating-point.*token ids"),
    "bytes": (np.ones(4, np.uint8), r"holds uint8"),
    "truth": (np.ones((4, 2), bool), r"holds bool"),
    "complex": (np.ones((4, 2), complex), r"holds complex128"),
    "objects": (np.array([[1.0, "a"], [2.0, None]], object), r"expected .*floating-point numbers"),
    "words": (np.array(["a", "b"]), r"holds <U1"),
    "0-d": (np.array(1.5), r"the shape \[\]; expected \[T,d\]"),
    "3-d": (np.ones((2, 3, 4)), r"the shape \[2, 3, 4\]; expected \[T,d\]"),
    "empty": (np.ones((0, 3)), r"is empty, of shape \[0, 3\]"),
    "no width": (np.ones((3, 0)), r"is empty, of shape \[3, 0\]"),
    "one step": (np.ones((1, 3)), r"has 1 step; expected at least 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_series_are_refused(name: str, tmp_path: Path) -> None:
    array, message = BAD_ARRAYS[name]
    with pytest.raises(StateformError, match=message):
        read_series(array)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(StateformError, match=rf"a\.npy.*{message}"):
        read_series(tmp_path / "a.npy")


def test_a_tensor_without_values_is_refused() -> None:
    with pytest.raises(StateformError, match="an array is on the device meta, where there are no numbers"):
        read_series(torch.zeros(4, 2, device="meta"))


def test_a_masked_number_is_none() -> None:
    with pytest.raises(StateformError, match="holds nan at step 0, number 1"):
        read_series(np.ma.masked_equal([[1.0, 2.0], [3.0, 4.0]], 2.0))


@pytest.mark.parametrize("data", [[[1.0], [2.0]], 3.0, None, b"1,2"])
def test_what_is_no_array_is_refused(data: Any) -> None:
    with pytest.raises(StateformError, match=f"the numbers are a {type(data).__name__}; expected a file, an array"):
        read_series(data)


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "absent": ("", b"", r"cannot read the numbers .*No such file"),
    "another suffix": ("a.txt", b"1,2", r"a\.txt is no file of numbers by its name; expected \.npy, \.csv, \.wav"),
    "several arrays": ("a.npz", b"PK\x03\x04", r"expected \.npy, \.csv, \.wav"),
    "empty npy": ("a.npy", b"", r"cannot read .*a\.npy as \.npy"),
    "no npy": ("a.npy", b"1,2\n3,4\n", r"cannot read .*a\.npy as \.npy: .*expected one array"),
    "cut npy": ("a.npy", npy(NUMBERS)[:-8], r"cannot read .*a\.npy as \.npy"),
    "cut head": ("a.npy", npy(NUMBERS)[:30], r"cannot read .*a\.npy as \.npy"),
    "a huge npy": ("a.npy", npy(NUMBERS).replace(b"(5, 3), }    ", b"(9999999999999,), }")[:120], r"cannot read"),
    "empty csv": ("a.csv", b"", r"a\.csv holds no row of numbers"),
    "names alone": ("a.csv", b"x,y\n", r"a\.csv holds no row of numbers"),
    "ragged": ("a.csv", b"x,y\n1,2\n3\n", r"line 3 of .*a\.csv has 1 cells, line 2 has 2; expected as many"),
    "ragged with blank lines": ("a.csv", b"1,2\n\n\n3,4,5\n", r"line 4 of .* has 3 cells, line 1 has 2"),
    "a gap": ("a.csv", b"1,2\n3,\n", r"line 2 of .* has '' in column 2; expected a number"),
    "a word": ("a.csv", b"1,2\nx,4\n", r"line 2 of .* has 'x' in column 1"),
    "a word in the first row": ("a.csv", b"1,o\n3,4\n", r"line 1 of .* has 'o' in column 2.*names may stand"),
    "decimal commas": ("a.csv", b"1,5;2\n3;4\n", r"has '1,5' in column 1; expected a number with a decimal point"),
    "csv with nan": ("a.csv", b"1,2\n3,nan\n", r"holds nan at step 1, number 1"),
    "no text": ("a.csv", b"1,2\n\xff,4\n", r"a\.csv is no text in UTF-8"),
    "an open quote": ("a.csv", b'1,2\n"' + b"3" * 200_000, r"cannot read .*a\.csv as \.csv: line 2"),
    "no wav": ("a.wav", b"no sound", r"a\.wav is no \.wav file: .*save it anew"),
    "empty wav": ("a.wav", b"", r"a\.wav is no \.wav file: it ends too early; save"),
    "no samples": ("a.wav", wav(b""), r"a\.wav has 0 samples"),
    "cut wav": ("a.wav", wav(b"\0" * 10)[:-3], r"a\.wav has 3 samples; it says 5"),
    "floats": ("a.wav", wav(b"\0" * 8).replace(b"\x10\0\0\0\1\0", b"\x10\0\0\0\3\0"), r"is no \.wav file: .*16 bits"),
    "one sample": ("a.wav", wav(b"\0\0"), r"a\.wav has 1 step; expected at least 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_hold_no_series_are_refused(name: str, tmp_path: Path) -> None:
    file, data, message = BAD_FILES[name]
    if file:
        (tmp_path / file).write_bytes(data)
    with pytest.raises(StateformError, match=message):
        read_series(tmp_path / (file or "absent.npy"))


@pytest.mark.parametrize("kind", ["npy", "csv", "wav"])
def test_a_file_cut_anywhere_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    whole = {"npy": npy(NUMBERS), "csv": b"a,b\n1,2\n3,-4.5\n", "wav": wav(bytes(range(20)), channels=2)}[kind]
    for cut in range(len(whole)):
        (tmp_path / f"a.{kind}").write_bytes(whole[:cut])
        try:
            found = read_series(tmp_path / f"a.{kind}")
        except StateformError:
            continue
        assert kind == "csv" and found.values.shape == (2, 2), cut  # it says nowhere where it ends


def test_another_width_is_refused_or_mapped() -> None:
    series = read_series(1e200 * NUMBERS)
    assert series.fitted(3, "the layer") is series
    with pytest.raises(
        StateformError, match=r"an array has 3 numbers a step; the layer reads 8: give .*\[T,8\].*--project"
    ):
        series.fitted(8, "the layer", project=False)
    with pytest.raises(StateformError, match=r"the model reads 8: give numbers \[T,8\]$"):
        series.fitted(8, "the model")
    mapped = series.fitted(8, "the layer", project=True, seed=1)
    assert "3 numbers a step" in mapped.mapped and "to 8 by a fixed random matrix (seed 1)" in mapped.mapped
    plain = torch.linalg.lstsq(torch.from_numpy(NUMBERS), mapped.values)
    assert torch.allclose(torch.from_numpy(NUMBERS) @ plain.solution, mapped.values), "it is one matrix for all steps"
    larger, other = (read_series(x).fitted(8, "", project=True, seed=1).values for x in (NUMBERS, NUMBERS[:, ::-1]))
    assert torch.allclose(larger, mapped.values), "whatever the unit"
    assert not torch.allclose(other, mapped.values)
    many = read_series(np.random.RandomState(0).randn(100, 50)).fitted(200, "", project=True)
    assert float(many.values.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert not read_series(np.zeros((4, 2))).fitted(8, "", project=True).values.any()


@pytest.mark.skipif(not DATA or not Path(DATA, "spoken-digits").is_dir(), reason="no recordings in STATEFORM_DATA")
def test_recordings_are_read_as_they_were_recorded(tmp_path: Path) -> None:
    with tarfile.open(next(Path(str(DATA), "spoken-digits").glob("recordings.tar*"))) as archive:
        member = next(m for m in archive if m.name.endswith(".wav"))
        content = archive.extractfile(member)
        assert content is not None
        data = content.read()
    (tmp_path / "digit.wav").write_bytes(data)
    series = read_series(tmp_path / "digit.wav")
    assert series.rate == 8000 and series.width == 1
    want = np.frombuffer(data[-2 * len(series.values) :], "<i2") / 32768  # what follows the header
    assert series.values[:, 0].tolist() == want.tolist()
