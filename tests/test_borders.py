"""Which tokens BPE writes side by side, from the merges alone: always the tokenizer's own answer, or none."""
import json

import test_bytevocab
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer

from xtokd.vocab.bytevocab import ByteVocab
from xtokd.hub import cache_dir
from xtokd.models.loading import load_tokenizer
from xtokd.objectives.cover import cells
from xtokd.vocab import adjacency as borders
from xtokd.vocab.adjacency import (
    AdjacencyTable, MergeAdjacency, decode_valid, is_canonical_pair, letter_adjacency, letters_allowed_after)
from xtokd.objectives.cover.cells import CellGraph, first_tokens
from xtokd.vocab.trie import ByteTrie


def bpe(merges, letters="abc", pre=None, more=(), **kw):
    vocab = {x: i for i, x in enumerate(dict.fromkeys([*letters, *(a + b for a, b in merges), *more]))}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": pre, "post_processor": None, "decoder": {"type": "Fuse"}, "truncation": None, "padding": None,
                                          "model": {"type": "BPE", "vocab": vocab, "merges": [list(m) for m in merges], **kw}}))


@st.composite
def merge_lists(draw):
    "Merges of pieces that are there already, in any order: some tokens are never written, some are made in two ways."
    pieces, found = list("abc"), []
    for _ in range(draw(st.integers(1, 10))):
        m = draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces))
        if m not in found and len(m[0] + m[1]) <= 8: found.append(m); pieces += [m[0] + m[1]] * (m[0] + m[1] not in pieces)
    return found


@settings(max_examples=300, deadline=None)
@given(merge_lists().flatmap(lambda m: st.tuples(st.just(m), st.permutations(range(len(m))), st.booleans())))
def test_of_clear_tokens_the_answer_is_the_tokenizers(case):
    merges, order, shuffled = case
    if shuffled: merges = [merges[k] for k in order]
    tok = bpe(merges)
    back = {i: t for t, i in tok.get_vocab().items()}
    rule = MergeAdjacency(ByteVocab(tok))
    for i in np.flatnonzero(rule.derivable): assert tok.encode(back[int(i)]).ids == [i]
    a, b = (x.ravel() for x in np.meshgrid(*[np.flatnonzero(rule.derivable)] * 2))
    assert rule.merges_across(a, b).tolist() == [tok.encode(back[int(i)] + back[int(j)]).ids != [i, j] for i, j in zip(a, b)]


def test_most_tokens_of_real_merge_lists_are_clear():
    for role in ("student", "teacher"):
        rule = letter_adjacency(ByteVocab(load_tokenizer("tiny", role)))
        made = rule.rank >= 0
        assert rule.derivable[made].mean() > .95 and rule.can_be_first.sum() > 100


def test_equal_merges_the_leftmost_is_first():
    tok = bpe([("a", "a"), ("aa", "a")])
    rule = MergeAdjacency(ByteVocab(tok))
    ids = tok.get_vocab()
    pair = lambda x, y: bool(rule.merges_across(np.array([ids[x]]), np.array([ids[y]]))[0])
    assert pair("a", "aa") and pair("aa", "a") and tok.encode("aaaa").tokens == ["aa", "aa"] and not pair("aa", "aa")


WORDS = [("a", "b"), ("B", "a"), ("ab", "B"), ("ab", "Ba"), ("c", "a"), ("b", "c"), ("C", "c"), ("a", "C")]


def test_plain_merges_give_a_rule(): assert letter_adjacency(ByteVocab(bpe(WORDS, "abcABC"))) is not None


def test_marked_pieces_give_no_rule():
    "A dropout and marked word ends are refused by ByteVocab itself."
    assert letter_adjacency(ByteVocab(bpe([], ["a", "##a"], continuing_subword_prefix="##"))) is None


def test_a_split_inside_letters_is_found_by_the_trial():
    free = bpe(WORDS, "abcABC")
    cut = bpe(WORDS, "abcABC", {"type": "Split", "pattern": {"Regex": "[A-Z]?[a-z]+"}, "behavior": "Isolated", "invert": False})
    fit = [letter_adjacency(ByteVocab(t)) is not None for t in (free, cut)]
    assert fit == [True, False]


