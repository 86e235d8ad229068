"""Worlds small enough to enumerate: a finite distribution over texts, pushed through two tokenizers, so that every row of both sides is known by counting."""
import itertools
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from xtokd.bytevocab import ByteVocab
from xtokd.vocab import VocabMap


def bpe(alphabet, merges=(), split=None, ignore_merges=False):
    "A ByteVocab over single characters plus merges in order; the stop token is the last id."
    spell = lambda x: x.replace(" ", "Ġ")   # the byte-level name of a space
    merges = [(spell(a), spell(b)) for a, b in merges]
    vocab = {spell(c): i for i, c in enumerate(alphabet)}
    for a, b in merges: vocab.setdefault(a + b, len(vocab))
    vocab["<stop>"] = len(vocab)
    tok = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(([pre_tokenizers.Split(Regex(split), "isolated")] if split else []) + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.add_special_tokens(["<stop>"])
    return ByteVocab(tok, stops=[vocab["<stop>"]])


def digit_groups(n, extra=""):
    "A vocabulary of digits that takes up to n of them as one token, grouped from the left; `extra` single characters besides."
    merges = [("".join(p[:-1]), p[-1]) for k in range(2, n + 1) for p in itertools.product("0123456789", repeat=k)]
    return bpe("0123456789" + extra, merges, r"\d{1,%d}" % n, ignore_merges=True)   # a whole group is one token, however its merges are ranked


class World:
    "A distribution {text: probability} seen through one tokenizer: `row(prefix)` is the exact next-token distribution, by counting."
    def __init__(self, texts, bv):
        self.bv, self.mass = bv, defaultdict(float)
        self.codes = {x: tuple(bv.encode(x)) + (bv.stop_ids[0],) for x in texts}
        for x, p in texts.items():
            for k in range(len(self.codes[x]) + 1): self.mass[self.codes[x][:k]] += p

    def row(self, prefix):
        prefix = tuple(prefix)
        return np.array([self.mass.get(prefix + (u,), 0.) for u in range(len(self.bv))]) / self.mass[prefix]

    def rows(self, code): return torch.tensor(np.stack([self.row(code[:k]) for k in range(len(code))]))


def make_pair(student, teacher):
    return SimpleNamespace(student=student, teacher=teacher, vocab=VocabMap(student, teacher))


def markov(start, step, stop, length):
    "Texts up to `length` symbols of a chain: start {a: p}, step {a: {b: p}}, stop {a: p}; what would be longer stops at `length`."
    texts, front = {}, dict(start)
    for n in range(1, length + 1):
        for x, p in front.items(): texts[x] = texts.get(x, 0) + p * (stop[x[-1]] if n < length else 1)
        front = {x + b: p * q for x, p in front.items() for b, q in step[x[-1]].items()}
    return texts
