"""Which tokens BPE writes side by side, from the merges alone: always the tokenizer's own answer, or none."""
import json

import test_bytevocab
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer

from xtokd.hub import cache_dir
from xtokd.models.loading import load_tokenizer
from xtokd.objectives.cover.cells import CellGraph
from xtokd.objectives.cover.estimates import has_token_below
from xtokd.vocab.adjacency import BoundaryKind, CanonicalPairs, MergeAdjacency, is_canonical_pair, joined_bytes
from xtokd.vocab.bytevocab import ByteVocab
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
        rules = CanonicalPairs(ByteVocab(load_tokenizer("tiny", role))).rules
        made = rules.merges.rank >= 0
        assert rules.merges.derivable[made].mean() > .95 and not rules.is_asked[BoundaryKind.LETTER, BoundaryKind.LETTER]


def test_equal_merges_the_leftmost_is_first():
    tok = bpe([("a", "a"), ("aa", "a")])
    rule = MergeAdjacency(ByteVocab(tok))
    ids = tok.get_vocab()
    pair = lambda x, y: bool(rule.merges_across(np.array([ids[x]]), np.array([ids[y]]))[0])
    assert pair("a", "aa") and pair("aa", "a") and tok.encode("aaaa").tokens == ["aa", "aa"] and not pair("aa", "aa")


WORDS = [("a", "b"), ("B", "a"), ("ab", "B"), ("ab", "Ba"), ("c", "a"), ("b", "c"), ("C", "c"), ("a", "C")]


def all_pairs(vocab):
    content = np.flatnonzero(vocab.lengths > 0)
    return (x.ravel() for x in np.meshgrid(content, content))


def test_the_trial_finds_tokenizers_that_do_not_follow_the_rules():
    "A split inside letters, and a tokenizer that takes whole words: every pair is asked about, and right."
    cut = {"type": "Split", "pattern": {"Regex": "[A-Z]?[a-z]+"}, "behavior": "Isolated", "invert": False}
    cases = {"plain": (bpe(WORDS, "abcABC"), False), "split": (bpe(WORDS, "abcABC", cut), True),
             "marked": (bpe([], ["a", "##a"], continuing_subword_prefix="##"), True)}
    for name, (tokenizer, asks) in cases.items():
        vocab = ByteVocab(tokenizer)
        pairs = CanonicalPairs(vocab)
        assert (pairs.rules is None or pairs.rules.is_asked[BoundaryKind.LETTER, BoundaryKind.LETTER]) == asks, name
        first, second = all_pairs(vocab)
        assert np.array_equal(pairs.allowed(first, second), is_canonical_pair(vocab, first, second)), name


def test_bytes_that_no_token_joins():
    vocab = ByteVocab(load_tokenizer("tiny", "teacher"))
    naive = np.zeros((256, 256), bool)
    for data in vocab.bytes:
        for a, b in zip(data, data[1:]): naive[a, b] = True
    assert np.array_equal(joined_bytes(vocab), naive)


def test_a_token_below_another_on_the_way_of_some_bytes():
    tokens = [b"a", b"ab", b"abcd", b"b", b""]
    trie = ByteTrie(tokens)
    text = np.frombuffer(b"bcdzbcxx", np.uint8)
    node = trie.find([b"a", b"ab", b"ab", b"b"])
    begin, end = np.array([0, 1, 5, 0]), np.array([4, 3, 7, 2])
    naive = [any(t.startswith(x) and len(t) > len(x) and (x + text[a:b].tobytes()).startswith(t) for t in tokens)
             for x, a, b in zip((b"a", b"ab", b"ab", b"b"), begin, end)]
    assert has_token_below(trie, node, text, begin, end).tolist() == naive == [True, True, False, False]


SPLITS = {"words": {"type": "Split", "pattern": {"Regex": " ?[a-zA-Z]+|\\s+(?!\\S)|\\s+|[^\\sa-zA-Z]+"}, "behavior": "Isolated", "invert": False},
          "any before": {"type": "Split", "pattern": {"Regex": "[^\\na-zA-Z]?[a-zA-Z]+|\\s*\\n+|\\s+(?!\\S)|\\s+|[^\\sa-zA-Z]+"}, "behavior": "Isolated", "invert": False}, "none": None}
BLANKS = [(" ", " "), ("\n", "\n"), (" ", "\n"), ("!", "!"), ("  ", "\n")]


