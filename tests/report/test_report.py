"""The terminal tables and the HTML page, from a made-up comparison and from broken, hostile and incomplete ones."""

from __future__ import annotations

import copy
import importlib.resources
import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from stateform import StateformError
from stateform.report import notebook, units
from stateform.report.figure import COLOURS
from stateform.report.page import plots
from stateform.report.write import write_page
from stateform.studies import comparison, questions
from stateform.studies.comparison import Comparison, tables

LENGTHS = [256, 512, 1024, 2048, 4096]
TEXT = 'The "assert" statement\n**********************\n\nAssert statements are a convenient way to insert assertions'
# name, transition, state at start and per token, contractive, |eigenvalues|, complex, forms, ms at T = 256, power of T
KINDS: list[tuple[str, str, int, int, str, tuple[float, float], bool, list[str], float, float]] = [
    ("softmax", "identity: nothing is forgotten", 0, 128, "no", (1, 1), False, ["recurrent", "matrix"], 0.35, 1.75),
    ("linear", "identity", 4096, 0, "no", (1, 1), False, ["recurrent", "chunkwise", "matrix"], 0.9, 1),
    ("mamba2", "scalar decay per head, from the input", 8960, 0, "by construction", (0.55, 0.9998), False,
     ["recurrent", "chunkwise", "matrix"], 1.4, 1),
    ("gated_deltanet", "scalar decay and delta rule, from the input", 4864, 0, "by construction", (-0.6, 0.9991), False,
     ["recurrent", "chunkwise", "matrix"], 2.1, 1.02),
    ("qlstm(reversed=True)", "scalar decay per head, a convex gate", 1024, 0, "by construction", (0.05, 0.97), False,
     ["recurrent", "chunkwise", "matrix"], 1.1, 1),
    ("s5", "diagonal, complex, constant", 256, 0, "by construction", (0.8, 0.9995), True,
     ["recurrent", "scan", "matrix", "convolution"], 0.7, 1.05),
    ("lru", "diagonal, complex, constant", 128, 0, "by construction", (0.9, 0.9999), True,
     ["recurrent", "scan", "matrix", "convolution"], 0.6, 1.05),
    ("my_experiments/layer.py:WonderfulRecurrence", "dense, from the input; a rank-1 update of an orthogonal matrix",
     65536, 0, "on this text", (0.2, 1.03), True, ["recurrent", "scan", "matrix"], 21.0, 1),
]  # fmt: skip


def example(n: int = 4) -> dict[str, Any]:
    """A comparison of `n` layers, as one might come out."""
    found = [_layer(k, random.Random(k)) for k in range(n)]
    names = [layer["name"] for layer in found]
    pairs = []
    for i in range(n):
        for j in range(i + 1, n):
            equal = (names[i], names[j]) == ("mamba2", "qlstm(reversed=True)")
            pairs.append(
                {
                    "a": names[i],
                    "b": names[j],
                    "equal": equal,
                    "error": 2.1e-16 if equal else round(0.3 + 0.17 * i + 0.09 * j, 3),
                    "first": None if equal else {"row": 0, "position": (i * j) % 3},
                    "shared": 6 if equal else 4,
                    "unshared": 0 if equal else 2,
                    "text": f"{names[i]} and {names[j]} " + ("compute the same function." if equal else "differ."),
                }
            )
    return {
        "stateform": "0.1.0",
        "created": "2026-01-31T12:00:00",
        "machine": {"cpu": "A processor", "threads": 2, "torch": "2.13.0", "python": "3.12.3", "device": "cpu"},
        "text": {"source": "pydoc_data.topics", "tokens": 4096, "excerpt": TEXT},
        "settings": {
            "d_model": 64,
            "lengths": LENGTHS,
            "batch": 1,
            "dtype": "float32",
            "seed": 0,
            "memory_limit_gb": 1.0,
        },
        "complete": True,
        "layers": found,
        "pairs": pairs,
    }


