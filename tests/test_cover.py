"""`cover` and `bpm` held against worlds whose truth is counted."""
import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtokd.exact.toy_models import (
    TorchToyModel, toy_bpe, digit_groups, make_pair, markov, random_bpe, random_texts,
)
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import objective
from xtokd.objectives.cover.cells import cell_graph
from xtokd.objectives.cover.cover import cover_targets


def batch_of(pair, s_world, t_world, texts, student_rows=None):
    s, t = [s_world.codes[x] for x in texts], [t_world.codes[x] for x in texts]
    s_rows = [(s_world.rows(c) if student_rows is None else student_rows(c)).log().float() for c in s]
    return PairBatch.from_logits(pair, s, t, s_rows, [t_world.rows(c).log().float() for c in t])


def sides(batch, **options):
    "Known masses [R, C + 1] (the rest last), the student's masses [R, C + 1] and the unknown shares [R] of all rows."
    targets = cover_targets(batch, **options)
    at = slice(0, len(targets.rows))
    known, unknown = targets.known_masses(at, torch.device("cpu"))
    return known, targets.student_masses(batch.student.take(targets.rows), at).double(), unknown


def errors(pair, s_world, t_world, texts):
    "By how much the counted truth is outside of its bounds, at worst, the unknown shares, and the number of rows."
    known, truth, unknown = sides(batch_of(pair, s_world, t_world, texts), min_mass=1e-12)      # the batch's student is the exact one
    seen = (unknown < 1) & (truth.sum(1) > 1e-9)
    gap = (truth / truth.sum(1, keepdim=True) - known)[seen]
    above = gap.clamp_min(0).sum(1) - unknown[seen]
    return max(-gap.min().item(), above.max().item()), unknown[seen].numpy(), int(seen.sum())


def digit_world(n_min, n_max, seed=0):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(10)), rng.dirichlet(np.ones(10), 10)
    texts = {}
    for n in range(n_min, n_max + 1):
        for x in itertools.product(range(10), repeat=n):
            pr = p[x[0]] * np.prod([q[a, b] for a, b in zip(x, x[1:])])
            texts["".join(map(str, x))] = pr / (n_max - n_min + 1)
    return texts


@contextmanager
def treated(wide):
    "Vocabularies of any size are treated as large ones, if `wide`."
    from xtokd.objectives.cover.cells import CellGraph
    small, CellGraph.small = CellGraph.small, 0 if wide else CellGraph.small
    cell_graph.cache_clear()
    try: yield
    finally:
        CellGraph.small = small
        cell_graph.cache_clear()


@pytest.fixture(params=["small", "wide"])
def either(request):
    "Both ways to find the cells of a row, by the definition and by estimates; in these worlds both are exact."
    with treated(request.param == "wide"): yield 1e-5


@pytest.mark.parametrize("group", [2, 3])
def test_digits_markov(group, either):
    texts = digit_world(1, 4)
    s, t = digit_groups(1), digit_groups(group)
    pair = make_pair(s, t)
    worst, unknown, seen = errors(pair, TorchToyModel(texts, s), TorchToyModel(texts, t), ["9632", "963", "96", "9", "1234", "07"])
    assert seen > 20 and worst < either and unknown.max() < 1e-5


@pytest.mark.parametrize("group", [2, 3])
def test_student_longer(group, either):
    texts = digit_world(1, 4)
    s, t = digit_groups(group), digit_groups(1)
    worst, unknown, seen = errors(make_pair(s, t), TorchToyModel(texts, s), TorchToyModel(texts, t), ["9632", "963", "96", "9", "1234", "07"])
    assert seen > 10 and worst < either


def test_two_against_three(either):
    texts = digit_world(1, 4)
    for a, b in ((2, 3), (3, 2)):
        s, t = digit_groups(a), digit_groups(b)
        worst, unknown, seen = errors(make_pair(s, t), TorchToyModel(texts, s), TorchToyModel(texts, t), ["9632", "963", "96", "9"])
        assert seen > 5 and worst < either, (a, b)


W1 = markov({"a": .5, "b": .5}, {"a": {"a": .25, "b": .5}, "b": {"a": .5, "b": .25}}, {"a": .25, "b": .25}, 12)


