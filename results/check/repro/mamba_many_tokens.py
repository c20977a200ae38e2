"""Mamba, Falcon Mamba, Jamba, Zamba: many tokens after a cache, which starts the state anew, and all tokens at once."""

import torch
import transformers as hf

S = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 6, "initializer_range": 0.3, "pad_token_id": 0}
J = {"num_attention_heads": 4, "mamba_dt_rank": 4, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
Z = {"attention_head_dim": 16, "attention_hidden_size": 64, "num_key_value_heads": 4, "intermediate_size": 64, **S, **J}
ids = torch.randint(1, 64, (1, 20))
for config in (hf.MambaConfig(**S), hf.FalconMambaConfig(**S), hf.JambaConfig(**Z), hf.ZambaConfig(**Z)):
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    name = "past_key_values" if config.model_type in ("jamba", "zamba") else "cache_params"
    after = model(ids[:, 7:], **{name: model(ids[:, :7], use_cache=True)[name]}, use_cache=True).logits
    print(config.model_type, model(ids).logits[0, -1, :3].tolist(), after[0, -1, :3].tolist())
