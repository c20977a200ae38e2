"""No file imports one that imports it, by whatever way: but for the methods of System that hand over to the forms."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from .source import MODULES, SOURCE, imports, imports_of, name_of, tree_of

DELEGATES = {"forms", "coefficients", "contributions", "matrices", "spectrum"}
"""Methods of System, of one line each, whose imports run upwards."""


def circles(arrows: Mapping[str, set[str]]) -> list[set[str]]:
    """The sets of modules that reach each other (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in arrows.get(module, set()):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            circle = set()
            while not circle or module not in circle:
                circle.add(stack.pop())
            if len(circle) > 1:
                found.append(circle)

    for module in arrows:
        if module not in index:
            visit(module)
    return found


def without_delegates(tree: ast.Module) -> ast.Module:
    """The file of System without the methods that hand over, and without what their annotations need."""
    kept = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    for node in kept:
        if isinstance(node, ast.ClassDef) and node.name == "System":
            node.body = [x for x in node.body if not (isinstance(x, ast.FunctionDef) and x.name in DELEGATES)]
    return ast.Module(kept, [])


def test_there_are_no_circles() -> None:
    arrows: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        found = imports_of(path)
        if module == "system.system":
            tree = without_delegates(ast.parse(path.read_text(encoding="utf-8")))
            found = imports(tree, list(path.relative_to(SOURCE).parent.parts))
        arrows[module] = {other for _, other, _ in found if other and other != module}
    assert circles(arrows) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_the_delegates_are_one_line_each() -> None:
    system = tree_of(MODULES["system.system"])
    methods = {
        node.name: node
        for cls in system.body
        if isinstance(cls, ast.ClassDef) and cls.name == "System"
        for node in cls.body
        if isinstance(node, ast.FunctionDef)
    }
    for name in DELEGATES:
        steps = [x for x in methods[name].body if not isinstance(x, ast.Expr)]
        assert [type(x) for x in steps] == [ast.ImportFrom, ast.Return], name
    others = [x for name, node in methods.items() if name not in DELEGATES for x in ast.walk(node)]
    assert not any(isinstance(x, ast.Import | ast.ImportFrom) for x in others)


def test_names_of_modules() -> None:
    assert name_of(SOURCE / "system" / "__init__.py") == "system"
    assert {other for _, other, _ in imports_of(MODULES["forms.scan"])} >= {"system.core", "forms.form"}
