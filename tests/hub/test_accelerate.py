"""accelerate changes how the mixers of a model compute, and nothing else: outputs, gradients, caches, generation."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch import Tensor, nn

from stateform import StateformError
from stateform.hub import FAMILIES, accelerate, undo
from stateform.hub.lifted import ADAPTERS, CACHES
from stateform.hub.supported import mixers
from stateform.hub.widen import widened
from tests.fixtures.foreign import families, shared, small

UNADAPTED: set[str] = set()
"""Families with a mixer that has no adapter yet: to stay empty."""
OPEN = [name for name in families() if name in FAMILIES and name not in UNADAPTED]
FAST = [name for name in OPEN if any(ADAPTERS[cls].finite for cls in FAMILIES[name] if cls in ADAPTERS)]
"""Families with a mixer whose state is finite."""
FEW = ["mamba2", "qwen3_next", "jamba"]
"""Families of what is the same for all, in short."""
EACH = [*FEW, "falcon_h1", "rwkv", "xlstm", "recurrent_gemma", "lfm2", "minimax"]
"""A family of each kind of mixer, and some that mix several."""


def in_short(few: list[str]) -> list[Any]:
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in FAST]


TEXT = torch.arange(2 * 14).reshape(2, 14) * 7 % 60 + 1
LENGTH = TEXT.shape[1]
EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.fixture
def exact(kind: str) -> Iterator[None]:
    """Casts to float32 are to float64, so that what differs is what is computed, not how it is rounded."""
    shared(kind)
    with widened(torch.float64):
        yield


def original(kind: str) -> Any:
    """A model in float64, its experts one by one: their grouped products have no float64."""
    net = small(kind).double()
    net.config._experts_implementation = "eager"
    for module in mixers(net).values():
        ADAPTERS[type(module).__name__].exact(module)
    return net


def both(kind: str) -> tuple[Any, Any]:
    plain = original(kind)
    fast = copy.deepcopy(plain)
    assert accelerate(fast).replaced
    return plain, fast


def takes(net: Any, argument: str) -> bool:
    return argument in inspect.signature(type(net).forward).parameters


def logits(net: Any, tokens: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return net(tokens, use_cache=False, **kwargs).logits


def begin(net: Any) -> Any:
    """The cache before the first token; None where the model makes one and gives it."""
    from transformers import DynamicCache

    return DynamicCache(config=net.config) if net.config.model_type == "recurrent_gemma" else None


def in_chunks(net: Any, sizes: list[int], tokens: Tensor, turns: int | None = None) -> Tensor:
    """The logits of a text read chunk by chunk, each from the cache of the one before.

    With `turns`, every second chunk is read by the accelerated model and the others by the original, from one cache.
    """
    name = next(name for name in (*CACHES, "state", "use_cache") if takes(net, name))
    kept, found, at = begin(net), [], 0
    for i, size in enumerate(sizes):
        if turns is not None:
            (accelerate if (i + turns) % 2 else undo)(net)
        given = {} if kept is None else {name: kept}
        if takes(net, "position_ids"):  # Bamba begins anew at 0 without
            given["position_ids"] = torch.arange(at, at + size).expand(len(tokens), -1)
            given["attention_mask"] = torch.ones(len(tokens), at + size, dtype=torch.long)
        with torch.no_grad():
            out = net(tokens[:, at : at + size], **{"use_cache": True, **given})
        found.append(out.logits)
        kept, at = getattr(out, name, kept), at + size
    return torch.cat(found, 1)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", FAST)
def test_outputs_and_gradients(kind: str) -> None:
    found = []
    for net in both(kind):
        x = net.get_input_embeddings()(TEXT).detach().requires_grad_()
        out = net(inputs_embeds=x, use_cache=False).logits
        weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
        (out * weight).sum().backward()
        found.append((out.detach(), {"input": x.grad, **{name: p.grad for name, p in net.named_parameters()}}))
    (out, grads), (fast, fast_grads) = found
    torch.testing.assert_close(fast, out, **EXACT)
    for name, grad in grads.items():
        assert (grad is None) == (fast_grads[name] is None), name
        if grad is not None:
            torch.testing.assert_close(
                fast_grads[name], grad, rtol=0, atol=1e-10 * max(float(grad.abs().max()), 1.0), msg=name
            )


ONE_BY_ONE = ("mamba", "falcon_mamba", "jamba", "zamba", "minimax", "recurrent_gemma")
"""Families where the original does not go on from its own cache by several tokens."""
MISTAKEN = ("minimax",)
"""Families whose attention, which is left as it is, does not either: its mask has the length of a cache that stays
empty, and beams do not reorder the states. They are compared with the original from its cache.
"""
MORE = [[LENGTH - 3, 1, 1, 1], [1] * LENGTH, [2, 2, 3, LENGTH - 7]]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("sizes", [[1, 2, 1, LENGTH - 4], *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)])
@pytest.mark.parametrize("kind", FAST)
def test_goes_on_from_its_cache(kind: str, sizes: list[int]) -> None:
    plain, fast = both(kind)
    sizes = [LENGTH - 3, 1, 1, 1] if kind in MISTAKEN else sizes
    torch.testing.assert_close(in_chunks(fast, sizes, TEXT), logits(plain, TEXT), **EXACT)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", in_short(EACH))
def test_caches_are_the_originals(kind: str) -> None:
    """A text begun by either is gone on with by the other, if the original can go on from its own cache."""
    net, sizes = original(kind), [LENGTH - 3, 1, 1, 1] if kind in ONE_BY_ONE else [1, 2, 1, LENGTH - 4]
    want = logits(net, TEXT[:1])  # RWKV confuses the rows of a batch
    torch.testing.assert_close(in_chunks(net, sizes, TEXT[:1]), want, **EXACT)
    for turns in (0, 1):
        torch.testing.assert_close(in_chunks(net, sizes, TEXT[:1], turns), want, **EXACT)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("mamba2", {"time_step_limit": (0.1, 0.2)}),
    ("nemotron_h", {"time_step_min": 0.15}),
    ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    ("falcon_h1", {"ssm_multipliers": [1.1, 0.9, 0.8, 1.2, 0.7], "ssm_in_multiplier": 1.3}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_options_hold_from_the_cache_too(kind: str, options: dict[str, Any]) -> None:
    """A step of the original forgets the limits of dt; what counts is its forward."""
    fast = small(kind, **options).double()
    fast.config._experts_implementation = "eager"
    plain = copy.deepcopy(fast)
    accelerate(fast)
    with widened(torch.float64):
        torch.testing.assert_close(in_chunks(fast, [LENGTH - 3, 1, 2], TEXT), logits(plain, TEXT), **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bias_is_not_taken_for_a_token(side: str) -> None:
    """The original lets its convolution read the bias of the input map at padding."""
    fast = small("mamba2", use_bias=True)
    plain = copy.deepcopy(fast)
    accelerate(fast)
    mask = torch.ones_like(TEXT)
    away, here = (slice(0, 5), slice(5, None)) if side == "left" else (slice(9, None), slice(0, 9))
    mask[1, away] = 0
    got = logits(fast, TEXT, attention_mask=mask)[1:, here]
    torch.testing.assert_close(got, logits(plain, TEXT[1:, here]), rtol=0, atol=1e-4)


MASKLESS = ("rwkv", "xlstm")
"""Families that do not look at masks."""
UNORDERED = ("rwkv", "xlstm")
"""Families whose caches transformers cannot reorder."""


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", in_short(EACH))
def test_generates_the_same(kind: str) -> None:
    """Greedily and with beams, from the cache, what the original generates without one."""
    plain, fast = both(kind)
    for beams in (1, 2):
        options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams}
        want = plain.generate(TEXT, use_cache=kind in MISTAKEN, **options)
        if beams > 1 and kind in UNORDERED:
            with pytest.raises(ValueError, match="beam search"):
                plain.generate(TEXT, use_cache=True, **options)
            continue
        assert torch.equal(fast.generate(TEXT, use_cache=True, **options), want), f"{beams} beams"


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", in_short(EACH))
def test_padded_rows_are_the_unpadded_ones(kind: str, side: str) -> None:
    plain, fast = both(kind)
    tokens, mask = TEXT.clone(), torch.ones_like(TEXT)
    away, here = (slice(0, 5), slice(5, None)) if side == "left" else (slice(LENGTH - 5, None), slice(0, LENGTH - 5))
    tokens[1, away], mask[1, away] = 7, 0
    given = {"attention_mask": mask}
    if takes(plain, "position_ids"):
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    got = logits(fast, tokens, **given)
    torch.testing.assert_close(got[:1], logits(plain, TEXT[:1]), **EXACT)
    row = TEXT[1:, here]
    if kind in MASKLESS:
        row = tokens[1:]
    torch.testing.assert_close(got[1:, -row.shape[1] :] if side == "left" else got[1:, : row.shape[1]],
                               logits(plain, row), **EXACT)  # fmt: skip


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", in_short(EACH))
def test_generates_from_padded_prompts(kind: str) -> None:
    """Rows of different lengths, padded on the left, go on as they do alone."""
    plain, fast = both(kind)
    tokens, mask = TEXT.clone(), torch.ones_like(TEXT)
    tokens[1, :5], mask[1, :5] = 7, 0
    if kind in MASKLESS:
        pytest.skip(f"{kind} does not look at masks")
    options = {"max_new_tokens": 4, "do_sample": False}
    got = fast.generate(tokens, attention_mask=mask, **options)[:, LENGTH:]
    rows = [plain.generate(row, use_cache=False, **options)[:, -4:] for row in (TEXT[:1], TEXT[1:, 5:])]
    want = torch.cat(rows)
    if kind in MISTAKEN:
        want = plain.generate(tokens, attention_mask=mask, **options)[:, LENGTH:]
    assert torch.equal(got, want)


UNPACKED = {
    **dict.fromkeys(
        ("mamba", "falcon_mamba", "mamba2", "rwkv", "xlstm", "jamba"), "the model tells its mixers nothing"
    ),
    "granitemoehybrid": "its attention is not told, but in flash attention",
    "recurrent_gemma": "it looks at positions alone, as its test says",
}
"""Families that offer no packed sequences."""


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", in_short(["falcon_h1", "qwen3_next", "lfm2"]))
def test_packed_rows_are_rows_alone(kind: str) -> None:
    """Which the original gives with CUDA kernels only: without, it refuses (seq_idx), or reads over the ends."""
    if kind in UNPACKED:
        pytest.skip(f"{kind}: {UNPACKED[kind]}")
    plain, fast = both(kind)
    cu, index, position = packed()
    want = torch.cat([logits(plain, TEXT[:1, a:b]) for a, b in itertools.pairwise(cu.tolist())], 1)
    lengths = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 8, "max_length_k": 8}
    where = {"position_ids": position} if takes(plain, "position_ids") else {}
    for given in (lengths, {**lengths, "seq_idx": index}):
        torch.testing.assert_close(logits(fast, TEXT[:1], **where, **given), want, **EXACT)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "jamba", "granitemoehybrid"])
def test_packed_rows_of_a_mixer(kind: str) -> None:
    """Where the model does not hand on what it is told; the state that is kept is that of the last row."""
    from transformers import DynamicCache

    net = small(kind)
    accelerate(net)
    mixer = next(iter(mixers(net).values()))
    u = torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(0))
    cu, index, _ = packed()
    rows = list(itertools.pairwise(cu.tolist()))
    with torch.no_grad():
        kept, last = DynamicCache(config=net.config), DynamicCache(config=net.config)
        want = torch.cat([mixer(u[:, a:b], cache_params=last if b == LENGTH else None) for a, b in rows], 1)
        for given in ({"cu_seq_lens_q": cu}, {"seq_idx": index, "cache_params": kept}):
            torch.testing.assert_close(mixer(u, **given), want, rtol=0, atol=1e-5)
        on = [mixer(u[:, :1], cache_params=cache) for cache in (kept, last)]
    torch.testing.assert_close(on[0], on[1], rtol=0, atol=1e-5)


def packed() -> tuple[Tensor, Tensor, Tensor]:
    """The ends of three sequences in one row, the number of each token's, and its position there."""
    ends = [0, 5, 6, LENGTH]
    parts = list(itertools.pairwise(ends))
    index = torch.cat([torch.full((b - a,), i) for i, (a, b) in enumerate(parts)])[None].int()
    return torch.tensor(ends).int(), index, torch.cat([torch.arange(b - a) for a, b in parts])[None]


