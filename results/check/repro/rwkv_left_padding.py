"""RWKV-4: attention_mask is not used, as a warning says: a padded row, and the same row alone."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
model = hf.RwkvForCausalLM(hf.RwkvConfig(**size)).eval()
row, mask = torch.randint(1, 64, (1, 5)), torch.tensor([[0] * 4 + [1] * 5])
padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1)
print(model(row).logits[0, 0, :3].tolist(), model(padded, attention_mask=mask).logits[0, 4, :3].tolist())
