"""RoBERTa as a decoder: generate counts positions from 0, its own forward from 2: logits of the same token."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
config = hf.RobertaConfig(**size, num_attention_heads=4, is_decoder=True, pad_token_id=1, eos_token_id=None)
model = hf.RobertaForCausalLM(config).eval()
ids = torch.randint(2, 64, (1, 6))
found = model.generate(ids, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
print(model(ids).logits[0, -1, :3].tolist(), found.logits[0][0, :3].tolist())
