"""`analyze`: its answers against the functions of the analysis, its sentences, page, command and interruption."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import sys
import wave as wave_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform import cli
from stateform.analysis import (  # fmt: skip
    collapse,
    horizon,
    interaction_rank,
    lyapunov,
    principles,
    representation,
    skip_bound,
    spectrum,
    state_need,
)
from stateform.analysis.state.excited import carried
from stateform.hub import Opened
from stateform.report import units
from stateform.report.page import plots
from stateform.studies import analysis, questions
from stateform.studies.analysis import overview
from stateform.studies.questions import QUESTIONS, Finding, Question, findings
from stateform.studies.questions.question import Site
from stateform.studies.subject import _layers, embed
from stateform.studies.words import layers_of
from tests.program import program

TEXT = b"A system is what it remembers; a layer is what it does with that.\n" * 3
T = 160
UNMAPPED = {
    "sd_ssm", "block_diagonal", "urn", "lstm", "gru", "slstm", "lem", "ltc", "elman", "al_rnn", "peephole_lstm", "srwm",
    "egru", "esn",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(TEXT)
    return path


@pytest.fixture(scope="module")
def model() -> sf.LanguageModel:
    torch.manual_seed(0)
    return sf.LanguageModel("rwkv7*2 gla softmax", d_model=16, n_heads=2, tokenizer="bytes").eval()


@pytest.fixture(scope="module")
def of_model(model: sf.LanguageModel, text: Path) -> sf.Analysis:
    return sf.analyze(model, text, max_length=T)


@pytest.fixture(scope="module")
def of_layer(text: Path) -> sf.Analysis:
    return sf.analyze("gated_deltanet", text, d_model=16, max_length=T)


def systems(model: sf.LanguageModel) -> list[sf.System]:
    """The systems of the layers, from a run of the blocks written out here."""
    double = sf.LanguageModel(model.config).double().eval()
    double.load_state_dict({k: x.double() for k, x in model.state_dict().items()})
    ids = torch.tensor([list(TEXT[:T])])
    found, shared = [], {}  # type: ignore[var-annotated]
    with torch.no_grad():
        assert double.embedding is not None
        x = double.embedding(ids)
        for block in double.blocks:
            u = block.mixer_norm(x)  # type: ignore[operator]
            found.append(block.mixer.system(u, sf.Past(None, dict(shared))))  # type: ignore[operator,union-attr]
            x, _ = block(x, None, False, shared)
    return found


# -- what is found --------------------------------------------------------------------------------------------------


def test_every_layer_is_looked_at_on_the_input_that_it_has_in_the_model(
    of_model: sf.Analysis, model: sf.LanguageModel
) -> None:
    rows = of_model.result["layers"]
    assert [row["name"] for row in rows] == ["0: rwkv7", "1: rwkv7", "2: gla", "3: softmax"]
    for row, system in zip(rows, systems(model), strict=True):
        answers = row["answers"]
        queries = answers["memory"]["by_position"]["t"]
        assert answers["memory"] == horizon(system, queries=queries).to_dict(), row["name"]
        assert (
            answers["state"]["heads"]
            == state_need(system, questions.state.TOLERANCE, splits=questions.state.SPLITS).per_head()
        )
        assert answers["spectrum"]["abs_max"] == pytest.approx(spectrum(system).radius, rel=1e-12)
        if not system.readout.cached:
            assert answers["stability"]["heads"] == pytest.approx(
                lyapunov(system, k=1).exponents[0, :, 0].tolist(), 1e-3
            )
        alpha = system[: questions.SHOWN].coefficients()
        for one in answers["coefficients"]["maps"]["heads"]:
            shown = torch.tensor(one["alpha"], dtype=torch.float64)
            torch.testing.assert_close(shown, alpha[0, one["head"]], rtol=1e-3, atol=1e-12)


def test_a_layer_is_given_what_the_layers_before_it_hand_on(model: sf.LanguageModel) -> None:
    ids = torch.tensor([list(TEXT[:T])])
    with torch.no_grad():
        found = [look.system for look in _layers(copy.deepcopy(model).double(), ids)]
    for system, want in zip(found, systems(model), strict=True):  # rwkv7's values are mixed with those of layer 0
        for name, x in want.tensors().items():
            torch.testing.assert_close(system.tensors()[name], x)


def test_the_answers_about_depth_are_those_of_the_model(of_model: sf.Analysis, model: sf.LanguageModel) -> None:
    ids = torch.tensor([list(TEXT[:T])])
    found = of_model.result["model"]
    assert set(found) == {q.name for q in QUESTIONS.values() if q.model is not None}
    assert found["representation"]["ranks"] == pytest.approx(list(representation(model, ids).ranks), rel=1e-4)
    bare = found["collapse"]["depth"]["without its skip connections"]
    assert bare == pytest.approx(collapse(model, ids).to_dict()["without_skip"], rel=1e-4)


def test_principles_and_heads_are_those_of_the_systems(of_model: sf.Analysis, model: sf.LanguageModel) -> None:
    for row, system in zip(of_model.result["layers"], systems(model), strict=True):
        found = row["answers"]["principles"]
        want = principles(system)
        assert found["tokens"] == want.tokens
        for x in want.items:
            one = found["principles"][x.name]
            assert (one["holds"], one["why"], one["source"]) == (x.holds, x.why, x.source)
            assert one["measured"] == pytest.approx(x.measured, rel=1e-3)
        heads = row["answers"]["interaction"]
        assert heads["rank"] == interaction_rank(system).rank == 2
        assert (heads["there"], heads["exact"], heads["singular_values"][0]) == (2, False, 1.0)


def test_the_skip_is_that_of_the_models_mixers(of_model: sf.Analysis, model: sf.LanguageModel) -> None:
    """The share that a layer is to keep is such that the four together keep half."""
    double = copy.deepcopy(model).double()
    found, want = of_model.result["model"]["skip"], skip_bound(double, torch.tensor([list(TEXT[:T])]), a=0.5**0.25)
    for x in ("a", "C_M", "S", "needed", "enough", "start"):
        assert found[x] == pytest.approx(getattr(want, x), rel=1e-6), x
    assert found["measured"] == pytest.approx(want.measured, abs=0.011)
    assert (found["layers"], found["tokens"], found["kept"]) == (4, T, 0.5)
    said = next(f["text"] for f in of_model.result["findings"] if f["question"] == "skip")
    assert "known to be very conservative" in said
    assert f"only beyond {found['enough']:.3g}" in said
    assert "theorem 4.1" in said


def test_the_work_for_the_skip_of_a_deep_model_is_bounded(text: Path) -> None:
    deep = sf.LanguageModel("softmax*40", d_model=8, n_heads=2, tokenizer="bytes").eval()
    found = sf.analyze(deep, text, only="skip", max_length=190)
    assert found.result["model"]["skip"]["tokens"] == 102
    assert "over 102 tokens" in found.sentences[0]


def test_the_skip_of_layers_without_weights_is_refused_with_its_reason(text: Path) -> None:
    found = sf.analyze(sf.LanguageModel("lru gla", d_model=16, tokenizer="bytes"), text, only="skip", max_length=64)
    assert "no scalar coefficients" in found.result["refused"]["skip"]
    assert "no scalar coefficients" in " ".join(str(found).split())


def test_the_principles_are_said_with_their_number_source_and_premise(
    of_model: sf.Analysis, of_layer: sf.Analysis
) -> None:
    said = [f["text"] for f in of_layer.result["findings"] if f["question"] == "principles"]
    assert len(said) == 6
    for k, sentence in enumerate(said, 1):
        assert sentence.startswith(f"Principle {k}, ")
        assert f"arXiv 2510.09389, principle {k}; premise: " in sentence
    change = of_layer.result["layers"][0]["answers"]["principles"]["principles"]["position"]["measured"]
    assert f"change of y when the past is reordered: {next(iter(change.values())):.3g}" in said[2]
    memory = [f["text"] for f in of_model.result["findings"] if f["text"].startswith("Principle 1")]
    assert "a finite state holds what is read in layers 0-2 (" in memory[0]
    assert "no finite state holds what is read in layer 3 (" in memory[1]


def test_heads_whose_weights_depend_on_each_other_are_pointed_out() -> None:
    def row(rank: int, exact: bool) -> dict[str, Any]:
        one = {"rank": rank, "there": 8, "exact": exact, "tokens": 64, "source": "s", "premises": "p"}
        return {"kind": "gla", "heads": 8, "answers": {"interaction": one}}

    first, *rest = findings([row(8, False), row(3, True)], {})
    assert first.text.startswith("Layer 1 (gla) has 8 heads, whose weights span 3 dimensions only")
    assert "layer 1 span 3 dimensions: so many heads of attention are necessary and sufficient" in rest[0].text
    assert "layer 0 span 8 dimensions: so many heads of attention are necessary on 64 tokens" in rest[1].text


def test_a_layer_reads_the_bytes_as_compare_does(of_layer: sf.Analysis) -> None:
    torch.manual_seed(0)
    layer = sf.build("gated_deltanet", d_model=16).double()
    with torch.no_grad():
        system = layer.system(embed(TEXT[:T], 16, 0))
    answers = of_layer.result["layers"][0]["answers"]
    assert answers["memory"] == horizon(system, queries=answers["memory"]["by_position"]["t"]).to_dict()
    assert not of_layer.result["model"]
    assert of_layer.complete


def test_the_model_given_is_left_as_it_is(model: sf.LanguageModel, of_model: sf.Analysis) -> None:
    assert next(model.parameters()).dtype == torch.float32
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_that_was_opened_is_left_as_it_is_too(text: Path) -> None:
    from stateform.hub import Opened

    config = sf.ModelConfig("gla", d_model=8, vocab_size=256, tokenizer="bytes", max_positions=20)
    given = sf.LanguageModel(config).train()
    found = sf.analyze(Opened("mine", given, "bytes"), text, only="memory").to_dict()
    assert found["text"]["tokens"] == 20
    assert given.training
    assert next(given.parameters()).dtype == torch.float32
    with pytest.raises(sf.StateformError, match=r"vocabulary is 0\.\.255"):
        sf.analyze(Opened("mine", given, "bytes"), torch.tensor([1, 999]))


def test_only_asks_what_is_named(text: Path) -> None:
    found = sf.analyze("gla", text, only=["memory", "spectrum"], d_model=16, max_length=64).result
    assert list(found["questions"]) == ["memory", "spectrum"]
    assert set(found["layers"][0]["answers"]) == {"memory", "spectrum"}
    assert sf.analyze("gla", text, only="memory", d_model=16, max_length=64).result["questions"].keys() == {"memory"}


def test_a_question_without_an_answer_says_why(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(site: questions.Site) -> dict[str, Any]:
        raise sf.StateformError("it takes 7 GB; choose a shorter text")

    asked = Question("memory", "How far?", refuse)
    monkeypatch.setitem(QUESTIONS, "memory", asked)
    found = sf.analyze("gla", text, only=["memory", "spectrum"], d_model=16, max_length=64)
    assert found.complete
    assert found.result["layers"][0]["refused"] == {"memory": "it takes 7 GB; choose a shorter text"}
    assert "it takes 7 GB" in str(found)
    assert "it takes 7 GB" in found.html()


@pytest.mark.parametrize("name", sf.names())
def test_every_registered_layer_has_answers(name: str, text: Path) -> None:
    found = sf.analyze(name, text, d_model=32, max_length=24)
    assert found.complete
    row = found.result["layers"][0]
    # A vector state without the map w_in does not say what operators its input meets.
    without = {"interaction"} if name in UNMAPPED else set()
    assert set(row["refused"]) == without, row["refused"]
    assert set(row["answers"]) == {q.name for q in QUESTIONS.values() if q.layer is not None} - without
    assert found.sentences
    json.dumps(found.to_dict(), allow_nan=False)


# -- what is said ---------------------------------------------------------------------------------------------------


def test_the_sentences_say_what_the_numbers_are(of_model: sf.Analysis) -> None:
    result = of_model.result
    weights = [f["weight"] for f in result["findings"]]
    assert weights == sorted(weights, reverse=True)
    assert {f["question"] for f in result["findings"]} <= set(QUESTIONS)
    longest = max(
        (x, i, h) for i, row in enumerate(result["layers"]) for h, x in enumerate(row["answers"]["memory"]["heads"])
    )
    said = next(f for f in result["findings"] if f["question"] == "memory" and f["head"] is not None)
    tokens, i, h = longest
    assert (said["layer"], said["head"]) == (i, h)
    need = result["layers"][i]["answers"]["state"]["heads"][h]
    kind = result["layers"][i]["kind"]
    memory = result["layers"][i]["answers"]["memory"]
    assert memory["limited"][h] and memory["sinks"][h] is None  # nearly even weights: as far as the text goes
    start = f"Head {h} of layer {i} ({kind}) keeps at least {round(tokens)} tokens, as far as the text goes"
    assert said["text"].startswith(start)
    assert f"needs {need} dimension" in said["text"]


def test_what_blows_up_comes_first() -> None:
    def row(norm: float) -> dict[str, Any]:
        stability = {"contractive": "no" if norm > 1 else "by construction", "why": f"a step stretches by {norm}",
                     "norm": norm, "heads": [norm - 1.1]}  # fmt: skip
        return {"kind": "gla", "heads": 1, "answers": {"stability": stability}}

    first, second, *_ = findings([row(0.9), row(1.5)], {})
    assert first.text == "Layer 1 (gla) can amplify its state: a step stretches by 1.5."
    assert (second.layer, second.head) == (1, 0)
    assert "grow, e-fold in 2.5 tokens" in second.text
    assert not any("amplify its state" in f.text for f in findings([row(0.9)], {}))


def test_layers_are_named_in_ranges() -> None:
    rows: list[Any] = [{}] * 9
    assert layers_of(rows, [0, 1, 2, 5, 7, 8]) == "layers 0-2, 5 and 7-8"
    assert layers_of(rows, [4]) == "layer 4"
    assert layers_of(rows, list(range(9))) == "all 9 layers"


def test_a_new_question_is_one_entry(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(rows: Any, model: Any) -> Any:
        yield Finding("Heads can be counted.", 1.0)

    mine = Question("mine", "What else?", lambda site: {"heads": [1.0, 2.0]}, None, said, "things", "", "How to read.")
    monkeypatch.setitem(QUESTIONS, "mine", mine)
    found = sf.analyze(sf.LanguageModel("gla*2", d_model=16, n_heads=2, tokenizer="bytes"), text, only="mine")
    assert found.sentences == ["Heads can be counted."]
    page = found.html()
    assert "What else?" in page
    assert "Things, by layer and head" in page


# -- what is shown --------------------------------------------------------------------------------------------------


def test_the_terminal_has_sentences_and_a_table(of_model: sf.Analysis) -> None:
    shown = str(of_model)
    assert max(map(len, shown.splitlines())) <= 80
    flat = " ".join(shown.split())
    for sentence in of_model.sentences:
        assert sentence in flat
    assert "Layer by layer" in shown
    assert "1: rwkv7" in shown


def test_a_deep_model_has_a_short_table_and_one_figure_a_question(of_model: sf.Analysis) -> None:
    result = json.loads(json.dumps(of_model.result))
    result["layers"] = [{**row, "name": f"{i}: deep"} for i, row in enumerate(result["layers"] * 8)]
    shown = [line for line in str(sf.Analysis(result)).splitlines() if ": deep" in line]
    assert len(shown) == 12
    drawn = analysis.drawings(result)
    for name, found in drawn.items():
        assert len(found) <= 2, name
    assert [view.name for view in drawn["memory"][1].views] == ["Spread"]  # 32 lines could not be told apart
    heat = next(f for f in drawn["memory"] if f.key == "heads-memory").views[0].panels[0].figure
    assert len(heat.data[0].z) == 32
    assert all(len(view.panels) == 1 for f in drawn["spectrum"] for view in f.views[:1])


def test_the_maps_of_heads_show_the_answers(of_model: sf.Analysis) -> None:
    heat = analysis.drawings(of_model.result)["state"][0].views[0].panels[0].figure.data[0]
    for row, words in zip(of_model.result["layers"], heat.text, strict=True):
        assert list(words) == [str(n) for n in row["answers"]["state"]["heads"]]


def test_the_principles_are_drawn_with_what_was_measured(of_model: sf.Analysis, of_layer: sf.Analysis) -> None:
    for found in (of_model, of_layer):
        drawn = analysis.drawings(found.result)
        heat = drawn["principles"][0].views[0].panels[0].figure.data[0]
        for row, z, words, tips in zip(found.result["layers"], heat.z, heat.text, heat.customdata, strict=True):
            one = row["answers"]["principles"]["principles"]
            assert list(z) == [{False: 0, None: 1, True: 2}[x["holds"]] for x in one.values()]
            assert words[5].endswith(f"gain {units.plain(one['stability']['measured']['largest gain'])}")
            assert all("premise: " in tip and "principle" in tip for tip in tips)
        (ranks,) = drawn["interaction"]
        assert len(ranks.views[0].panels[0].figure.data[0].y) >= 2
    (skips,) = analysis.drawings(of_model.result)["skip"]
    skip = of_model.result["model"]["skip"]
    assert list(skips.views[0].panels[0].figure.data[0].x) == pytest.approx(
        [1.0, skip["measured"], skip["needed"], skip["enough"]]
    )
    result = {**of_model.result, "model": {"skip": {**skip, "measured": 0.0, "enough": None}}}
    (skips,) = analysis.drawings(result)["skip"]
    assert list(skips.views[0].panels[0].figure.data[0].text)[1:2] == ["0: none is needed"]
    assert min(skips.views[0].panels[0].figure.data[0].x) > 0


def test_curves_disks_verdicts_and_gradients_are_drawn_from_the_answers(
    of_model: sf.Analysis, of_layer: sf.Analysis
) -> None:
    drawn, answers = analysis.drawings(of_model.result), of_model.result["model"]
    for name in ("stability", "collapse", "representation"):
        (curves,) = [f.views[0].panels[0].figure.data for f in drawn[name] if f.key == f"depth-{name}"]
        depth = answers[name]["depth"]
        assert [curve.name for curve in curves] == list(depth)
        for curve, values in zip(curves, depth.values(), strict=True):
            assert list(curve.y) == pytest.approx(values, rel=1e-2)
    rows = of_model.result["layers"]
    (disks,) = [f.views[-1].panels for f in drawn["spectrum"] if f.key == "eigenvalues"]
    seen = [one for row in rows if (one := row["answers"]["spectrum"]["eigenvalues"])]
    for panel, points in zip(disks, seen, strict=True):
        assert list(panel.figure.data[0].x) == pytest.approx(points["re"], rel=1e-3, abs=1e-9)
        assert list(panel.figure.data[0].y) == pytest.approx(points["im"], rel=1e-3, abs=1e-9)
    verdicts = drawn["expressivity"][0].views[0].panels[0].figure.data[0]
    for row, words in zip(rows, verdicts.text, strict=True):
        one = row["answers"]["expressivity"]
        assert list(words) == [one[what]["verdict"] for what in ("selection", "parity", "counting", "permutations")]
    (fading,) = analysis.drawings(of_layer.result)["gradients"]
    answer = of_layer.result["layers"][0]["answers"]["gradients"]
    shares = [v / max(answer["norm"]) for v in answer["norm"]]
    assert list(fading.views[0].panels[0].figure.data[0].y) == pytest.approx(shares, rel=1e-2)


def test_the_top_of_the_page_has_what_is_remarkable_and_its_sections_the_rest(of_layer: sf.Analysis) -> None:
    page = of_layer.html()
    top = page[page.index('class="block findings"') : page.index("<nav")]
    assert "Principle 1" not in top
    assert "Principle 1, memory" in page
    assert "tokens" in top


def test_the_paths_of_attention_stand_beside_fading_gradients(of_layer: sf.Analysis) -> None:
    (figure,) = analysis.drawings(of_layer.result)["gradients"]
    *_, flat = figure.views[0].panels[0].figure.data
    assert "attention" in flat.name
    assert list(flat.y) == [1, 1]


def test_the_page_stands_alone_and_holds_the_numbers(of_model: sf.Analysis, of_layer: sf.Analysis) -> None:
    for found in (of_model, of_layer):
        page = found.html()
        own = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
        assert not re.search(r"(?:src|href)=\"(?!data:|#)", own)
        embedded = re.search(r'<script type="application/json" id="result">(.*?)</script>', page, re.S)
        assert embedded is not None
        assert json.loads(embedded[1]) == json.loads(json.dumps(found.to_dict()))
        for question in found.result["questions"].values():
            assert own.count(f"<h2>{question['title']}</h2>") == 1
    ids = re.findall(r' id="([^"]+)"', re.sub(r"<script.*?</script>", "", of_model.html(), flags=re.S))
    assert len(ids) == len(set(ids))


def test_a_hostile_name_is_escaped(of_layer: sf.Analysis) -> None:
    result = json.loads(json.dumps(of_layer.result))
    result["subject"]["name"] = result["layers"][0]["name"] = "<script>alert(1)</script>"
    result["findings"][0]["text"] = "<img src=x onerror=alert(1)>"
    page = sf.Analysis(result).html()
    assert "<script>alert" not in page
    assert "<img" not in page.partition("<script")[0]


def test_an_empty_result_can_be_shown() -> None:
    assert sf.Analysis({"complete": False}).html()
    assert analysis.tables({})


# -- interruption and bad input -------------------------------------------------------------------------------------


def test_an_interrupted_analysis_keeps_what_was_finished(
    model: sf.LanguageModel,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(self: object, what: str, done: int, total: int) -> None:
        assert done <= total
        if what == "2: gla: spectrum":
            raise KeyboardInterrupt

    folder, numbers = tmp_path / "model", tmp_path / "out.json"
    model.save_pretrained(folder)
    monkeypatch.setattr("stateform.cli.look.Bar.__call__", stop)
    monkeypatch.setattr(
        sys,
        "argv",
        ["stateform", "analyze", str(folder), "--text", str(text), "--max-length", "64", "--json", str(numbers)],
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    found = json.loads(numbers.read_text())
    assert not found["complete"]
    assert [len(row["answers"]) for row in found["layers"]] == [len(found["layers"][0]["answers"])] * 2 + [3]
    assert "stopped before its end" in " ".join(capsys.readouterr().out.split())
    assert "stopped before its end" in sf.Analysis(found).html()


class Plain(nn.Module):
    """A module without a system."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_bad_input_is_refused_before_any_work(model: sf.LanguageModel, tmp_path: Path) -> None:
    started: list[str] = []
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    other = sf.LanguageModel("gla", d_model=16, n_heads=2, vocab_size=40)
    for thing, options, message in [
        ("gated_delta_net", {}, "gated_deltanet"),
        ("gla", {"only": "memmory"}, "memory"),
        ("gla", {"only": ["memory", "collapse"]}, "collapse: about the layers of a model together"),
        ("gla", {"text": empty}, "empty"),
        ("gla", {"text": tmp_path / "none.txt"}, "none.txt"),
        ("gla", {"text": torch.arange(9)}, "token ids are for a model"),
        ("gla", {"dtype": "int8"}, "float64"),
        ("gla", {"max_length": 1}, "2 tokens or more"),
        (Plain(), {}, "no method system"),
        (tmp_path / "nowhere", {}, "no folder"),
        (tmp_path, {}, "config.json"),
        (other, {}, "tokenizer"),
        (other, {"text": torch.tensor([3, 41])}, "vocabulary is 0..39"),
        (model, {"text": torch.rand(3)}, "expected integers"),
        ("gla", {"d_model": 7}, "n_heads"),
    ]:
        with pytest.raises(sf.StateformError, match=message):
            sf.analyze(thing, on_progress=lambda *a: started.append(a[0]), **options)  # type: ignore[arg-type]
    assert not started
    found = sf.analyze(other, torch.arange(30) % 40, only="memory")
    assert found.result["text"]["source"] == "token ids"