# -- what a user does with a model besides -----------------------------------------------------------------------


def test_what_was_replaced_and_what_was_left() -> None:
    net = small("bamba")
    done = accelerate(net)
    assert done.replaced == {"model.layers.0.mamba": "BambaMixer", "model.layers.2.mamba": "BambaMixer"}
    assert list(done.left) == ["model.layers.1.self_attn"]
    assert "in our forms" in str(done) and "as before" in str(done)
    assert accelerate(net) == done


@pytest.mark.parametrize("kind", in_short(EACH))
def test_undo_gives_the_model_as_it_was(kind: str) -> None:
    net = small(kind)
    names, classes = list(net.state_dict()), [type(m) for m in net.modules()]
    before = logits(net, TEXT)
    done = accelerate(net)
    changed = [type(m) for m in net.modules()]
    assert accelerate(net) == done and [type(m) for m in net.modules()] == changed
    assert sum(a is not b for a, b in zip(classes, changed)) == len(done.replaced)
    assert list(net.state_dict()) == names
    assert undo(net) == len(done.replaced)
    assert [type(m) for m in net.modules()] == classes
    assert torch.equal(logits(net, TEXT), before)
    assert undo(net) == 0


@pytest.mark.parametrize("kind", in_short(FEW))
def test_copies_compute_with_their_own_weights(kind: str) -> None:
    net = small(kind)
    accelerate(net)
    before = logits(net, TEXT)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), torch.load(buffer, weights_only=False)):
        assert torch.equal(logits(other, TEXT), before)
        for name, module in mixers(other).items():
            assert type(module) is type(mixers(net)[name])
            if "_stateform_layer" in module.__dict__:
                assert module.__dict__["_stateform_layer"].module is module
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1.01)
        assert not torch.equal(logits(other, TEXT), before)
        assert torch.equal(logits(net, TEXT), before)