def test_twin_world():
    s, t = toy_bpe("ab", [("b", "a")]), toy_bpe("ab", [("a", "b")])
    S, T = TorchToyModel(W1, s), TorchToyModel(W1, t)
    worst, unknown, seen = errors(make_pair(s, t), S, T, ["abab", "ab", "ba", "bb", "aab", "bbaa", "abba"])
    assert seen > 15 and worst < 1e-5


def test_twin_world_equal():
    t = toy_bpe("ab", [("a", "b")])
    T = TorchToyModel(W1, t)
    b = batch_of(make_pair(t, t), T, T, ["abab", "ba"], lambda c: torch.softmax(torch.randn(len(c), len(t), generator=torch.Generator().manual_seed(0)), -1).double())
    out = objective("cover")(b)
    want = (b.teacher.logp().exp() * (b.teacher.logp() - b.student.logp()).nan_to_num(neginf=0)).sum(-1)
    assert torch.allclose(out.token_loss, want, atol=1e-6)


class TableStudent:
    "A student that is a table: one row of logits per prefix, started at the exact solution of a world."
    def __init__(self, world):
        self.world = world
        prefixes = sorted({c[:k] for c in world.codes.values() for k in range(len(c))})
        self.index = {p: k for k, p in enumerate(prefixes)}
        rows = torch.tensor(np.stack([world.row(p) for p in prefixes])).float()
        self.logits = rows.clamp_min(1e-9).log().requires_grad_()

    def sample(self, n, generator):
        out = []
        for _ in range(n):
            code = ()
            while code in self.index and (not code or code[-1] != self.world.vocab.stop_ids[0]):
                code += (int(torch.multinomial(torch.softmax(self.logits[self.index[code]].detach(), 0), 1, generator=generator)),)
            out.append(code)
        return out

    def rows(self, code): return self.logits[[self.index[code[:k]] for k in range(len(code))]]


def long_token_mass(objective_name, steps=30, n=16, lr=.1):
    "Mass of two-digit tokens at the start before and after on-policy training from the exact solution."
    texts = digit_world(1, 2)
    S, T = TorchToyModel(texts, digit_groups(2)), TorchToyModel(texts, digit_groups(1))
    pair, student, gen = make_pair(S.vocab, T.vocab), TableStudent(S), torch.Generator().manual_seed(0)
    long = torch.tensor(S.vocab.lengths == 2)
    mass = lambda: torch.softmax(student.logits[student.index[()]].detach(), 0)[long].sum().item()
    before, opt, obj = mass(), torch.optim.SGD([student.logits], lr * 20), objective(objective_name)
    for _ in range(steps):
        codes = [c for c in student.sample(n, gen) if S.vocab.decode(c[:-1]).decode() in texts and S.codes[S.vocab.decode(c[:-1]).decode()] == c]
        t = [T.codes[S.vocab.decode(c[:-1]).decode()] for c in codes]
        out = obj(PairBatch.from_logits(pair, codes, t, [student.rows(c) for c in codes], [T.rows(c).log().float() for c in t]))
        opt.zero_grad(); out.loss.backward(); opt.step()
    return before, mass()


def test_exact_student_is_a_fixed_point_of_cover_and_not_of_bpm():
    before, after = long_token_mass("cover")
    assert abs(after - before) < 1e-3
    before, after = long_token_mass("bpm")
    assert after < before - .02


def test_bpm_is_not_exact_on_digits():
    texts = digit_world(1, 4)
    s, t = digit_groups(1), digit_groups(2)
    S, T = TorchToyModel(texts, s), TorchToyModel(texts, t)
    b = batch_of(make_pair(s, t), S, T, ["963", "9"])
    assert objective("cover")(b).loss < 1e-6 < .1 < objective("bpm")(b).loss


@pytest.mark.parametrize("group", [1, 2, 3])
def test_split_invariance(group):
    texts = digit_world(1, 4)
    s, t = digit_groups(1), digit_groups(group)
    S, T = TorchToyModel(texts, s), TorchToyModel(texts, t)
    noise = lambda c: torch.softmax(torch.randn(len(c), len(s), generator=torch.Generator().manual_seed(len(c))), -1).double()
    names, some = ("cover", "bpm", "strict", "sampled", "sft"), ["9632", "7", "12", "345"]
    pair = make_pair(s, t)
    for name in names:
        whole = objective(name)(batch_of(pair, S, T, some, noise))
        parts = [objective(name)(batch_of(pair, S, T, [x], noise)) for x in some]
        assert torch.allclose(whole.loss_sum, sum(p.loss_sum for p in parts), atol=1e-4) and whole.num_units == sum(p.num_units for p in parts), name