def _layer(k: int, rng: random.Random) -> dict[str, Any]:
    name, transition, size, growth, contractive, (low, high), is_complex, forms, start, power = KINDS[k]
    factor = {"recurrent": 1.6, "chunkwise": 1.0, "scan": 1.2, "matrix": 0.9, "convolution": 1.4}
    slope = {"matrix": 1.9, "recurrent": 1.0 + (k == 0)}
    times: dict[str, dict[str, Any]] = {}
    memory: dict[str, dict[str, float]] = {}
    left_out = []
    for form in forms:
        times[form], memory[form] = {}, {}
        for T in LENGTHS:
            memory[form][str(T)] = 4.0 * (64 * T + (T * T * 4 if form == "matrix" else size * 8))
            if form == "matrix" and T == 4096 and k:
                left_out.append(
                    {"form": form, "T": T, "reason": "its estimated memory, 1.3 GB, is over the limit of 1 GB"}
                )
                continue
            median = start * factor[form] * (T / 256) ** slope.get(form, power) * rng.uniform(0.95, 1.05)
            times[form][str(T)] = {"median": median, "low": median * 0.93, "high": median * rng.uniform(1.05, 1.3)}
    spectrum = [rng.betavariate(4, 1) * (high - low) + low for _ in range(500)]
    angles = [rng.gauss(0, 0.9) if is_complex else 0.0 for _ in spectrum]
    head_decays = [0.5, 0.85, 0.97, 0.995][: 1 if k == 4 else 4]
    reach = [h * (1 + 0.3 * k) for h in (5.0, 20.0, 98.0, 390.0)] if size else [230.0, 700.0, 1400.0, 1900.0]
    where = [2**p for p in range(13)]
    return {
        "name": name,
        "summary": f"A summary of {name} in a sentence of words.",
        "paper": "arXiv 2405.21060",
        "parameters": 16640 + 1000 * k,
        "identity": {
            "system": "System(...)",
            "transition": transition,
            "state_size": size,
            "state_growth": growth,
            "contractive": contractive,
            "contractive_why": "decay in (0, 1] and no feedback"
            if contractive == "by construction"
            else "nothing decays",
            "spectral_radius": high,
            "eigenvalue_range": {
                "abs_min": abs(low),
                "abs_max": high,
                "real_min": low,
                "real_max": high,
                "complex": is_complex,
            },
        },
        "certificate": {
            "ok": True,
            "worst": 3.1e-15 * (k + 1),
            "tolerance": 1e-10,
            "dtype": "float64",
            "length": 256,
            "forms": {form: 0.0 if form == "recurrent" else 1.1e-15 * (k + 1) for form in forms},
            "refused": {"scan": "its transition is cheaper step by step"} if "scan" not in forms else {},
        },
        "cost": {
            "forward_ms": times,
            "left_out": left_out,
            "auto_form": {str(T): forms[min(1, len(forms) - 1)] for T in LENGTHS},
            "decode_us": {"median": 60.0 + 31 * k, "low": 55.0 + 31 * k, "high": 80.0 + 31 * k},
            "flops": {str(T): 2.0 * T * (16640 + (size or T * 64)) for T in LENGTHS},
            "memory_bytes": memory,
            "peak_bytes": {str(T): 4096.0 * T * (k + 1) for T in LENGTHS},
            "crossover": {"T": None, "text": "the reference"}
            if k == 0
            else {
                "T": 1024 if k < 4 else None,
                "text": "faster than softmax from T = 1024 on" if k < 4 else "never faster here",
            },
        },
        "dynamics": {
            "eigenvalues": {
                "re": [r * math.cos(a) for r, a in zip(spectrum, angles)],
                "im": [r * math.sin(a) for r, a in zip(spectrum, angles)],
            },
            "horizon": {
                "heads": reach[: len(head_decays)],
                "quantiles": {"0.1": reach[0] * 0.8, "0.5": reach[1] * 1.3, "0.9": reach[2] * 3 if size else 3300.0},
                "by_position": {"t": where, "median": [min(t * 0.9 + 0.5, 30.0 * k if size else 1e9) for t in where]},
            },
            "coefficients": {
                "tokens": list(TEXT[:64]),
                "heads": [{"head": h, "alpha": _alpha(rng, k, decay)} for h, decay in enumerate(head_decays)],
                "what": "norm of the contribution" if is_complex else "weights alpha_ij",
            },
        },
    }


