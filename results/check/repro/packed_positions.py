"""Hybrids (here Qwen3.5): two texts in one row, by position_ids, unseen by recurrent layers; the second alone."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "linear_key_head_dim": 8}
config = hf.Qwen3_5TextConfig(**size, **heads, layer_types=["linear_attention", "full_attention"])
one, two = torch.randint(1, 64, (1, 9)), torch.randint(1, 64, (1, 5))
ids, positions = torch.cat([one, two], 1), torch.cat([torch.arange(9), torch.arange(5)])[None]
model = hf.AutoModelForCausalLM.from_config(config).eval()
packed = model(ids, position_ids=positions, use_cache=False).logits
print(model(two).logits[0, 0, :3].tolist(), packed[0, 9, :3].tolist())
