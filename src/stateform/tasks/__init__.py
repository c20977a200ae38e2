"""Tasks: recall, state tracking, in-context learning, long range, text; data from a seed, and their solution.

A task is one file, found by its folder.
"""

from __future__ import annotations

import importlib
import pkgutil

from .base import IGNORED, SPLITS, TASKS, Batch, Split, Task, make_task, register_task, task_names

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["IGNORED", "SPLITS", "TASKS", "Batch", "Split", "Task", "make_task", "register_task", "task_names"]
