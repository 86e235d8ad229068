"""Truth by counting, and exact scoring held against it: published numbers as fractions, and the laws on random worlds."""
import itertools
import math
from fractions import Fraction as F
from functools import cache

import numpy as np
import pytest

from xtokd.exact.prefix_probability import (
    Bounds, CoveringSequences, Quantity, RuleIndex, apply_merges, bias_factor, byte_prefix, canonical_path,
    covering_token_sequences, is_canonical_prefix, merge_list, merge_recursion, next_bytes, sampled_prefix,
    sequences_over_bytes, sequences_over_subset, student_prefix, student_row, subset_prefix, undo_merges)
from xtokd.exact.toy_models import (
    ToyModel, all_tokenizations_world, toy_bpe, byte_mass, digit_groups, doubling_world, apply_merge,
    make_pair, random_bpe, random_merges, random_texts, twin_world,
)
from xtokd.vocab.spelling import UnsupportedTokenizer

FEW, MANY = 300, 14_000      # about a quarter of the prefixes have no mass, and some laws pass over those
amount = pytest.mark.parametrize("n", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


# ---- the twin world ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def twins(): return twin_world()


def ids(bv, *pieces): return tuple(bv.stop_ids[0] if p == "." else bv.bytes.index(p.encode()) for p in pieces)
def table(bv, row): return {bv.bytes[u].decode() or ".": p for u, p in enumerate(row) if p}


def test_twin_roots(twins):
    S, T = twins
    assert table(T.vocab, T.row([])) == {"a": F(1, 4), "b": F(1, 2), "ab": F(1, 4)}
    assert table(S.vocab, S.row([])) == {"a": F(1, 2), "b": F(1, 4), "ba": F(1, 4)}


def test_twin_rows_after_one_token(twins):
    S, T = twins
    quarter = lambda *names: dict.fromkeys(names, F(1, 4))
    assert table(T.vocab, T.row(ids(T.vocab, "a"))) == quarter("a", "ab") | {".": F(1, 2)}
    assert table(S.vocab, S.row(ids(S.vocab, "b"))) == quarter("b", "ba") | {".": F(1, 2)}
    for x in ("ab", "b"): assert table(T.vocab, T.row(ids(T.vocab, x))) == quarter("a", "b", "ab", ".")
    for x in ("ba", "a"): assert table(S.vocab, S.row(ids(S.vocab, x))) == quarter("a", "b", "ba", ".")


def abab(twins):
    "Q1 of 'abab' on both sides, and the probability of the end after it."
    return [(canonical_path(w.row, w.vocab.encode("abab")).value, w.row(w.vocab.encode("abab"))[w.vocab.stop_ids[0]]) for w in twins]


def test_twin_chunk(twins):
    S, T = twins
    assert T.vocab.encode("abab") == [*ids(T.vocab, "ab", "ab")] and S.vocab.encode("abab") == [*ids(S.vocab, "a", "ba", "b")]
    (q, s_end), (p, t_end) = abab(twins)
    assert (p, q, t_end, s_end) == (F(1, 16), F(1, 32), F(1, 4), F(1, 2))
    assert p * t_end == q * s_end == F(1, 64) == T.texts["abab"]


def test_twin_naive_chunk_losses(twins):
    "A chunk loss sees a difference between two models of one process; with the end taken in, it sees none."
    (q, s_end), (p, t_end) = abab(twins)
    def alm(p, q, tau):
        P, Q = float(p) ** (1 / tau), float(q) ** (1 / tau)
        return P * math.log(P / Q) + (1 - P) * math.log((1 - P) / (1 - Q))
    assert abs(alm(p, q, 1) - .0125812) < 1e-7 and abs(alm(p, q, 5) - .0110967) < 1e-7
    assert alm(p * t_end, q * s_end, 1) == alm(p * t_end, q * s_end, 5) == 0
    assert 2 * abs(p - q) == F(1, 16) and abs(2 * math.log(p / q) - 1.386294) < 1e-6


def test_twin_teacher_in_the_students_vocabulary(twins):
    S, T = twins
    P = lambda *e: student_prefix(T.row, T.vocab, S.vocab, ids(S.vocab, *e))
    row = lambda *e: table(S.vocab, student_row(T.row, T.vocab, S.vocab, ids(S.vocab, *e))[0])
    assert row() == {"a": F(1, 2), "b": F(1, 4), "ba": F(1, 4)}
    assert row("a")["ba"] == row("b")["b"] == F(1, 4) and row("a", "ba", "b")["."] == F(1, 2) and P("b", "a").value == 0
    for e in ((), ("a",), ("b",), ("ba",), ("a", "ba"), ("b", "b"), ("a", "ba", "b")):
        assert sum(row(*e).values()) == 1 and row(*e) == table(S.vocab, S.row(ids(S.vocab, *e)))
        assert P(*e).value == S.mass(ids(S.vocab, *e)) == P(*e, ".").value + sum(P(*e, u).value for u in ("a", "b", "ba")) and P(*e).exact


def test_twin_bias(twins):
    S, T = twins
    for x in map("".join, itertools.chain(*(itertools.product("ab", repeat=n) for n in range(1, 8)))):
        for w, last in ((T, "a"), (S, "b")):
            assert bias_factor(w.row, w.vocab, w.vocab.encode(x)) == (F(1, 2) if w.vocab.bytes[w.vocab.encode(x)[-1]] == last.encode() else 1)


# ---- the doubling world -----------------------------------------------------------------------------------------------------
def test_doubling_world():
    W = doubling_world()
    M = lambda *e: W.mass(ids(W.vocab, *e))
    assert (M("A"), M("AA"), M("A", "A"), M("A", "B"), M("AA", "A"), M("AA", "AA")) == (F(1, 4), F(1, 4), 0, F(1, 8), F(1, 16), F(1, 16))
    assert table(W.vocab, W.row(ids(W.vocab, "A"))) == {"B": F(1, 2), ".": F(1, 2)}
    assert next_bytes(W.row, W.vocab, b"A") == {b"A": F(1, 2), b"B": F(1, 4), b"": F(1, 4)}


def test_doubling_covers():
    W = doubling_world()
    walk = sequences_over_bytes(W.row, W.vocab)
    one, three = {ids(W.vocab, "A"), ids(W.vocab, "AA")}, {ids(W.vocab, "AA", "A"), ids(W.vocab, "AA", "AA")}
    assert set(covering_token_sequences(W.vocab, b"A")) == set(walk.covering(b"A")) == one and set(covering_token_sequences(W.vocab, b"AAA")) == set(walk.covering(b"AAA")) == three
    assert byte_prefix(W.row, W.vocab, b"A").value == F(1, 2) and byte_prefix(W.row, W.vocab, b"AAA").value == F(1, 8)


def test_doubling_recursion():
    "Equal halves: whether a lone A stands depends on how many follow."
    W, plain = doubling_world(), toy_bpe("AB")
    T = ToyModel(W.texts, plain)
    for n in range(1, 5):
        for e in itertools.product(range(3), repeat=n):
            if len(W.vocab.decode(e)) < 9: assert student_prefix(T.row, plain, W.vocab, e).value == W.mass(e)


# ---- all tokenizations ------------------------------------------------------------------------------------------------------
def test_all_tokenizations_world():
    W = all_tokenizations_world()
    walk = sequences_over_bytes(W.row, W.vocab)
    assert walk.whole(b"ab")[0] == F(58, 1000) and canonical_path(W.row, (*W.vocab.encode("ab"), W.vocab.stop_ids[0])).value == F(4, 100)
    assert byte_prefix(W.row, W.vocab, b"a").value == F(1, 2) and byte_prefix(W.row, W.vocab, b"ab").value == F(29, 100)
    assert next_bytes(W.row, W.vocab, b"a") == {b"b": F(58, 100), b"a": F(3, 10), b"": F(12, 100)}
    assert len(walk.spelled(b"abab")) == 4


@pytest.mark.parametrize("text", [b"a", b"ab", b"abab", b"aabbab"])
def test_a_beam_is_below_the_truth_and_its_bounds_hold(text):
    W = all_tokenizations_world()
    exact = byte_prefix(W.row, W.vocab, text)
    found = [byte_prefix(W.row, W.vocab, text, beam_size=k) for k in (1, 2, 4, 64)]
    assert all(s.low <= exact.value <= s.high for s in found) and found[-1] == exact and exact.exact
    assert all(a.low <= b.low and b.high <= a.high for a, b in zip(found, found[1:]))


def test_a_teacher_of_all_tokenizations_in_another_vocabulary():
    "Its texts, cut by a tokenizer that merges `ba`: the recursion against a sum over all texts of up to eight bytes and what is left."
    W, s = all_tokenizations_world(), toy_bpe("ab", [("b", "a")])
    walk = sequences_over_bytes(W.row, W.vocab)
    texts = {x: walk.whole(x.encode())[0] for n in range(9) for x in map("".join, itertools.product("ab", repeat=n))}
    left = 1 - sum(texts.values())
    W8 = ToyModel(texts, s)
    for e in ([0], [1], [2], [1, 2], [0, 2], [1, 0], [2, 2, 3]):
        assert W8.mass(e) <= student_prefix(walk, W.vocab, s, e).value <= W8.mass(e) + left
    assert left < F(1, 5)


# ---- projections (the worked case of the completion paper, and the twin root) -----------------------------------------------
def projected(q, child):
    "BPM loss of the root row and of the row after `Br` for a teacher {word: p} and a student {piece: p}; both sides cost a stop of probability 0."
    torch = pytest.importorskip("torch")
    from xtokd.rows.pair_batch import PairBatch
    from xtokd.objectives import objective
    grow = lambda w: [(w[:k], w[k]) for k in range(1, len(w))]
    root = {"Br": .5, "Cat": .2, "r": .3}
    words = sorted([*root, "ead", "eads", "eak"], key=len)
    letters = "".join(sorted(set("".join([*q, *words]))))
    t, s = (toy_bpe(letters, list(dict.fromkeys(m for w in ws for m in grow(w)))) for ws in (sorted(q, key=len), words))
    def row(bv, p):
        out = torch.full((len(bv),), -torch.inf)
        for w, x in p.items(): out[bv.bytes.index(w.encode())] = math.log(x)
        return out
    written, read = ids(s, "Br", "eads", "."), ids(t, "Breads", ".")
    stop = lambda bv: torch.where(torch.arange(len(bv)) == bv.stop_ids[0], 0., -torch.inf)
    b = PairBatch.from_logits(make_pair(s, t), [written], [read], [torch.stack([row(s, root), row(s, child), stop(s)])], [torch.stack([row(t, q), stop(t)])])
    return objective("bpm")(b).token_loss[:2].tolist()


def test_bread():
    q = {"Bread": .4, "Breads": .2, "Break": .3, "Cat": .1}
    root, inner = projected(q, {"ead": .2, "eads": .3, "eak": .1, "s": .4})
    assert abs(root - .4597) < 1e-4 and abs(inner - .6895) < 1e-4 and abs(root + inner - 1.1492) < 1e-4
    assert abs(projected(q, {"ead": .1, "eads": .5, "eak": .1, "s": .3})[1] - .8841) < 1e-4


def test_projection_misses_the_twin_root_by_half_a_bit(twins):
    "t = {a: 1/2, b: 1/2} where the truth is {a: 1/2, b: 1/4, ba: 1/4}: KL ln(2) / 2; the exact row costs nothing."
    torch = pytest.importorskip("torch")
    from xtokd.objectives.projection.bpm import bpm_targets
    from xtokd.objectives.cover.cells import cell_graph
    from xtokd.objectives.cover.places import TextPlaces
    from xtokd.rows.pair_batch import PairBatch
    S, T = twins
    rows = [torch.tensor(w.rows(w.codes["bb"])).log() for w in twins]
    b, graph = PairBatch.from_logits(make_pair(S.vocab, T.vocab), [S.codes["bb"]], [T.codes["bb"]], *[[r] for r in rows]), cell_graph(S.vocab, T.vocab)
    target = bpm_targets(TextPlaces(b.alignment, graph.t_trie), graph, b.teacher.logp().exp())[0][0, :4].double().numpy()
    kl = lambda p, q: sum(a * math.log(a / b) for a, b in zip(p, q) if a)
    truth = student_row(T.row, T.vocab, S.vocab, [])[0].astype(float)
    assert abs(kl(target, truth) - .3466) < 1e-4 and kl(truth, S.row([]).astype(float)) == 0


# ---- edges ------------------------------------------------------------------------------------------------------------------
def test_a_row_after_an_impossible_prefix_is_refused(twins):
    S, T = twins
    with pytest.raises(ValueError, match="begin with"): S.row(ids(S.vocab, "b", "a"))
    with pytest.raises(ValueError, match="canonical prefixes"): student_row(T.row, T.vocab, S.vocab, ids(S.vocab, "b", "a"))
    with pytest.raises(ValueError, match="no text begins"): next_bytes(T.row, T.vocab, b"c")
    assert canonical_path(T.row, ids(T.vocab, "a", "b", "a")).value == 0 and byte_prefix(T.row, T.vocab, b"c").value == 0


def test_stops(twins):
    S, T = twins
    P = lambda *e: student_prefix(T.row, T.vocab, S.vocab, ids(S.vocab, *e)).value
    assert P(".") == 0 and P("a", ".") == F(1, 8) == T.texts["a"] and P("a", ".", "a") == P(".", "a") == P("b", "a", ".") == 0
    assert student_prefix(T.row, T.vocab, S.vocab, []).value == 1


def test_unsupported_students():
    W = doubling_world(4)
    for bv, why in ((digit_groups(2), "whole pre-tokens"), (toy_bpe("ab", [("a", "b")], split="a"), "pre-tokens"), (toy_bpe("ab", [("a", "b"), ("ab", "a"), ("b", "a"), ("a", "ba")]), "several"),
                    (toy_bpe("ab", [("ab", "a"), ("a", "b")]), "before those of their parts")):
        with pytest.raises(UnsupportedTokenizer, match=why): student_prefix(W.row, W.vocab, bv, [0])


def test_quantities_are_named():
    assert [q.name for q in Quantity] == ["TOKEN_PATH", "TOKEN_PREFIX", "BYTE_PREFIX"]
    assert Bounds(.1, .3, Quantity.TOKEN_PREFIX).value == .2 and Bounds(0, 0, Quantity.TOKEN_PATH).log == -math.inf
    with pytest.raises(ValueError, match="none of"): Bounds(0, 1, "Q4")


def test_floats_do_as_well(twins):
    S, T = twins
    row = lambda prefix: T.row(prefix).astype(float)
    low, high = student_row(row, T.vocab, S.vocab, ids(S.vocab, "a", "ba"))
    assert low.dtype == float and np.allclose(low, S.row(ids(S.vocab, "a", "ba")).astype(float)) and np.allclose(low, high)


@pytest.mark.parametrize("seed", range(6))
def test_tokens_that_end_inside_a_character(seed):
    "é, è and Ā share first bytes; both sides cut through them."
    rng = np.random.default_rng(seed)
    symbols = ["a", "é", "è", "Ā"]
    texts = random_texts(rng, symbols, 3)
    units = "".join(symbols).encode()
    def cutter():
        text, merges = [bytes([b]) for x in rng.choice(symbols, 60) for b in x.encode()], []
        for _ in range(4):
            i = rng.integers(len(text) - 1)
            merges.append((text[i], text[i + 1]))
            text = apply_merge(text, *merges[-1], b"".join(merges[-1]))
        return toy_bpe(units, merges)
    S, T = ToyModel(texts, cutter()), ToyModel(texts, cutter())
    walk = sequences_over_bytes(T.row, T.vocab)
    for e in {c[:k] for c in S.codes.values() for k in range(len(c) + 1)}:
        assert student_prefix(walk, T.vocab, S.vocab, e).value == S.mass(e)
        if e[-1:] != (S.vocab.stop_ids[0],): assert (student_row(walk, T.vocab, S.vocab, e)[0] == S.row(e)).all() and is_canonical_prefix(S.vocab, e)
    for x in ("é", "aĀ"):
        for k in range(1, len(x.encode()) + 1): assert set(walk.covering(x.encode()[:k])) <= set(covering_token_sequences(T.vocab, x.encode()[:k]))


def test_sampling_agrees():
    "Frequencies of complete texts, cut again, against the algebra; z = 4 and a fixed seed."
    S, T = twin_world(6)
    for e in ([0], [1], [2], [1, 2], [0, 2, 1], [0, 3]):
        s = sampled_prefix(T.row, T.vocab, S.vocab, e, n=400)
        assert s.low <= float(S.mass(e)) <= s.high and s.quantity is Quantity.TOKEN_PREFIX


# ---- laws on random worlds --------------------------------------------------------------------------------------------------
@cache
def counted(seed):
    "(texts, student world, teacher world): two or three symbols, up to five merges a side."
    rng = np.random.default_rng(seed)
    letters = "ab" if rng.random() < .6 else "abc"
    texts = random_texts(rng, letters, 5 if letters == "ab" else 4)
    return texts, *(ToyModel(texts, random_bpe(rng, letters, int(rng.integers(1, 6)))) for _ in range(2))


def world_pair(seed): return *counted(seed), np.random.default_rng((seed, 1))


def some_prefixes(world, rng, n):
    "n prefixes of texts, and n random sequences that mostly no text has."
    real = sorted({c[:k] for c in world.codes.values() for k in range(len(c))})
    stop = world.vocab.stop_ids[0]
    return [real[i] for i in rng.integers(len(real), size=n)] + [tuple(rng.integers(stop, size=rng.integers(1, 5)).tolist()) for _ in range(n)]


def cases(n, each=20):
    "n cases (student world, teacher world, texts, prefix of the student), `each` to a world."
    for seed in range(-(-n // each)):
        texts, S, T, rng = world_pair(seed)
        for e in some_prefixes(S, rng, each // 2): yield S, T, texts, e


@cache
def walk_of(world): return sequences_over_bytes(world.row, world.vocab)
@cache
def rules_of(bv): return RuleIndex(merge_list(bv))


@amount
def test_recursion_is_counting(n):
    for S, T, texts, e in cases(n):
        p = S.mass(e)
        assert merge_recursion(lambda x: byte_mass(texts, S.vocab.decode(x)), rules_of(S.vocab), e) == (p, p)


@amount
def test_student_prefix_is_counting(n):
    for S, T, texts, e in cases(n):
        assert student_prefix(walk_of(T), T.vocab, S.vocab, e, rules=rules_of(S.vocab)) == Bounds(S.mass(e), S.mass(e), Quantity.TOKEN_PREFIX)


@amount
def test_next_token_sums_to_one(n):
    "The undivided masses of what may follow add up to the prefix, and the row is the counted one."
    for S, T, texts, e in cases(n):
        P = lambda e: student_prefix(walk_of(T), T.vocab, S.vocab, e, rules=rules_of(S.vocab)).value
        total = sum(P((*e, u)) for u in range(len(S.vocab)))
        assert total == S.mass(e)
        if total:
            low, high = student_row(walk_of(T), T.vocab, S.vocab, e, rules=rules_of(S.vocab))
            assert low.sum() == 1 and (low == high).all() and (low == S.row(e)).all()


@amount
def test_byte_covers_are_counting(n):
    for seed in range(-(-n // 25)):
        texts, S, T, rng = world_pair(seed)
        letters = sorted({b for b in S.vocab.bytes if len(b) == 1})
        for x in [b"".join(rng.choice(letters, rng.integers(0, 6))) for _ in range(25)]:
            p = byte_mass(texts, x)
            assert walk_of(T).prefix(x) == (p, p) and walk_of(T).whole(x)[0] == texts.get(x.decode(), 0)
            if p: assert sum(walk_of(T).next(x).values()) == 1


@amount
def test_relative_cover(n):
    "A truncation of the teacher's own merges: its prefix is the sum of the teacher's covers, and every cover is minimal."
    for seed in range(-(-n // 20)):
        texts, S, T, rng = world_pair(seed)
        rules, m = merge_list(T.vocab), int(rng.integers(0, len(merge_list(T.vocab)) + 1))
        small = {x: (*undo_merges(c[:-1], rules[m:]), c[-1]) for x, c in T.codes.items()}
        walk = sequences_over_subset(T.row, T.vocab, m, rules)
        real = sorted({c[:k] for c in small.values() for k in range(1, len(c))})
        odd = [tuple(rng.integers(len(T.vocab) - 1 - len(rules) + m, size=rng.integers(1, 5)).tolist()) for _ in range(10)]
        for e in ([real[i] for i in rng.integers(len(real), size=10)] if real else []) + odd:
            p = sum((texts[x] for x, c in small.items() if c[:len(e)] == e), F(0))
            assert walk.prefix(e) == (p, p) and sum(walk.covering(e).values()) == p
            for u in walk.covering(e):
                assert undo_merges(u, rules[m:])[:len(e)] == e != undo_merges(u[:-1], rules[m:])[:len(e)]
                assert is_canonical_prefix(T.vocab, u)


def test_truncation_is_the_smaller_tokenizer():
    "Cutting with the first m merges is undoing the others."
    for seed in range(20):
        rng = np.random.default_rng(seed)
        merges = random_merges(rng, "ab", 4)
        big, small = toy_bpe("ab", merges), toy_bpe("ab", merges[:2])
        for x in random_texts(rng, "ab", 6):
            assert [small.bytes[i] for i in small.encode(x)] == [big.bytes[i] for i in undo_merges(big.encode(x), merge_list(big)[2:])]


@amount
def test_recursion_from_a_truncation(n):
    "The recursion may also start at a smaller vocabulary of the same merges."
    for S, T, texts, e in cases(n):
        rules = merge_list(S.vocab)
        m = len(rules) // 2
        walk = subset_of(S, m)
        assert merge_recursion(lambda x: walk.prefix(x), rules_from(S.vocab, m), e) == (S.mass(e),) * 2


@cache
def subset_of(world, m): return sequences_over_subset(world.row, world.vocab, m)
@cache
def rules_from(bv, m): return RuleIndex(merge_list(bv)[m:])


@amount
def test_bounds_hold(n):
    "With a floor the exact value lies between; a higher floor never asks for more leaves."
    for k, (S, T, texts, e) in enumerate(cases(n)):
        asked, floors = [], sorted((F(k % 37, 200), F(k % 11, 100)))
        for floor in floors:
            seen = set()
            def leaf(x): seen.add(x); return byte_mass(texts, S.vocab.decode(x))
            low, high = merge_recursion(leaf, rules_of(S.vocab), e, floor)
            assert 0 <= low <= S.mass(e) <= high <= 1
            asked.append(len(seen))
        assert asked[0] >= asked[1]


@amount
def test_row_bounds_hold(n):
    for k, (S, T, texts, e) in enumerate(cases(n)):
        if not S.mass(e): continue
        low, high = student_row(walk_of(T), T.vocab, S.vocab, e, floor=F(k % 7, 50), rules=rules_of(S.vocab))
        assert (low <= S.row(e)).all() and (S.row(e) <= high).all()


@amount
def test_pairs_decide_what_is_canonical(n):
    "Tokens are a canonical text when every two neighbours are; the merges alone say the same as the tokenizer."
    for S, T, texts, e in cases(n):
        rules = rules_of(S.vocab).rules
        whole, pairs = S.vocab.is_canonical(e), all(S.vocab.is_canonical(p) for p in zip(e, e[1:]))
        assert whole == pairs == (apply_merges(undo_merges(e, rules), rules) == e) == is_canonical_prefix(S.vocab, e)
        if not whole: assert student_prefix(walk_of(T), T.vocab, S.vocab, e, rules=rules_of(S.vocab)).value == 0


@amount
def test_longer_prefixes_weigh_less(n):
    for S, T, texts, e in cases(n):
        P = lambda e: student_prefix(walk_of(T), T.vocab, S.vocab, e, rules=rules_of(S.vocab)).value
        whole = P(e)
        assert all(P((*e, u)) <= whole for u in range(len(S.vocab))) and whole <= byte_mass(texts, S.vocab.decode(e))


@amount
def test_chunk_ratios_telescope(n):
    "ln Q1(chunk | before) = ln Q3(bytes | bytes before) + ln b(end) - ln b(start), and over a whole text the bias is gone."
    for seed in range(-(-n // 20)):
        texts, S, T, rng = world_pair(seed)
        every = list(S.codes.items())
        for x, code in [every[i] for i in rng.integers(len(every), size=20)]:
            ends = sorted(rng.integers(0, len(code), 2).tolist())
            Q1, Q3 = ([S.mass(code[:k]) for k in ends], [walk_of(S).prefix(S.vocab.decode(code[:k]))[0] for k in ends])
            b = [bias_factor(S.row, S.vocab, code[:k]) for k in ends]
            assert Q1[1] / Q1[0] == Q3[1] / Q3[0] * b[1] / b[0] and all(0 < f <= 1 for f in b)
            assert canonical_path(S.row, code).value == canonical_path(T.row, T.codes[x]).value == texts[x]


@amount
def test_equal_tokenizers_give_the_models_own_rows(n):
    for S, T, texts, e in cases(n):
        if S.mass(e): assert (student_row(walk_of(S), S.vocab, S.vocab, e, rules=rules_of(S.vocab))[0] == S.row(e)).all()
        rules = merge_list(S.vocab)
        if S.mass(e) and e: assert subset_of(S, len(rules)).covering(e) == {e: S.mass(e)}
