"""State tracking: the tokens move a state, and the answer is where it is now. Trained short, tested long."""

from .counting import Counting
from .cycle_navigation import CycleNavigation
from .dyck import Dyck
from .even_pairs import EvenPairs
from .group_word import GroupWord, Permutation, group_elements, group_table
from .modular_arithmetic import ModularArithmetic, evaluate
from .parity import Parity
from .walked import CHOMSKY, EIGENVALUES, Tracking, walk

__all__ = [
    "CHOMSKY", "Counting", "CycleNavigation", "Dyck", "EIGENVALUES", "EvenPairs", "GroupWord", "ModularArithmetic",
    "Parity", "Permutation", "Tracking", "evaluate", "group_elements", "group_table", "walk",
]  # fmt: skip
