"""The example at the door of the representation is what it prints."""

from __future__ import annotations

import doctest

import stateform.system


def test_the_worked_example() -> None:
    found = doctest.testmod(stateform.system, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted >= 5 and found.failed == 0
