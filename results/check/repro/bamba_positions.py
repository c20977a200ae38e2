"""Bamba: without position_ids, a token after a cache has position 0. With them, as generate calls it, it is right."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "mamba_n_heads": 4, "mamba_d_head": 16}
model = hf.BambaForCausalLM(hf.BambaConfig(**size, **heads, attn_layer_indices=[1])).eval()
ids = torch.randint(1, 64, (1, 20))
for more in ({}, {"position_ids": torch.tensor([[19]])}):
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    after = model(ids[:, -1:], past_key_values=cache, use_cache=True, **more).logits
    print(model(ids).logits[0, -1, :3].tolist(), after[0, -1, :3].tolist())
