"""RecurrentGemma: many tokens after a cache, before which its convolution starts anew, and all tokens at once."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "lru_width": 32, "intermediate_size": 64, "num_hidden_layers": 3}
config = hf.RecurrentGemmaConfig(**size, num_attention_heads=4, num_key_value_heads=1, pad_token_id=None)
model = hf.RecurrentGemmaForCausalLM(config).eval()
ids = torch.randint(1, 64, (1, 20))
whole, cache = model(ids, use_cache=False).logits, hf.DynamicCache(config=config)
model(ids[:, :7], past_key_values=cache, use_cache=True)
print(whole[0, 7, :3].tolist(), model(ids[:, 7:], past_key_values=cache, use_cache=True).logits[0, 0, :3].tolist())