def test_peaked_rows_of_a_large_vocabulary():
    """A look of mass 1e-6 in a float32 row of 262,144 columns keeps its share to 1e-4; a cumulative sum would lose a tenth of it."""
    from xtokd.objectives.projection.bpm import segment_sums
    q = torch.zeros(1, 262_144); q[0, 7] = 1 - 1e-6; q[0, 100_000:100_500] = 1e-6 / 500
    got = segment_sums(q, [0], [100_000], [100_500], np.arange(262_144)).item()
    lost = abs((q.cumsum(1)[0, 100_499] - q.cumsum(1)[0, 99_999]).item() / 1e-6 - 1)
    assert abs(got / 1e-6 - 1) < 1e-4 < 1e-2 < lost


def test_no_divergence_is_left_at_the_exact_student():
    texts = digit_world(1, 3)
    S, T = TorchToyModel(texts, digit_groups(1)), TorchToyModel(texts, digit_groups(2))
    b = batch_of(make_pair(S.vocab, T.vocab), S, T, ["963", "07"])
    for wide in (False, True):
        with treated(wide):
            for kind in ("fkl", "rkl", "jsd"): assert abs(objective("cover", divergence=kind)(b).loss) < 1e-5, (wide, kind)
            assert abs(objective("cover", divergence="rkl", num_cells=2)(b).loss) < 1e-5


def test_non_canonical_student_keeps_running():
    "The student writes `96` as two tokens where its tokenizer would write one: its own cut is kept, and rows without a hypothesis say why."
    texts = digit_world(1, 3)
    S, T = TorchToyModel(texts, digit_groups(2)), TorchToyModel(texts, digit_groups(3))
    pair = make_pair(S.vocab, T.vocab)
    code = tuple(S.vocab.encode(d)[0] for d in "963") + (S.vocab.stop_ids[0],)
    b = PairBatch.from_logits(pair, [code], [T.codes["963"]], [torch.zeros(4, len(S.vocab))], [T.rows(T.codes["963"]).log().float()])
    out = objective("cover")(b)
    assert torch.isfinite(out.loss_sum) and (out.ledger["reason"][out.ledger["weight"] == 0] > 0).all()


@pytest.mark.filterwarnings("error")
def test_rows_without_any_teacher_mass_say_so():
    "Inside the teacher's `96` every token that begins with 9 has probability zero: nothing is known there, and the ledger names it."
    texts = digit_world(1, 3)
    S, T = TorchToyModel(texts, digit_groups(1)), TorchToyModel(texts, digit_groups(2))
    rows = T.rows(T.codes["96"]).log().float()
    rows[0, [i for i, x in enumerate(T.vocab.bytes) if x.startswith(b"9")]] = -torch.inf
    b = PairBatch.from_logits(make_pair(S.vocab, T.vocab), [S.codes["96"]], [T.codes["96"]], [torch.zeros(3, len(S.vocab))], [rows])
    out = objective("cover")(b)
    assert torch.isfinite(out.loss_sum) and out.ledger["weight"][1] == 0 and out.ledger["reason"][1] == 102 and out.ledger["unknown"][1] == 1


def random_pair(seed, merges=5):
    "Two random merge lists over two or three symbols, and a random distribution over texts seen through both."
    rng = np.random.default_rng(seed)
    symbols = "ab" if seed % 2 else "abc"
    texts = random_texts(rng, symbols, 6 if len(symbols) == 2 else 4)
    return [TorchToyModel(texts, random_bpe(rng, symbols, int(rng.integers(1, merges + 1)))) for _ in range(2)], rng.choice(sorted(texts), 3, replace=False)


def bound_error_in(seed, **knobs):
    "By how much the truth of some set of cells is outside of its bound, at worst; and the unknown share of each row."
    (S, T), some = random_pair(seed)
    known, truth, unknown = sides(batch_of(make_pair(S.vocab, T.vocab), S, T, list(some)), **knobs)
    gap = truth / truth.sum(1, keepdim=True) - known
    worst = max(-gap.min().item(), (gap.clamp_min(0).sum(1) - unknown).max().item())
    return worst, unknown.mean().item()