@pytest.mark.parametrize("kind", in_short(FEW))
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    plain, net = shared(kind), small(kind)
    accelerate(net)
    net.save_pretrained(tmp_path)
    loaded = type(net).from_pretrained(tmp_path).eval()
    assert [type(m) for m in loaded.modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(logits(loaded, TEXT), logits(plain, TEXT), rtol=0, atol=1e-6)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    net.load_state_dict(plain.state_dict())
    torch.testing.assert_close(logits(net, TEXT), logits(plain, TEXT), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", in_short(FEW))
def test_steps_of_training(kind: str) -> None:
    """With and without activation checkpointing: the losses of the original."""
    losses = []
    for how in ("plain", "fast", "checkpointed"):
        net = small(kind).train()
        if how != "plain":
            accelerate(net)
        if how == "checkpointed" and net.supports_gradient_checkpointing:
            net.activation_checkpointing_enable()
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        found = []
        for _ in range(3):
            loss = net(TEXT, labels=TEXT, use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
        losses.append(found)
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("kind", in_short(EACH))
def test_half_precision(kind: str, how: str) -> None:
    """As near to the model in float64 as the original in half precision is, or so; from the cache too."""
    plain = small(kind)
    with widened(torch.float64):
        want = logits(original(kind), TEXT)
    plain = plain.bfloat16() if how == "bfloat16" else plain
    fast = copy.deepcopy(plain)
    accelerate(fast)
    sizes = [LENGTH - 3, 2, 1]
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        try:
            theirs = logits(plain, TEXT)
        except RuntimeError as error:
            pytest.skip(f"the original fails: {error}")
        ours, on = logits(fast, TEXT), in_chunks(fast, sizes, TEXT)
    assert ours.dtype == theirs.dtype and torch.isfinite(ours).all()
    # The median: where a rounding sends a token to another expert, much changes in few places.
    bound = 1.5 * float((theirs - want).abs().median()) + 1e-3 * float(want.abs().median())
    for found in (ours, on):
        assert float((found - want).abs().median()) < bound


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", FEW)
def test_mixers_may_share_their_weights(kind: str) -> None:
    plain = original(kind)
    first, *others = [m for m in mixers(plain).values() if ADAPTERS[type(m).__name__].finite]
    for other in others:
        for name, p in first.named_parameters():
            owner, _, last = name.rpartition(".")
            setattr(other.get_submodule(owner), last, p)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    assert len(list(fast.parameters())) < len(list(shared(kind).parameters()))
    torch.testing.assert_close(logits(fast, TEXT), logits(plain, TEXT), **EXACT)
    torch.testing.assert_close(in_chunks(fast, [5, 1, LENGTH - 6], TEXT), logits(plain, TEXT), **EXACT)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", FEW)
def test_gradients_through_a_cache(kind: str) -> None:
    """A cache is written in place; what a gradient needs of it is not lost."""
    fast = original(kind)
    accelerate(fast)
    start = fast(TEXT[:, :5], use_cache=True)
    name = next(name for name in CACHES if takes(fast, name))
    more = fast(TEXT[:, 5:], use_cache=True, position_ids=torch.arange(5, LENGTH)[None], **{name: getattr(start, name)})
    torch.testing.assert_close(torch.cat([start.logits, more.logits], 1).detach(), logits(fast, TEXT), **EXACT)
    more.logits.sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in fast.parameters())


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", in_short(EACH))
def test_padding_between_tokens_is_absent(kind: str) -> None:
    """Six tokens, three of padding, five tokens: in one call, from the cache, and without the padding."""
    if kind in MASKLESS:
        pytest.skip(f"{kind} does not look at masks")
    plain, fast = both(kind)
    for net in (plain, fast) if kind == "recurrent_gemma" else ():
        net.config.attention_window_size = LENGTH  # the window of attention, which is the model's, counts padding
    tokens, mask = TEXT.clone(), torch.ones_like(TEXT)
    tokens[0, 6:9], mask[0, 6:9] = 7, 0
    kept = mask.bool()
    given = {"attention_mask": mask}
    if takes(plain, "position_ids"):
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    got = logits(fast, tokens, **given)
    torch.testing.assert_close(got[:1, kept[0]], logits(plain, TEXT[:1, kept[0]]), **EXACT)
    torch.testing.assert_close(got[1:], logits(plain, TEXT[1:]), **EXACT)
    if kind in (
        "minimax",
        "recurrent_gemma",
    ):  # their attention takes no mask behind a cache; positions begin anew at 0
        return
    name = next(name for name in (*CACHES, "use_cache") if takes(fast, name))
    found, cache = [], begin(fast)
    for at in (slice(0, 4), slice(4, LENGTH)):
        part = {k: x[:, : at.stop] if k == "attention_mask" else x[:, at] for k, x in given.items()}
        with torch.no_grad():
            out = fast(tokens[:, at], use_cache=True, **part, **({} if cache is None else {name: cache}))
        found.append(out.logits)
        cache = getattr(out, name, cache)
    torch.testing.assert_close(torch.cat(found, 1)[kept], got[kept], **EXACT)


def _mixer(net: Any) -> nn.Module:
    return next(m for m in mixers(net).values() if ADAPTERS[type(m).__name__].finite)


@pytest.mark.parametrize("kind", ["mamba", "jamba", "zamba", "mamba2", "falcon_h1", "qwen3_next", "olmo_hybrid"])
def test_other_activations(kind: str) -> None:
    """The convolution has the activation that the model has, and its gates theirs; also token by token."""
    plain = small(kind, **{"hidden_mamba_act" if kind == "zamba" else "hidden_act": "gelu"})
    fast = copy.deepcopy(plain)
    assert accelerate(fast).replaced
    want = logits(plain, TEXT)
    torch.testing.assert_close(logits(fast, TEXT), want, rtol=0, atol=1e-4)
    assert not torch.allclose(want, logits(small(kind), TEXT), rtol=0, atol=1e-2)
    torch.testing.assert_close(in_chunks(fast, [5, *[1] * (LENGTH - 5)], TEXT), want, rtol=0, atol=1e-4)


def test_a_mixer_that_no_system_expresses_is_left() -> None:
    plain = small("mamba2")
    plain.backbone.layers[1].mixer.time_step_limit = (0.2, 0.1)
    fast = copy.deepcopy(plain)
    done = accelerate(fast)
    assert list(done.replaced) == ["backbone.layers.0.mixer"]
    assert "time_step_limit of Mamba2Mixer is [0.2, 0.1]" in done.left["backbone.layers.1.mixer"]
    torch.testing.assert_close(logits(fast, TEXT), logits(plain, TEXT), rtol=0, atol=1e-4)


class Added(nn.Module):
    """As adapters are: a module around another, of which it has the call alone."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.more = base, nn.Parameter(torch.tensor(0.3))

    @property
    def weight(self) -> Tensor:
        """That of the module inside, which models look at."""
        weight: Tensor = self.base.weight
        return weight

    def forward(self, *args: Any) -> Tensor:
        y: Tensor = self.base(*args)
        return y + self.more * torch.tanh(y + 0.5)


def inner(net: Any) -> Iterator[tuple[nn.Module, str]]:
    """The maps, convolutions and norms inside the mixers, by their owner and name."""
    for mixer in mixers(net).values():
        if ADAPTERS[type(mixer).__name__].finite:
            for owner in list(mixer.modules()):
                for name, m in list(owner.named_children()):
                    if isinstance(m, nn.Linear | nn.Conv1d) or "Norm" in type(m).__name__:
                        yield owner, name


def looked_at(module: nn.Module, name: str) -> bool:
    """True if the original reads the weights of such a module instead of calling it."""
    return isinstance(module, nn.Conv1d) or name == "dt_proj"


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", in_short(EACH))
def test_what_is_put_on_a_module_inside_takes_effect(kind: str) -> None:
    """Around all maps, convolutions and norms: as the original, with other weights where it looks at weights alone;
    the same from the cache, and with gradients.
    """
    plain, fast = both(kind)
    want = logits(plain, TEXT)
    for owner, name in inner(fast):
        m = getattr(owner, name)
        if looked_at(m, name):
            m.register_forward_hook(lambda module, args, y: 1.5 * y)
        else:
            setattr(owner, name, Added(m).double())
    for owner, name in inner(plain):
        m = getattr(owner, name)
        if looked_at(m, name):
            for p in m.parameters():
                p.data.mul_(1.5)
        else:
            setattr(owner, name, Added(m).double())
    got = logits(fast, TEXT)
    assert not torch.allclose(got, want, rtol=0, atol=1e-3)
    torch.testing.assert_close(got, logits(plain, TEXT), rtol=0, atol=1e-8)
    if kind not in MISTAKEN:
        torch.testing.assert_close(in_chunks(fast, [6, *[1] * (LENGTH - 6)], TEXT), got, rtol=0, atol=1e-8)
    fast(TEXT, use_cache=False).logits.square().mean().backward()
    more = [p for n, p in fast.named_parameters() if n.endswith(".more")]
    assert more and all(p.grad is not None and bool(p.grad != 0) for p in more)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", ["recurrent_gemma", "kimi_linear"])
def test_a_mixer_goes_to_the_original_where_a_part_that_is_not_called_was_altered(kind: str) -> None:
    plain, fast = both(kind)
    before = logits(plain, TEXT)
    for net in (plain, fast):
        for module in mixers(net).values():
            for name in ADAPTERS[type(module).__name__].opened:
                getattr(module, name).register_forward_hook(lambda module, args, y: 0.5 * y)
    want = logits(plain, TEXT)
    assert not torch.allclose(want, before, rtol=0, atol=1e-3)
    torch.testing.assert_close(logits(fast, TEXT), want, **EXACT)


@pytest.mark.parametrize("kind", FEW)
def test_a_cache_that_the_original_began_is_read_as_our_loops_take_it(kind: str) -> None:
    net = small(kind)
    name = next(name for name in CACHES if takes(net, name))
    with torch.no_grad():
        cache = net(TEXT, use_cache=True)[name]
    module = _mixer(net)
    state = ADAPTERS[type(module).__name__](module).read(cache)
    assert state is not None and all(x.is_contiguous() for x in state.tensors.values())


@pytest.mark.parametrize("kind", ["mamba2", pytest.param("qwen3_next", marks=pytest.mark.slow)])
def test_a_compiled_model_is_compiled_once(kind: str) -> None:
    """One graph for a prompt and one for a token, also from the first call on and with a second cache; what a cache
    holds stays where it is.
    """
    from transformers import StaticCache

    graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    net = small(kind, **({"num_hidden_layers": 1} if kind == "mamba2" else {}))
    accelerate(net)
    run = torch.compile(net, fullgraph=True, backend=count, dynamic=False)
    name = next(name for name in CACHES if takes(net, name))
    for _ in range(2):
        cache: Any = StaticCache(config=net.config, max_cache_len=LENGTH)
        kept = None
        for at in (slice(0, 6), slice(6, 7), slice(7, 8)):
            given = {"position_ids": torch.arange(LENGTH)[None, at]} if takes(net, "position_ids") else {}
            with torch.no_grad():
                run(TEXT[:1, at], use_cache=True, **{name: cache}, **given)
            layer = cache.layers[_mixer(net).layer_idx]
            now = [
                (x.data_ptr(), x.stride(), x.dtype)
                for x in (*layer.conv_states.values(), *layer.recurrent_states.values())
            ]
            assert kept in (None, now)
            kept = now
    assert graphs == 2


def test_values_that_are_not_finite_pass() -> None:
    """As in the original: what a model makes of its input is not for us to refuse."""
    fast = small("mamba2")
    accelerate(fast)
    x = fast.get_input_embeddings()(TEXT).detach()
    x[0, 3] = torch.nan
    with torch.no_grad():
        out = fast(inputs_embeds=x, use_cache=False).logits
    assert bool(out[0, 3:].isnan().all()) and bool(out[1].isfinite().all()) and bool(out[0, :3].isfinite().all())


def test_a_model_with_hooks_of_its_own_is_left() -> None:
    """A forward that was put on a module, as device maps do, would be run instead of ours."""
    net = small("mamba2")
    module = next(iter(mixers(net).values()))
    module.forward = module.forward
    done = accelerate(net)
    assert len(done.replaced) == 1 and "replaced" in done.left["backbone.layers.0.mixer"]


def test_a_model_is_freed() -> None:
    net = small("mamba2")
    accelerate(net)
    gone = weakref.ref(next(iter(mixers(net).values())))
    del net
    gc.collect()
    assert gone() is None


def test_nothing_is_changed_before_all_is_checked() -> None:
    net = small("mamba2", time_step_limit=(0.2, 0.1))
    with pytest.raises(StateformError, match=r"no mixer of this Mamba2ForCausalLM .* expected 0 <= least"):
        accelerate(net)
    assert undo(net) == 0
    with pytest.raises(StateformError, match="no model of transformers"):
        accelerate(nn.Linear(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEW)
def test_compiled(kind: str) -> None:
    plain, fast = shared(kind), small(kind)
    accelerate(fast)
    compiled = torch.compile(fast, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, TEXT), logits(plain, TEXT), rtol=0, atol=1e-3)


def test_hooks_of_the_maps_inside_run() -> None:
    plain = small("mamba")
    for layer in plain.backbone.layers:
        layer.mixer.in_proj.register_forward_hook(lambda module, args, out: out * 0.5)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    torch.testing.assert_close(logits(fast, TEXT), logits(plain, TEXT))


def test_a_pruned_model_trains() -> None:
    from torch.nn.utils import prune

    fast = small("mamba")
    for layer in fast.backbone.layers:
        prune.l1_unstructured(layer.mixer.in_proj, "weight", 0.3)
    accelerate(fast)
    for _ in range(2):  # its weights are made anew in a hook
        fast(TEXT, labels=TEXT, use_cache=False).loss.backward()
    assert all(layer.mixer.in_proj.weight_orig.grad.abs().sum() > 0 for layer in fast.backbone.layers)


@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma", "mamba2", "minimax"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cache_may_have_another_dtype_than_the_model(kind: str, dtype: torch.dtype) -> None:
    """Some caches are float32 in a model of float64; one that the original or ours filled is read by the other."""
    net = small(kind)
    net.config._experts_implementation = "eager"
    with torch.no_grad():
        net(TEXT)  # RecurrentGemma keeps what it computed in float32
    net.to(dtype)
    one = TEXT[:1] if kind == "rwkv" else TEXT
    want, sizes = logits(net, one), [LENGTH - 2, 1, 1]
    for turns in (0, 1):
        if kind == "recurrent_gemma" and not turns:
            with torch.no_grad():
                net(one)
        close = {"rtol": 0.0, "atol": 1e-5 if dtype == torch.float64 else 0.1 * float(want.abs().max())}
        torch.testing.assert_close(in_chunks(net, sizes, one, turns), want, **close)


def test_a_replica_computes_with_its_own_weights() -> None:
    net = small("mamba")
    accelerate(net)
    mixer = net.backbone.layers[0].mixer
    replica = mixer._replicate_for_data_parallel()
    replica._parameters = {name: p * 2 for name, p in mixer._parameters.items()}
    u = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(mixer)
    plain.load_state_dict({name: p * 2 for name, p in mixer._parameters.items()}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(replica(u), plain(u))


@pytest.mark.parametrize("kind", in_short(FEW))
def test_a_batch_of_padding_alone_has_zero_gradients(kind: str) -> None:
    if kind in MASKLESS:
        pytest.skip("the family does not look at masks: its padding is text")
    net = small(kind)
    made = accelerate(net).replaced
    net(input_ids=TEXT, attention_mask=torch.zeros_like(TEXT)).logits.sum().backward()
    given = [p.grad for name in made for p in net.get_submodule(name).parameters()]
    assert given and all(g is not None and not g.any() for g in given)
