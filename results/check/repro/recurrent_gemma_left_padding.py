"""RecurrentGemma: attention_mask does not reach the recurrent blocks: a padded row, and the same row alone."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "lru_width": 32, "intermediate_size": 64, "num_hidden_layers": 3}
config = hf.RecurrentGemmaConfig(**size, num_attention_heads=4, num_key_value_heads=1, pad_token_id=None)
model = hf.RecurrentGemmaForCausalLM(config).eval()
row, mask = torch.randint(1, 64, (1, 5)), torch.tensor([[0] * 4 + [1] * 5])
padded, alone = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1), model(row, use_cache=False).logits
for more in ({}, {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}):  # as users call it, and as generate does
    found = model(padded, attention_mask=mask, use_cache=False, **more).logits
    print(alone[0, 0, :3].tolist(), found[0, 4, :3].tolist())