def test_every_known_cell_is_exact_on_random_merge_lists():
    found = np.array([bound_error_in(k, min_mass=0., doubt=0.) for k in range(150)])
    assert found[:, 0].max() < 2e-5 and found[:, 1].mean() < .3


@pytest.mark.slow
def test_every_known_cell_is_exact_on_ten_thousand_pairs():
    found = np.array([bound_error_in(k, min_mass=0., doubt=0.) for k in range(1000, 11_000)])
    assert found[:, 0].max() < 2e-5


def test_a_merge_that_looks_ahead():
    "The student merges bc before ab: after the teacher's ab its next token hangs on what follows. Both are one cell, and its mass is exact."
    texts = {x: 1 / 4 for x in ("ab", "abc", "abab", "ba")}
    S, T = TorchToyModel(texts, toy_bpe("abc", [("b", "c"), ("a", "b")])), TorchToyModel(texts, toy_bpe("abc", [("a", "b")]))
    worst, unknown, seen = errors(make_pair(S.vocab, T.vocab), S, T, ["ab", "abc", "abab", "ba"])
    assert seen > 8 and worst < 1e-5 and (unknown == 0).any()


def test_doubt_is_a_bound():
    "What is too light to be asked about, or to join two cells, is counted as unknown."
    found = np.array([bound_error_in(seed, min_mass=0., doubt=.05) for seed in range(60)])
    exact = np.array([bound_error_in(seed, min_mass=0., doubt=0.) for seed in range(60)])
    assert found[:, 0].max() < 2e-5 and found[:, 1].mean() > exact[:, 1].mean()


def test_the_nearest_masses_are_the_best_of_all_that_the_bounds_allow():
    "Against a search over many allowed distributions; a student within the bounds is its own target."
    from xtokd.objectives.cover.targets import nearest_masses
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, unknown = int(rng.integers(1, 6)), float(rng.choice([0., .01, .3, .9]))
        known = rng.dirichlet(np.ones(n)) * (1 - unknown)
        student = rng.dirichlet(np.ones(n + 1))
        found = nearest_masses(torch.tensor(np.r_[known, 0.])[None], torch.tensor([unknown], dtype=torch.double), torch.tensor(student)[None])[0].numpy()
        low = np.r_[known, 0.]
        assert (found >= low - 1e-9).all() and abs(found.sum() - 1) < 1e-9
        def kl(q): return np.sum(q * np.log(np.maximum(q, 1e-300) / student))
        others = low + unknown * rng.dirichlet(np.ones(n + 1), 300)
        assert kl(found) <= min(map(kl, others)) + 1e-9
        inside = low + unknown * rng.dirichlet(np.ones(n + 1))
        same = nearest_masses(torch.tensor(np.r_[known, 0.])[None], torch.tensor([unknown], dtype=torch.double), torch.tensor(inside)[None])[0].numpy()
        assert np.allclose(same, inside, atol=1e-9)


@pytest.mark.parametrize("kind", ["fkl", "rkl", "jsd"])
@pytest.mark.parametrize("unknown", [.01, .5])
def test_the_exact_student_has_no_gradient_where_some_mass_is_unknown(kind, unknown):
    "Of the truth .5, .3 (in cells) and .2 (in none) the unknown mass is taken away: the student within the bound stays."
    from xtokd.objectives.cover.targets import CellTargets, cell_losses
    truth = torch.tensor([[.5, .3, .2]]) if unknown > .2 else torch.tensor([[.6, .39, .01]])
    known = truth[:, :2] - torch.tensor([[unknown - truth[0, 2].item(), 0.]])
    targets = CellTargets(np.arange(1), known.double().numpy(), np.zeros(1), np.array([unknown]), np.zeros(2, int), np.arange(2), np.arange(2))
    for student, stays in ((truth, True), (torch.tensor([[.05, .05, .9]]), False)):
        logits = student.log().requires_grad_()
        loss = cell_losses(logits.log_softmax(1), targets, slice(0, 1), kind).sum()
        loss.backward()
        assert (abs(loss.item()) < 1e-6 and logits.grad.abs().max() < 1e-6) == stays


LONG = ("Certainly: 12 + 894772 altogether.\n    The number is 9632.", "7", "No: 12.")


def random_logits(b_ids, width, seed): return [3 * torch.randn(len(x), width, generator=torch.Generator().manual_seed(seed + k)) for k, x in enumerate(b_ids)]


