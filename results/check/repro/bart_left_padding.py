"""BART as a decoder: learned positions count the padding, and no position_ids are taken: a padded row, and alone."""

import torch
import transformers as hf

size = {"vocab_size": 64, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "init_std": 0.3}
model = hf.BartForCausalLM(hf.BartConfig(**size, pad_token_id=0)).eval()
row, mask = torch.randint(3, 64, (1, 5)), torch.tensor([[0] * 4 + [1] * 5])
padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1)
print(model(row).logits[0, -1, :3].tolist(), model(padded, attention_mask=mask).logits[0, -1, :3].tolist())
