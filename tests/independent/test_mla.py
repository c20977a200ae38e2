"""Multi-head latent attention against transformers' DeepSeek, absorbed and not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stateform as sf

from .helpers import Double, assert_close, assert_same_function, assert_same_gradient, drawn, inputs

SIZES = {"d_model": 16, "n_heads": 4, "d_state": 6, "rank": 10, "d_rope": 4, "rope_base": 100.0}


@pytest.mark.parametrize("absorbed", [True, False])
def test_mla_is_deepseeks_attention(absorbed: bool) -> None:
    module = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    from transformers import DeepseekV3Config

    ours, x, T = drawn("mla", absorbed=absorbed, **SIZES), inputs(2, 11, 16), 11
    config = DeepseekV3Config(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1, q_lora_rank=None,
        kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=4, rope_interleave=False,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, attn_implementation="eager",
    )  # fmt: skip
    with Double():
        theirs = module.DeepseekV3Attention(config, layer_idx=0).double().eval()
        cos_sin = module.DeepseekV3RotaryEmbedding(config)(x, torch.arange(T)[None])
    up = torch.cat([ours.k_up, ours.v_up], 1).flatten(0, 1)  # [H*(n+p),r]
    theirs.load_state_dict({
        "q_proj.weight": ours.q_proj.weight, "kv_a_proj_with_mqa.weight": ours.c_proj.weight,
        "kv_a_layernorm.weight": ours.norm.weight, "kv_b_proj.weight": up, "o_proj.weight": ours.out_proj.weight,
    })  # fmt: skip
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]

    def attend(u: Tensor) -> Tensor:
        with Double():
            return theirs(u, position_embeddings=cos_sin, attention_mask=mask)[0]

    assert_same_function(ours, x, attend(x))
    assert_same_gradient(ours, attend, x)


def test_absorbed_equals_unabsorbed_with_a_smaller_cache() -> None:
    ours, x = drawn("mla", **SIZES), inputs(2, 11, 16)
    other = sf.build("mla", absorbed=False, **SIZES).double()
    other.load_state_dict(ours.state_dict())
    assert_close(ours(x), other(x), "absorbed and not")
    assert ours.system(x).state_size == 10 + 4 + 10 < other.system(x).state_size == 4 * (6 + 4 + 4)