def in_pieces(pair, ids_s, ids_t, sizes, seed=0, **knobs):
    "Losses and gradients of cover with pieces of each size."
    for size in sizes:
        leaves = [x.requires_grad_() for x in random_logits(ids_s, len(pair.student), seed)]
        obj = objective("cover", **knobs)
        obj.rows_at_once = size
        out = obj(PairBatch.from_logits(pair, ids_s, ids_t, leaves, random_logits(ids_t, len(pair.teacher), seed + 100)))
        (out.loss_sum * .7).backward()
        yield out, torch.cat([x.grad for x in leaves])


def same_in_pieces(found):
    (whole, grad), *others = found
    for out, g in others:
        assert torch.allclose(whole.token_loss, out.token_loss, rtol=1e-4, atol=1e-5) and torch.allclose(grad, g, rtol=1e-4, atol=1e-6)
        assert np.allclose(whole.ledger["unknown"], out.ledger["unknown"], atol=1e-5) and (whole.ledger["reason"] == out.ledger["reason"]).all()


@pytest.mark.parametrize("how", [{}, {"divergence": "rkl"}, {"divergence": "jsd"}, {"num_cells": 4}, {"doubt": 0., "min_mass": 0.}], ids=str)
def test_pieces_of_a_long_sample_are_the_whole(either, how):
    "The tiny pair, as a small and as a large vocabulary: cut at any chunk, nothing changes."
    from xtokd.alignment.pair import Pair
    pair = Pair("tiny")
    ids = [[[*bv.encode(x), bv.stop_ids[0]] for x in LONG] for bv in (pair.student, pair.teacher)]
    same_in_pieces(in_pieces(pair, *ids, (10_000, 1, 7, 23), **how))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans())
def test_pieces_of_random_merge_lists_are_the_whole(seed, size, wide):
    "Random merge lists over two or three symbols, texts long beside their tokens, pieces of any size."
    rng = np.random.default_rng(seed)
    symbols = "ab" if seed % 2 else "abc"
    S, T = (random_bpe(rng, symbols, int(rng.integers(1, 7))) for _ in range(2))
    texts = ["".join(rng.choice(list(symbols), int(rng.integers(0, 25)))) for _ in range(3)]
    with treated(wide): same_in_pieces(in_pieces(make_pair(S, T), *([[*bv.encode(x), bv.stop_ids[0]] for x in texts] for bv in (S, T)), (10_000, size), seed))


def test_light_contradictions_count_where_little_is_left():
    "After a lone digit a student of pairs can only stop. A teacher that hardly ever stops there leaves a row of tokens too light to be asked about; they are asked about all the same."
    pair = make_pair(digit_groups(2), digit_groups(1))
    s, t = ([*bv.encode("9"), bv.stop_ids[0]] for bv in (pair.student, pair.teacher))
    row = torch.full((len(pair.teacher),), 9e-6)
    row[pair.teacher.stop_ids[0]], row[pair.teacher.encode("0")[0]] = 1e-6, 1.
    b = PairBatch.from_logits(pair, [s], [t], [torch.zeros(2, len(pair.student))], [torch.stack([torch.zeros_like(row), row.log()])])
    with treated(wide=True): targets = cover_targets(b)
    masses = targets.masses[list(targets.rows).index(1)]
    assert masses.max() / (masses.sum() + targets.unknown[1]) > .9


def test_a_piece_ends_with_a_sample_or_a_chunk():
    from xtokd.objectives.cover.places import row_pieces
    pair = make_pair(digit_groups(2), digit_groups(3))
    texts = ["1234567890123", "", "12", "9876543"]
    rows = [[torch.zeros(len(bv.encode(x)), len(bv)) for x in texts] for bv in (pair.student, pair.teacher)]
    a = PairBatch.from_logits(pair, *([bv.encode(x) for x in texts] for bv in (pair.student, pair.teacher)), *rows).alignment
    for size in range(1, 14):
        found = list(row_pieces(a, size))
        assert [x for x, _ in found] + [len(a.student_ids)] == [0] + [x for _, x in found]
        for lo, hi in found[:-1]: assert hi in a.student_offsets or a.student_chunk[hi - 1] != a.student_chunk[hi]
        assert all(hi - lo <= max(size, 3) for lo, hi in found)


