"""A comparison or an analysis as one self-contained page: interactive figures, no address outside, dark and light."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from . import analysis, content, depth, figures
from .figures import TEMPLATE, Figure


def render_html(result: Mapping[str, Any], plotlyjs: str = "inline") -> str:
    """The comparison as the text of one HTML page, which needs neither a network nor any other file.

    The page holds the result itself, as JSON in the element `#result`, the figures, and the plotting library. Numbers
    that JSON cannot hold (NaN, infinities) become null there; the tables still name them.

    Args:
        result: what a comparison found, as plain values (the content of its JSON file). Missing parts are left out.
        plotlyjs: where the plotting library is: "inline", in the page; "directory", in the file `plotly.min.js` beside
            it; "notebook", in the window that shows the page in a frame, see `report.notebook`.

    Returns:
        The page, free of characters that UTF-8 cannot encode. Names and texts in it are escaped.
    """
    drawn = figures.figures(result)
    return page(
        "report.html.j2",
        result,
        drawn,
        plotlyjs,
        subject=content.subject(result),
        interrupted=content.interrupted(result),
        names=content.names(result),
        headlines=content.headlines(result),
        grids={grid.key: grid for grid in content.grids(result, lengths=12)},
    )


def render_analysis(result: Mapping[str, Any], plotlyjs: str = "inline") -> str:
    """The analysis as the text of one HTML page: a section for each question. As `render_html` for the rest."""
    drawn = depth.drawings(result)
    sections = [
        {
            "key": name,
            "title": title,
            "said": analysis.findings(result, name),
            "figures": [figure.key for figure in drawn.get(name, [])],
            "notes": analysis.refused(result, name),
        }
        for name, title in analysis.questions(result)
    ]
    grid = analysis.overview(result, None)
    return page(
        "analysis.html.j2",
        result,
        [figure for figures in drawn.values() for figure in figures],
        plotlyjs,
        title=analysis.title(result),
        subject=analysis.subject(result),
        interrupted=analysis.interrupted(result),
        certified=analysis.certified(result),
        findings=analysis.findings(result, least=analysis.REMARKABLE) or analysis.findings(result),
        sections=[section for section in sections if section["said"] or section["figures"] or section["notes"]],
        grids={grid.key: grid} if grid else {},
    )


def page(template: str, result: Mapping[str, Any], drawn: list[Figure], plotlyjs: str = "inline", **more: Any) -> str:
    """A page from its template, what it tells of, its figures and what else the template names."""
    text = (
        _environment()
        .get_template(template)
        .render(
            created=content.visible(str(result.get("created") or "")).replace("T", " "),
            excerpt=_excerpt(result),
            colours=figures.COLOURS,
            figures={figure.key: figure for figure in drawn},
            conditions=content.conditions(result),
            result=_json(_finite(result)),
            plots=_json(_plots(drawn)),
            style=_file("report.css"),
            script=_file("report.js"),
            plotlyjs=plotlyjs,
            plotly=plotly() if plotlyjs == "inline" else "",
            **more,
        )
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _excerpt(result: Mapping[str, Any]) -> str:
    text = str(content.at(result, "text", "excerpt") or "")
    return "\n".join(content.visible(line) for line in text.splitlines())


def _plots(drawn: list[Figure]) -> dict[str, Any]:
    """What the script draws: the template once, and for each figure the panels of each view."""
    found = {figure.key: [[_panel(p) for p in view.panels] for view in figure.views] for figure in drawn}
    return {"template": TEMPLATE.to_plotly_json(), "figures": found}


def _panel(panel: figures.Panel) -> dict[str, Any]:
    body = panel.figure.to_plotly_json()
    body["layout"].pop("template", None)
    return {"data": body["data"], "layout": body["layout"], "height": panel.height}


def _json(value: Any) -> Markup:
    """`value` as JSON that may stand inside a script element, whatever its strings say."""
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
        loader=jinja2.PackageLoader("stateform.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["joints"] = _joints
    return environment


def _joints(name: str) -> Markup:
    """`name`, which may break after its joints when the page is narrow."""
    return Markup("").join(part + Markup("<wbr>") * (part in "/:.(,_") for part in name)


def _file(name: str) -> Markup:
    """A file that the page carries as it is."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])


@cache
def plotly() -> Markup:
    """The plotting library, as it may stand inside a script element."""
    return Markup(get_plotlyjs().replace("</script", "<\\/script"))
