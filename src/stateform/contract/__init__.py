"""The contract: what every layer and every language model keeps.

However texts are laid out (in pieces, one token at a time, in a batch, padded, packed), each gives what it gives alone;
and every form of a layer's systems is what the three equations say.

`law.py` states this once. A layer (`layer.py`) and a model (`model.py`) are two runners of it, and a file of `parts/`
is one idea, with its cases for both. `definition.py` computes the equations to the letter, `draws.py` what goes in,
`equivalence.py` compares two layers, `outcome.py` says what came of it.
"""
