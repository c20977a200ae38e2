"""`__all__` of a package is its whole public surface, and the documentation is made from it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .source import MODULES, PACKAGE, SOURCE, imports_of, tree_of

ROOT = SOURCE.parents[1]
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def bound_in(tree: ast.Module) -> set[str]:
    """List the public names that a file defines."""
    targets: list[ast.expr] = []
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        targets += node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    names |= {x.id for x in targets if isinstance(x, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def surface(package: str) -> set[str]:
    """List what a package defines, and what it imports from its own files: modules, and what is above, do not count."""
    inside = f"{package}." if package else ""
    taken = {name for _, other, name in imports_of(MODULES[package]) if f"{other}.".startswith(inside)}
    public = {name for name in taken - {"", "*"} if not name.startswith("_")}
    return public | bound_in(tree_of(MODULES[package]))


def package_of(name: str) -> ModuleType:
    """Import a package by its name below stateform."""
    return importlib.import_module(f"{PACKAGE}.{name}".rstrip("."))


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_the_whole_surface(name: str) -> None:
    if name == "models.auto":
        pytest.importorskip("transformers")
    package = package_of(name)
    listed = list(getattr(package, "__all__", []))
    assert sorted(surface(name) - set(listed)) == []
    assert [x for x in listed if not hasattr(package, x)] == []
    assert len(listed) == len(set(listed))


def test_what_the_package_offers_is_listed_once() -> None:
    """`public` has where each name is from, `__all__` that it is there."""
    imported = [node for node in tree_of(MODULES["public"]).body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imported for alias in node.names]
    assert sorted(names) == sorted(package_of("").__all__)


def hooks() -> Any:
    """Import what builds the documentation."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_has_each_name() -> None:
    """Its page describes the name, or has a link to where it is; it reads the source and does not run it."""
    griffe, docs = pytest.importorskip("griffe"), hooks()
    package = griffe.load(PACKAGE, search_paths=[Path(SOURCE).parent], allow_inspection=False, resolve_aliases=True)
    described: set[str] = set()
    pages = {module.path: (module, docs.page(module, described)) for module in docs.public_modules(package)}
    modules = {"convert", "units", "app", "bench", "learn", "look", "pretrained", "sweep"}  # have pages of their own
    left_out = [
        f"{path}: {name}"
        for path, (module, text) in pages.items()
        if module.is_init_module
        for name in map(str, module.exports or [])
        if f"        - {name}\n" not in text and f"- [`{name}`]" not in text and name not in modules
    ]
    assert left_out == []
