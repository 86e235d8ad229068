"""OPD, MiniLLM and what `sampled` lends them: by enumeration against exact gradients, and what every objective must keep."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from batches import TEXTS, batch, full, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import PairBatch
from xtokd.rows.dense import LogitRows
from xtokd.objectives.divergences import divergence
from xtokd.objectives import objective
from xtokd.objectives.chunks import ChunkLogps, token_logps_merged_stops
from xtokd.objectives.policy.opd import discounted_sums, returns
from xtokd.objectives.policy.sampled import surrogate_loss
from xtokd.alignment.pair import Pair

BV = toy_bpe("abc")
ONE = make_pair(BV, BV)
UNICODE = ("", "日本 é\u0301 😊!", "\ta  b\r\n ", "12 apples")
METHODS = ("opd", "minillm", "sampled")


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


@pytest.fixture(scope="module")
def same(pair): return Pair(pair.teacher, pair.teacher)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.sampled_from([0, .3, .9, 1]), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_discounted_sums_stay_inside_their_text(sizes, gamma, seed):
    x = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    off = np.concatenate([[0], np.cumsum(sizes)])
    got = discounted_sums(x, gamma, off)
    for a, b in zip(off, off[1:]):
        for i in range(a, b): assert abs(got[i] - sum(gamma ** (j - i) * x[j] for j in range(i, b))) < 1e-9


def test_returns_of_5_2_by_hand():
    r, off = torch.tensor([-1., 0., 4., 2.]), np.array([0, 3, 4])
    assert returns(r, 1, off).tolist() == [1, 2, 4, 2] and returns(r, 0, off).tolist() == r.tolist()
    assert torch.allclose(returns(r, .5, off), torch.tensor([0., 4 / 3, 4., 2.]))
    assert returns(r, 1, off, own_step=False).tolist() == [2, 4, 0, 0]           # nothing follows the last: zero, not 0 / 0
    assert returns(r, 1, off, normalise=False, own_step=False).tolist() == [4, 4, 0, 0]


def test_opd_is_minus_the_gradient_of_the_rows_reverse_kl():                      # 5.3
    g = torch.Generator().manual_seed(0)
    w, q = torch.randn(1, len(BV), generator=g).requires_grad_(), torch.randn(1, len(BV), generator=g)
    p = torch.softmax(w, 1).detach()
    exact = torch.autograd.grad(divergence(torch.log_softmax(w, 1), torch.log_softmax(q, 1)).sum(), w)[0]
    for name, knobs in (("opd", {}), ("minillm", dict(single_step=0)), ("minillm", dict(sampled=0))):
        got = sum(p[0, i] * torch.autograd.grad(objective(name, **knobs)(PairBatch.from_logits(ONE, [[i]], [[i]], [w], [q])).loss_sum, w)[0] for i in range(len(BV)))
        assert torch.allclose(got, exact, atol=1e-6)


def test_minillm_is_the_gradient_of_the_texts_reverse_kl():                       # 5.2, by enumeration of all texts of at most two letters
    g = torch.Generator().manual_seed(3)
    root, after = torch.randn(4, generator=g).requires_grad_(), torch.randn(3, 4, generator=g).requires_grad_()
    T0, T1, stop = torch.randn(4, generator=g), torch.randn(3, 4, generator=g), BV.stop_ids[0]
    texts = [[stop], *([x, y] for x in range(3) for y in range(4))]
    rows = lambda x, a, b: torch.stack([a, *([b[x[0]]] if len(x) > 1 else [])])
    logp = lambda x, a, b: torch.log_softmax(rows(x, a, b), -1)[torch.arange(len(x)), torch.tensor(x)].sum()
    exact = torch.autograd.grad(sum(logp(x, root, after).exp() * (logp(x, root, after) - logp(x, T0, T1)) for x in texts), (root, after))
    def expected(name, **knobs):
        total = [0, 0]
        for x in texts:
            out = objective(name, **knobs)(PairBatch.from_logits(ONE, [x], [x], [rows(x, root, after)], [rows(x, T0, T1)]))
            grads = torch.autograd.grad(out.loss_sum, (root, after), allow_unused=True, materialize_grads=True)
            total = [t + logp(x, root, after).exp().detach() * d for t, d in zip(total, grads)]
        return total
    for name, knobs in (("minillm", dict(gamma=1, normalise=False, single_step=0)), ("minillm", dict(gamma=1, normalise=False, own_step=False)), ("opd", dict(discount=1))):
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(expected(name, **knobs), exact)), name
    assert not all(torch.allclose(x, y, atol=1e-2) for x, y in zip(expected("opd"), exact))


def test_corners(pair, same):                                                     # 5.2: gamma 0 is 5.3; the single step is GKD with beta 1
    p = parts(same)
    p.pop("behaviour_logp")
    b = batch(same, p)
    assert np.allclose(objective("minillm", single_step=0)(b).ledger["signal"], objective("opd")(b).ledger["signal"], atol=1e-4)
    assert torch.allclose(objective("minillm", sampled=0)(b).loss_sum, objective("gkd", beta=1)(b).loss_sum, rtol=1e-5)
    assert torch.allclose(objective("minillm")(b).loss_sum, objective("opd")(b).loss_sum + objective("gkd", beta=1)(b).loss_sum, rtol=1e-4)
    p = parts(pair)
    p.pop("behaviour_logp")
    b = batch(pair, p)
    wide = objective("minillm", gamma=1, normalise=False, clamp=None)(b)
    x, first = ChunkLogps(b), b.alignment.chunks[b.alignment.chunk_sample == 0]
    assert wide.stats["single_step"] == 0 and abs(wide.ledger["signal"][0] - float((x.teacher_sum - x.student_sum)[: len(first)].sum().detach())) < 1e-3
    one = np.append(b.alignment.kind, -1)[b.alignment.student_chunk] == 0
    assert ((objective("opd")(b).ledger["weight"] > 0) == one).all()
    assert np.allclose(objective("opd")(b).ledger["signal"][one], objective("sampled", large_chunk=1, clamp=None)(b).ledger["signal"][one], atol=1e-5)


def test_a_discount_reaches_over_silent_tokens(pair):
    b, _ = full(pair, TEXTS[:1])
    now, later = objective("opd")(b), objective("opd", discount=1)(b)
    has = now.ledger["weight"] > 0
    assert np.allclose(later.ledger["signal"][has], now.ledger["signal"][::-1].cumsum()[::-1][has], atol=1e-3)
    assert np.allclose(objective("opd", scale=.5)(b).ledger["signal"], .5 * now.ledger["signal"], atol=1e-5)


def test_stops_are_one_event():                                                   # 8.6
    class TwoStops:
        name, stop_ids = "two stops", (1, 2)
        def __len__(self): return 3
    told = lambda masses, at: token_logps_merged_stops(LogitRows([torch.tensor([masses], dtype=torch.float64).log()], [[at]], TwoStops()), (1, 2)).item()
    S, T = [.2, .8, 1e-11], [.2099, 1e-4, .79]
    assert abs(np.log(1e-4) - np.log(.8) - -8.987197) < 1e-6 and abs(told(T, 1) - told(S, 1) - -.012452) < 1e-5


def test_behaviour_of_a_stop_keeps_the_ratio_of_its_id(pair):
    "With several ways to stop the score is that of stopping, but the ratio to the time of writing is that of the id."
    two = toy_bpe("ab")
    two.stop_ids = (1, 2)                                                         # `b` ends a text too
    p, x = make_pair(two, two), torch.tensor([[.5, 2., 1.]])
    token = torch.log_softmax(x, 1)[0, 1]
    b = PairBatch.from_logits(p, [[1]], [[1]], [x.clone().requires_grad_()], [x + 1], behaviour_logp=[token[None] - .3])
    out = objective("opd")(b)
    klass = torch.log_softmax(x, 1)[0, 1:].logsumexp(0)
    assert abs(out.ledger["signal"][0] - .3) < 1e-5                               # teacher and student have the same class mass; only the age of the text speaks
    assert abs(out.loss_sum.item() + .3 * np.exp(.3)) < 1e-5 and klass > token


def test_surrogate_of_minillm_clips_old_text_only(same):
    p = parts(same, TEXTS[:1])
    now = torch.cat([torch.log_softmax(l, 1)[torch.arange(len(i)), torch.tensor(i)] for l, i in zip(p["student_logits"], p["student_ids"])]).detach()
    p["behaviour_logp"] = [now - 1]                                               # the ratio is e: above 1.2 a good token is clipped
    out = objective("minillm", single_step=0)(batch(same, p))
    adv = torch.tensor(out.ledger["signal"])
    want = surrogate_loss(now, now - 1, adv, .8, 1.2, 1e9)
    assert torch.allclose(out.token_loss, want, atol=1e-4) and torch.allclose(want[adv > 0], -1.2 * adv[adv > 0], atol=1e-4)
    free = objective("minillm", single_step=0, clip=None)(batch(same, p))
    assert torch.allclose(free.token_loss, -np.e * adv, rtol=1e-3)


def test_ends_without_advantage(pair):                                            # 8.5
    b, _ = full(pair)
    out, whole = objective("sampled", ends=False)(b), objective("sampled")(b)
    last = b.alignment.student_offsets[1:] - 1
    assert (out.ledger["reason"][last] == 107).all() and out.num_units == whole.num_units - len(last)
    inner = np.delete(np.arange(len(b.student)), last)
    assert np.allclose(out.ledger["signal"][inner], whole.ledger["signal"][inner])


def test_reasons_of_sampled(pair):
    b, _ = full(pair)
    out = objective("sampled", large_chunk=1)(b)
    assert set(out.ledger["reason"][out.ledger["weight"] == 0]) == {108}
    p = parts(pair, TEXTS[:1])
    p["teacher_logits"][0][0, p["teacher_ids"][0][0]] = -torch.inf
    for name in METHODS:
        out = objective(name)(batch(pair, p))
        assert out.ledger["reason"][0] == 109 and out.stats["non_finite"] > 0 and torch.isfinite(out.loss_sum)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("equal", [False, True])
def test_splitting_and_permuting_change_nothing(pair, same, name, equal):
    p, where = parts(same if equal else pair), same if equal else pair
    knobs = dict(opd=dict(discount=.9), minillm=dict(gamma=.9)).get(name, {})
    run = lambda at: objective(name, **knobs)(batch(where, some(p, at)))
    whole = run(range(4))
    for cut in ((1, 3), (2, 2), (1, 1, 1, 1)):
        at, found = 0, []
        for n in cut: found.append(run(range(at, at + n))); at += n
        assert torch.allclose(whole.loss_sum, sum(f.loss_sum for f in found), rtol=1e-4) and whole.num_units == sum(f.num_units for f in found)
    assert torch.allclose(whole.loss_sum, run([2, 0, 3, 1]).loss_sum, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_nothing_and_gets_no_gradient(pair, name):
    p = parts(pair, TEXTS[:1])
    pad = lambda x, k: torch.cat([x.detach(), torch.full((len(x), k), 9.)], 1)
    wide = {**p, "student_logits": [pad(p["student_logits"][0], 5).requires_grad_()], "teacher_logits": [pad(p["teacher_logits"][0], 3)]}
    out = objective(name)(batch(pair, wide))
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, objective(name)(batch(pair, p)).loss_sum) and not wide["student_logits"][0].grad[:, len(pair.student):].any()


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_reaches_the_gradient_and_the_students_own_rows_move_nothing(pair, same, name):
    def grad(where, scale=1., own=False):
        p = parts(where, TEXTS[:2], scale=scale, same=own)
        p.pop("behaviour_logp")
        objective(name)(batch(where, p)).loss_sum.backward()
        return torch.cat([l.grad for l in p["student_logits"]])
    assert not torch.allclose(grad(pair), grad(pair, 2.), atol=1e-3)
    assert grad(same, own=True).abs().max() < 1e-5


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop", [True, False])
def test_odd_texts_and_impossible_teacher_tokens(pair, same, name, stop):
    for where in (pair, same):
        p = parts(where, UNICODE, stop=stop)
        for x in p["teacher_logits"]: x[:, ::3] = -torch.inf
        out = objective(name)(batch(where, p))
        out.loss_sum.backward()
        assert torch.isfinite(out.loss_sum) and all(torch.isfinite(l.grad).all() for l in p["student_logits"] if l.grad is not None)
        empty = PairBatch.from_logits(where, [[]], [[]], [torch.zeros(0, len(where.student))], [torch.zeros(0, len(where.teacher))])
        assert objective(name)(empty).num_units == 0 and objective(name)(empty).loss == 0


def test_non_canonical_samples_under_ones_own_tokenizer(same):                    # 7.5
    bv = same.student
    ids, plain = [*bv.encode("The number is "), *(bv.bytes.index(c.encode()) for c in "12"), bv.stop_ids[0]], [*bv.encode("The number is 12"), bv.stop_ids[0]]
    g = torch.Generator().manual_seed(0)
    rows = lambda x: torch.randn(len(x), len(bv), generator=g)
    b = PairBatch.from_logits(same, [ids], [plain], [rows(ids)], [rows(plain)])
    size = np.diff(b.alignment.chunks[:, :2], axis=1)[:, 0]
    assert sorted(size)[-1] == (2 if len(plain) < len(ids) else 1) and (size > 1).sum() == (len(plain) < len(ids))
    for name in METHODS: assert torch.isfinite(objective(name)(b).loss_sum)


def test_refusals(pair):
    b, _ = full(pair, TEXTS[:1])
    with pytest.raises(ValueError, match="different vocabularies"): objective("minillm", single_step=1.)(b)
    for name, knobs, text in (("opd", dict(discount=2), "not between"), ("minillm", dict(gamma=-1), "not between"), ("minillm", dict(single_step="on"), 'Choose "equal"'),
                              ("minillm", dict(sampled=0, single_step=0), "no loss")):
        with pytest.raises(ValueError, match=text): objective(name, **knobs)
    for name in METHODS:
        with pytest.raises(ValueError, match="no sense on text of the teacher"): objective(name)(full(pair, TEXTS[:1], text_source="teacher")[0])
