"""ListOps: the evaluator against published lines, trees against the published recipe, and files."""

from __future__ import annotations

import lzma
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from stateform.errors import StateformError
from stateform.tasks import Batch, make_task
from stateform.tasks.listops import CLOSE, PAD, TOKENS, evaluate, parse


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MED 1 4 ]", 2),
        ("[MED 9 1 4 ]", 4),
        ("[MED 8 8 9 9 ]", 8),
        ("[SM 9 9 [SM 5 5 ] ]", 8),
        ("( ( ( [MIN 3 ) ( ( ( [MAX 1 ) 2 ) ] ) ) ] )", 2),
        ("[SM 4 5 X", 9),
    ],
)
def test_values(expression: str, value: int) -> None:
    assert evaluate(parse(expression)) == value


@pytest.mark.parametrize("expression", ["", "1 2", "[MIN ]", "[SM ]", "[MAX 1", "1 ]", "[MAX 1 ] ]", "[MIN 1 [MAX ] ]"])
def test_what_is_no_expression(expression: str) -> None:
    with pytest.raises(StateformError, match=r"no expression of ListOps: .*expected e\.g\. '\[MAX 2"):
        evaluate(parse(expression))


FOLDERS = {595: (1000, 1000), 95: (5000, 5000)}


@pytest.mark.parametrize("shortest", FOLDERS)
def test_every_published_line_has_its_value(shortest: int) -> None:
    place = Path(os.environ.get("STATEFORM_DATA", "nowhere")) / "listops"
    found = sorted(place.glob(f"Tmin={shortest}_*"))
    if not found:
        pytest.skip("no folder listops in STATEFORM_DATA (see docs/data.md)")
    task = make_task("listops", {"path": str(found[0]), "length": shortest + 10})
    sizes = []
    for split in ("train", "valid", "test"):
        stored = task.whole(split)
        assert stored is not None
        batch = stored[:]
        sizes.append(len(batch))
        assert torch.equal(task.oracle(batch), batch.labels)
        assert batch.mask is not None and ((batch.inputs != PAD) == batch.mask).all()
        assert shortest < int(batch.mask.sum(1).min()) and int(batch.mask.sum(1).max()) < shortest + 10
    train, test = FOLDERS[shortest]
    assert sizes == [train - train // 10, train // 10, test], "there is no file for valid: a tenth of train"


# -- the generator ----------------------------------------------------------------------------------------------------


def published_tree(rng: random.Random, depth: int, max_depth: int, max_args: int) -> list[str]:
    """The tokens of a tree by the steps of the original: depth first, one number after the other."""
    if depth >= max_depth or rng.random() > 0.25:
        return [str(rng.choice(range(10)))]
    arguments = [published_tree(rng, depth + 1, max_depth, max_args) for _ in range(rng.randint(2, max_args))]
    return [rng.choice(["[MIN", "[MAX", "[MED", "[SM"]), *(token for tree in arguments for token in tree), "]"]


def published(n: int, shortest: int, longest: int, max_depth: int, max_args: int) -> list[list[int]]:
    """So many trees of the published recipe, as token ids."""
    rng, kept = random.Random(0), []
    while len(kept) < n:
        tree = published_tree(rng, 1, max_depth, max_args)
        if shortest < len(tree) < longest:
            kept.append([TOKENS.index(token) for token in tree])
    return kept


def described(trees: list[list[int]]) -> dict[str, np.ndarray]:
    """What is compared: sizes, tokens, depths, numbers of arguments, values."""
    depths, arguments = np.zeros(16), np.zeros(16)
    for tree in trees:
        counts: list[int] = [0]
        for token in tree:
            if token == CLOSE:
                arguments[counts.pop()] += 1
                continue
            counts[-1] += 1
            depths[len(counts)] += 1
            if token >= 10:
                counts.append(0)
    lengths = np.array([len(tree) for tree in trees])
    return {
        "tokens": np.bincount(np.concatenate(trees), minlength=16) / lengths.sum(),
        "depths": depths / depths.sum(),
        "arguments": arguments / max(arguments.sum(), 1),
        "lengths": np.quantile(lengths, [0.1, 0.25, 0.5, 0.75, 0.9]) / lengths.max(),
        "values": np.bincount([evaluate(tree) for tree in trees], minlength=10) / len(trees),
    }


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({"shortest": 0, "length": 40, "max_depth": 10, "max_args": 10}, 8000),
        ({"shortest": 20, "length": 100, "max_depth": 5, "max_args": 10}, 1500),
        ({"shortest": 10, "length": 60, "max_depth": 4, "max_args": 5}, 1500),
        ({"shortest": 3, "length": 30, "max_depth": 3, "max_args": 2}, 1500),
    ],
)
def test_trees_are_those_of_the_recipe(options: dict[str, int], n: int) -> None:
    task = make_task("listops", options)
    batch = task.sample(n, seed=1)
    ours = [[t for t in row if t != PAD] for row in batch.inputs.tolist()]
    theirs = published(n, options["shortest"], options["length"], options["max_depth"], options["max_args"])
    a, b = described(ours), described(theirs)
    for what in a:
        assert np.abs(a[what] - b[what]).max() < 0.035, what
    for what in ("depths", "arguments"):  # nothing deeper or wider than allowed; all that is common is there
        assert not a[what][(b[what] == 0) & (np.arange(16) > options["max_args"])].any(), what
        assert (a[what][b[what] > 0.01] > 0).all(), what
    assert a["depths"][options["max_depth"] + 1 :].sum() == 0 == a["arguments"][:2].sum()


