"""Softmax attention, of every model whose attention goes through the attention functions of transformers.

Queries and keys arrive there after their biases, norms and rotations. What remains is the System:
alpha_ij = exp(s q_i^T k_j) / sum_j exp(s q_i^T k_j) over the past, or over a window of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...architectures import build
from ...errors import StateformError, require
from ...forms import run
from ...layer import Layer, Past
from ...system import System
from ...system.state import State
from ..lifted import Lifted, adapts
from ..twin import Twin, Way, heads_of, renamed, rows

NAME = "stateform"
"""Name of our attention function in transformers: `model.set_attn_implementation("stateform")` after `register`."""
STEADY = 1e-3
"""Angles in a table of float32 or less that grow evenly up to this are those of rotary positions."""
LONGEST = 1 << 17
"""Positions for which rotary angles are made beforehand."""
_seen: ContextVar[list[System] | None] = ContextVar("stateform_seen", default=None)
_given: ContextVar[list[Tensor] | None] = ContextVar("stateform_given", default=None)


@adapts(
    "RecurrentGemmaAttention", afmoe="AfmoeAttention", apertus="ApertusAttention", arcee="ArceeAttention",
    axk1="AXK1Attention", axk2="AXK2Attention", bailing_hybrid="BailingHybridAttention", bamba="BambaAttention",
    beam="BeamAttention", bert="BertSelfAttention", biogpt="BioGptAttention", bitnet="BitNetAttention",
    cohere="CohereAttention", cohere2="Cohere2Attention", cohere2_moe="Cohere2MoeAttention", cwm="CwmAttention",
    deepseek_v2="DeepseekV2Attention", deepseek_v3="DeepseekV3Attention", deepseek_v32="DeepseekV32Attention",
    distilbert="DistilBertSelfAttention", dots1="Dots1Attention", electra="ElectraSelfAttention",
    ernie4_5="Ernie4_5Attention", ernie4_5_moe="Ernie4_5_MoeAttention", exaone4="Exaone4Attention",
    exaone_moe="ExaoneMoeAttention", falcon_h1="FalconH1Attention", flex_olmo="FlexOlmoAttention",
    gemma="GemmaAttention", gemma2="Gemma2Attention", gemma3_text="Gemma3Attention", glm="GlmAttention",
    glm4="Glm4Attention", glm4_moe="Glm4MoeAttention", glm4_moe_lite="Glm4MoeLiteAttention",
    glm5_next_text="Glm5NextTextAttention", glm_moe_dsa="GlmMoeDsaAttention", gpt2="GPT2Attention",
    gpt_bigcode="GPTBigCodeAttention", gpt_neox="GPTNeoXAttention", gpt_oss="GptOssAttention",
    granite="GraniteAttention", granite_swa="GraniteSWAAttention", granitemoe="GraniteMoeAttention",
    granitemoe_swa="GraniteMoeSWAAttention", granitemoehybrid="GraniteMoeHybridAttention",
    granitemoeshared="GraniteMoeSharedAttention", helium="HeliumAttention", hunyuan_v1_dense="HunYuanDenseV1Attention",
    hunyuan_v1_moe="HunYuanMoEV1Attention", hy_v3="HYV3Attention", hy_v4="HYV4Attention",
    hyperclovax="HyperCLOVAXAttention", internlm3="LlamaAttention", iquestcoder="LlamaAttention",
    jais2="Jais2Attention", jamba="JambaAttention", jetmoe="JetMoeAttention", kimi_linear="KimiLinearAttention",
    kolibri1="Kolibri1Attention", laguna="LagunaAttention", lfm2="Lfm2Attention", lfm2_moe="Lfm2MoeAttention",
    lfm3="Lfm3Attention", llama="LlamaAttention", llama4_text="Llama4TextAttention", mellum="MellumAttention",
    mimo_v2_flash="MiMoV2FlashAttention", minicpm3="MiniCPM3Attention", minimax="MiniMaxAttention",
    minimax_m2="MiniMaxM2Attention", ministral="MinistralAttention", ministral3="Ministral3Attention",
    mistral="MistralAttention", mixtral="MixtralAttention", modernbert="ModernBertAttention",
    nanochat="NanoChatAttention", nemotron="NemotronAttention", nemotron_h="NemotronHAttention", olmo="OlmoAttention",
    olmo2="Olmo2Attention", olmo3="Olmo3Attention", olmo_hybrid="OlmoHybridAttention", olmoe="OlmoeAttention",
    opt="OPTAttention", persimmon="PersimmonAttention", phi="PhiAttention", phi3="Phi3Attention",
    phimoe="PhimoeAttention", qwen2="Qwen2Attention", qwen2_moe="Qwen2MoeAttention", qwen3="Qwen3Attention",
    qwen3_5_moe_text="Qwen3_5MoeAttention", qwen3_5_text="Qwen3_5Attention", qwen3_moe="Qwen3MoeAttention",
    qwen3_next="Qwen3NextAttention", recurrent_gemma="RecurrentGemmaSdpaAttention", roberta="RobertaSelfAttention",
    seed_oss="SeedOssAttention", smollm3="SmolLM3Attention", solar_open="SolarOpenAttention",
    stablelm="StableLmAttention", starcoder2="Starcoder2Attention", vaultgemma="VaultGemmaAttention",
    youtu="YoutuAttention", zamba="ZambaAttention", zamba2="Zamba2Attention",
)  # fmt: skip
class LiftedAttention(Lifted):
    """An attention module, called with `given` besides its input."""

    finite = False
    windows = ()
    positions = ("wpe", "position_embeddings", "embed_positions")
    calls: ClassVar[int] = 1
    """Calls of the attention function, with the same queries and keys; their values lie side by side in the System."""

    @staticmethod
    def width(module: Any) -> int:
        config = module.config
        return int(getattr(config, "hidden_size", None) or config.n_embd)

    def system(self, u: Tensor, past: Past | None = None) -> System:
        require(past is None or past.state is None, "attention of another library goes on from its own cache")
        seen: list[System] = []
        token = _seen.set(seen)
        try:
            with attending(self.module):
                self.module(u, **self.given)
        finally:
            _seen.reset(token)
        require(len(seen) == self.calls, f"{type(self.module).__name__} called an attention function of transformers "
                f"{len(seen)} times; expected {self.calls}")  # fmt: skip
        values = [one.v for one in seen if one.v is not None]
        system = replace(seen[0], v=torch.cat(values, -1)) if self.calls > 1 else seen[0]
        turned = self.given.get("position_embeddings")
        if not isinstance(turned, tuple | Tensor) or not getattr(self.module, "use_rope", True):
            return system
        if isinstance(turned, Tensor):  # e^{i angle}
            (cos, sin), (neighbours, sign) = (turned.real, turned.imag), (True, 1)
        else:
            (cos, sin), (neighbours, sign) = turned, _turning(self.module)
        last = hasattr(self.module, "qk_rope_head_dim")
        return with_phase(system, cos, sign * sin, last=last, neighbours=neighbours)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        """Compute the module's output, with y in the place of its attention function's."""
        token = _given.set(list(y.chunk(self.calls, -1)))
        try:
            with attending(self.module):
                out = self.module(u, **self.given)
        finally:
            _given.reset(token)
        return out[0] if isinstance(out, tuple) else out


@adapts(diffllama="DiffLlamaAttention")
class LiftedDifference(LiftedAttention):
    """Differential attention: both halves of the heads read the same pairs of values; the module subtracts them."""

    calls = 2


def _turning(module: Any) -> tuple[bool, int]:
    """Ask a module's own code whether entries 2 i and 2 i + 1 turn together, not i and i + r/2, and to which side."""
    turn = getattr(importlib.import_module(type(module).__module__), "rotate_half", None)
    beside = (
        -2.0 if turn is None else float(turn(torch.arange(4.0))[0])
    )  # what is put in the place of the first of 0..3
    return abs(beside) == 1, 1 if beside < 0 else -1


