"""OPT, Falcon, BioGPT: two texts in one row, by position_ids, from which no mask is made; and the second text alone."""

import torch
import transformers as hf

size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
opt = hf.OPTConfig(**size, ffn_dim=64, word_embed_proj_dim=32, init_std=0.3)
one, two = torch.randint(3, 64, (1, 9)), torch.randint(3, 64, (1, 5))
ids, positions = torch.cat([one, two], 1), torch.cat([torch.arange(9), torch.arange(5)])[None]
for config in (opt, hf.FalconConfig(**size, initializer_range=0.3), hf.BioGptConfig(**size, initializer_range=0.3)):
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    packed = model(ids, position_ids=positions, use_cache=False).logits
    print(config.model_type, model(two).logits[0, -1, :3].tolist(), packed[0, -1, :3].tolist())
