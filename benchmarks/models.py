"""Whole models of transformers as they are and accelerated: prefill, decoding, a training step. Random weights.

python benchmarks/models.py --out results/cpu            # model-mamba.json, model-kimi.json, ...
python benchmarks/models.py mamba --modes prefill --repeats 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

from stateform.timing import MODEL_MODES, bench_model

WIDTH, VOCABULARY = 768, 1024
KDA = {
    "hidden_size": WIDTH, "intermediate_size": 2048, "vocab_size": VOCABULARY, "linear_head_dim": 128,
    "linear_num_heads": 6, "num_attention_heads": 6, "num_key_value_heads": 6, "kv_lora_rank": 256,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "pad_token_id": 0,
}  # fmt: skip
LINEAR, FULL = "linear_attention", "full_attention"
CONFIGS = {
    "mamba": lambda: transformers.MambaConfig(
        hidden_size=WIDTH, num_hidden_layers=4, vocab_size=VOCABULARY
    ),
    "kimi": lambda: transformers.KimiLinearConfig(
        **KDA, num_hidden_layers=5, layer_types=[LINEAR] * 4 + [FULL], mlp_layer_types=["dense"] * 5
    ),
    "qwen3-next-hybrid": lambda: transformers.Qwen3NextConfig(
        hidden_size=WIDTH, intermediate_size=2048, num_hidden_layers=4, vocab_size=VOCABULARY, pad_token_id=0,
        layer_types=[LINEAR] * 3 + [FULL], num_attention_heads=12, num_key_value_heads=2, head_dim=64,
        linear_num_key_heads=6, linear_num_value_heads=12, linear_key_head_dim=128, linear_value_head_dim=128,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=512, shared_expert_intermediate_size=512,
    ),
    "jamba-hybrid": lambda: transformers.JambaConfig(
        hidden_size=WIDTH, intermediate_size=2048, num_hidden_layers=4, vocab_size=VOCABULARY, num_attention_heads=12,
        num_key_value_heads=4, attn_layer_period=4, attn_layer_offset=3, expert_layer_period=2, num_experts=4,
        mamba_dt_rank=48,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(CONFIGS), help=", ".join(CONFIGS))
    parser.add_argument("--modes", nargs="+", default=["prefill", "decode"], choices=MODEL_MODES)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for name in args.models:
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        found = bench_model(model, name=name, modes=args.modes, length=args.length, repeats=args.repeats)
        print(found, flush=True)
        if args.out is not None:
            found.result["command"] = f"python benchmarks/models.py {name} --length {args.length}"
            found.save_json(args.out / f"model-{name}.json")


if __name__ == "__main__":
    main()
