"""X-Token: the matrix, the common set, both losses and the paper's aligner, on the numbers of the paper and of its code."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from batches import batch, full, parts, some
from xtokd.objectives.released_aligners import dp_align, dp_table
from xtokd.exact.toy_models import toy_bpe, digit_groups, make_pair, random_bpe
from xtokd.alignment.byte_align import align
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives.divergences import kl_divergence
from xtokd.objectives import objective
from xtokd.objectives.projection.several_teachers import combine_outputs, confidence_weights
from xtokd.objectives.projection.xtoken import (SparseProjection, XToken, build_projection, choose_loss, chunk_masses,
                                                 chunk_mean_rows, common_kl, common_set,
                                                 later_logp, p_kl, piece_weights, sorted_mass_l1, split_chain)
from xtokd.alignment.pair import Pair

EVERY = bytes(range(256))
WAYS = [dict(loss="p-kl"), dict(loss="h-kl"), dict(loss="p-kl", aggregate="mean"), dict(loss="h-kl", aggregate="mean"), dict(loss="p-kl", reverse_kl=True), dict(loss="h-kl", reverse_kl=True), dict(loss="p-kl", learn=True)]


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


@pytest.fixture(scope="module")
def same(): t = Pair("tiny").teacher; return make_pair(t, t)


# ---- the matrix -------------------------------------------------------------------------------------------------------------
def test_weights_of_pieces():
    for m, told in ((1, [1]), (2, [.909091, .090909]), (3, [.900901, .090090, .009009]), (4, [.900090, .090009, .009001, .000900])):
        assert np.allclose(piece_weights(m), told, atol=6e-7)


def toy(): return SparseProjection([[0, -1, -1], [1, 2, 3], [-1, -1, -1]], [[1, 0, 0], piece_weights(3), [0, 0, 0]], 4)


def test_projection():
    p = toy()(torch.tensor([[.3, .5, .2]]))
    assert torch.allclose(p, torch.tensor([[.3, .4505, .0450, .0045]]), atol=5e-5) and abs(p.sum().item() - .8) < 1e-6
    assert torch.allclose(p / p.sum(), torch.tensor([[.375, .5631, .0563, .0056]]), atol=6e-5)
    assert abs(p_kl(p, torch.tensor([[.3, .6, .06, .04]])).item() - .053418) < 1e-5
    assert torch.allclose(p[:, 1:3], toy()(torch.tensor([[.3, .5, .2]]))[:, 1:3]) and torch.allclose(toy()(torch.tensor([[.3, .5, .2]]), width=2), p[:, :2])   # slicing commutes


def test_map_of_several_pieces():                                                 # NeMo's unit test
    s, t = toy_bpe("abcde", [("b", "c"), ("d", "e")]), toy_bpe("abcde", [("d", "e")])
    W = build_projection(make_pair(s, t))
    row = lambda x: {t.bytes[i]: w for i, w in zip(W.ids[s.bytes.index(x)], W.weights[s.bytes.index(x)].round(4).tolist()) if i >= 0}
    assert row(b"a") == {b"a": 1} and row(b"bc") == {b"b": pytest.approx(.9091), b"c": pytest.approx(.0909)} and row(b"de") == {b"de": 1}
    assert W.ids[s.stop_ids[0], 0] == t.stop_ids[0] and W.weights[s.stop_ids[0], 0] == 1


def test_rows_are_normalised_and_hold_no_junk(pair):                              # trap 3
    W = build_projection(pair)
    assert np.allclose(W.weights.sum(1)[W.mapped], 1, atol=1e-6) and (W.weights.sum(1)[~W.mapped] == 0).all()
    for i in np.flatnonzero(W.mapped & (pair.student.lengths > 0)):
        whole = pair.student.bytes[i]
        assert all(pair.teacher.bytes[t] in whole for t in W.ids[i][W.ids[i] >= 0])
    assert (build_projection(pair, exact_only=True).weights[:, 0] <= 1).all() and (build_projection(pair, exact_only=True).weights[:, 1:] == 0).all()


def test_a_piece_that_comes_twice_counts_twice():
    s, t = digit_groups(3), digit_groups(1)
    W = build_projection(make_pair(s, t))
    i = s.bytes.index(b"110")
    assert {t.bytes[j]: round(float(w), 4) for j, w in zip(W.ids[i], W.weights[i]) if j >= 0} == {b"1": .991, b"0": .009}


def test_bytes_that_are_no_text_are_cut_too():
    s, t = toy_bpe(EVERY, [(b" ", b"\xf0"), (b" \xf0", b"\x9f")]), toy_bpe(EVERY, [(b"\xf0", b"\x9f")])
    W = build_projection(make_pair(s, t))
    i = s.bytes.index(b" \xf0\x9f")
    assert [t.bytes[j] for j in W.ids[i] if j >= 0] == [b" ", b"\xf0\x9f"]


# ---- the common set and the choice ----------------------------------------------------------------------------------------------
def lists(common): return [x.tolist() for x in (common.student, common.teacher, common.student_rest, common.teacher_rest)]


def test_common_sets_of_the_code():
    W = SparseProjection([[2, 3], [2, 4], [5, 0], [5, 1], [1, 0], [3, 4], [4, 2], [0, 1]], [[.8, .2], [.7, .3], [.9, .1], [.9, .1], [.65, .35], [.5, .5], [.6, .4], [.95, .05]], 6)
    assert lists(common_set(W, .6)) == [[0, 2, 4, 6, 7], [2, 5, 1, 4, 0], [1, 3, 5], [3]]
    W = SparseProjection([[1, -1], [1, -1], [2, 0], [0, -1]], [[1, 0], [1, 0], [.9, .1], [1, 0]], 3)
    assert lists(common_set(W, strict=True)) == [[0, 3], [1, 0], [1, 2], [2]]
    W = SparseProjection([[1, 7], [1, 7], [2, 0], [0, 7]], [[1, 0], [1, 0], [.9, .1], [1, 0]], 8)       # trap 2: another filling of empty places
    assert lists(common_set(W, strict=True))[:3] == [[0, 3], [1, 0], [1, 2]]


def test_choice():
    ones, threes = digit_groups(1, "x"), digit_groups(3, "x")
    assert choose_loss(make_pair(threes, ones)) == ("p-kl", {"critical": 1100, "exact": 0, "share": 0.}) and choose_loss(make_pair(threes, threes))[0] == "h-kl"
    assert choose_loss(make_pair(ones, threes))[0] == "h-kl"                       # no critical token at all
    x = objective("xtoken")
    x.prepare(make_pair(threes, ones))
    assert x.choice == "p-kl" and x.report["share"] == 0


# ---- the losses of a row ----------------------------------------------------------------------------------------------------------
def test_gold_toy():
    s, t = torch.tensor([[.4, .3, .2, .1]]), torch.tensor([[.5, .25, .15, .1]])
    rest = s[:, 2:].sum(1), t[:, [1, 3]].sum(1)
    assert abs(common_kl(s[:, [0, 1]], t[:, [0, 2]], *rest, bucket=False).item() - .007600) < 1e-6 and abs(sorted_mass_l1(s[:, 2:], t[:, [1, 3]]).item() - .05) < 1e-6
    assert common_kl(s[:, [0, 1]], t[:, [0, 2]], *rest).item() >= 0


def test_sorted_l1():                                                             # trap 12
    s, t = torch.tensor([[.05, .30, .02]]), torch.tensor([[.10, .08]])
    assert abs(sorted_mass_l1(s, t, pad=False).item() - .23) < 1e-6 and abs(sorted_mass_l1(s, t).item() - .25) < 1e-6 and abs(sorted_mass_l1(t, s).item() - .25) < 1e-6
    assert abs(sorted_mass_l1(s, t, cap=1).item() - .2) < 1e-6


def test_proposition_1():
    grads = []
    for bucket in (False, True):
        z = torch.tensor([[.5, .2, .3]]).log().requires_grad_()
        p = z.softmax(-1)
        common_kl(p[:, :1], torch.tensor([[.7]]), p[:, 1:].sum(1), torch.tensor([.3]), bucket=bucket).sum().backward()
        grads.append(z.grad)
    assert torch.allclose(grads[0], torch.tensor([[-.35, .14, .21]])) and torch.allclose(grads[1].sum(), torch.tensor(0.), atol=1e-6) and abs(grads[1][0, 0].item() + .2) < 1e-6


def test_means():
    rows = torch.tensor([[1., 2], [99, 99], [3, 4], [5, 6]])
    assert chunk_mean_rows(rows, np.array([0, -1, 1, 1]), 2).tolist() == [[1, 2], [4, 5]]
    g = chunk_mean_rows(torch.tensor([[.5, .5], [.9, .1]]).log(), np.array([0, 0]), 1).exp()             # trap 10
    assert torch.allclose(g, torch.tensor([[.6708, .2236]]), atol=5e-5) and abs(g.sum().item() - .8944) < 5e-5 and abs(kl_divergence(g.log(), (g / g.sum()).log()).item() + .0998) < 5e-5
    assert torch.allclose(split_chain(torch.tensor([[.6, .4]]), torch.tensor([0]), torch.tensor([.5])), torch.tensor([[.3, .4, .3]]))


# ---- the paper's aligner ------------------------------------------------------------------------------------------------------------
def test_scores_of_the_programme():
    assert dp_table(["201"], ["2", "0", "1"]) == (4.5, [(0, 1, 0, 3)]) and dp_table(["ab"], ["a", "b"])[0] == 3 and dp_table(["a"], ["a"])[0] == 3 and dp_table(["a"], ["b"])[0] == -3
    assert dp_table([], ["a"])[0] == -1.5 and dp_table([], []) == (0, [])
    score, pairs = dp_align(["<bos>", "Hello", " world", "."], ["Hello", " world", "."])          # trap 6
    assert score == 7.5 and pairs == [((0, 1, 0, 0), False), ((1, 2, 0, 1), True), ((2, 3, 1, 2), True), ((3, 4, 2, 3), True)]


def test_repairs_of_the_programme():
    assert dp_align([" cl", "owder"], [" c", "low", "der"])[1] == [((0, 2, 0, 3), True)] and dp_align(["abcde"], list("abcde"))[1] == [((0, 1, 0, 5), True)]
    score, pairs = dp_table(["ab", "c"], ["a", "bc"])                              # trap 4
    assert score == -6 and pairs == [(0, 1, 0, 1), (1, 2, 1, 2)] and dp_align(["ab", "c"], ["a", "bc"])[1] == [((0, 2, 0, 2), True)]


def masks(pairs):
    return tuple([ok for p, ok in pairs for _ in range(p[j], p[j + 1])] for j in (0, 2))


def test_a_broken_character_is_a_wrong_pair_there_and_a_chunk_here():
    _, pairs = dp_align(["Hello", "ĠâĪ", "ĳ", "."], ["Hello", "Ġ∑", "."])
    assert masks(pairs) == ([True, False, False, True], [True, False, True])
    s, t = toy_bpe(EVERY, [(b"\xe2", b"\x88"), (b" ", b"\xe2\x88")]), toy_bpe(EVERY, [(b"\xe2", b"\x88"), (b"\xe2\x88", b"\x91"), (b" ", b"\xe2\x88\x91")])
    assert align(s.encode(" ∑."), t.encode(" ∑."), s, t).chunks.tolist() == [[0, 2, 0, 1], [2, 3, 1, 2]]


@settings(max_examples=40, deadline=None)
@given(st.text("abc", max_size=7), st.integers(0, 5))
def test_lists_of_pairs_are_partitions(text, seed):
    rng = np.random.default_rng(seed)
    s, t = (random_bpe(rng, "abc", 3) for _ in range(2))
    s, t = ([bv.bytes[i] for i in bv.encode(text)] for bv in (s, t))
    _, pairs = dp_align(s, t)
    for j, n in ((0, len(s)), (2, len(t))): assert [k for p, _ in pairs for k in range(p[j], p[j + 1])] == list(range(n))


# ---- the method ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", WAYS)
def test_parts_order_and_padding(pair, how):                                      # traps 9 and 14
    p = parts(pair)
    whole = XToken(**how)(batch(pair, p))
    halves = [XToken(**how)(batch(pair, some(p, at))) for at in ([0, 1], [2, 3])]
    assert whole.loss_sum >= 0 and torch.allclose(whole.loss_sum, sum(h.loss_sum for h in halves), rtol=1e-4) and abs(whole.num_units - sum(h.num_units for h in halves)) < 1e-5
    assert torch.allclose(whole.loss_sum, XToken(**how)(batch(pair, some(p, [3, 1, 0, 2]))).loss_sum, rtol=1e-4)
    wide = {**p, "student_logits": [torch.cat([x.detach(), torch.full((len(x), 3), 50.)], 1).requires_grad_() for x in p["student_logits"]],
            "teacher_logits": [torch.cat([x, torch.full((len(x), 3), 50.)], 1) for x in p["teacher_logits"]]}
    out = XToken(**how)(batch(pair, wide))
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, whole.loss_sum, rtol=1e-4) and all((x.grad[:, -3:] == 0).all() and x.grad.abs().sum() > 0 for x in wide["student_logits"])


@pytest.mark.parametrize("how", WAYS)
def test_identity(same, how):
    b, leaves = full(same)
    s, t = b.student.logp(), b.teacher.logp()
    plain = kl_divergence(s, t).sum() if how.get("reverse_kl") else kl_divergence(t, s).sum()
    assert torch.allclose(XToken(**how)(b).loss_sum, plain, rtol=1e-4)
    b, leaves = full(same, same=True)
    out = XToken(**how)(b)
    out.loss_sum.backward()
    assert abs(out.loss_sum.item()) < 1e-4 and all(x.grad is None or x.grad.abs().max() < 1e-5 for x in leaves)


@pytest.mark.parametrize("how", WAYS)
def test_the_gradient_is_that_of_the_loss(pair, how):
    p = parts(pair, ("Certainly: 12",))
    out = XToken(**how)(batch(pair, p))
    out.loss_sum.backward()
    x = p["student_logits"][0]
    for at in ((0, 3), (1, 40), (len(x) - 1, pair.student.stop_ids[0])):
        values = []
        for d in (1e-2, -1e-2):
            y = x.detach().clone()
            y[at] += d
            values.append(XToken(**how)(batch(pair, {**p, "student_logits": [y]})).loss_sum.item())
        assert abs((values[0] - values[1]) / 2e-2 - x.grad[at].item()) < 2e-3


def test_the_teacher_and_the_right_rows_matter(pair):                             # trap 8
    for how in WAYS[:4]:
        p = parts(pair)
        out = [XToken(**how)(batch(pair, {**p, "teacher_logits": [x.roll(k, 0) * c for x in p["teacher_logits"]]})).loss_sum.item() for k, c in ((0, 1), (1, 1), (0, 2))]
        assert len({round(x, 3) for x in out}) == 3


def test_relabelled_teacher_ids_change_nothing():
    s, a, b = toy_bpe("abc .", [("b", "c")]), toy_bpe("abc .", [("a", "b"), ("c", "a")]), toy_bpe(".c ba", [("a", "b"), ("c", "a")])
    g = torch.Generator().manual_seed(1)
    rows, t_rows = torch.randn(7, len(s), generator=g), torch.randn(7, len(a), generator=g)
    moved = torch.tensor([b.bytes.index(x) if x else b.stop_ids[0] for x in a.bytes])
    for how in WAYS:
        out = []
        for t, change in ((a, torch.arange(len(a))), (b, moved)):
            ids = [[*bv.encode("ab ca."), bv.stop_ids[0]] for bv in (s, t)]
            out.append(XToken(**how)(PairBatch.from_logits(make_pair(s, t), [ids[0]], [ids[1]], [rows[: len(ids[0])]], [torch.empty_like(t_rows).index_copy(1, change, t_rows)[: len(ids[1])]])).loss_sum)
        assert torch.allclose(*out, rtol=1e-4)


def test_chain_keeps_a_total_of_one_and_knows_the_chunk(pair):
    b = full(pair)[0]
    k = np.arange(len(b.alignment.chunks))
    s, t = chunk_masses(b, k, later=later_logp(b))
    assert torch.allclose(s.sum(1), torch.ones(len(k)), atol=1e-5) and torch.allclose(t.sum(1), torch.ones(len(k)), atol=1e-5)
    many = b.alignment.kind > 0
    from xtokd.objectives.chunks import ChunkLogps
    scores = ChunkLogps(b)
    assert torch.allclose(s[many, -1], scores.student_sum.exp()[many], rtol=1e-4) and torch.allclose(t[many, -1], scores.teacher_sum.exp()[many], rtol=1e-4) and (s[~many, -1] == 0).all()


def test_the_released_mean_is_lower_than_the_normalised_one(pair):                    # trap 10
    p = parts(pair, scale=6.)
    assert XToken(loss="p-kl", aggregate="mean")(batch(pair, p)).loss_sum > 0
    s, t = digit_groups(3), digit_groups(1)
    ids, rows = (s.encode("201"), t.encode("201")), torch.full((3, len(t)), -20.)
    for r, d in enumerate("201"): rows[r, t.bytes.index(d.encode())] = 0
    even = PairBatch.from_logits(make_pair(s, t), [ids[0]], [ids[1]], [torch.zeros(1, len(s))], [rows])
    got = {a: XToken(loss="p-kl", aggregate=a)(even).loss_sum.item() for a in ("chain", "mean", "released")}
    assert got["chain"] > 0 and got["mean"] > 0 and got["released"] < got["mean"]


def test_a_pair_that_shares_nothing_but_the_stop():
    s, t = toy_bpe("ab"), toy_bpe("cd")
    x = XToken(loss="h-kl")
    x.prepare(make_pair(s, t))
    assert x.common.student.tolist() == [s.stop_ids[0]]
    b = PairBatch.from_logits(make_pair(s, t), [[s.stop_ids[0]]], [[t.stop_ids[0]]], [torch.zeros(1, 3)], [torch.tensor([[0., 0, 0]])])
    for how in WAYS: assert abs(XToken(**how)(b).loss_sum.item()) < 1e-5


def test_lost_mass_is_told(pair):                                                 # trap 11
    out = XToken(loss="p-kl", exact_only=True)(full(pair)[0])
    full_ = XToken(loss="p-kl")(full(pair)[0])
    assert 0 < full_.stats["lost_mass"] < out.stats["lost_mass"] < 1 and 0 < out.stats["unreachable_mass"] < 1 and full_.stats["common"] > 300 and full_.stats["projected"] == 1 and full_.stats["kd"] > 0


def test_learnt_weights(pair):
    b, _ = full(pair)
    x = XToken(loss="p-kl", learn=True)
    out = x(b)
    assert torch.allclose(out.loss_sum, XToken(loss="p-kl")(b).loss_sum, rtol=1e-4)
    out.loss_sum.backward()
    assert x.free.grad.abs().sum() > 0 and (x.free.grad[torch.as_tensor(x.W.ids < 0)] == 0).all()
    w = x.free
    x.prepare(pair)
    assert x.free is w and not list(XToken(loss="p-kl").parameters())


def test_gold_text_and_cross_entropy(pair):
    b = full(pair, text_source="reference")[0]
    plain, more = (XToken(ce=c)(b) for c in (0., .1))
    means = [n * x.mean() for n, x in zip(np.bincount(b.alignment.chunk_sample).tolist(), b.student.token_logp().split(np.diff(b.student.offsets).tolist()))]
    assert torch.allclose(more.loss_sum - plain.loss_sum, -.1 * sum(means), rtol=1e-3) and abs(more.num_units - plain.num_units) < 1e-3
    with pytest.raises(ValueError, match="its errors"): XToken(ce=.1)(full(pair)[0])
    for how in (dict(loss="x"), dict(aggregate="sum"), dict(top=0)):
        with pytest.raises(ValueError): XToken(**how)


@pytest.mark.parametrize("how", WAYS)
def test_hard_rows(pair, how):
    p = {k: v for k, v in parts(pair).items() if k in ("student_ids", "teacher_ids", "student_logits", "teacher_logits")}
    for k, x in enumerate(p["teacher_logits"]): x[:, 5:] = -torch.inf if k % 2 else x[:, 5:]
    p["teacher_logits"][0] = p["teacher_logits"][0][:2]
    p["student_logits"] = [x.detach().to(torch.bfloat16).requires_grad_() for x in p["student_logits"]]
    out = XToken(**how)(PairBatch.from_logits(pair, **p))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(x.grad).all() for x in p["student_logits"])
    empty = PairBatch.from_logits(pair, [[]], [[]], [torch.zeros(0, len(pair.student), requires_grad=True)], [torch.zeros(0, len(pair.teacher))])
    assert XToken(**how)(empty).loss_sum == 0


@pytest.mark.parametrize("text", ["👩‍👧 ❤️", "e\u0301", "数据 です", "\ta\tb", "  lead trail  ", "a\r\nb", ""])
def test_unicode(text):
    s, t = toy_bpe(EVERY, [("a", "b"), (b"\xe6", b"\x95")]), toy_bpe(EVERY, [(" ", "a"), (b"\xf0", b"\x9f"), ("t", "r")])
    for how in WAYS[:3]: assert torch.isfinite(XToken(**how)(full(make_pair(s, t), (text, "ab"))[0]).loss_sum)


# ---- several teachers -----------------------------------------------------------------------------------------------------------------
def test_teachers_are_combined(pair, same):
    a = XToken()(full(pair)[0])
    twice = combine_outputs([a, a], [.2, .8])
    assert torch.allclose(twice.loss, a.loss) and np.allclose(twice.ledger["weight"], a.ledger["weight"], rtol=1e-5)
    b = XToken()(full(pair, seed=3)[0])
    assert torch.allclose(combine_outputs([a, b], [.25, .75]).loss, .25 * a.loss + .75 * b.loss, rtol=1e-5)      # equal counts
    with pytest.raises(ValueError, match="one weight"): combine_outputs([a, b], [1.])


def test_confidence_weights(pair):
    sure, vague = full(pair, scale=4.)[0], full(pair, scale=.1)[0]
    for score in ("entropy", "max_prob"):
        w = confidence_weights([sure, vague], score)
        assert w[0] > .5 and abs(sum(w) - 1) < 1e-6
        assert confidence_weights([sure, vague], score, alpha=0.) == [.5, .5]
    w = confidence_weights([sure, vague], "ce")
    assert abs(w[0] - torch.sigmoid(sure.teacher.token_logp().mean() - vague.teacher.token_logp().mean()).item()) < 1e-5
    with pytest.raises(ValueError, match="Choose ce"): confidence_weights([sure], "x")