@pytest.mark.parametrize("split", SPLITS)
def test_every_pair_under_split_rules(split):
    "A vocabulary with blanks and marks, under split rules of three kinds: the answer that the tokenizer gives, twice."
    tok = bpe([*WORDS, *BLANKS, (" ", "ab"), (" ", "a")], [*"abcABC", " ", "\n", "!", "'"], SPLITS[split])
    vocab = ByteVocab(tok)
    pairs = CanonicalPairs(vocab)
    first, second = all_pairs(vocab)
    truth = is_canonical_pair(vocab, first, second)
    for _ in range(2): assert np.array_equal(pairs.allowed(first, second), truth)          # asked, and remembered


def isolated(expression): return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


CONTRACTIONS = {
    "as GPT-2": isolated(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    "as Qwen": isolated(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
}


@pytest.mark.parametrize("split", CONTRACTIONS)
def test_every_pair_behind_a_contraction_and_a_mark(split):
    "`'s` before letters, a mark before line breaks and blanks, a number that is no digit behind a blank: found wrong on real text. Of tokens that the split rule lets be written."
    merges = [*WORDS, *BLANKS, ("'", "s"), ("s", "a"), ("s", "ab"), (" ", "s"), ("!", "\n"), ("\n", "  "), (" ", "½")]
    vocab = ByteVocab(bpe(merges, [*"abcABC", " ", "\n", "!", "'", "s", "½", "2"], CONTRACTIONS[split]))
    pairs = CanonicalPairs(vocab)
    is_written = np.array([vocab.encode(piece.decode()) == [i] for i, piece in enumerate(vocab.bytes)])
    first, second = all_pairs(vocab)
    both = is_written[first] & is_written[second]
    first, second = first[both], second[both]
    truth = is_canonical_pair(vocab, first, second)
    for _ in range(2): assert np.array_equal(pairs.allowed(first, second), truth)


def test_what_is_remembered_of_pairs_is_bounded():
    vocab = ByteVocab(load_tokenizer("tiny", "student"))
    pairs, rng, content = CanonicalPairs(vocab, most_answers=50), np.random.default_rng(0), np.flatnonzero(vocab.lengths)
    for _ in range(20):
        first, second = rng.choice(content, 40), rng.choice(content, 40)
        assert np.array_equal(pairs.allowed(first, second), is_canonical_pair(vocab, first, second)) and len(pairs._answers) <= 90


def real(name):
    "A tokenizer of a real model; skips where it is not on this machine."
    if name not in ("smollm2", "gemma"): return ByteVocab(getattr(test_bytevocab, name)(), name=name)
    if not (cache_dir() / "models" / name).exists(): pytest.skip(f"{name} is not here: xtokd models get {name}")
    return ByteVocab(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen", "deepseek", "gemma"])
def test_of_real_tokenizers(name):
    "60,000 pairs of tokens that the tokenizer writes alone, half of them with a short second token, where merges are common."
    vocab = real(name)
    pairs, rng, content = CanonicalPairs(vocab), np.random.default_rng(3), np.flatnonzero(vocab.lengths > 0)
    content = content[:-1][is_canonical_pair(vocab, content[:-1], np.full(len(content) - 1, vocab.encode("\n")[0]))]
    short = content[vocab.lengths[content] <= 3]
    first, second = rng.choice(content, 60_000), np.r_[rng.choice(short, 30_000), rng.choice(content, 30_000)]
    truth = is_canonical_pair(vocab, first, second)
    found = pairs.allowed(first, second)
    assert pairs.rules and (found == truth).mean() > .999 and .5 < truth.mean() < .99


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen", "deepseek", "gemma"])
def test_contractions_and_marks_of_real_tokenizers(name):
    "`'s` before letters and a mark before blank lines: 21 pairs were wrong in 2,048 tokens of real text of two tokenizers."
    vocab = real(name)
    pairs, rng = CanonicalPairs(vocab), np.random.default_rng(0)
    def alone(texts): return [ids[0] for ids in vocab.encode_batch(texts) if len(ids) == 1]
    marks = alone(["'s", "'t", "'re", "'ll", "'", ".", "!", "?", ")", " ½", " ²", "½"])
    letters = [i for i, piece in enumerate(vocab.bytes) if piece.isalpha() and vocab.encode(piece.decode()) == [i]]
    blanks = alone(["\n", "\n\n", "\n    \n", "\n\n\n", " ", "  ", "    ", "\t", " \n"])
    second = np.array([*rng.choice(letters, 1500), *blanks])
    for mark in marks:
        first = np.full(len(second), mark)
        truth = is_canonical_pair(vocab, first, second)
        assert np.array_equal(pairs.allowed(first, second), truth), vocab.bytes[mark]