# -- numbers ------------------------------------------------------------------------------------------------------


def wave(length: int, width: int) -> np.ndarray:
    """Numbers [T,d]: sines of as many periods as there are columns."""
    return np.sin(np.arange(length)[:, None] * (1 + np.arange(width)) / 5)


def shown(found: sf.Analysis) -> str:
    """All that a reader sees: sentences, tables, the words and the drawings of the page."""
    page = found.page()
    words = {k: v for k, v in page.words.items() if k != "subject"}
    return "\n".join([str(found), json.dumps(words), json.dumps(plots(page.figures)["figures"], default=str),
                      *(repr(dataclasses.replace(f, views=())) for f in page.figures), repr(page.grids)])  # fmt: skip


def nouns(text: str) -> set[str]:
    """The words for what was read that stand in a text; plotly's own are not meant."""
    text = re.sub(r'%{[^}]*}|"text":|"(hoverinfo|textfont)"|text=', "", text)
    return set(re.findall(r"\b(tokens?|texts?|steps?|series|samples?|recording)\b", text.lower()))


def test_a_layer_reads_numbers_as_they_are(tmp_path: Path) -> None:
    x = wave(90, 16)
    np.save(tmp_path / "x.npy", x)
    torch.manual_seed(0)
    layer = sf.build("gla", d_model=16, n_heads=2)
    found = sf.analyze(layer, x, max_length=70)
    u = torch.from_numpy(x[None, :70])
    with torch.no_grad():
        system = copy.deepcopy(layer).double().system(u)
    answers = found.result["layers"][0]["answers"]
    horizons = horizon(system, queries=sorted({int(t) for t in torch.linspace(15, 69, 24)}))
    assert answers["memory"]["heads"] == horizons.to_dict()["heads"]
    site = Site("", layer, system, [], 1)
    assert answers["coefficients"] == QUESTIONS["coefficients"].layer(site)  # type: ignore[misc]
    assert found.result["data"] == {
        "source": "an array", "unit": "step", "steps": 70, "width": 16, "rate": None, "mapped": "",
    }  # fmt: skip
    assert "text" not in found.result and "on 70 steps of an array" in str(found)
    for same in (sf.analyze(layer, torch.from_numpy(x), max_length=70), sf.analyze(layer, data=x[:70]),
                 sf.analyze(layer, data=tmp_path / "x.npy", max_length=70)):  # fmt: skip
        assert [row["answers"] for row in same.result["layers"]] == [row["answers"] for row in found.result["layers"]]


