"""Recall and copying: multi-query associative recall (MQAR), induction heads, copying, selective copying."""

from .copying import Copying
from .draws import Ints, batch_of, distinct, first_seen, whole_numbers, with_answers
from .induction import Induction
from .mqar import MQAR
from .selective_copy import SelectiveCopy

__all__ = [
    "Copying", "Induction", "Ints", "MQAR", "SelectiveCopy", "batch_of", "distinct", "first_seen", "whole_numbers",
    "with_answers",
]  # fmt: skip
