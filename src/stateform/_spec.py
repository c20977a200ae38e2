"""Specifications: a name with options in brackets, "mamba2(d_state=16)", of a layer or of a task."""

from __future__ import annotations

import ast
from typing import Any

from ._errors import StateformError


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of `name` or `name(option=value, ...)`; the values are Python literals.

    Raises:
        StateformError: brackets that hold anything else.
    """
    head, bracket, rest = spec.partition("(")
    if not bracket or (".py" in rest and not rest.endswith(")")):  # a folder may have brackets in its name
        return spec.strip(), {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
        assert len(options) == len(call.keywords)
        return head.strip(), options
    except (SyntaxError, ValueError, AssertionError):
        raise StateformError(
            f"cannot read {spec!r}; expected name(option=value, ...), e.g. qlstm(reversed=True)"
        ) from None
