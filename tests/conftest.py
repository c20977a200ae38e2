"""One thread, here and in the commands that tests start: the tensors are small, and two processes run side by side."""

import gc
import os
import zlib

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what imports have made, a million things that stay: each of the many
    collections that benchmarks ask for would look at every one of them.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test that is `drawn(share)`, leave all but a share to `make test-all`, one at least: which ones
    follows from the names of test and case, so that each test has others, and all together most of what there is.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("drawn") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for those in cases.values():
        mark = those[0].get_closest_marker("drawn")
        assert mark is not None
        those.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in those[max(1, round(mark.args[0] * len(those))) :]:
            item.add_marker(pytest.mark.slow)
