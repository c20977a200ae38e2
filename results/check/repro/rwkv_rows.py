"""RWKV-4: the next token of two rows from their state gives logits [2,2,64] in place of [2,1,64]."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
model = hf.RwkvForCausalLM(hf.RwkvConfig(**size)).eval()
ids = torch.randint(1, 64, (2, 8))
whole = model(ids).logits[:, -1:]
after = model(ids[:, -1:], state=model(ids[:, :-1], use_cache=True).state, use_cache=True).logits
print(list(whole.shape), whole[1, -1, :3].tolist())
print(list(after.shape), after[1, -1, :3].tolist(), after[1, 0, :3].tolist())
