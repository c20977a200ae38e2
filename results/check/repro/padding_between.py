"""Padding between tokens, which a mask takes out: in Llama it is absent, in recurrent layers it is not."""

import torch
import transformers as hf

S = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3, "pad_token_id": 0}
M = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}
ids, mask = torch.randint(1, 64, (1, 14)), torch.tensor([[1] * 6 + [0] * 3 + [1] * 5])
at = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
for config in (hf.LlamaConfig(**S, num_attention_heads=4), hf.MambaConfig(**S), hf.Mamba2Config(**S, **M)):
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    more = at if config.model_type == "llama" else {}
    found, alone = model(ids * mask, attention_mask=mask, **more).logits, model(ids[mask.bool()][None]).logits
    print(config.model_type, alone[0, -1, :3].tolist(), found[0, -1, :3].tolist())
