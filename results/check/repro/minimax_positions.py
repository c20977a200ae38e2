"""MiniMax, first layer linear: get_seq_length() of its cache stays 0, and so do the positions after it."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
kinds = {"head_dim": 8, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]}
model = hf.MiniMaxForCausalLM(hf.MiniMaxConfig(**size, **kinds, num_attention_heads=4, num_key_value_heads=2)).eval()
ids = torch.randint(1, 64, (1, 20))
cache = model(ids[:, :7], use_cache=True).past_key_values
print(cache.get_seq_length())
after = model(ids[:, 7:], past_key_values=cache, use_cache=True).logits
print(model(ids).logits[0, -1, :3].tolist(), after[0, -1, :3].tolist())