def _alpha(rng: random.Random, k: int, decay: float) -> list[list[float]]:
    """A lower triangle of weights: non-negative rows that sum to 1 for softmax, signed and fading ones otherwise."""
    keys = {c: [rng.gauss(0, 1) for _ in range(4)] for c in sorted(set(TEXT[:64]))}
    queries = {c: [rng.gauss(0, 1) for _ in range(4)] for c in sorted(set(TEXT[:64]))}
    alpha = []
    for i in range(64):
        score = [sum(a * b for a, b in zip(queries[TEXT[i]], keys[TEXT[j]])) for j in range(i + 1)]
        if k == 0:
            weight = [math.exp(s) for s in score]
            weight = [w / sum(weight) for w in weight]
        else:
            weight = [0.1 * s * (1.0 if k == 1 else decay ** (i - j)) for j, s in enumerate(score)]
            weight = [abs(w) for w in weight] if k in (5, 6) else weight
        alpha.append([float(f"{w:.4g}") for w in weight] + [0.0] * (63 - i))
    return alpha


def printed(result: dict[str, Any], width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        for part in tables(result):
            console.print(part)
    return [line.rstrip() for line in capture.get().splitlines()]


# The terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_tables_fit_the_terminal(n: int, width: int) -> None:
    result = example(n)
    lines = printed(result, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines), "something was cut"
    if n < 8:  # the eighth name is too long for a column, and breaks after a joint
        for layer in result["layers"]:
            starts = [line for line in lines if line.startswith(layer["name"] + " ")]
            assert len(starts) >= 6, layer["name"]
    else:
        assert sum(line.startswith("my_experiments/layer.py:") for line in lines) >= 6
        assert sum(line.startswith("WonderfulRecurrence") for line in lines) >= 6


def test_tables_keep_every_number_on_its_row() -> None:
    lines = printed(example(8), 80)
    start = lines.index("How long does a sequence take?")
    rows = {line.split()[0]: line.split() for line in lines[start + 3 : start + 11]}
    assert lines[start + 1].split() == ["Layer", "T", "=", "256", "512", "1024", "2048", "4096", "Form"]
    assert all(len(row) == 12 and row[2:11:2] == [u for u in row if u in ("µs", "ms", "s")] for row in rows.values())
    first = example(8)["layers"][2]["cost"]["forward_ms"]["matrix"]["256"]["median"]
    assert rows["mamba2"][1:3] == [f"{first:.2f}", "ms"]


def test_tables_say_what_was_left_out_and_what_failed() -> None:
    result = example(4)
    result["complete"] = False
    result["layers"][1]["certificate"] |= {"ok": False, "worst": 0.3}
    text = " ".join(printed(result, 120))
    assert "stopped before its end" in text
    assert "DIFFER" in text
    assert "Forms of linear differ by more than 1e-10" in text
    assert "Left out: matrix at T = 4096 for linear, mamba2 and gated_deltanet: its estimated memory, 1.3 GB" in text


def test_a_form_that_no_layer_has_takes_no_column() -> None:
    result = example(3)
    for layer in result["layers"]:
        layer["certificate"]["refused"]["newton"] = "the recurrence is linear"
    (grid,) = [grid for grid in comparison.grids(result) if grid.key == "certificate"]
    assert "newton" not in [column.heading for column in grid.columns]
    assert {len(row.cells) for row in grid.rows} == {len(grid.columns)}
    assert any("No newton for" in note for note in grid.notes)
    assert re.search(r"<th[^>]*>newton", Comparison(result).html()) is None
    result["layers"][2]["certificate"]["forms"]["newton"] = 1e-15
    (grid,) = [grid for grid in comparison.grids(result) if grid.key == "certificate"]
    at = [column.heading for column in grid.columns].index("newton")
    assert [row.cells[at] for row in grid.rows] == ["–", "–", "1e-15"]


def test_tables_show_names_as_they_are() -> None:
    result = example(2)
    result["layers"][1]["name"] = "[bold]x[/] \x1b[31m\u202e\ud800"
    text = "\n".join(printed(result, 120))
    assert "[bold]x[/] \\x1b[31m\\u202e\\ud800" in text
    assert "\x1b" not in text


def test_many_lengths_are_thinned_in_the_terminal_alone() -> None:
    result = example(2)
    for layer in result["layers"]:
        layer["cost"]["forward_ms"] = {"recurrent": {str(2**k): {"median": 2.0**k} for k in range(18)}}
    assert max(map(len, printed(result, 80))) <= 80
    (grid,) = [grid for grid in comparison.grids(result) if grid.key == "time"]
    assert [column.heading for column in grid.columns[1:-1]] == ["T = 1", "16", "256", "8192", "131072"]


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (units.count(0), "0"),
        (units.count(9999), "9999"),
        (units.count(16384), "16.4k"),
        (units.count(1_048_576), "1.05M"),
        (units.count(999_999), "1.00M"),
        (units.count(None), "–"),
        (units.milliseconds(0.0123), "12.3 µs"),
        (units.milliseconds(4.5678), "4.57 ms"),
        (units.milliseconds(999.96), "1.00 s"),
        (units.milliseconds(123456.0), "123 s"),
        (units.microseconds(0.85), "850 ns"),
        (units.size(268_435_456), "268 MB"),
        (units.error(0.0), "0"),
        (units.error(3.14e-15), "3e-15"),
        (units.error(0.832), "0.83"),
        (units.error(math.inf), "inf"),
        (units.near_one(0.99984), "0.99984"),
        (units.near_one(1 - 1e-9), "1 − 1e-9"),
        (units.near_one(1.0), "1"),
        (units.near_one(-0.6), "−0.6"),
        (units.near_one(1.0312), "1.03"),
        (units.times(8.43), "8.4×"),
        (units.times(4096.0), "4100×"),
    ],
)
def test_numbers_are_written_for_people(given: str, expected: str) -> None:
    assert given == expected


