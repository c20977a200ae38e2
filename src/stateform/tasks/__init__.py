"""Tasks: recall, state tracking, in-context learning, long range, text; data from a seed, and their solution."""

from . import images as images
from . import incontext as incontext
from . import listops as listops
from . import mad as mad
from . import recall as recall
from . import speech as speech
from . import text as text
from . import tracking as tracking
from .base import IGNORED, SPLITS, TASKS, Batch, Split, Task, make_task, register_task, task_names

__all__ = ["IGNORED", "SPLITS", "TASKS", "Batch", "Split", "Task", "make_task", "register_task", "task_names"]
