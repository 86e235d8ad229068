"""The worlds of `xtokd.oracle.worlds` with their rows as floats and torch tensors, as batches want them."""
import torch

from xtokd.oracle import worlds
from xtokd.oracle.worlds import bpe, digit_groups, make_pair, markov, random_bpe, random_texts


class World(worlds.World):
    def row(self, prefix): return super().row(prefix).astype(float)
    def rows(self, ids): return torch.tensor(super().rows(ids))
