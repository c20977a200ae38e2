"""Moshi: its cache keeps a sliding window of keys, its forward over a whole text attends to all of it."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
model = hf.AutoModelForCausalLM.from_config(hf.MoshiConfig(**size, num_key_value_heads=2, sliding_window=8)).eval()
ids = torch.randint(1, 64, (1, 20))
cache = model(ids[:, :-1], use_cache=True).past_key_values
after = model(ids[:, -1:], past_key_values=cache, use_cache=True).logits
print(model(ids).logits[0, -1, :3].tolist(), after[0, -1, :3].tolist())