@pytest.mark.parametrize(("low", "high"), [(0.3, 80), (1, 9), (1e-3, 1e4), (128, 16_777_216), (5.0, 5.5)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    values, texts = units.ticks(low, high, units.count)
    assert 1 <= len(values) <= 10
    assert all(low <= value <= high for value in values)
    assert len(set(texts)) == len(texts) == len(values)


# The page ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page loads, the text of its scripts, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.styles: list[str] = []
        self.text: list[str] = []
        self._inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag in ("script", "style"):
            self._inside = found.get("id") or f"{tag} {len(self.tags)}"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text.append(data)
        elif self._inside.startswith("style"):
            self.styles.append(data)
        else:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data


@pytest.fixture(scope="module")
def html() -> str:
    return Comparison(example(4)).html()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_loads_nothing_from_outside(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base", "form"), tag
        assert "url(" not in (attributes.get("style") or "")
    assert page.styles
    for style in page.styles:
        assert "url(" not in style
        assert "@import" not in style
    policy = next(a["content"] or "" for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|connect-src|\*", policy)


def test_the_page_holds_the_result(page: Page) -> None:
    assert json.loads(page.scripts["result"]) == json.loads(json.dumps(example(4)))


def test_every_figure_and_layer_is_on_the_page(page: Page) -> None:
    drawn = comparison.figures(example(4))
    assert [figure.key for figure in drawn] == ["state", "time", "cost", "maps", "horizon", "eigenvalues", "equality"]
    plots = json.loads(page.scripts["plots"])
    assert list(plots["figures"]) == [figure.key for figure in drawn]
    text = " ".join(" ".join(page.text).split())
    for figure in drawn:
        assert figure.title in text
        assert figure.title.endswith("?")
        for view, panels in zip(figure.views, plots["figures"][figure.key], strict=True):
            assert len(view.panels) == len(panels)
            if any(panel.layer is not None for panel in view.panels):
                assert [panel.layer for panel in view.panels] == [0, 1, 2, 3]
    shown = [a for tag, a in page.tags if tag == "div" and a.get("class") == "plot"]
    assert len(shown) == sum(len(view.panels) for figure in drawn for view in figure.views)
    for i, layer in enumerate(example(4)["layers"]):
        assert text.count(layer["name"]) >= 8
        assert any(a.get("data-toggle") == str(i) for _, a in page.tags)


def test_the_page_is_small_and_the_same_each_time(html: str) -> None:
    assert Comparison(example(4)).html() == html
    assert len(html) < len(get_plotlyjs()) + len(json.dumps(example(4))) + 300_000


HOSTILE = "</script><b>&\"'{{7*7}} %{x} <!-- <a href='javascript:1'> \ud800\x00"


def test_hostile_names_are_escaped() -> None:
    result = example(3)
    result["layers"][1] |= {"name": HOSTILE, "summary": HOSTILE, "paper": HOSTILE}
    result["layers"][1]["identity"] |= {"transition": HOSTILE, "contractive_why": HOSTILE}
    result["layers"][1]["certificate"]["refused"] = {HOSTILE: HOSTILE}
    result["layers"][1]["dynamics"]["coefficients"] |= {"tokens": [HOSTILE] * 64, "what": HOSTILE}
    result["pairs"][0] |= {"b": HOSTILE, "text": HOSTILE, "equal": True}
    result["text"] = {"source": HOSTILE, "tokens": 3, "excerpt": HOSTILE}
    result["machine"]["cpu"] = HOSTILE
    html = Comparison(result).html()
    html.encode("utf-8")
    hostile = Page(html)
    assert json.loads(hostile.scripts["result"]) == result
    assert len(hostile.scripts) == len(Page(Comparison(example(3)).html()).scripts)
    assert not any(tag in ("b", "a") for tag, _ in hostile.tags)
    assert "{{7*7}}" in " ".join(hostile.text)
    plots = hostile.scripts["plots"]
    assert "%{x} " not in json.dumps([panel for panel in _strings(json.loads(plots)) if "7*7" in panel])
    assert not any("<b>" in text or "<a " in text for text in _strings(json.loads(plots)))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in _strings(item)]


def test_an_interrupted_comparison_says_so() -> None:
    result = example(2)
    result["complete"] = False
    text = " ".join(Page(Comparison(result).html()).text)
    assert "stopped before its end" in text
    assert "stopped before its end" not in " ".join(Page(Comparison(example(2)).html()).text)


def test_numbers_that_json_lacks_are_shown_and_become_null() -> None:
    result = example(2)
    result["pairs"][0]["error"] = math.nan
    result["layers"][1]["identity"]["spectral_radius"] = math.inf
    result["layers"][1]["certificate"]["forms"]["matrix"] = math.inf
    page = Page(Comparison(result).html())
    embedded = json.loads(page.scripts["result"], parse_constant=pytest.fail)
    assert embedded["pairs"][0]["error"] is None
    assert embedded["layers"][1]["identity"]["spectral_radius"] is None
    assert "inf" in " ".join(page.text)
    assert "nan" in "\n".join(printed(result, 80))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the first layer, the first pair and the top level of a result."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [p for key, item in value.items() for p in _paths(item, (*path, key))]
    elif isinstance(value, list) and value:
        found += _paths(value[0], (*path, 0))
    return found


DRAWN_FROM = {  # a part of a layer, and the figures that read it; every figure reads what is not named here
    "identity": [questions.state.BESIDE.figures],
    "certificate": [],
    "cost": [questions.cost.BESIDE.figures],
    "eigenvalues": [questions.spectrum.BESIDE.figures],
    "horizon": [questions.memory.BESIDE.figures],
    "coefficients": [questions.coefficients.BESIDE.figures],
}


@pytest.mark.parametrize(
    "empty", ["none", pytest.param("missing", marks=pytest.mark.slow), pytest.param("empty", marks=pytest.mark.slow)]
)
@pytest.mark.drawn(0.3)
def test_any_part_may_be_missing(empty: str) -> None:
    small = example(2)
    for layer in small["layers"]:
        layer["dynamics"]["eigenvalues"] = {"re": [0.5, 0.9], "im": [0.0, 0.1]}
        layer["dynamics"]["coefficients"]["heads"] = [{"head": 0, "alpha": [[1.0, 0.0], [0.5, 0.5]]}]
        cost = layer["cost"]
        for key in ("forward_ms", "memory_bytes"):
            cost[key] = {"recurrent": {"256": cost[key]["recurrent"]["256"]}}
        cost |= {key: {"256": cost[key]["256"]} for key in ("flops", "auto_form", "peak_bytes")}
        layer["certificate"]["forms"] = {"recurrent": 0.0}
    for path in _paths(small):
        result = copy.deepcopy(small)
        place = result
        for key in path[:-1]:
            place = place[key]
        if empty == "missing" and isinstance(path[-1], str):
            del place[path[-1]]
        elif empty == "empty" and isinstance(place[path[-1]], (dict, list)):
            place[path[-1]] = type(place[path[-1]])()
        elif empty == "none" and not (isinstance(path[-1], int) and isinstance(place[path[-1]], dict)):
            place[path[-1]] = None
        else:
            continue
        read_by = next((DRAWN_FROM[key] for key in path if key in DRAWN_FROM), [comparison.figures])
        try:
            comparison.grids(result)
            comparison.headlines(result)
            for draw in read_by:
                draw(result)
        except Exception as error:
            raise AssertionError(f"fails with {empty} at {path}") from error


@pytest.mark.parametrize("result", [{}, {"layers": []}, {"layers": [{"name": "a"}, {"name": "b"}]}])
def test_an_empty_result_makes_a_page(result: dict[str, Any]) -> None:
    page = Page(Comparison(result).html())
    assert json.loads(page.scripts["result"]) == result
    assert printed(result, 80)


def _luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_legible_and_defined(theme: int) -> None:
    css = (importlib.resources.files("stateform.report") / "templates" / "report.css").read_text(encoding="utf-8")
    block = css.split("}")[theme]
    colour = dict(re.findall(r"--([\w-]+):\s*(#\w+);", block))
    for name in ("ink", "muted", "good", "bad"):
        assert _contrast(colour[name], colour["panel"]) >= 4.5, name
    for k in range(COLOURS):
        assert _contrast(colour[f"layer-{k}"], colour["panel"]) >= 3, k
        assert f"soft-{k}" in colour
    used = set(re.findall(r"var\(--([\w-]+)\)", json.dumps(plots(comparison.figures(example(8))))))
    assert used <= set(colour), "a figure names a colour that the page does not define"


# A browser -----------------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROBE = """
<script>
document.fonts.ready.then(() => {
  const all = (query) => [...document.querySelectorAll(query)];
  const state = () => ({
    theme: document.documentElement.dataset.theme,
    drawn: all(".plot").filter((p) => p.clientWidth && p.querySelector(".main-svg")).length,
    shown: all(".plot").filter((p) => p.clientWidth).length,
    points: all(".plot .scatterlayer .trace, .plot .bars .point, .plot .heatmaplayer image").length,
    tick: getComputedStyle(document.querySelector("#figure-time .xtick text")).fill,
    ink: getComputedStyle(document.querySelector("#figure-cost .ytick text")).fill,
    wide: document.documentElement.scrollWidth > window.innerWidth,
    reads: document.getElementById("reads-what").textContent,
    chips: all("#tokens button").length,
  });
  const seen = [state()];
  all("[data-view]").forEach((button) => { button.click(); seen.push(state()); });
  document.querySelector("[data-view='0']").click();
  const layer = document.getElementById("map-layer");
  layer.value = "1";
  layer.dispatchEvent(new Event("change"));
  seen.push(state());
  document.querySelector("[data-toggle='0']").click();
  seen.push(state());
  document.querySelector("[data-toggle='0']").click();
  document.getElementById("theme").click();
  seen.push(state());
  Plotly.toImage(all(".plot")[0], { format: "png" }).then((image) => {
    const out = document.createElement("pre");
    out.id = "probe";
    out.textContent = JSON.stringify({ seen, image: image.slice(0, 22) });
    document.body.append(out);
  });
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to draw the report in: none of {', '.join(BROWSERS)} is on the PATH")
    return found


def in_browser(browser: str, folder: Path, html: str, theme: str, width: int = 1200) -> tuple[str, list[str]]:
    """The page as the browser has made it, and what it wrote to the console."""
    file = folder / "report.html"
    file.write_text(html, encoding="utf-8")
    options = [
        "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-sync",
        "--disable-background-networking --disable-component-update --virtual-time-budget=20000 --dump-dom",
        f"--enable-logging=stderr --window-size={width},900 --user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(theme)}",
    ]
    command = [browser, *" ".join(options).split(), file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figures_are_drawn(browser: str, tmp_path: Path, html: str, theme: str) -> None:
    dom, console = in_browser(browser, tmp_path, html.replace("</body>", PROBE + "</body>", 1), theme)
    assert console == []
    assert 'data-drawn="yes"' in dom
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page's script stopped early"
    probe = json.loads(unescape(found[1]))
    first, *views, changed, hidden, other = probe["seen"]
    drawn = comparison.figures(example(4))
    assert first["theme"] == theme
    assert first["drawn"] == first["shown"] == sum(len(figure.views[0].panels) for figure in drawn)
    assert len(views) == sum(len(figure.views) for figure in drawn if len(figure.views) > 1)
    for state in (*views, changed, hidden, other):
        assert state["drawn"] == state["shown"] > 0
        assert state["points"] > 20
        assert not state["wide"]
    assert max(state["drawn"] for state in views) > first["drawn"]  # small multiples
    assert first["chips"] == 64
    assert changed["reads"] != first["reads"]
    assert hidden["points"] < changed["points"]
    assert other["theme"] != theme
    assert other["ink"] != first["ink"]  # the figures follow the theme
    assert probe["image"] == "data:image/png;base64,"


def test_eight_layers_are_drawn_on_a_narrow_page(browser: str, tmp_path: Path) -> None:
    hostile = example(8)
    hostile["layers"][3]["name"] = HOSTILE
    html = Comparison(hostile).html().replace("</body>", PROBE + "</body>", 1)
    dom, console = in_browser(browser, tmp_path, html, "light", 500)
    assert console == []
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page's script stopped early"
    for state in json.loads(unescape(found[1]))["seen"]:
        assert state["drawn"] == state["shown"] > 0
        assert not state["wide"]


def test_an_incomplete_result_is_drawn(browser: str, tmp_path: Path) -> None:
    result = example(3)
    result["complete"] = False
    result["pairs"] = []
    result["layers"][1] = {"name": "bare", "identity": None, "cost": {"forward_ms": {}}, "dynamics": {}}
    result["layers"][2]["dynamics"]["coefficients"]["tokens"] = []
    result["layers"][2]["dynamics"]["coefficients"]["heads"][0]["alpha"] = [[0.0, None], [None, 0.0]]
    dom, console = in_browser(browser, tmp_path, Comparison(result).html(), "dark")
    assert console == []
    assert 'data-drawn="yes"' in dom


# Where the plotting library is ----------------------------------------------------------------------------------------


def test_a_library_beside_the_page_is_the_one_it_loads(tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", lambda where: Comparison(example(2)).html(where), "directory")
    write_page(tmp_path / "b.html", lambda where: Comparison(example(1)).html(where), "directory")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html", "plotly.min.js"]
    assert (tmp_path / "plotly.min.js").read_text(encoding="utf-8") == get_plotlyjs()
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    outside = [a["src"] for tag, a in page.tags if tag == "script" and "src" in a]
    assert outside == ["plotly.min.js"]
    assert (tmp_path / "a.html").stat().st_size < 500_000
    with pytest.raises(StateformError, match="plotlyjs is 'cdn'; expected inline or directory"):
        write_page(tmp_path / "c.html", lambda where: "", "cdn")
    assert not (tmp_path / "c.html").exists()


def test_a_library_beside_the_page_is_found(browser: str, tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", lambda where: "", "directory")
    dom, console = in_browser(browser, tmp_path, Comparison(example(2)).html("directory"), "light")
    assert console == []
    assert 'data-drawn="yes"' in dom


@pytest.fixture
def run_cell(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], str]:
    """What a page gives as the output of the cell of that identity; None: of a program that is no notebook."""
    here: list[str | None] = [None]
    shell = SimpleNamespace(get_parent=lambda: {"metadata": {"cellId": here[0]}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(notebook, "_holder", None)

    def run(name: str | None) -> str:
        here[0] = name
        return notebook.cell(lambda where: Comparison(example(1)).html(where))

    return run


def test_one_cell_of_a_notebook_has_the_library(run_cell: Callable[[str | None], str]) -> None:
    library = len(get_plotlyjs())
    sizes = [len(run_cell(name)) for name in ("first", "second", "first", "second", "third")]
    assert [size > library for size in sizes] == [True, False, True, False, False]
    assert sizes[1] < 200_000
    assert len(run_cell(None)) > library  # nobody knows where it is shown
    assert len(notebook.library()._repr_html_()) > library and len(run_cell("third")) < 200_000


def test_a_cell_that_loads_the_library_anew_keeps_it(run_cell: Callable[[str | None], str]) -> None:
    run_cell("gone")
    run_cell("other")
    notebook.library()
    assert len(run_cell("other")) > len(get_plotlyjs()) > len(run_cell("gone"))


def test_outside_a_notebook_each_page_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (None, SimpleNamespace(get_ipython=lambda: None)):
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert notebook.cell(lambda where: where) == notebook._frame("inline")
    shell = SimpleNamespace(get_parent=lambda: {"metadata": {"cellId": "a"}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert notebook.cell(lambda where: where) == notebook._frame("inline")


CELLS = """<!DOCTYPE html><body>%s
<script>
setTimeout(() => {
  const later = document.createElement("div");
  document.getElementById("0")?.remove();  // its output is cleared, in a notebook that is open
  later.innerHTML = document.getElementById("1").innerHTML;
  document.body.append(later);
  setTimeout(() => {
    const out = document.createElement("pre");
    out.id = "probe";
    out.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map((frame) => ({
      drawn: frame.contentDocument.documentElement.dataset.drawn === "yes",
      figures: frame.contentDocument.querySelectorAll(".main-svg").length > 0,
      waits: !frame.contentDocument.getElementById("waiting").hidden,
    })));
    document.body.append(out);
  }, 5000);
}, 5000);
</script></body>"""


@pytest.mark.parametrize("order", ["10", "01", "1"])
@pytest.mark.drawn(0.5)
def test_cells_draw_in_whatever_order_they_are_shown(
    order: str, browser: str, tmp_path: Path, run_cell: Callable[[str | None], str]
) -> None:
    outputs = {"0": run_cell("first"), "1": run_cell("second")}
    cells = "".join(f'<div id="{name}">{outputs[name]}</div>' for name in order)
    dom, console = in_browser(browser, tmp_path, CELLS % cells, "light")
    assert console == []
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page's script stopped early"
    there = "0" in order
    want = {"drawn": there, "figures": there, "waits": not there}
    assert json.loads(unescape(found[1])) == [want, want]
