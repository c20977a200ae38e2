"""Mistral: a sliding window counts the padding between tokens, and shows fewer of them; a wide window is right."""

import torch
import transformers as hf

S = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3, "pad_token_id": 0}
ids, mask = torch.randint(1, 64, (1, 14)), torch.tensor([[1] * 6 + [0] * 3 + [1] * 5])
for window in (64, 8):
    config = hf.MistralConfig(**S, num_attention_heads=4, num_key_value_heads=2, sliding_window=window)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    found = model(ids * mask, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    print(window, model(ids[mask.bool()][None]).logits[0, -1, :3].tolist(), found[0, -1, :3].tolist())
