"""The worlds of `xtokd.exact.toy_models` with their rows as floats and torch tensors, as batches want them."""
import torch

from xtokd.exact import toy_models as worlds
from xtokd.exact.toy_models import bpe, digit_groups, make_pair, markov, random_bpe, random_texts


class World(worlds.World):
    def row(self, prefix): return super().row(prefix).astype(float)
    def rows(self, ids): return torch.tensor(super().rows(ids))
