"""Code of the user's own in other processes: the tasks, layers and runners of a sweep.

A class is registered only in the process that defined it. A file can be run again elsewhere, a module imported. Code
that was typed into a notebook, or after `python -c`, cannot.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..architectures import REGISTRY, Entry
from ..layer.spec import USER_MODULE, run_file
from ..tasks import TASKS, Task
from ..train.config import Experiment
from ..train.sources import own_classes

MAIN = ("__main__", "__mp_main__")
"""Names of the script that runs: in this process, and in processes that run it again."""


@dataclass(frozen=True)
class Origin:
    """The origin of a class or a function: a file to run, a module to import, the script, or the class itself."""

    kind: Literal["file", "module", "script", "value"]
    where: Any

    def bring(self) -> None:
        """Register in this process the classes that come from there."""
        if self.kind == "file":
            run_file(Path(self.where))
        elif self.kind == "module":
            importlib.import_module(self.where)
        elif self.kind == "script" and getattr(sys.modules.get(MAIN[1]), "__file__", None) != self.where:
            module = types.ModuleType(MAIN[1])
            sys.modules[MAIN[1]] = sys.modules[MAIN[0]] = module
            module.__dict__.update(runpy.run_path(self.where, run_name=MAIN[1]))
        elif self.kind == "value":
            names, cls = self.where
            for name in names:
                if issubclass(cls, Task):
                    TASKS[name] = cls
                else:
                    REGISTRY[name] = Entry(name, cls, "", "")


def origins(experiments: Iterable[Experiment], runner: Callable[..., Any]) -> list[Origin | str]:
    """Find where the classes of experiments, and a runner, come from; one without an origin is given by its name."""
    classes = dict.fromkeys(cls for made in experiments for cls in own_classes(made))
    return list(dict.fromkeys([*map(_origin, classes), *([_origin(runner)] if runner.__module__ in MAIN else [])]))


def _origin(thing: Any) -> Origin | str:
    if thing.__module__.startswith(USER_MODULE):
        return Origin("file", str(Path(sys.modules[thing.__module__].__file__ or "").absolute()))
    if "<locals>" in thing.__qualname__:
        return str(thing.__qualname__)
    if thing.__module__ not in MAIN:
        return Origin("module", thing.__module__)
    file = getattr(sys.modules[MAIN[0]], "__file__", None)
    return Origin("script", os.path.abspath(file)) if file and os.path.isfile(file) else str(thing.__qualname__)


def by_value(experiments: Iterable[Experiment]) -> list[Origin]:
    """Find the origins of classes for Ray, which can send a class itself: one from the script, or without an origin."""
    found = []
    for cls in dict.fromkeys(cls for made in experiments for cls in own_classes(made)):
        origin = _origin(cls)
        if isinstance(origin, str) or origin.kind == "script":
            table: dict[str, type] = {**TASKS, **{name: entry.cls for name, entry in REGISTRY.items()}}
            origin = Origin("value", (tuple(name for name, known in table.items() if known is cls), cls))
        found.append(origin)
    return found


@dataclass(frozen=True)
class Surroundings:
    """The state of this process that others need to make its experiments: its folder, its path, the user's code."""

    origins: tuple[Origin, ...]
    folder: str
    path: tuple[str, ...]

    @classmethod
    def here(cls, origins: Iterable[Origin]) -> Surroundings:
        """Describe this process."""
        return cls(tuple(origins), os.getcwd(), tuple(sys.path))

    def enter(self) -> None:
        """Make this process like the one described."""
        with contextlib.suppress(OSError):  # on another machine there may be no such folder
            os.chdir(self.folder)
        sys.path += [place for place in self.path if place not in sys.path]
        for origin in self.origins:
            origin.bring()


@contextlib.contextmanager
def without_script() -> Iterator[None]:
    """Keep processes started inside from running this script first, where a failure would leave no log."""
    script = sys.modules[MAIN[0]]
    sys.modules[MAIN[0]] = types.ModuleType(MAIN[0])
    try:
        yield
    finally:
        sys.modules[MAIN[0]] = script
