"""gpt-oss: two texts in one row, by position_ids, from which its masks are not made; and the second text alone."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
oss = hf.GptOssConfig(**size, **heads, num_local_experts=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
one, two = torch.randint(1, 64, (1, 9)), torch.randint(1, 64, (1, 5))
ids, positions = torch.cat([one, two], 1), torch.cat([torch.arange(9), torch.arange(5)])[None]
for config in (hf.LlamaConfig(**size, **heads), oss):
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    packed = model(ids, position_ids=positions, use_cache=False).logits
    print(config.model_type, model(two).logits[0, -1, :3].tolist(), packed[0, -1, :3].tolist())
