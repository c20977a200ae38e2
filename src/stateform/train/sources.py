"""Sources: what an experiment depends on besides its settings. They are data, the user's code, our own version.

They are no part of its key, so that what was computed is found again. They are written beside it, and compared when a
training goes on or its outcome is asked for. Changed data or code are an error, another version is a note.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..architectures import resolve
from ..machine import stateform_version
from .config import Experiment

PACKAGE = __name__.partition(".")[0]
Sources = dict[str, Any]


def sources(experiment: Experiment) -> Sources:
    """List the sources as plain values: `stateform` (version), `data` (hash; None: reads none), `code` (hash by class).

    Raises:
        StateformError: data that do not exist.
    """
    code = {cls.__qualname__: code_of(cls) for cls in own_classes(experiment)}
    return {"stateform": stateform_version(), "data": experiment.task.contents(), "code": code}


def own_classes(experiment: Experiment) -> list[type]:
    """List the classes of the task and of the layers that are the user's own, of no package."""
    used = [type(experiment.task), *(resolve(spec)[0] for spec in dict.fromkeys(experiment.config.layers))]
    return [cls for cls in dict.fromkeys(used) if _is_own(cls)]


def _is_own(cls: type) -> bool:
    package = cls.__module__.partition(".")[0]
    return package not in (PACKAGE, "torch") and package not in sys.stdlib_module_names


def changes(was: Mapping[str, Any] | None, now: Sources, experiment: Experiment) -> tuple[str | None, list[str]]:
    """Compare sources: why the training cannot go on (None: it can), and notes to print.

    Args:
        was: its sources as written at its start; None: begun by a version that did not write them.
        now: what they are.
        experiment: the training.
    """
    if was is None:
        known = [f"what {experiment.task.spec} reads"] if now["data"] is not None else []
        known += [f"the code of {name}" for name in now["code"]]
        unknown = f"{' and '.join(known)} may have changed since: it was not written down"
        return None, [unknown] if known else []
    code = was.get("code", {})
    changed = [f"what {experiment.task.spec} reads"] if was.get("data") not in (None, now["data"]) else []
    changed += [f"the code of {name}" for name, now_is in now["code"].items() if code.get(name) not in (None, now_is)]
    if changed:
        return f"{' and '.join(changed)} has changed since", []
    version = was.get("stateform")
    other = f"it was begun with stateform {version}; this is {now['stateform']}"
    return None, [other] if version != now["stateform"] else []


# -- code --------------------------------------------------------------------------------------------------------------


def code_of(cls: type) -> str | None:
    """Compute a hash of the source of a class, of what it uses of its file, and of the user's own bases elsewhere.

    Comments and layout do not count. What its file imports from other files of the user is not followed.

    Returns:
        The hash; None where there is no source, as for code typed after `python -c`.
    """
    found = hashlib.sha256()
    for base in cls.__mro__:
        if not _is_own(base):
            continue
        used = _used(base)
        if used is None:
            return None
        found.update(used.encode())
    return found.hexdigest()


def _used(cls: type) -> str | None:
    """Collect the source of a class and of all in its file that it uses, directly or not; None: there is no source."""
    for text in _texts(cls):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        start = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
        if not start:
            continue
        top: dict[str, list[ast.stmt]] = {}
        for statement in tree.body:
            for name in _defined(statement):
                top.setdefault(name, []).append(statement)
        kept: dict[ast.AST, None] = dict.fromkeys(start)
        waiting: list[ast.AST] = list(start)
        while waiting:
            for name in _named(waiting.pop()):
                new = [node for node in top.get(name, ()) if node not in kept]
                kept |= dict.fromkeys(new)
                waiting += new
        return "\n".join(sorted(ast.unparse(node) for node in kept))
    return None


def _texts(cls: type) -> Iterator[str]:
    """Yield the texts that may have defined a class: its file, or the cells of a notebook."""
    files = [f.__code__.co_filename for f in vars(cls).values() if inspect.isfunction(f)]
    files.append(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")
    for file in dict.fromkeys(files):
        linecache.checkcache(file)
        if lines := linecache.getlines(file):
            yield "".join(lines)


def _defined(statement: ast.stmt) -> Iterable[str]:
    """List the names that a statement at the top of a file defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    aliases = [node for node in ast.walk(statement) if isinstance(node, ast.alias)]
    stored = [node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return [(alias.asname or alias.name).partition(".")[0] for alias in aliases] + [node.id for node in stored]


def _named(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
