"""Inkling: its short convolutions read seq_idx, which no layer gives them: the second of two packed texts, alone."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
kinds = {"layer_types": ["hybrid"], "mlp_layer_types": ["dense"], "initializer_range": 0.3, "rel_extent": 64}
config = hf.InklingTextConfig(**size, **kinds, num_attention_heads=4, num_key_value_heads=2)
one, two = torch.randint(1, 64, (1, 9)), torch.randint(1, 64, (1, 5))
ids, positions = torch.cat([one, two], 1), torch.cat([torch.arange(9), torch.arange(5)])[None]
index = torch.tensor([[0] * 9 + [1] * 5], dtype=torch.int32)
model = hf.InklingForCausalLM(config).eval()
packed = model(ids, position_ids=positions, seq_idx=index, use_cache=False).logits
print(model(two).logits[0, 0, :3].tolist(), packed[0, 9, :3].tolist())