def test_a_report_on_numbers_has_words_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would be broken over lines
    file = Path("text.wav")
    with wave_module.open(str(file), "wb") as sound:
        sound.setparams((2, 2, 8000, 0, "NONE", ""))
        sound.writeframes((wave(80, 2) * 2**14).astype("<i2").tobytes())
    heard = sf.analyze("mamba2", data=file, project=True, d_model=16, seed=3)
    assert nouns(shown(heard).replace(str(file), "")) == {"sample", "samples", "recording", "step"}, "no step amplifies"
    assert heard.result["data"]["rate"] == 8000
    line = " ".join(str(heard).split())
    assert (
        f"on 80 samples of {file}, 8,000 a second (2 numbers a sample, scaled to mean square 1, mapped to 16 by a "
        in line
    )
    torch.manual_seed(0)
    model = sf.Classifier("gla softmax", d_model=16, d_input=2, n_classes=3, n_heads=2)
    seen = sf.analyze(model, wave(60, 2))
    assert nouns(shown(seen)) == {"step", "steps", "series"}
    assert set(seen.result["model"]) >= {"collapse", "representation", "stability"}, "of all layers together"
    assert "The output" in seen.html() and 'data-unit="step"' in seen.html()


def test_words_stay_for_a_text(text: Path) -> None:
    assert nouns(shown(sf.analyze("mamba2", text, d_model=16, max_length=60))) - {"steps", "step", "series"} == {
        "token", "tokens", "text",
    }  # fmt: skip


