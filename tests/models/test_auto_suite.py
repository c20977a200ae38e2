"""transformers' own tests of a model, on ours.

They are not in its wheel. Name the root of a checkout of its source in STATEFORM_TRANSFORMERS, of the version that is
installed, and have the package `parameterized`:

    STATEFORM_TRANSFORMERS=~/transformers pytest tests/test_auto_suite.py
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("transformers")

SOURCE = os.environ.get("STATEFORM_TRANSFORMERS", "")
SUITE = Path(__file__).parent / "auto_suite.py"
LIMIT = 1800
"""Seconds that all tests may take."""

OURS = {
    "test_model_weights_reload_no_missing_tied_weights": "expects weights that a folder lacks to be drawn anew with a "
    "warning; ours are refused, unless ignore_mismatched_sizes=True",
    "test_training_gradient_checkpointing_use_reentrant_true": "reentrance would lose the gradients that go through "
    "states; it is refused",
}
"""Tests that do not apply, and why; those that do not apply to any model of this kind skip themselves."""


@pytest.mark.slow
def test_the_tests_of_transformers_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (Path(SOURCE) / "tests" / "test_modeling_common.py").is_file() or not SOURCE:
        pytest.skip("STATEFORM_TRANSFORMERS does not name a checkout of transformers' source; its wheel has no tests")
    if importlib.util.find_spec("parameterized") is None:
        pytest.skip("transformers' tests need the package parameterized")
    shutil.copy(SUITE, tmp_path / "test_suite.py")
    paths = [str(SUITE.parents[2] / "src"), SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*program, "-q", "-W", "ignore", "--junitxml", "result.xml", "test_suite.py"],
        cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=LIMIT,
    )  # fmt: skip
    assert (tmp_path / "result.xml").is_file(), done.stdout + done.stderr
    cases = list(ElementTree.parse(tmp_path / "result.xml").iter("testcase"))
    failed = {str(case.get("name")).split(" ")[0] for case in cases if case.find("failure") is not None
              or case.find("error") is not None}  # fmt: skip
    ran = {str(case.get("name")) for case in cases if case.find("skipped") is None} - failed
    with capsys.disabled():
        print(f"\ntransformers' tests: {len(ran)} pass, {len(failed)} do not apply, the others skip themselves")
    assert failed - OURS.keys() == set(), done.stdout
    assert OURS.keys() - failed == set(), "these pass: take them from the list"
    assert len(ran) > 80, done.stdout
