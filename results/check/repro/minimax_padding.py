"""MiniMax, first layer linear: the second token that generate gives a row, alone and left padded."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
kinds = {"head_dim": 8, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]}
model = hf.MiniMaxForCausalLM(hf.MiniMaxConfig(**size, **kinds, num_attention_heads=4, num_key_value_heads=2)).eval()
row, mask = torch.randint(1, 64, (1, 5)), torch.tensor([[0] * 4 + [1] * 5])
padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), row], 1)
how = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
for ids, m in ((row, mask[:, 4:]), (padded, mask)):
    print([x[0, :3].tolist() for x in model.generate(ids, attention_mask=m, eos_token_id=None, **how).logits])