def test_a_model_of_numbers_is_looked_at_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = sf.Classifier("gla mamba2", d_model=16, d_input=3, n_classes=2, max_positions=40)
    found = sf.analyze(model, wave(60, 3), only=["memory", "state"])
    assert found.result["data"]["steps"] == 40, "it has so many positions"
    double = copy.deepcopy(model).double()
    looks = list(_layers(double, torch.from_numpy(wave(60, 3)[None, :40])))
    for row, look in zip(found.result["layers"], looks, strict=True):
        site = Site("", look.layer, look.system, [], 2)  # type: ignore[arg-type]
        assert row["answers"]["memory"] == QUESTIONS["memory"].layer(site)  # type: ignore[misc]


def test_numbers_that_cannot_be_read_are_refused_before_any_work(model: sf.LanguageModel, tmp_path: Path) -> None:
    started: list[str] = []
    labels = sf.Classifier("gla", d_model=16, d_input=3, n_classes=2)
    (tmp_path / "a.csv").write_text("1,2\n3,nan\n")
    for thing, options, message in [
        ("gla", {"data": wave(9, 4)}, r"has 4 numbers a step; gla reads 64: give numbers \[T,64\], or map .*--project"),
        ("gla", {"data": wave(9, 1)}, "has 1 number a step"),
        ("gla", {"data": tmp_path / "a.csv"}, "a.csv holds nan at step 1, number 1"),
        ("gla", {"data": tmp_path / "none.npy"}, "cannot read the numbers .*none.npy"),
        ("gla", {"data": np.arange(9)}, "holds int64"),
        ("gla", {"text": np.arange(9)}, "token ids are for a model"),
        ("gla", {"text": np.array([None, 1.0])}, "an array of object was given; expected integers, token ids, or"),
        (
            "gla",
            {"text": [1, 2, 3]},
            r"the text is a list; expected a file, token ids \[T\] or numbers \[T,d\]: an array",
        ),
        ("gla", {"text": b"some words"}, "the text is a bytes; expected a file"),
        ("gla", {"text": wave(9, 64), "data": wave(9, 64)}, "a text and numbers were given"),
        ("gla", {"text": torch.full((9, 64), torch.inf)}, "holds inf at step 0"),
        (model, {"data": wave(9, 16)}, "LanguageModel reads tokens, not numbers; expected integers"),
        (Opened("mine", model, "bytes"), {"data": wave(9, 16)}, "mine reads tokens, not numbers"),
        (labels, {"data": wave(9, 16)}, r"has 16 numbers a step; Classifier reads 3: give numbers \[T,3\]$"),
        (labels, {"data": wave(9, 16), "project": True}, "Classifier reads 3"),
        (labels, {}, "Classifier reads numbers, 3 a step, not tokens; give them as data"),
        (Opened("mine", labels, None), {}, "mine reads numbers, 3 a step, not tokens"),
        (labels, {"text": torch.arange(9)}, "reads numbers, 3 a step"),
    ]:
        with pytest.raises(sf.StateformError, match=message):
            sf.analyze(thing, on_progress=lambda *a: started.append(a[0]), **options)  # type: ignore[arg-type]
    assert not started
    other = sf.LanguageModel("gla", d_model=16, n_heads=2, vocab_size=40)
    same = [sf.analyze(other, ids, only="memory").result["layers"] for ids in (np.arange(30), torch.arange(30))]
    assert same[0] == same[1], "integers are token ids in an array too"