def with_phase(system: System, cos: Tensor, sin: Tensor, *, last: bool = False, neighbours: bool = False) -> System:
    """Move rotary positions (arXiv 2104.09864) out of q and k into the System's phase; it stays the same function.

    Of the first r entries (the last r, as multi-head latent attention has them, if `last`), i and i + r/2 (2 i and
    2 i + 1, if `neighbours`) turn by the angle whose cos and sin are given, [1,T,r/2] or each twice [1,T,r]; the others
    do not turn. If the angles do not grow by the same amount each token, the System is given back unchanged.
    """
    angle = torch.atan2(sin.double(), cos.double())[0]  # [T,r/2]
    for twice in (angle.chunk(2, -1), (angle[:, ::2], angle[:, 1::2])):
        if len(twice) == 2 and torch.equal(*twice):
            angle = twice[0]
            break
    q, k, r, n, T = system.q, system.k, 2 * angle.shape[-1], system.n, system.T
    if q is None or T < 2 or r > n or n % 2:
        return system
    step = (angle[1] - angle[0] + torch.pi) % (2 * torch.pi) - torch.pi
    at = torch.arange(T, device=cos.device, dtype=torch.float64)[:, None]
    grown = angle[0] + at * step
    if float((torch.polar(torch.ones_like(grown), grown - angle) - 1).abs().max()) > STEADY:
        return system
    step = torch.cat([step, step.new_zeros((n - r) // 2)])  # [n/2]
    back = torch.polar(torch.ones(T, n // 2, dtype=torch.float64, device=cos.device), -(at + 1) * step)
    if last:
        q, k = (x.roll(r, -1) for x in (q, k))
    q, k = ((_paired(x, r, neighbours).to(torch.complex128) * back[:, None]).to(x.dtype.to_complex()) for x in (q, k))
    return replace(system, q=q, k=k.conj().resolve_conj(), phase=step[None])


def _paired(x: Tensor, r: int, neighbours: bool) -> Tensor:
    """Turn [...,n] into [...,n/2] complex: pairs of the first r entries, then the two halves of the rest."""
    turning = x[..., :r].unflatten(-1, (-1, 2)).unbind(-1) if neighbours else x[..., :r].chunk(2, -1)
    return torch.complex(*(torch.cat(both, -1) for both in zip(turning, x[..., r:].chunk(2, -1), strict=True)))


@contextmanager
def attending(module: Any) -> Iterator[None]:
    """Make a module (or a model) attend with `attend`, inside the block."""
    register()
    config = module.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def register() -> None:
    """Register our attention function with transformers, under `NAME`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, dropout: float = 0.0, is_causal: bool | None = None,
    sliding_window: int | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attend by running the System: an attention function of transformers, of query [B,H,T,n], key, value [B,H',L+T,.].

    Raises:
        StateformError: what no System expresses: a bias of positions, a mask of another shape than the past, all
            or a window of it, dropout in training.
    """
    if (parts := _given.get()) is not None:
        return parts.pop(0), None
    known = {name for name in ("position_bias", "cache") if options.get(name) is not None}
    require(not known, f"{type(module).__name__} uses {', '.join(sorted(known))}: its weights are not exp(q k) over a "
            "sum, so there is no System of it")  # fmt: skip
    require(not dropout, f"{type(module).__name__} drops weights in training; call model.eval() first")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    T, past = query.shape[2], key.shape[2] - query.shape[2]
    window = sliding_window if causal else None
    if attention_mask is not None:
        window = visible_window(attention_mask, T, past, causal, window)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # [B,T,H,n], then [B,L+T,H',.]
    system = System(
        q * (q.shape[-1] ** -0.5 if scaling is None else scaling), k[:, past:], v[:, past:], readout="exp", eta="sum",
        window=window, causal=causal, cap=options.get("softcap"), sink=options.get("s_aux"),
    )  # fmt: skip
    seen = _seen.get()
    if seen is not None:
        seen.append(system)
        return v.new_zeros(*q.shape[:3], v.shape[-1]), None
    state = None
    if past:
        position = torch.full((q.shape[0],), past, device=q.device)
        state = State({"keys": k[:, :past], "values": v[:, :past], "position": position})
    y = run(system, "auto" if causal else "matrix", initial_state=state)
    return y.contiguous(), None


def visible_window(mask: Tensor, T: int, past: int, causal: bool, window: int | None) -> int | None:
    """Find the window that a mask [B,1,T,L+T] shows, unless it is given.

    Raises StateformError if it is not the mask of that window in all rows.
    """
    seen = (mask if mask.dtype == torch.bool else mask >= 0)[..., : past + T]
    behind = torch.arange(past, past + T, device=mask.device)[:, None] - torch.arange(past + T, device=mask.device)
    away = behind if causal else behind.abs()
    if window is None:
        far = torch.where(seen[:1, :1], away, 0).amax() + 1
        window = int(far) if int(far) < past + T else None
    fits = (away >= 0) & (away < (window or past + T))
    if not bool((seen == fits).all()):
        raise StateformError(
            f"the attention mask hides more than {'later tokens and ' if causal else ''}those beyond a window: "
            "padding, or what an index did not choose. A System has neither: give rows of one length, or run padded "
            "batches with another attention function"
        )
    return window


class AttentionTwin(Twin):
    """Attention with torch's fused kernel."""

    ways = (Way(", sdpa"),)

    def fill(self, cache: Any, tokens: int) -> None:
        layer = cache.layers[0]
        at = torch.arange(tokens, device=layer.keys.device) % layer.keys.shape[2]
        layer.keys, layer.values = layer.keys.index_select(2, at), layer.values.index_select(2, at)


class LlamaTwin(AttentionTwin, pair="softmax", model="llama"):
    """LlamaAttention; the angles are made beforehand, as a model makes them once."""

    def __init__(self, layer: Layer, **settings: Any) -> None:
        super().__init__(layer, **settings)
        self.rotary = self.code.LlamaRotaryEmbedding(self.config).to(next(layer.parameters()).device)
        self.turned: dict[torch.dtype, Any] = {}

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("softmax", d_model=d_model, n_heads=heads_of(d_model, 64))

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "hidden_size": layer.d_model, "num_attention_heads": layer.n_heads,
            "num_key_value_heads": layer.n_kv_heads, "head_dim": layer.d_state, "num_hidden_layers": 1,
            "attention_bias": layer.q_proj.bias is not None, "attn_implementation": "sdpa",
            "rope_parameters": {"rope_type": "default", "rope_theta": layer.rope_base},
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        return renamed(layer, {"out_proj": "o_proj"})

    def call(self, x: Tensor, cache: Any = None, start: int = 0) -> Tensor:
        if x.dtype not in self.turned:
            self.turned[x.dtype] = self.rotary(x, torch.arange(LONGEST, device=x.device)[None])
        angles = tuple(c[:, start : start + x.shape[1]] for c in self.turned[x.dtype])
        return self.module(x, position_embeddings=angles, attention_mask=None, past_key_values=cache)[0]


class GPT2Twin(AttentionTwin, pair="softmax/gpt2", model="gpt2"):
    """GPT2Attention, whose maps keep their weights transposed."""

    @staticmethod
    def layer(d_model: int) -> Layer:
        return build("softmax(positions='none', bias=True)", d_model=d_model, n_heads=heads_of(d_model, 64))

    def settings(self, layer: Any) -> dict[str, Any]:
        return {
            "n_embd": layer.d_model, "n_head": layer.n_heads, "n_layer": 1, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
            "attn_implementation": "sdpa",
        }  # fmt: skip

    def weights(self, layer: Any) -> dict[str, Tensor]:
        maps = (layer.q_proj, layer.k_proj, layer.v_proj)
        return {
            "c_attn.weight": rows(*maps).T.contiguous(), "c_attn.bias": torch.cat([f.bias.detach() for f in maps]),
            "c_proj.weight": layer.out_proj.weight.detach().T.contiguous(), "c_proj.bias": layer.out_proj.bias,
        }  # fmt: skip