def test_cells_are_the_same_with_and_without(monkeypatch):
    "The whole graph in its cheap form, asked of a real pair: only fewer questions."
    pair = [ByteVocab(load_tokenizer("tiny", r)) for r in ("student", "teacher")]
    monkeypatch.setattr(CellGraph, "small", 0)
    found, asked = [], []
    for there in (True, False):
        if not there:
            for room in (borders, cells): monkeypatch.setattr(room, "letter_adjacency", lambda bv: None)
        graph, count, rng = CellGraph(*pair), [0], np.random.default_rng(0)
        assert (graph.follows.letters is not None) == (graph.teacher_borders is not None) == there
        written = borders.is_canonical_pair
        monkeypatch.setattr(borders, "is_canonical_pair", lambda bv, p, n: (count.__setitem__(0, count[0] + len(p)), written(bv, p, n))[1])
        prev, nxt = rng.integers(len(pair[0]), size=(2, 20_000))
        w, c = np.flatnonzero(pair[1].lengths > 2), rng.integers(1, 3)
        found.append((graph.follows.allowed_pairs(prev, nxt).tolist(), graph.target(w, np.full(len(w), c)).tolist(), [graph.longer(int(x), 1).tolist() for x in w[:200]]))
        asked.append(count[0])
        monkeypatch.setattr(borders, "is_canonical_pair", written)
    assert found[0] == found[1] and asked[0] < asked[1]


def test_a_token_before_letters():
    "Of a rest that is a token, and of one of which only the beginning is known: the tokenizer's own answer, or none."
    bv = ByteVocab(load_tokenizer("tiny", "teacher"))
    rule, trie, rng = letter_adjacency(bv), ByteTrie(bv.bytes), np.random.default_rng(0)
    some = [bv.bytes[i] for i in np.flatnonzero(bv.lengths > 0)]
    texts = [b"".join(some[i] for i in rng.integers(len(some), size=rng.integers(1, 4))) for _ in range(3000)]
    begun = first_tokens(bv, trie, texts)
    for w in rng.choice(np.flatnonzero(rule.can_be_first), 20).tolist():
        on, more, truth = rule.starts_with_token(w, texts), rule.starts_with_token(w, texts, begun), first_tokens(bv, trie, [bv.bytes[w] + x for x in texts])
        assert 50 < (on >= 0).sum() < (more >= 0).sum()
        for x in (on, more): assert np.array_equal(x[x >= 0], (truth == w)[x >= 0])


SPLITS = {"words": {"type": "Split", "pattern": {"Regex": " ?[a-zA-Z]+|\\s+(?!\\S)|\\s+|[^\\sa-zA-Z]+"}, "behavior": "Isolated", "invert": False},
          "any before": {"type": "Split", "pattern": {"Regex": "[^\\na-zA-Z]?[a-zA-Z]+|\\s*\\n+|\\s+(?!\\S)|\\s+|[^\\sa-zA-Z]+"}, "behavior": "Isolated", "invert": False}, "none": None}
BLANKS = [(" ", " "), ("\n", "\n"), (" ", "\n"), ("!", "!"), ("  ", "\n")]


@pytest.mark.parametrize("split", SPLITS)
def test_letters_after_what_is_no_letter(split):
    "Every pair of a vocabulary with blanks and marks, under split rules of three kinds: the answer that the tokenizer gives."
    tok = bpe([*WORDS, *BLANKS, (" ", "ab"), (" ", "a")], [*"abcABC", " ", "\n", "!", "'"], SPLITS[split])
    bv = ByteVocab(tok)
    follows = AdjacencyTable(bv, ByteTrie(bv.bytes), dense=False)
    assert follows.letters is not None and sum(w.sum() for w in follows.letters.words) > 5
    a, b = (x.ravel() for x in np.meshgrid(*[np.flatnonzero(bv.lengths > 0)] * 2))
    truth = is_canonical_pair(bv, a, b)
    if split != "none":
        settled = [letters_allowed_after(follows.letters, int(i), k) for i in np.flatnonzero(bv.lengths) if not follows.letters.can_be_first[i] for k in (False, True)]
        assert {0, 1} <= set(settled)
    for _ in range(2): assert np.array_equal(follows.allowed_pairs(a, b), truth)          # asked, and remembered