def test_the_default_size() -> None:
    task = make_task("listops")
    batch = task.sample(40, seed=2)
    assert batch.mask is not None
    sizes = batch.mask.sum(1)
    assert 500 < int(sizes.min()) < 800 and 1500 < int(sizes.max()) < 2000
    assert torch.equal(batch.mask, batch.inputs != PAD)
    assert torch.equal(task.oracle(batch), batch.labels)
    longest = max(len(tree) for tree in published(20, 500, 2000, 10, 10))
    assert longest > 1000, "the recipe's trees are as large"


def test_many_rounds_give_the_number_asked_for() -> None:
    batch = make_task("listops(shortest=30, length=34, max_depth=3)").sample(300, seed=1)
    assert len(batch) == 300 and batch.mask is not None
    assert set(batch.mask.sum(1).tolist()) == {31, 32, 33}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("listops(max_args=1)", "max_args is 1"),
        ("listops(max_depth=0)", "max_depth is 0"),
        ("listops(shortest=-1)", "shortest is -1"),
        (
            "listops(length=400)",
            "more than 500 tokens and fewer than length, which is 400: lower shortest or raise length",
        ),
        (
            "listops(max_depth=3)",
            "depth 3 with up to 10 arguments has at most 122 tokens; shortest is 500: ask for smaller",
        ),
        ("listops(path='/no/such')", "path is '/no/such', where nothing is; expected files of the Long Range Arena"),
    ],
)
def test_what_does_not_go_together(spec: str, message: str) -> None:
    with pytest.raises(StateformError, match=message):
        make_task(spec)


def test_sizes_that_do_not_occur() -> None:
    # A tree of depth 2 with 2 arguments has 1 or 4 tokens.
    task = make_task("listops(shortest=2, length=4, max_depth=2, max_args=2)")
    with pytest.raises(StateformError, match=r"no tree of 2 to 4 tokens in 1\d{6}"):
        task.sample(1)


# -- files ------------------------------------------------------------------------------------------------------------

LINES = [f"( ( ( [MAX {i % 10} ) {i % 7} ) ] )\t{max(i % 10, i % 7)}" for i in range(100)]
FILE = "\r\n".join(["Source\tTarget", *LINES]) + "\r\n"


def test_a_file_is_cut_in_three(tmp_path: Path) -> None:
    file = tmp_path / "some.tsv"
    file.write_text(FILE, newline="")
    task = make_task("listops", {"path": str(file), "length": 6})
    found = {split: task.whole(split) for split in ("train", "valid", "test")}
    assert {split: len(batch) for split, batch in found.items() if batch} == {"train": 80, "valid": 10, "test": 10}
    batch = found["test"]
    assert batch is not None
    assert batch[0:1].inputs.tolist() == [[11, 0, 90 % 7, CLOSE, PAD, PAD]] and batch[0:1].labels.tolist() == [[6]]
    assert torch.equal(task.oracle(batch[:]), batch[:].labels)
    drawn = task.sample(5, split="valid")
    assert drawn.inputs.shape == (5, 6) and drawn.inputs.dtype == torch.int64
    with pytest.raises(StateformError, match="length is 7; the file is read for length 6"):
        task.sample(1, length=7)


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "basic_train.tsv").write_text(FILE)
    (tmp_path / "basic_val.tsv").write_text("Source\tTarget\n3\t3\n", encoding="utf-8-sig")  # as some editors save it
    (tmp_path / "basic_test.tsv.xz").write_bytes(lzma.compress(b"Source\tTarget\n[MIN 3 4 ]\t3\n[MIN 5 4 ]\t4\n"))
    task = make_task("listops", {"path": str(tmp_path), "length": 5})
    assert [len(task.whole(split) or ()) for split in ("train", "valid", "test")] == [100, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("basic_train.tsv", "Source,Target\n1,1\n", "starts with 'Source,Target'; expected 'Source', a tab"),
        ("basic_train.tsv", "", "starts with ''"),
        ("basic_train.tsv", "Source\tTarget\n", "has no line for the split train"),
        ("basic_train.tsv", "Source\tTarget\n[MIN 1 2 ] 1\n", r"line 2 of .*basic_train.tsv ends in '\[MIN 1 2 \] 1'"),
        ("basic_train.tsv", "Source\tTarget\n1\t1\n[MIN 1 2 ]\t11\n", "line 3 of .* an expression, a tab and 0 to 9"),
        (
            "basic_train.tsv",
            "Source\tTarget\n[AVG 1 2 ]\t1\n",
            r"line 2 of .* has the token '\[AVG'; expected one of 0 1",
        ),
        ("basic_train.tsv", "Source\tTarget\n[SM 1 1 1 1 ]\t4\n", "line 2 of .* has 6 tokens; length is 5: raise it"),
        ("basic_train.tsv.xz", "no archive", "cannot read .*basic_train.tsv.xz"),
        ("other.tsv", FILE, r"has no basic_train.tsv \(or .xz\)"),
    ],
)
def test_files_of_another_format(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StateformError, match=message):
        make_task("listops", {"path": str(tmp_path), "length": 5}).whole("train")


def test_an_archive_that_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "basic_train.tsv.xz").write_bytes(lzma.compress(FILE.encode())[:-20])
    with pytest.raises(StateformError, match="cannot read"):
        make_task("listops", {"path": str(tmp_path), "length": 5}).whole("train")


def test_the_oracle_reads_inputs_alone() -> None:
    batch = make_task("listops(shortest=5, length=30)").sample(4)
    task = make_task("listops")
    assert torch.equal(task.oracle(Batch(batch.inputs, torch.zeros_like(batch.labels))), batch.labels)