@pytest.mark.parametrize("small", [4096, 0], ids=["small", "wide"])
def test_a_piece_reads_few_teacher_rows(small, monkeypatch):
    "A sample of 600 digits in pieces of 16 asks for each teacher row once, and for a few before each piece again."
    from xtokd.rows.dense import LogitRows
    from xtokd.objectives.cover.cells import CellGraph
    monkeypatch.setattr(CellGraph, "small", small)
    pair, asked = make_pair(digit_groups(2), digit_groups(3)), []
    ids = [bv.encode("1234567890" * 60) for bv in (pair.student, pair.teacher)]
    b = PairBatch.from_logits(pair, *([x] for x in ids), *([torch.randn(len(x), len(bv))] for x, bv in zip(ids, (pair.student, pair.teacher))))
    class Seen(LogitRows):
        def raw(self, index): asked.append(len(index)); return super().raw(index)
    b.teacher.__class__ = Seen
    obj = objective("cover")
    obj.rows_at_once = 16
    cell_graph.cache_clear()
    obj(b)
    cell_graph.cache_clear()
    again = sum(asked) - len(ids[1])
    if small: assert again == 0              # small vocabularies are read by whole samples
    else: assert max(asked) <= 16 and 0 <= again <= 2 * len(asked)


def test_top_k_rows_that_cannot_be_used_are_refused_with_the_reason():
    from dataclasses import replace
    from xtokd.alignment.pair import Pair
    from xtokd.rows.topk import FullRowsRequired, TopKRows
    with pytest.raises(ValueError, match="teacher_top_k is 1.*20 or more"): objective("cover", teacher_top_k=1)
    texts = digit_world(1, 2)
    S, T = TorchToyModel(texts, digit_groups(1)), TorchToyModel(texts, digit_groups(2))
    b = batch_of(make_pair(S.vocab, T.vocab), S, T, ["96"])
    top = torch.tensor([[-.1, -.2]] * 2), torch.tensor([[3, 4]] * 2)
    with pytest.raises(ValueError, match="row 0.*add up to a probability of 2.0"):
        objective("cover", teacher_top_k=2)(replace(b, teacher=TopKRows([T.codes["96"]], [[-1., -1.]], T.vocab, top)))
    missing = TopKRows([T.codes["96"]], [[float("nan"), -.5]], T.vocab, (top[0] - 2, top[1]))
    out = objective("cover", teacher_top_k=2)(replace(b, teacher=missing))
    assert torch.isfinite(out.loss_sum) and (out.ledger["reason"][out.ledger["weight"] == 0] > 0).all()
    for name, value in (("num_cells", 1), ("divergence", "kl")):
        with pytest.raises(ValueError, match=name): objective("cover", **{name: value})


@pytest.mark.parametrize("k", [2, 5, 12])
def test_top_k_rows_of_a_large_vocabulary_are_within_their_unknown_mass(k):
    "Digits by estimates: what is missing of a served row is unknown, and the exact student is within the bounds."
    texts = digit_world(1, 3)
    for one, other in ((1, 2), (2, 1), (1, 3)):
        S, T = TorchToyModel(texts, digit_groups(one)), TorchToyModel(texts, digit_groups(other))
        b = batch_of(make_pair(S.vocab, T.vocab), S, T, ["963", "07", "4"])
        with treated(True): out = objective("cover", teacher_top_k=k, max_unknown=1.)(b)
        assert out.loss.abs() < 1e-5 and (k == 12 or out.ledger["unknown"].max() > .01)


def test_cells_named_by_the_student_are_what_the_reverse_kl_asks_about():
    """A token that the student likes and the teacher rejects: named, it costs log(.3 / 1e-6) for each unit of its mass;
    pooled with the rest it would cost much less."""
    pair = make_pair(digit_groups(1), digit_groups(2))
    s, t = ([*bv.encode("9"), bv.stop_ids[0]] for bv in (pair.student, pair.teacher))
    favourite = pair.student.encode("7")[0]
    teacher = torch.full((len(t), len(pair.teacher)), 1e-9)
    teacher[0, pair.teacher.encode("9")[0]] = .9
    for i, digit in enumerate("012345"): teacher[0, pair.teacher.encode(digit)[0]] = .016
    teacher[0, favourite_t := pair.teacher.encode("7")[0]] = 1e-6
    student = torch.full((len(s), len(pair.student)), 1e-3)
    student[0, favourite], student[0, s[0]] = .3, .69
    b = PairBatch.from_logits(pair, [s], [t], [student.log()], [teacher.log()])
    with treated(True):
        pooled, named, whole = (objective("cover", divergence="rkl", num_cells=k)(b).token_loss[0].item() for k in (2, 4, 400))
    assert pooled < .1 * whole and abs(named - whole) < .02 * whole and whole > .3 * np.log(.2 / 2e-6)