def test_what_is_remembered_of_pairs_is_bounded(monkeypatch):
    bv = ByteVocab(load_tokenizer("tiny", "student"))
    follows, rng = AdjacencyTable(bv, ByteTrie(bv.bytes), dense=False), np.random.default_rng(0)
    monkeypatch.setattr(borders, "MAX_ANSWER_BYTES", 5 * len(bv))
    live = np.flatnonzero(bv.lengths)
    for _ in range(20):
        a, b = rng.choice(live, 8), rng.choice(live, 8)
        assert np.array_equal(follows.allowed_pairs(a, b), is_canonical_pair(bv, a, b)) and len(follows._pairs) <= 5


def real(name):
    "A tokenizer of a real model; skips where it is not on this machine."
    if name not in ("smollm2", "gemma"): return ByteVocab(getattr(test_bytevocab, name)(), name=name)
    if not (cache_dir() / "models" / name).exists(): pytest.skip(f"{name} is not here: xtokd models get {name}")
    return ByteVocab(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen", "deepseek", "gemma"])
def test_of_real_tokenizers(name):
    "60,000 pairs, half of them with a short second token, where merges across the border are common; tokens before letters; and letters after 40,000 tokens that are none, many of them blanks."
    bv = real(name)
    rule, rng = letter_adjacency(bv), np.random.default_rng(3)
    a, b = np.flatnonzero(rule.can_be_first), np.flatnonzero(rule.can_be_second)
    prev, nxt = rng.choice(a, 60_000), np.r_[rng.choice(b[bv.lengths[b] <= 3], 30_000), rng.choice(b, 30_000)]
    truth = is_canonical_pair(bv, prev, nxt)
    assert np.array_equal(~rule.merges_across(prev, nxt), truth) and .5 < truth.mean() < .95
    trie = ByteTrie(bv.bytes)
    rests = [bv.bytes[x] for x in rng.choice(bv.lengths.size, 3000) if bv.lengths[x]] + [bv.bytes[i][1:] + bv.bytes[j] for i, j in zip(prev[:3000], nxt) if bv.lengths[i] > 1]
    begun = first_tokens(bv, trie, rests)
    for w in rng.choice(a, 10).tolist():
        truth = first_tokens(bv, trie, [bv.bytes[w] + x for x in rests]) == w
        plain, more = rule.starts_with_token(w, rests), rule.starts_with_token(w, rests, begun)
        assert 0 < (plain >= 0).sum() < (more >= 0).sum() and (more >= 0).mean() > .2
        for on in (plain, more): assert np.array_equal(on[on >= 0], truth[on >= 0])
    follows = AdjacencyTable(bv, trie, dense=False)
    odd = np.flatnonzero((bv.lengths > 0) & ~rule.can_be_first)
    texts, at = decode_valid(bv.bytes[i] for i in odd)
    written = np.ones(len(odd), bool)
    written[at] = [e == [odd[k]] for k, e in zip(at, bv.encode_batch(texts))]
    odd = odd[written]                                              # tokens that are written at all
    prev, nxt = np.r_[np.repeat([i for i in odd if bv.bytes[i].isspace()][:100], 200), rng.choice(odd, 20_000)], rng.choice(np.flatnonzero(rule.words[0] | rule.words[1]), (2, 20_000)).reshape(-1)
    prev = np.r_[prev, prev][: len(nxt)]
    assert np.array_equal(follows.allowed_pairs(prev, nxt[: len(prev)]), is_canonical_pair(bv, prev, nxt[: len(prev)]))
