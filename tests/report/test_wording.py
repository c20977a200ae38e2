"""What is said of tokens, said of steps and samples: names, places in templates and plotly's own words stay."""

from __future__ import annotations

import pytest

from stateform.report import Column, Figure, Grid, GridRow, Panel, View
from stateform.report.figure import drawing, scatter
from stateform.report.wording import Wording


@pytest.mark.parametrize(
    ("said", "step", "sample"),
    [
        ("Which token reads which?", "Which step reads which?", "Which sample reads which?"),
        ("Tokens stay apart", "Steps stay apart", "Samples stay apart"),
        ("one token's embedding, token by token", "one step's embedding, step by step",
         "one sample's embedding, sample by sample"),
        ("over the text", "over the series", "over the recording"),
        ("tokenizer: %{text} tokens", "tokenizer: %{text} steps", "tokenizer: %{text} samples"),
        ("a token of the text token.text", "a step of the series token.text", "a sample of the recording token.text"),
    ],
)  # fmt: skip
def test_nouns_are_changed(said: str, step: str, sample: str) -> None:
    assert [Wording(unit, ["", "token.text"])(said) for unit in ("token", "step", "sample")] == [said, step, sample]


def test_a_report_on_a_text_stays_as_it_is() -> None:
    grid = Grid("tokens", "Which token?", (), ())
    assert Wording("token")(grid) is grid


def test_tables_and_figures_are_told() -> None:
    grid = Grid("text", "Tokens back", (Column("per token", True),), (GridRow(("Text", "3 tokens"), 0),), ("A token.",))
    told = Wording("step", ["Text"])(grid)
    assert told == Grid(
        "text", "Steps back", (Column("per step", True),), (GridRow(("Text", "3 steps"), 0),), ("A step.",)
    )
    trace = scatter(x=[1, 2], y=[0, 1], mode="lines+markers+text", text=["1 token", "2 tokens"], hoverinfo="text",
                    name="my token", hovertemplate="%{text} tokens")  # fmt: skip
    panel = Panel(drawing([trace], xaxis={"title": {"text": "tokens back"}}, meta={"over": "token %{x}"}), "Text", 0, 7)
    figure = Wording("sample", ["my token"])(Figure("text", "Tokens", "a text", (View("Along the text", (panel,)),)))
    assert (figure.key, figure.title, figure.reading) == ("text", "Samples", "a recording")
    (view,) = figure.views
    assert view.name == "Along the recording" and view.panels[0].title == "Recording" and view.panels[0].height == 7
    body = view.panels[0].figure.to_plotly_json()
    want = panel.figure.to_plotly_json()
    drawn = body["data"][0]
    assert drawn["text"] == ["1 sample", "2 samples"] and drawn["hovertemplate"] == "%{text} samples"
    assert (drawn["mode"], drawn["hoverinfo"], drawn["name"]) == ("lines+markers+text", "text", "my token")
    assert (
        body["layout"]["xaxis"]["title"]["text"] == "samples back" and body["layout"]["meta"]["over"] == "sample %{x}"
    )
    assert set(body["layout"]) == set(want["layout"]) and set(drawn) == set(want["data"][0])
