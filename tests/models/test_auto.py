"""Our models as transformers, its Trainer and PEFT use them: files, configuration, calls, generation, training."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import stateform as sf
from stateform.models.auto import StateCache, StateformConfig, StateformForCausalLM

V, D = 29, 16
HYBRID = "gated_deltanet mamba2 softmax"
FAR = 30
"""Factor of the embeddings, that outputs differ clearly from token to token."""
ROUNDED = {"rtol": 1e-12, "atol": 1e-12}
"""A product of other sizes may be summed in another order: float64."""


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """A StateformError that holds all the words."""
    with pytest.raises(sf.StateformError) as caught:
        yield
    for word in words:
        assert word in str(caught.value), str(caught.value)


def ids(*shape: int, seed: int = 1, below: int = V) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def language_model(pattern: str = HYBRID, **settings: Any) -> sf.LanguageModel:
    torch.manual_seed(0)
    made = sf.LanguageModel(pattern, **{"d_model": D, "vocab_size": V, "n_heads": 2, **settings}).eval()
    with torch.no_grad():
        made.embedding.weight.mul_(FAR)  # type: ignore[union-attr,operator]
    return made


def auto(pattern: str = HYBRID, **settings: Any) -> Any:
    ours = language_model(pattern, **settings).double()
    return StateformForCausalLM(StateformConfig(**vars(ours.config)), ours).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    language_model().save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


# -- opening and saving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16, torch.float64, "auto", None])
def test_a_dtype_is_a_name_or_a_dtype(folder: Path, dtype: Any) -> None:
    want = {"auto": torch.float32, None: torch.float32}.get(dtype, dtype)
    want = getattr(torch, want) if isinstance(want, str) else want
    for name in ("dtype", "torch_dtype"):
        m = AutoModelForCausalLM.from_pretrained(folder, **{name: dtype})
        assert {p.dtype for p in m.parameters()} == {want}
        assert m.dtype == want and not m.training
    ours = sf.LanguageModel.from_pretrained(folder).to(want)
    assert torch.equal(m(ids(2, 5)).logits, ours(ids(2, 5)).logits)
    config = AutoConfig.from_pretrained(folder)
    assert AutoModelForCausalLM.from_config(config, dtype=want).dtype == want


@pytest.mark.parametrize("place", ["cpu", {"": "cpu"}, "auto", torch.device("cpu"), {"model": "cpu"}])
def test_a_device_map_is_one_device(folder: Path, place: Any) -> None:
    m = AutoModelForCausalLM.from_pretrained(folder, device_map=place, low_cpu_mem_usage=True)
    assert m.device.type == "cpu"
    assert torch.equal(m(ids(2, 5)).logits, sf.LanguageModel.from_pretrained(folder)(ids(2, 5)).logits)


def test_several_devices_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with refused("device_map names cpu, cuda:0", "one device"):
        AutoModelForCausalLM.from_pretrained(
            language_folder(tmp_path), device_map={"model.blocks": "cuda:0", "model.norm": "cpu"}
        )


def language_folder(path: Path, **settings: Any) -> Path:
    language_model(**settings).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", sf.names())
@pytest.mark.drawn(0.4)
def test_every_layer_is_opened_and_saved(name: str, tmp_path: Path) -> None:
    ours = sf.LanguageModel(name, d_model=D, vocab_size=V, tie_embeddings=False).eval()
    ours.save_pretrained(tmp_path / "ours")
    m = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    want = ours(ids(2, 6)).logits
    assert torch.equal(m(ids(2, 6)).logits, want)
    m.save_pretrained(tmp_path / "theirs")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")(ids(2, 6)).logits, want)
    assert torch.equal(sf.LanguageModel.from_pretrained(tmp_path / "theirs")(ids(2, 6)).logits, want)


def test_a_folder_of_the_first_version_opens(folder: Path) -> None:
    want = sf.LanguageModel.from_pretrained(folder)(ids(2, 6)).logits
    (folder / "modeling_stateform.py").unlink()
    values = json.loads((folder / "config.json").read_text())
    del values["auto_map"]
    (folder / "config.json").write_text(json.dumps(values))
    assert torch.equal(sf.LanguageModel.from_pretrained(folder)(ids(2, 6)).logits, want)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids(2, 6)).logits, want)


def test_arguments_of_save_pretrained_are_kept(folder: Path, tmp_path: Path) -> None:
    m = AutoModelForCausalLM.from_pretrained(folder)
    names = list(m.state_dict())
    changed = {name: x + 1 for name, x in m.state_dict().items()}
    m.save_pretrained(tmp_path / "changed", state_dict=changed)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "changed")
    assert list(again.state_dict()) == names
    assert all(torch.equal(x, changed[name]) for name, x in again.state_dict().items())
    m.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    for opened in (AutoModelForCausalLM, sf.LanguageModel):
        assert torch.equal(opened.from_pretrained(tmp_path / "sharded")(ids(1, 5)).logits, m(ids(1, 5)).logits)
    m.save_pretrained(tmp_path / "other", variant="other")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "other", variant="other").dtype == torch.float32
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text("{}")
    with refused("model.safetensors.index.json", "weight_map"):
        sf.LanguageModel.from_pretrained(tmp_path / "sharded")


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    with refused("do not fit its configuration", "is missing", "more", "ignore_mismatched_sizes=True"):
        AutoModelForCausalLM.from_pretrained(folder, n_layers=5)
    torch.manual_seed(3)
    m, info = AutoModelForCausalLM.from_pretrained(
        folder, n_layers=4, ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = {name for name in m.state_dict() if name.startswith("model.blocks.3.")}
    assert info["missing_keys"] == new
    for name, x in m.model.blocks[3].mixer.named_parameters():  # drawn as the layer draws them, not left as they were
        other = dict(sf.build("gated_deltanet", d_model=D, n_heads=2).named_parameters())[name]
        assert bool(x.isfinite().all()) and (x.std() > 0) == (other.std() > 0), name


def test_options_that_are_not_offered_are_refused(folder: Path) -> None:
    for call in (AutoModelForCausalLM.from_pretrained, lambda d, **o: AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(d), **o
    )):  # fmt: skip
        with refused("takes no quantisation", "leave it out"):
            call(folder, quantisation=4)


def test_other_programs_open_the_folder(tmp_path: Path) -> None:
    language_folder(tmp_path / "lm", tokenizer="bytes", vocab_size=None)
    code = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = {str(tmp_path / "lm")!r}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("ab", return_tensors="pt")
print(type(model).__module__, model.generate(**inputs, max_new_tokens=3, do_sample=False).tolist())
model.save_pretrained({str(tmp_path / "again")!r})
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    ours = sf.LanguageModel.from_pretrained(tmp_path / "lm")
    want = ours.generate(torch.tensor([[97, 98]]), max_new_tokens=3).tolist()
    assert done.stdout.split("\n")[-2] == f"stateform.models.auto.causal {want}"
    files = {p.name for p in (tmp_path / "lm").iterdir()}
    assert files | {"generation_config.json"} == {p.name for p in (tmp_path / "again").iterdir()}
    assert torch.equal(sf.LanguageModel.from_pretrained(tmp_path / "again")(ids(1, 5)).logits, ours(ids(1, 5)).logits)


def test_the_tokenizer_of_bytes_gives_the_bytes(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(language_folder(tmp_path, tokenizer="bytes", vocab_size=None))
    every = "".join(chr(i) for i in range(0x800)) + "日本 🎉 e\u0301  \r\n\t"
    for text in (every, "  lead", "Ā\0a", ""):
        assert tokenizer(text)["input_ids"] == list(text.encode())
        assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer(["ab", "c"], padding=True) == {
        "input_ids": [[97, 98], [0, 99]],
        "attention_mask": [[1, 1], [0, 1]],
    }
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (256, 0, 0, 0)


# -- the configuration ------------------------------------------------------------------------------------------------


def test_edits_of_the_configuration_are_followed(folder: Path, tmp_path: Path) -> None:
    m = AutoModelForCausalLM.from_pretrained(folder).train()
    x = ids(2, 9)
    assert torch.equal(m(x).logits, m(x).logits)
    m.config.dropout = 0.5
    assert not torch.equal(m(x).logits, m(x).logits)
    assert {p.p for p in m.modules() if isinstance(p, torch.nn.Dropout)} == {0.5}
    m.config.dropout = 0.0
    before = m(x).logits
    m.config.norm_eps = 0.1
    assert not torch.equal(m(x).logits, before)
    m.config.pad_token_id = 3
    m.save_pretrained(tmp_path / "edited")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert (again.config.norm_eps, again.config.pad_token_id, again.model.config.norm_eps) == (0.1, 3, 0.1)
    assert torch.equal(again(x).logits, m(x).logits)
    assert sf.LanguageModel.from_pretrained(tmp_path / "edited").config.norm_eps == 0.1


EDITS: dict[str, Any] = {
    "n_layers": 4, "num_hidden_layers": 4, "d_model": 8, "vocab_size": 30, "pattern": "gated_deltanet*3",
    "tie_embeddings": False, "tie_word_embeddings": False, "mlp_ratio": None, "max_positions": 8,
    "options": {"n_heads": 1}, "conv": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_edits_that_cannot_be_followed_are_refused(name: str, tmp_path: Path) -> None:
    m = auto()
    before = getattr(m.config, name)
    setattr(m.config, name, EDITS[name])
    ours = m.config.attribute_map.get(name, name)
    for call in (
        lambda: m(ids(1, 4)),
        lambda: m.generate(ids(1, 4), max_new_tokens=2),
        lambda: m.save_pretrained(tmp_path),
    ):
        with refused(f"config.{ours} is", "was made with", "set it back"):
            call()
    assert not list(tmp_path.iterdir())
    made = AutoModelForCausalLM.from_config(copy.deepcopy(m.config))
    assert getattr(made.model.config, ours) == EDITS[name]
    setattr(m.config, name, before)
    assert m(ids(1, 4)).logits.shape == (1, 4, V)


def test_edits_in_place_and_bad_values_are_seen() -> None:
    m = auto()
    m.config.options["n_heads"] = 1
    with refused("config.options"):
        m(ids(1, 4))
    m.config.options["n_heads"] = 2
    m.config.dropout = 1.5
    with refused("dropout is 1.5"):
        m(ids(1, 4))


def test_settings_given_to_from_pretrained_are_those_of_the_model(folder: Path) -> None:
    m = AutoModelForCausalLM.from_pretrained(folder, dropout=0.25, norm_eps=0.5)
    assert (m.config.dropout, m.model.config.dropout, m.model.norm.eps) == (0.25, 0.25, 0.5)
    config = AutoConfig.from_pretrained(folder, dropout=0.125)
    assert AutoModelForCausalLM.from_pretrained(folder, config=config).model.dropout.p == 0.125
    config.dropout = 0.375
    assert AutoModelForCausalLM.from_config(config).model.blocks[0].dropout.p == 0.375
    with refused("dropout is 2.0"):
        AutoModelForCausalLM.from_pretrained(folder, dropout=2.0)
    m = AutoModelForCausalLM.from_pretrained(folder, output_hidden_states=True, use_cache=False, return_dict=False)
    logits, hidden = m(ids(1, 3))
    assert len(hidden) == 4 and torch.equal(m.model.logits(hidden[-1]), logits)


def test_tokens_are_added(tmp_path: Path) -> None:
    for tied in (True, False):
        m = auto(tie_embeddings=tied)
        before = m(ids(1, 5)).logits
        assert m.get_output_embeddings() is m.model.head
        m.resize_token_embeddings(V + 3)
        assert m.config.vocab_size == m.model.config.vocab_size == V + 3
        assert m(torch.full((1, 4), V + 2)).logits.shape == (1, 4, V + 3)
        torch.testing.assert_close(m(ids(1, 5)).logits[..., :V], before, **ROUNDED)
        m.save_pretrained(tmp_path / str(tied))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / str(tied))
        torch.testing.assert_close(again(ids(1, 5)).logits, m(ids(1, 5)).logits, **ROUNDED)
    text = auto(tokenizer="bytes", vocab_size=None)
    with refused("vocab_size is 100", "needs 256"):
        text.resize_token_embeddings(100)
    assert text(ids(1, 5)).logits.shape[-1] == 256
    with refused("the head of this model is its embedding"):
        text.set_output_embeddings(torch.nn.Linear(D, 256))


# -- calling --------------------------------------------------------------------------------------------------------


def test_outputs_are_those_of_the_model_inside() -> None:
    m, x = auto(), ids(2, 7)
    ours = m.model(x, labels=x, return_state=True)
    out = m(input_ids=x, labels=x)
    assert torch.equal(out.logits, ours.logits) and torch.equal(out.loss, ours.loss)
    assert isinstance(out.past_key_values, StateCache) and out.past_key_values.get_seq_length() == 7
    loss, logits, cache = m(x, labels=x, return_dict=False)
    assert torch.equal(loss, ours.loss) and torch.equal(logits, ours.logits) and isinstance(cache, StateCache)
    assert m(x, use_cache=False).past_key_values is None
    assert m.train()(x).past_key_values is None
    m.eval()
    torch.testing.assert_close(m(x, logits_to_keep=2).logits, ours.logits[:, -2:], **ROUNDED)
    assert torch.equal(m(inputs_embeds=m.get_input_embeddings()(x)).logits, ours.logits)
    hidden = m(x, output_hidden_states=True).hidden_states
    assert len(hidden) == 4
    assert torch.equal(hidden[0], m.model.embedding(x))
    assert torch.equal(m.model.logits(hidden[-1]), ours.logits)
    assert torch.equal(m(x, labels=x, num_items_in_batch=torch.tensor(3)).loss, ours.loss * 12 / 3)
    assert m(x, labels=torch.full_like(x, -100), num_items_in_batch=0).loss == 0
    for given, words in [
        ({}, ("neither of input_ids and inputs_embeds",)),
        ({"input_ids": x, "inputs_embeds": hidden[0]}, ("both of input_ids and inputs_embeds",)),
        ({"inputs_embeds": hidden[0][..., :3]}, ("numbers [B,T,16]",)),
        ({"input_ids": x, "output_attentions": True}, ("output_attentions is True", "sf.analyze")),
        ({"input_ids": x, "past_key_values": [1]}, ("past_key_values is a list",)),
    ]:
        with refused(*words):
            m(**given)


def test_a_cache_goes_on_where_the_input_ended() -> None:
    m, x = auto(max_positions=40), ids(3, 12)
    mask = torch.ones(3, 12)
    mask[1, :3] = 0
    whole = m(x, mask).logits
    cache = StateCache()
    first = m(x[:, :5], mask[:, :5], past_key_values=cache)
    assert first.past_key_values is cache
    second = m(x[:, 5:7], mask[:, :7], past_key_values=cache)
    state = cache.state
    third = m(x[:, 7:], past_key_values=cache)
    got = torch.cat([first.logits, second.logits, third.logits], 1)
    assert float((got - whole)[mask.bool()].abs().max().detach()) < 1e-10
    assert cache.get_seq_length() == 12 and cache.batch_size == 3
    assert torch.equal(m(x[:, 7:], past_key_values=state).logits, third.logits), "a State does as well"
    assert torch.equal(m(x, mask, past_key_values=transformers.DynamicCache()).logits, whole)
    cache = StateCache(state)
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert torch.equal(
        m(x[:, 7:], past_key_values=cache).logits, m(x[:, 7:], past_key_values=state.select([2, 2, 0])).logits
    )
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(4)
    assert cache.batch_size == 4 and bool(cache)
    cache.crop(0)
    with refused("cannot forget its last 2 tokens"):
        cache.crop(-2)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.state is None


# -- generating -------------------------------------------------------------------------------------------------------


def by_hand(m: Any, prompt: Tensor, beams: int, steps: int) -> Tensor:
    """Beam search without an end token, every beam computed anew from its tokens."""
    found = [(0.0, prompt)]
    for _ in range(steps):
        more = []
        for score, tokens in found:
            logp = m.model(tokens[None]).logits[0, -1].log_softmax(-1)
            more += [(score + float(p), torch.cat([tokens, torch.tensor([i])])) for i, p in enumerate(logp.detach())]
        found = sorted(more, key=lambda item: -item[0])[:beams]
    return found[0][1]


@pytest.mark.parametrize("pattern", [HYBRID, "lstm rwkv7", "softmax*2"])
def test_beams_reorder_states(pattern: str) -> None:
    m = auto(pattern)
    with torch.no_grad():
        m.model.embedding.weight.div_(FAR / 3)  # so that beams cross
    x = ids(2, 5)
    got = m.generate(x, num_beams=3, max_new_tokens=7, do_sample=False, pad_token_id=0)
    for row in range(2):
        assert torch.equal(got[row], by_hand(m, x[row], 3, 7)), row
    reordered: list[list[int]] = []
    before = StateCache.reorder_cache
    try:
        StateCache.reorder_cache = lambda cache, rows: (reordered.append(rows.tolist()), before(cache, rows))[1]  # type: ignore
        m.generate(x, num_beams=3, max_new_tokens=7, do_sample=False, pad_token_id=0)
    finally:
        StateCache.reorder_cache = before  # type: ignore[method-assign]
    assert any(rows != sorted(rows) or len(set(rows)) < 6 for rows in reordered), "the beams never crossed"


def test_generate_takes_what_transformers_takes() -> None:
    m, x = auto(), ids(2, 5)
    want = m.model.generate(x, max_new_tokens=9)
    assert torch.equal(m.generate(x, max_length=14), want)
    assert torch.equal(m.generate(input_ids=x, max_new_tokens=9, use_cache=False), want)
    assert torch.equal(m.generate(x, generation_config=transformers.GenerationConfig(max_new_tokens=9)), want)
    assert torch.equal(m.generate(x, max_new_tokens=9, prefill_chunk_size=2), want)
    end = int(want[0, 8])
    stopped = m.generate(x[:1], max_new_tokens=9, eos_token_id=end, pad_token_id=0)
    assert torch.equal(stopped, want[:1, : int((want[0, 5:] == end).nonzero()[0]) + 6])
    seven = transformers.StoppingCriteriaList([lambda tokens, scores, **_: tokens.shape[1] >= 7])
    assert torch.equal(m.generate(x, max_new_tokens=9, stopping_criteria=seven), want[:, :7])
    torch.manual_seed(0)
    drawn = m.generate(x, max_new_tokens=9, do_sample=True, temperature=5.0, top_k=20, num_return_sequences=4)
    assert drawn.shape == (8, 14) and len({tuple(row) for row in drawn.tolist()}) > 4
    heard: list[list[int]] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            heard.append(value.flatten().tolist())

        def end(self) -> None:
            heard.append([])

    m.generate(x[:1], max_new_tokens=9, streamer=Streamer())
    assert [i for tokens in heard for i in tokens] == want[0].tolist() and heard[-1] == []
    full = m.generate(x, max_new_tokens=4, return_dict_in_generate=True, output_scores=True, output_hidden_states=True)
    assert torch.equal(full.sequences, want[:, :9]) and len(full.scores) == len(full.hidden_states) == 4
    assert torch.equal(m.generate(full.sequences, past_key_values=full.past_key_values, max_new_tokens=5), want)
    embeds = m.get_input_embeddings()(x)
    assert torch.equal(m.generate(inputs_embeds=embeds, max_new_tokens=9), want[:, 5:])
    with refused("cache_implementation is 'static'", "its state"):
        m.generate(x, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="max_tokens"):
        m.generate(x, max_tokens=3)


@pytest.mark.parametrize("left", [True, False])
def test_padded_prompts_go_on_as_they_would_alone(left: bool) -> None:
    m, x = auto(max_positions=40), ids(2, 8)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, slice(0, 3) if left else slice(5, 8)] = 0
    got = m.generate(x, attention_mask=mask, max_new_tokens=6)
    for options in ({"input_ids": x}, {"num_beams": 2}, {"use_cache": False}):
        again = m.generate(
            **{"inputs": None if "input_ids" in options else x, **options}, attention_mask=mask, max_new_tokens=6
        )
        assert "num_beams" in options or torch.equal(again, got)
    alone = x[1:, 3:] if left else x[1:, :5]
    assert torch.equal(got[1, -6:], m.generate(alone, max_new_tokens=6)[0, -6:])
    assert torch.equal(got[0], m.generate(x[:1], max_new_tokens=6)[0])
    beams = m.generate(x, attention_mask=mask, max_new_tokens=6, num_beams=2)
    assert torch.equal(beams[1, -6:], m.generate(alone, max_new_tokens=6, num_beams=2)[0, -6:])


# -- training ---------------------------------------------------------------------------------------------------------


def trained(folder: Path, model: Any, steps: int, resume: bool = False, **settings: Any) -> Any:
    """transformers' Trainer after so many steps."""
    rows = ids(24, 10, seed=7)
    unsaid = torch.arange(10) < torch.arange(24)[:, None] % 7  # rows that say different numbers of tokens
    data = [
        {"input_ids": row, "labels": labels} for row, labels in zip(rows, rows.masked_fill(unsaid, -100), strict=True)
    ]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True,
        **{"save_steps": 5, "lr_scheduler_type": "constant", "per_device_train_batch_size": 2, **settings},
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data[:4])
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_resumed_trainer_ends_where_one_run_does(folder: Path, tmp_path: Path) -> None:
    def opened() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dropout=0.1)

    once = trained(tmp_path / "once", opened(), 10).model
    trained(tmp_path / "twice", opened(), 5)
    twice = trained(tmp_path / "twice", opened(), 10, resume=True).model
    begin = opened()
    for name, x in once.state_dict().items():
        assert torch.equal(x, twice.state_dict()[name]), name
    assert any(not torch.equal(x, begin.state_dict()[name]) for name, x in once.state_dict().items())
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "twice" / "checkpoint-10")
    assert torch.equal(saved(ids(1, 5)).logits, twice.eval()(ids(1, 5)).logits)
    assert torch.equal(sf.LanguageModel.from_pretrained(tmp_path / "twice" / "checkpoint-10")(ids(1, 5)).logits,
                       twice(ids(1, 5)).logits)  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_best_model_is_loaded_at_the_end(folder: Path, tmp_path: Path) -> None:
    m = AutoModelForCausalLM.from_pretrained(folder)
    trainer = trained(
        tmp_path / "best", m, 6, save_steps=2, eval_steps=2, eval_strategy="steps", load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True,  # the worst, which is not the last
    )  # fmt: skip
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "best" / "checkpoint-2")
    assert torch.equal(trainer.model.eval()(ids(1, 5)).logits, best(ids(1, 5)).logits)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_accumulated_batches_are_one_batch(folder: Path, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", AutoModelForCausalLM.from_pretrained(folder), 1, optim="sgd", max_grad_norm=0.0,
                    per_device_train_batch_size=4).model  # fmt: skip
    parts = trained(tmp_path / "parts", AutoModelForCausalLM.from_pretrained(folder), 1, optim="sgd", max_grad_norm=0.0,
                    gradient_accumulation_steps=2).model  # fmt: skip
    for name, x in whole.state_dict().items():
        assert torch.allclose(x, parts.state_dict()[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointing_is_switched_by_transformers_too() -> None:
    m, x = auto(dropout=0.2).train(), ids(2, 9)

    def gradients() -> dict[str, Tensor]:
        m.zero_grad()
        torch.manual_seed(0)
        m(x, labels=x).loss.backward()
        return {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}

    want = gradients()
    m.gradient_checkpointing_enable()
    assert m.is_gradient_checkpointing and all(b.gradient_checkpointing for b in m.model.blocks)
    again = gradients()
    assert want.keys() == again.keys() and all(torch.equal(g, again[name]) for name, g in want.items())
    m.gradient_checkpointing_disable()
    assert not m.is_gradient_checkpointing
    m._set_gradient_checkpointing(True, torch.utils.checkpoint.checkpoint, every_n_layers=2)
    assert [b.gradient_checkpointing for b in m.model.blocks] == [True, False, True]
    with refused("use_reentrant is True"):
        m.gradient_checkpointing_enable({"use_reentrant": True})


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_lora_is_trained_merged_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, x = AutoModelForCausalLM.from_pretrained(folder), ids(2, 9)
    before = base(x).logits
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "in_proj", "out_proj"])
    m = peft.get_peft_model(base, config).train()
    assert type(m).__name__ == "PeftModelForCausalLM"
    with torch.no_grad():
        for name, p in m.named_parameters():
            if "lora_B" in name:
                p.normal_()
    m.gradient_checkpointing_enable()
    m(input_ids=x, attention_mask=torch.ones_like(x), labels=x).loss.backward()
    grads = {name: p.grad for name, p in m.named_parameters() if p.requires_grad}
    assert len(grads) > 8 and all("lora_" in name and g is not None and bool(g.any()) for name, g in grads.items())
    torch.optim.SGD(m.parameters(), lr=0.1).step()
    after = m.eval()(input_ids=x).logits
    assert not torch.allclose(after, before)
    m.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(again(input_ids=x).logits, after)
    m = m.double()
    want = m(input_ids=x).logits
    tokens = m.generate(input_ids=x, max_new_tokens=5, num_beams=2, do_sample=False, pad_token_id=0)
    merged = m.merge_and_unload()
    assert torch.allclose(merged(x).logits, want, rtol=1e-9, atol=1e-9)
    assert torch.equal(merged.generate(x, max_new_tokens=5, num_beams=2, do_sample=False, pad_token_id=0), tokens)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(sf.LanguageModel.from_pretrained(tmp_path / "merged")(x).logits, merged(x).logits)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_an_adapter_is_added_by_transformers_itself(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    m, x = AutoModelForCausalLM.from_pretrained(folder), ids(2, 9)
    before = m(x).logits
    m.add_adapter(peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["in_proj"], init_lora_weights=False))
    after = m(x).logits
    assert not torch.allclose(after, before)
    m.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(folder)
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(again(x).logits, after)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_virtual_tokens_are_learned(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    base, x = AutoModelForCausalLM.from_pretrained(folder), ids(2, 9)
    m = peft.get_peft_model(
        base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_attention_heads=2)
    )
    out = m(input_ids=x, attention_mask=torch.ones_like(x), labels=x)
    assert out.logits.shape == (2, 12, V)
    out.loss.backward()
    assert all(bool(p.grad.any()) for p in m.parameters() if p.requires_grad)
    assert m.generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=4, pad_token_id=0).shape[0] == 2


def test_the_page_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["tokens"].shape == (2, 14) and names["ours"].norm.weight.dtype == torch.bfloat16