# ---- how probable the tokens before a row are -------------------------------------------------------------------------------
def naive_prefix_mass(world, ids, chunk):
    "Of each token: the product of the exact student's probabilities of the tokens of its chunk before it."
    found = []
    for k in range(len(ids)):
        first = chunk.tolist().index(chunk[k])
        rows = (world.row(ids[:i])[ids[i]] for i in range(first, k))
        found.append(float(np.prod([*rows])) if chunk[k] >= 0 else 0.)
    return np.array(found)


@pytest.mark.parametrize("groups", [(1, 2), (1, 3), (2, 3), (3, 2)])
def test_the_prefix_mass_is_a_product_of_row_probabilities(groups, either):
    texts = digit_world(1, 4)
    S, T = (TorchToyModel(texts, digit_groups(k)) for k in groups)
    some, inside = ["9632", "963", "96", "9", "1234", "07"], 0
    batch = batch_of(make_pair(S.vocab, T.vocab), S, T, some)
    out = objective("cover", max_unknown=1.)(batch)
    for text, lo, hi in zip(some, batch.alignment.student_offsets, batch.alignment.student_offsets[1:]):
        naive = naive_prefix_mass(S, S.codes[text], batch.alignment.student_chunk[lo:hi])
        known = out.ledger["unknown"][lo:hi] < 1e-6
        assert np.allclose(out.ledger["prefix_mass"][lo:hi][known], naive[known], atol=1e-5), text
        inside += int((naive[known] < 1).sum())
    assert inside >= 1 and out.token_loss.abs().max() < 1e-5


def test_the_prefix_mass_by_the_definition_is_a_product_of_row_probabilities():
    "Random worlds under split rules: where nothing before a row is unknown, the product of the truth; else never below it."
    from test_cover_definition import random_world
    exact, inside = 0, 0
    for seed in range(60):
        S, T, some = random_world(seed)
        batch = batch_of(make_pair(S.vocab, T.vocab), S, T, some)
        out = objective("cover", min_mass=0., doubt=0., max_unknown=1.)(batch)
        for text, lo, hi in zip(some, batch.alignment.student_offsets, batch.alignment.student_offsets[1:]):
            chunk, unknown = batch.alignment.student_chunk[lo:hi], out.ledger["unknown"][lo:hi]
            naive, found = naive_prefix_mass(S, S.codes[text], chunk), out.ledger["prefix_mass"][lo:hi]
            first = np.searchsorted(chunk, chunk)
            is_exact = (unknown < 1e-9) & (unknown[first] < 1e-9)
            assert np.allclose(found[is_exact], naive[is_exact], atol=1e-5), (seed, text)
            at_least = unknown[first] < 1e-9
            assert (found[at_least] > naive[at_least] - 1e-5).all(), (seed, text)
            exact, inside = exact + int(is_exact.sum()), inside + int((is_exact & (naive < 1)).sum())
    assert exact > 300 and inside > 30


def slip(**options):
    "The student writes `9` `6`, which is one token of a teacher that hardly ever begins with 9: output, logits, how probable the 9 is."
    texts = digit_world(1, 3)
    S, T = TorchToyModel(texts, digit_groups(1)), TorchToyModel(texts, digit_groups(2))
    student = [torch.randn(3, len(S.vocab), generator=torch.Generator().manual_seed(0)).requires_grad_()]
    rows = T.rows(T.codes["96"]).float().clone()
    nines = torch.tensor([x.startswith(b"9") for x in T.vocab.bytes])
    rows[0, nines] *= 1e-3
    b = PairBatch.from_logits(make_pair(S.vocab, T.vocab), [S.codes["96"]], [T.codes["96"]], student, [(rows / rows.sum(1, keepdim=True)).log()])
    return objective("cover", **options)(b), student[0], float(rows[0, nines].sum() / rows[0].sum())


