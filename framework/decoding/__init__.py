"""Decoding: token sequences from any autoregressive model, in one loop that runs eagerly, in a graph and in XLA.

    def step(tokens, state, position):                # int32 [rows], a nest of tensors [rows, …], int32 scalar
        return logits, state                          # floating [rows, vocabulary], and the state for the next position

    result = decode(step, state, begin=1, end=2, length=64, method=Beam(4, length_penalty=0.6, n_best=3))
    result.ids, result.lengths, result.scores         # [batch, 3, 64], [batch, 3], [batch, 3]; the best comes first
    decode(step, state, begin=1, end=2, length=64, method=Sample(0.8, top_p=0.9), rng=rng.key(7))

`framework.decode` is the same function. README.md of this folder describes states, prompts and exports.
"""

from framework.decoding.methods import Beam, Greedy, Sample
from framework.decoding.search import decode
from framework.decoding.task import Decoded

__all__ = ["Beam", "Decoded", "Greedy", "Sample", "decode"]
