"""The docstring of a function begins with what it does: a verb in the imperative, or "True if".

English has no mark for its verbs, but most that is none has one: words that stand before a noun or a clause are few and
always the same, nouns and other forms of verbs have endings, and a noun is followed by "of" or "is".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from .source import MODULES, tree_of

Function = ast.FunctionDef | ast.AsyncFunctionDef

BEFORE_A_NOUN = """
a an the this that these those its their one two three no none nothing any some all each every both either neither other
another such same several many few most least more less much old new plain real normal left right last next
"""
BEFORE_A_CLAUSE = """
whether what which who whose how why when where if as of at by for from in into on onto over under after before with
within without between beside per to than and or not but only also later then there here it is are true false
"""
OF_NO_VERB = re.compile(r"\w*([st]ion|ness|ity|ism|(?<!br)ing|(?<![eb])ed|(?<!p)ly|ous|ful|less|ic|[^s]s)")
"""Endings: tokens, returns, balanced, packing, direction; not: bring, embed, apply, pass."""
AFTER_A_NOUN = frozenset({"of", "is", "are", "has", "have", "per"})
ATTRIBUTES = frozenset({"property", "cached_property", "Lazy"})


def says_what_it_does(docstring: str) -> bool:
    """True if the text begins with a verb in the imperative, or with "True if"."""
    first, second, *_ = [*docstring.split(), "", ""]
    word = first.rstrip(",")
    if first == "True" and second == "if":
        return True
    return (
        re.fullmatch("[A-Z][a-z]+", word) is not None
        and word.lower() not in (BEFORE_A_NOUN + BEFORE_A_CLAUSE).split()
        and OF_NO_VERB.fullmatch(word.lower()) is None
        and (first != word or second not in AFTER_A_NOUN)
    )


def begins_a_clause(docstring: str) -> bool:
    """True if the text begins like "Whether it is", and not with "True if"."""
    first, second, *_ = re.split(r"\W", docstring, maxsplit=2)
    return first.lower() in BEFORE_A_CLAUSE.split() and (first not in {"True", "False"} or second != "if")


def is_attribute(function: Function) -> bool:
    """True if a function is read without a call: its docstring says what it is."""
    marks = [
        node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in function.decorator_list
    ]
    return not ATTRIBUTES.isdisjoint(marks)


def documented() -> Iterator[tuple[str, Function, str]]:
    """List every function and method that has a docstring: module and line, itself, the docstring."""
    for module, path in MODULES.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, Function) and (docstring := ast.get_docstring(node)):
                yield f"{module}:{node.lineno}", node, docstring


def test_a_docstring_says_what_the_function_does() -> None:
    wrong = [
        f"{place}: {docstring.splitlines()[0]}"
        for place, function, docstring in documented()
        if not is_attribute(function) and not says_what_it_does(docstring)
    ]
    assert wrong == []


def test_an_attribute_says_what_it_is() -> None:
    """A noun or a verb, and never "Whether"."""
    wrong = [
        f"{place}: {docstring.splitlines()[0]}"
        for place, function, docstring in documented()
        if is_attribute(function) and begins_a_clause(docstring)
    ]
    assert wrong == []


VERBS = [
    "Compute the sum.", "True if it is.", "Embed bytes.", "Find, per head, the rank.", "Pass it on.",
    "Say that it is late.", "Apply the gate.", "Bring it there.",
]  # fmt: skip
OTHERS = [
    "The sum of both.", "Whether it is.", "True for all.", "Number of tokens.", "Returns it.", "Tokens until the end.",
    "alpha of a system.", "[B,T] of a system.", "`q` as it is.", "Median of it.", "Packed rows.", "How far it is.",
    "Computing it.", "Plain values.", "Reduction in rank.", "In words.", "Heads:", "x^T y.",
]  # fmt: skip


@pytest.mark.parametrize("docstring", VERBS)
def test_a_verb_is_seen(docstring: str) -> None:
    assert says_what_it_does(docstring)


@pytest.mark.parametrize("docstring", OTHERS)
def test_what_is_no_verb_is_seen(docstring: str) -> None:
    assert not says_what_it_does(docstring)