def test_rows_behind_an_improbable_prefix_can_be_masked_or_weighed(either):
    from xtokd.alignment.reasons import Reason
    (plain, _, slipped) = slip()
    mass = plain.ledger["prefix_mass"]
    assert mass[0] == mass[2] == 1 and np.isclose(mass[1], slipped, rtol=1e-3) and slipped < .001 and plain.ledger["weight"].tolist() == [1, 1, 1]
    masked, logits, _ = slip(min_prefix_mass=.01)
    assert masked.ledger["weight"].tolist() == [1, 0, 1] and masked.ledger["reason"].tolist() == [0, Reason.UNLIKELY_PREFIX, 0]
    masked.loss_sum.backward()
    assert (logits.grad[1] == 0).all() and (logits.grad[0] != 0).any()
    weighed, _, _ = slip(prefix_power=.5)
    assert np.allclose(weighed.ledger["weight"], mass ** .5) and np.isclose(weighed.num_units, (mass ** .5).sum(), atol=1e-3)
    assert np.isclose(weighed.loss_sum.item(), (plain.token_loss.numpy() * mass ** .5).sum(), rtol=1e-5)


def test_the_exact_student_stays_where_rows_are_weighed(either):
    texts = digit_world(1, 3)
    S, T = TorchToyModel(texts, digit_groups(1)), TorchToyModel(texts, digit_groups(3))
    for options in ({"prefix_power": 1.}, {"min_prefix_mass": .05}):
        logits = S.rows(S.codes["963"]).log().float().clamp_min(-30).requires_grad_()
        b = PairBatch.from_logits(make_pair(S.vocab, T.vocab), [S.codes["963"]], [T.codes["963"]], [logits], [T.rows(T.codes["963"]).log().float()])
        objective("cover", **options)(b).loss_sum.backward()
        assert logits.grad.abs().max() < 1e-5


def test_prefix_masses_of_equal_tokenizers_are_1():
    t = toy_bpe("ab", [("a", "b")])
    T = TorchToyModel(W1, t)
    out = objective("cover", min_prefix_mass=.5)(batch_of(make_pair(t, t), T, T, ["abab", "ba"]))
    assert (out.ledger["prefix_mass"] == 1).all() and (out.ledger["weight"] == 1).all()
    for options in ({"min_prefix_mass": 1.5}, {"prefix_power": -1.}):
        with pytest.raises(ValueError, match="prefix"): objective("cover", **options)


def test_a_sample_that_begins_with_white_space_is_read_alone(either):
    "White space before a row was looked for in the sample before it, whose stop then contradicted every next space."
    from test_cover_definition import learnt_bpe
    vocab, other = (learnt_bpe(np.random.default_rng(k), "a1' s", 4, r"\s+(?!\S)|\s+| ?[a-z]+|1|'") for k in (0, 1))
    texts = random_texts(np.random.default_rng(0), list("a1 "), 3)
    S, T = TorchToyModel(texts, vocab), TorchToyModel(texts, other)
    some = [x for x in texts if x.startswith(" ")][:6]
    noise = lambda c: torch.softmax(torch.randn(len(c), len(vocab), generator=torch.Generator().manual_seed(len(c))), -1).double()
    together = objective("cover")(batch_of(make_pair(vocab, other), S, T, some, noise))
    alone = [objective("cover")(batch_of(make_pair(vocab, other), S, T, [x], noise)) for x in some]
    assert torch.allclose(together.token_loss, torch.cat([x.token_loss for x in alone]), atol=1e-5)


def test_the_mass_on_text_that_the_teachers_tokenizer_would_not_write(either):
    "A teacher of two-digit tokens that knows nothing writes a second digit behind a lone one; one that is a world never does."
    texts = digit_world(1, 3)
    S, T = TorchToyModel(texts, digit_groups(1)), TorchToyModel(texts, digit_groups(2))
    for teacher, least, most in ((T.rows(T.codes["963"]).log().float(), 0., 1e-6), (torch.zeros(3, len(T.vocab)), .9, 1.)):
        b = PairBatch.from_logits(make_pair(S.vocab, T.vocab), [S.codes["963"]], [T.codes["963"]], [torch.zeros(4, len(S.vocab))], [teacher])
        column = objective("cover", non_canonical=True)(b).ledger["non_canonical"]
        assert (column[:3] < 1e-6).all() and least <= column[3] <= most
        assert "non_canonical" not in objective("cover")(b).ledger
