"""The main job: its figures against direct computation, its command line, and what survives an interruption."""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stateform as sf
from stateform import cli
from stateform.analysis import influence
from stateform.architectures import REGISTRY
from stateform.studies.compare import lengths_up_to
from stateform.studies.subject import embed
from stateform.system.core import fold
from stateform.text import read_text
from tests.program import program

TEXT = b"A system is what it remembers; a layer is what it does with that.\n" * 8
DATA = os.environ.get("STATEFORM_DATA")
NAMES = ["softmax", "linear", "mamba2", "lru", "gated_deltanet"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(TEXT)
    return path


@pytest.fixture(scope="module")
def found(text: Path) -> sf.Comparison:
    return sf.compare(NAMES, text=text, d_model=32, max_length=256, repeats=1)


def rows(found: sf.Comparison) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found.result["layers"]}


def system_of(name: str, length: int) -> tuple[nn.Module, sf.System]:
    torch.manual_seed(0)
    layer = sf.build(name, d_model=32).double()
    with torch.no_grad():
        return layer, layer.system(embed(TEXT[:length], 32, 0)).detach()


def test_bytes_are_the_tokens(text: Path) -> None:
    assert read_text(text) == (str(text), TEXT)
    x = embed(b"abca", 8, 0)
    assert x.shape == (1, 4, 8)
    assert torch.equal(x[0, 0], x[0, 3])
    assert not torch.equal(x[0, 0], x[0, 1])
    _, default = read_text(None)
    assert len(default) > 100_000


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [("a.npy", b"\x93NUMPY\x01\x00v", "an array of numbers"), ("a.npz", b"PK\x03\x04..", "a zip archive"),
     ("a.wav", b"RIFF....WAVEfmt ", "a recording")],
)  # fmt: skip
def test_numbers_are_no_text(name: str, data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    for ask in (sf.compare, sf.analyze):
        with pytest.raises(sf.StateformError, match=f"{name} is {what}.*not a text"):
            ask(["linear"] if ask is sf.compare else "linear", text=tmp_path / name)


SIZES = {"d_model": 16, "max_length": 64, "repeats": 1}


def test_layers_are_compared_on_numbers(tmp_path: Path) -> None:
    numbers = 3 * np.random.RandomState(0).randn(300, 16)
    np.savetxt(tmp_path / "a.csv", numbers, delimiter=",", header=",".join("abcdefghijklmnop"), fmt="%.17g")
    found = sf.compare(["linear", "gla"], data=tmp_path / "a.csv", **SIZES)  # type: ignore[arg-type]
    assert found.result["data"] == {
        "source": str(tmp_path / "a.csv"), "unit": "step", "steps": 64, "width": 16, "rate": None, "mapped": "",
    }  # fmt: skip
    torch.manual_seed(0)
    layer = sf.build("linear", d_model=16).double()
    with torch.no_grad():
        first = layer.system(torch.from_numpy(numbers[None, :64]))
    alpha = influence(first, heads=[0])[0, 0]
    shown = found.result["layers"][0]["dynamics"]["coefficients"]["heads"][0]["alpha"]
    torch.testing.assert_close(torch.tensor(shown, dtype=torch.float64), alpha.double(), atol=1e-3, rtol=1e-3)
    line = " ".join(str(found).split())
    assert "2 layers on 64 steps of" in line and "How many steps back does each layer reach?" in line
    page = found.page()
    seen = [line, str(page.words), str(page.grids), *(str(replace(figure, views=())) for figure in page.figures)]
    told = " ".join(re.sub(r"text=", "", text) for text in seen).replace(str(tmp_path), "")
    assert not re.findall(r"\b(?:tokens?|texts?)\b", told, re.I), "of the tokens of no text is anything said"


def test_numbers_of_another_width_are_mapped_where_that_is_asked_for() -> None:
    numbers = np.random.RandomState(0).randn(40, 3)
    with pytest.raises(sf.StateformError, match=r"has 3 numbers a step; a layer here reads 16: give .*project=True"):
        sf.compare(["linear"], data=numbers, **SIZES)  # type: ignore[arg-type]
    found = sf.compare(["linear"], data=numbers, project=True, **SIZES)  # type: ignore[arg-type]
    mapped = "3 numbers a step, scaled to mean square 1, mapped to 16 by a fixed random matrix (seed 0)"
    assert found.result["data"]["mapped"] == mapped and mapped in " ".join(str(found).split())
    one, other = (sf.compare(["linear"], data=x, project=True, **SIZES).result["layers"][0]["dynamics"]  # type: ignore[arg-type]
                  for x in (numbers, 1000 * numbers))  # fmt: skip
    assert one["horizon"] == other["horizon"], "whatever the unit"
    for bad, message in [
        ({"text": torch.arange(9)}, "token ids are for a model"),
        ({"text": [1, 2, 3]}, "the text is a list; expected a file"),
        ({"text": "a.txt", "data": numbers}, "a text and numbers were given"),
        ({"data": numbers[:1]}, "has 1 step; expected at least 2"),
        ({"data": [1.0]}, "the numbers are a list; expected a file, an array or a tensor"),
    ]:
        with pytest.raises(sf.StateformError, match=message):
            sf.compare(["linear"], **SIZES, **bad)  # type: ignore[arg-type]


@pytest.mark.skipif(not DATA or not Path(DATA, "spoken-digits").is_dir(), reason="no recordings in STATEFORM_DATA")
def test_layers_are_compared_on_a_recording(tmp_path: Path) -> None:
    with tarfile.open(next(Path(str(DATA), "spoken-digits").glob("recordings.tar*"))) as archive:
        member = next(m for m in archive if m.name.endswith(".wav"))
        content = archive.extractfile(member)
        assert content is not None
        (tmp_path / "digit.wav").write_bytes(content.read())
    words = ["compare", "linear", "mamba2", "--data", "digit.wav", "--d-model", 16, "--max-length", 64, "--repeats", 1]
    done = program(*words, cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 2 and "digit.wav has 1 number a sample; a layer here reads 16" in done.stderr
    done = program(*words, "--project", "--html", "a.html", cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    line = " ".join(done.stdout.split())
    assert "2 layers on 64 samples of digit.wav, 8,000 a second (1 number a sample, scaled" in line
    assert "Choose a sample to see what is read there" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_lengths_end_at_the_longest() -> None:
    assert lengths_up_to(4096) == [64, 256, 1024, 4096]
    assert lengths_up_to(300) == [64, 256, 300]
    assert lengths_up_to(2) == [2]


def test_the_state_is_as_large_as_said(found: sf.Comparison) -> None:
    for name, row in rows(found).items():
        layer, _ = system_of(name, 2)
        with torch.no_grad():
            states = [layer(embed(TEXT[:t], 32, 0), return_state=True)[1] for t in (5, 9)]
        size = [
            sum(x.numel() * (2 if x.is_complex() else 1) for k, x in s.tensors.items() if k in ("S", "keys", "values"))
            for s in states
        ]
        identity = row["identity"]
        assert size[1] - size[0] == 4 * identity["state_growth"], name
        assert size[0] == identity["state_size"] + 5 * identity["state_growth"], name


def test_the_eigenvalues_are_those_of_the_transitions(found: sf.Comparison) -> None:
    for name, row in rows(found).items():
        _, system = system_of(name, 256)
        shown = torch.complex(*(torch.tensor(row["dynamics"]["eigenvalues"][k]) for k in ("re", "im")))
        if system.readout.cached:
            all_values = system.spectrum(normalised=True)
        else:
            dense = fold(system).transition().dense(system.n)
            all_values = torch.linalg.eigvals(dense)
        distance = (shown[:50, None] - all_values.flatten()[None].to(shown.dtype)).abs().amin(1)
        assert float(distance.max()) < 2e-3, name
        low, high = row["identity"]["eigenvalue_range"]["abs_min"], row["identity"]["eigenvalue_range"]["abs_max"]
        assert low - 1e-9 <= float(all_values.abs().max()) + 1e-9
        assert high <= float(all_values.abs().max()) + 1e-9, name


def test_the_maps_are_the_effective_attention(found: sf.Comparison) -> None:
    _, softmax = system_of("softmax", 64)
    assert softmax.q is not None
    angles = torch.arange(64)[:, None] * softmax.phase[0]  # type: ignore[index]
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    logits = torch.einsum("bihn,bjhn->bhij", softmax.q * turn, softmax.k * turn.conj()).real
    want = logits.masked_fill(~torch.ones(64, 64).bool().tril(), -torch.inf).softmax(-1)
    for entry in rows(found)["softmax"]["dynamics"]["coefficients"]["heads"]:
        torch.testing.assert_close(
            torch.tensor(entry["alpha"], dtype=torch.float64), want[0, entry["head"]], atol=1e-3, rtol=1e-3
        )
    for name, row in rows(found).items():
        _, system = system_of(name, 64)
        shown = row["dynamics"]["coefficients"]
        assert len(shown["tokens"]) == 64
        assert shown["tokens"][:2] == ["A", " "]
        if system.v is None:
            assert shown["what"] == "norm of the contribution"
            continue
        # Measured by pushing one value: y is linear in v with everything else held.
        j, h = 11, shown["heads"][0]["head"]
        v = torch.zeros_like(system.v)
        v[:, j, :, 0] = 1.0
        response = sf.run(system.map(lambda key, x, v=v: v if key == "v" else x), "recurrent")
        assert isinstance(response, Tensor)
        column = torch.tensor([line[j] for line in shown["heads"][0]["alpha"]], dtype=torch.float64)
        torch.testing.assert_close(column, response[0, :, h, 0], atol=1e-3 * float(response.abs().max()), rtol=2e-3)


def test_the_horizon_is_counted_on_the_weights(found: sf.Comparison) -> None:
    _, system = system_of("linear", 256)
    shown = rows(found)["linear"]["dynamics"]["horizon"]
    alpha = system.coefficients().abs()
    for t, median in zip(shown["by_position"]["t"], shown["by_position"]["median"]):
        back = alpha[0, :, t, : t + 1].flip(-1).cumsum(-1)
        tokens = (back < 0.95 * back[:, -1:]).sum(-1) + 1
        assert abs(float(tokens.double().quantile(0.5)) - median) < 1e-9


def test_the_certificate_is_the_error_of_each_form(found: sf.Comparison) -> None:
    for name, row in rows(found).items():
        _, system = system_of(name, 256)
        certificate = row["certificate"]
        assert certificate["ok"], name
        assert set(certificate["forms"]) | set(certificate["refused"]) == set(system.forms())
        for form, error in certificate["forms"].items():
            got, want = sf.run(system, form), sf.run(system, "recurrent")
            assert isinstance(got, Tensor) and isinstance(want, Tensor)
            scale = want.abs().amax((0, 1, 3), keepdim=True)
            assert abs(float(((got - want).abs() / scale.clamp_min(0.05 * scale.max())).max()) - error) < 1e-15


def test_costs_are_there_for_every_form_and_length(found: sf.Comparison) -> None:
    for name, row in rows(found).items():
        _, system = system_of(name, 2)
        cost = row["cost"]
        assert set(cost["forward_ms"]) == {form for form, why in system.forms().items() if why is None}
        for times in cost["forward_ms"].values():
            assert set(times) == {"64", "256"}
            assert all(0 < t["low"] <= t["median"] <= t["high"] for t in times.values())
        assert cost["decode_us"]["median"] > 0
        assert cost["flops"]["256"] > cost["flops"]["64"] > 0
        assert cost["peak_bytes"]["256"] > 0
        assert cost["crossover"]["text"]


def test_projections_are_counted(found: sf.Comparison) -> None:
    weights = sum(p.numel() for p in sf.build("linear", d_model=32).parameters())
    _, system = system_of("linear", 256)
    from stateform.analysis import cost
    from stateform.forms import choose

    assert rows(found)["linear"]["cost"]["flops"]["256"] == 2 * 256 * weights + cost(system, choose(system)).flops


def test_words_about_each_layer(found: sf.Comparison) -> None:
    identity = {name: row["identity"] for name, row in rows(found).items()}
    assert identity["softmax"]["transition"].startswith("none: every token is kept")
    assert identity["mamba2"]["transition"] == "scalar per head, from the input"
    assert identity["gated_deltanet"]["transition"].endswith("with rank-1 feedback")
    assert identity["lru"]["transition"] == "complex scalar per channel, constant"
    assert {x["contractive"] for x in identity.values()} == {"by construction"}


def test_a_form_that_needs_too_much_memory_is_left_out_and_named(text: Path) -> None:
    found = sf.compare(["mamba2"], text=text, d_model=32, max_length=300, memory_limit_gb=0.002, repeats=1)
    left_out = rows(found)["mamba2"]["cost"]["left_out"]
    assert {(x["form"], x["T"]) for x in left_out} >= {("matrix", 300)}
    assert "limit" in left_out[0]["reason"]
    assert "300" not in rows(found)["mamba2"]["cost"]["forward_ms"].get("matrix", {})


MINE = '''
import torch
from torch import nn
import stateform as sf

class Mine(sf.Layer):
    """Linear attention written anew."""

    def __init__(self, d_model, n_heads=4):
        super().__init__(d_model)
        self.n_heads = n_heads
        square = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = square

    def system(self, u, past=None):
        q, k, v = (f(u).unflatten(-1, (self.n_heads, -1)) for f in (self.q_proj, self.k_proj, self.v_proj))
        return sf.System(nn.functional.elu(q) + 1, nn.functional.elu(k) + 1, v, eta="sum")

class Fails(Mine):
    def system(self, u, past=None):
        raise RuntimeError("not today")
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_users_layer_is_found_to_be_linear_attention(mine: Path, text: Path) -> None:
    found = sf.compare(["linear", f"{mine}:Mine", "normalized"], text=text, d_model=32, max_length=64, repeats=1)
    pairs = {(p["a"], p["b"].rpartition(":")[2]): p for p in found.result["pairs"]}
    assert pairs["linear", "Mine"]["equal"]
    assert pairs["linear", "Mine"]["shared"] == 4
    assert pairs["linear", "Mine"]["first"] is None
    different = pairs["linear", "normalized"]
    assert not different["equal"]
    assert different["first"] == {"row": 0, "position": 0}
    assert rows(found)[f"{mine}:Mine"]["summary"] == "Linear attention written anew."


def test_equivalence_says_where_two_functions_part() -> None:
    torch.manual_seed(0)
    layer = sf.build("gla", d_model=16).double()
    x = torch.randn(2, 40, 16, dtype=torch.float64)

    def late(u: Tensor) -> Tensor:
        y = layer(u).clone()
        y[1, 23] += 1e-6
        return y

    assert sf.equivalent(layer, layer, x)
    found = sf.equivalent(layer, late, x)
    assert not found
    assert (found.row, found.position) == (1, 23)
    assert "position 23 of 40, row 1" in str(found)
    assert sf.equivalent(layer, late, x, rtol=1e-3)
    with torch.no_grad():
        assert sf.equivalent(layer.system(x), layer.system(x))
    with pytest.raises(sf.StateformError, match="give the input x"):
        sf.equivalent(layer, layer)
    with pytest.raises(sf.StateformError, match="cannot compare a str"):
        sf.equivalent("gla", layer, x)
    with pytest.raises(sf.StateformError, match="shapes"):
        sf.equivalent(layer, lambda u: u[:, :3], x)


def test_results_are_saved_whole(found: sf.Comparison, tmp_path: Path) -> None:
    found.save_json(tmp_path / "out.json")
    found.save_html(tmp_path / "out.html")
    assert json.loads((tmp_path / "out.json").read_text()) == found.to_dict()
    assert (tmp_path / "out.html").read_text().lstrip().lower().startswith("<!doctype html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "out.json"]
    assert max(len(line) for line in str(found).splitlines()) <= 80
    assert "iframe" in found._repr_html_()


def test_layers_that_cannot_be_compared_are_refused_before_any_work(mine: Path, text: Path) -> None:
    started: list[str] = []
    for spec, message in [
        (f"{mine}:Fails", "not today"),
        (nn.Linear(32, 32), "no method system"),
        (sf.build("linear", d_model=16), "d_model = 16, not 32"),
        ("gated_delta_net", "gated_deltanet"),
    ]:
        with pytest.raises(sf.StateformError, match=message):
            sf.compare(
                ["linear", spec], text=text, d_model=32, max_length=64, on_progress=lambda *a: started.append(a[0])
            )
    assert not started


# -- the command line ---------------------------------------------------------------------------------------------


def test_the_command_writes_tables_page_and_numbers(text: Path, tmp_path: Path) -> None:
    html, numbers = tmp_path / "report.html", tmp_path / "report.json"
    words = ["compare", "linear", "qlstm(reversed=True)", "--text", text, "--d-model", 16, "--max-length", 64]
    done = program(*words, "--html", html, "--json", numbers, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "qlstm(reversed=True)" in done.stdout
    assert str(html) in done.stdout
    assert html.stat().st_size > 1_000_000
    assert json.loads(numbers.read_text())["complete"] is True
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(tmp_path))


def test_check_and_names_as_commands() -> None:
    done = program("check", "linear", "--d-model", 8)
    assert done.returncode == 0, done.stderr
    assert "the contract holds" in done.stdout
    known = [name for name in sf.names() if REGISTRY[name].cls.__module__.startswith("stateform.")]
    assert program("names").stdout.split() == known
    assert program("--version").stdout.startswith("stateform 0.")


def test_an_interrupted_comparison_keeps_what_was_finished(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: object, what: str, done: int, total: int) -> None:
        if what.startswith("time at T = 256"):
            raise KeyboardInterrupt

    monkeypatch.setattr("stateform.cli.look.Bar.__call__", stop)
    numbers = tmp_path / "out.json"
    monkeypatch.setattr(
        sys, "argv", ["stateform", "compare", "linear", "gla", "--text", str(text), "--json", str(numbers)]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    out, err = capsys.readouterr()
    assert "what was finished" in err
    assert "gla" in out
    result = json.loads(numbers.read_text())
    assert result["complete"] is False
    assert [row["name"] for row in result["layers"]] == ["linear", "gla"]
    assert set(result["layers"][0]["cost"]["forward_ms"]["chunkwise"]) == {"64"}
    assert result["pairs"] == []


@pytest.mark.parametrize(
    "options", [["--memory-limit", "-1"], ["--memory-limit", "nan"], ["--html", "a", "--json", "./a"]]
)
def test_limits_and_paths_that_make_no_sense_are_refused(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stateform", "compare", "linear", "--max-length", "64", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", ["path", "fox", "sliding_window"])
def test_what_keeps_a_cache_is_not_all_softmax(spec: str) -> None:
    rows = sf.compare([spec, "softmax"], d_model=8, n_heads=2, max_length=32, repeats=1).to_dict()["layers"]
    said = [row["cost"]["crossover"]["text"] for row in rows]
    assert said[0] != "this is softmax" and said[1] == "this is softmax"