def test_a_name_of_a_layer_is_no_folder(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sf.LanguageModel("softmax*2", d_model=16, n_heads=2, tokenizer="bytes").save_pretrained("gla")
    assert sf.analyze("gla", text, only="memory", d_model=16, max_length=32).result["subject"]["kind"] == "layer"
    assert sf.analyze("./gla", text, only="memory", max_length=32).result["subject"]["layers"] == 2


def test_the_command_writes_sentences_page_and_numbers(text: Path, tmp_path: Path) -> None:
    html, numbers = tmp_path / "report.html", tmp_path / "report.json"
    words = ["analyze", "mlstm(n_heads=2)", "--d-model", 16, "--text", text, "--max-length", 64]
    done = program(*words, "--only", "memory,spectrum", "--only", "state", "--html", html, "--json", numbers,
                   COLUMNS="80")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "keeps" in done.stdout
    assert html.stat().st_size > 1_000_000
    assert list(json.loads(numbers.read_text())["questions"]) == ["memory", "state", "spectrum"]


def test_a_mistake_at_the_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in [
        (["nothing"], "stateform: unknown layer 'nothing'"),
        (["gla", "--only", "mood"], "stateform: unknown question 'mood'"),
        (["gla", "--html", "/nowhere/x.html"], "stateform: cannot write /nowhere/x.html"),
    ]:
        monkeypatch.setattr(sys, "argv", ["stateform", "analyze", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith(message)
        assert said.count("\n") == 1


def attending(length: int, *, window: int | None = None) -> sf.System:
    """Softmax heads with known weights: the first token has 60%, all tokens have the same, the last one has all."""
    t = torch.arange(length, dtype=torch.float64)
    q = torch.zeros(1, length, 3, 2, dtype=torch.float64)
    k, ones = torch.zeros_like(q), torch.ones(1, length, 3, 1, dtype=torch.float64)
    q[0, :, 0, 0] = (1.5 * t.clamp_min(1)).log()  # against t others of weight 1 each
    k[0, 0, 0, 0] = 1
    q[..., 2, 0], k[0, :, 2, 0] = 30, t
    return sf.System(q, k, ones, readout="exp", eta="sum", window=window)


def told(system: sf.System) -> tuple[dict[str, Any], list[str]]:
    """The answers about memory and state of a system, and what is said of them."""
    site = Site("layer", torch.nn.Identity(), system, ["x"] * system.T, 1)
    answers = {name: QUESTIONS[name].layer(site) for name in ("memory", "state", "stability")}  # type: ignore[misc]
    row = {"name": "layer", "kind": "softmax", "heads": system.H, "answers": answers}
    return answers, [finding.text for finding in findings([row], {})]


@pytest.mark.parametrize("length", [64, 96, 160])
def test_a_sink_is_named_and_its_horizon_is_no_number_of_its_own(length: int) -> None:
    answers, said = told(attending(length))
    memory = answers["memory"]
    assert memory["limited"] == [True, True, False] and memory["window"] is None
    assert memory["heads"] == [length, pytest.approx(0.95 * length, abs=1), 1.0]
    assert memory["sinks"][0] == pytest.approx(0.6, abs=0.01) and memory["sinks"][1:] == [None, None]
    text = " ".join(said)
    assert "Head 0 reads to the first token at every position: 60% of its weight lies there" in text
    assert f"Head 1 keeps at least {round(memory['heads'][1])} tokens, as far as the text goes (95% of" in text
    assert "2 of the 3 heads reach back as far as the text or their window goes; 1 keeps 4 or fewer." in said
    assert f"keeps {(length + 16) // 2} tokens" not in text


def test_a_horizon_of_a_whole_window_says_so() -> None:
    answers, said = told(attending(96, window=20))
    assert answers["memory"]["limited"] == [True, True, False] and answers["memory"]["sinks"] == [None, None, None]
    assert any("keeps at least 19 tokens, all of its window" in text for text in said)


def test_a_state_as_large_as_the_text_can_ask_for_is_a_bound() -> None:
    T = 40
    s = sf.System(torch.zeros(1, T, 1, 1), torch.zeros(1, T, 1, 1), torch.ones(1, T, 1, 1), readout="exp", eta="sum")
    assert state_need(s).limited() == [False]  # an even reading needs one dimension
    weights = torch.rand(T, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril()
    found = state_need(weights, 1e-6)
    assert found.limited() == [True] and found.per_head() == [max(min(t, T - t) for t in found.splits)]


def test_bounds_and_sinks_stand_in_tables_and_figures() -> None:
    memory = horizon(attending(96), queries=list(range(15, 96, 8))).to_dict()
    layer = {"name": "a", "dynamics": {"horizon": memory}, "answers": {"memory": memory}, "kind": "softmax"}
    grid = questions.memory.table({"layers": [layer]})
    assert grid is not None and "≥ 96" in str(grid.rows) and "head 0 of a (60%)" in " ".join(grid.notes)
    assert "≥ 96" in str(overview({"layers": [layer], "questions": {"memory": {}}}))
    drawn = questions.memory.memory_horizon({"layers": [layer]}, "dynamics", "horizon")
    assert drawn is not None and "head 0: ≥ 96 tokens" in str(drawn.views[0])


def test_an_exponent_is_told_with_what_is_read_of_its_state() -> None:
    """The first head is the slowest by far, as a Mamba channel with a step of 1e-7: neither fading nor writing."""
    dt = torch.tensor([1e-7, 0.1, 0.5, 0.01], dtype=torch.float64)
    x = torch.randn(3, 1, 90, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strength = torch.tensor([1, 1, 1, 0.2], dtype=torch.float64)[:, None]
    system = sf.System(x[0] * strength, x[1], x[2], log_decay=-dt.expand(1, 90, 4), b=dt, d=torch.ones(4).double())
    answers, said = told(system)
    shares = answers["stability"]["carried"]
    bare = [sf.run(dataclasses.replace(system, d=None).select_heads([h])) for h in range(4)]
    size = torch.stack([y.square().mean().sqrt() for y in bare])  # type: ignore[union-attr]
    assert shares == pytest.approx((size / size.max()).tolist(), rel=1e-3) and shares[0] < 1e-5
    text = next(text for text in said if "fade slowest" in text)
    assert text.startswith(f"In head 3, whose state gives {shares[3]:.0%} of what the strongest head's does,")
    assert "e-fold in 100 tokens" in text
    assert any(text.startswith("Of 1 head next to nothing is read") and "head 0" in text for text in said)
    assert not any("e-fold in 1e+07" in text or text.startswith("Head 0 keeps") for text in said)


@pytest.mark.parametrize("name", ["lru", "s4d", "mamba", "gated_deltanet", "gla", "mlstm"])
def test_what_is_carried_is_a_share_of_the_strongest_head(name: str) -> None:
    layer = sf.build(name, d_model=8).double()
    shares = carried(layer.system(torch.randn(2, 20, 8, dtype=torch.float64)).detach())
    assert shares.ndim == 1 and float(shares.max()) == 1 and float(shares.min()) >= 0
