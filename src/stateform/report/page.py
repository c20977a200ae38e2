"""One self-contained page: interactive figures and tables, no address outside, dark and light."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .figure import COLOURS, Figure, Panel, template
from .table import Grid
from .wording import TOKEN
from .words import visible

_OWN = "report/templates"


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Args:
        template: its file in the package, "report/templates/page.html.j2" or one that extends it.
        result: plain values, which the page holds as JSON in the element `#result`. Numbers that JSON cannot hold
            (NaN, infinities) become null there; the tables still name them.
        figures: drawn where the template names their keys.
        grids: tables, likewise.
        words: other variables of the template.
    """

    template: str
    result: Mapping[str, Any]
    figures: Sequence[Figure]
    grids: Sequence[Grid]
    words: Mapping[str, Any]


def render(
    page: Page, plotlyjs: str = "inline", *, made: Sequence[tuple[str, str]] = (), created: str = "", excerpt: str = "",
    unit: str = TOKEN,
) -> str:  # fmt: skip
    """Write a page as the text of one HTML file, which needs neither a network nor any other file.

    Args:
        page: the content. Names and texts in it are escaped.
        plotlyjs: where the plotting library is: "inline", in the page; "directory", in the file `plotly.min.js` beside
            it; "notebook", in the window that shows the page in a frame, see `report.notebook`.
        made: names and values for the foot of the page: how the result was made.
        created: when.
        excerpt: the beginning of the text that was read, if one was.
        unit: what follows one another in what was read.

    Returns:
        The page, free of characters that UTF-8 cannot encode.
    """
    text = (
        _environment()
        .get_template(page.template)
        .render(
            created=visible(created).replace("T", " "),
            excerpt="\n".join(visible(line) for line in excerpt.splitlines()),
            colours=COLOURS,
            figures={figure.key: figure for figure in page.figures},
            grids={grid.key: grid for grid in page.grids},
            conditions=made,
            unit=unit,
            result=_json(_finite(page.result)),
            plots=_json(plots(page.figures)),
            style=_file("report.css"),
            script=_file("report.js"),
            plotlyjs=plotlyjs,
            plotly=plotly() if plotlyjs == "inline" else "",
            **page.words,
        )
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plots(figures: Sequence[Figure]) -> dict[str, Any]:
    """Give what the script draws: the style once, and for each figure the panels of each view."""
    found = {figure.key: [[_panel(p) for p in view.panels] for view in figure.views] for figure in figures}
    return {"template": template().to_plotly_json(), "figures": found}


def _panel(panel: Panel) -> dict[str, Any]:
    body = panel.figure.to_plotly_json()
    body["layout"].pop("template", None)
    return {"data": body["data"], "layout": body["layout"], "height": panel.height}


def _json(value: Any) -> Markup:
    """Write `value` as JSON that may stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stateform", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["joints"] = _joints
    return environment


def _joints(name: str) -> Markup:
    """Allow line breaks in `name` after its joints, for narrow pages."""
    return Markup("").join(part + Markup("<wbr>") * (part in "/:.(,_") for part in name)


def _file(name: str) -> Markup:
    """Read a file that the page carries as it is."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), f"{_OWN}/{name}")[0])


@cache
def plotly() -> Markup:
    """Give the plotting library, as it may stand inside a script element."""
    return Markup(get_plotlyjs().replace("</script", "<\\/script"))
