"MultiLevelOT: the published numbers, and one answer at a time."
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, full, parts
from warped import check_hard_cases, check_parts, check_relabelling
from xtokd.exact.toy_models import make_pair
from xtokd.rows.dense import LogitRows
from xtokd.objectives import objective
from xtokd.objectives.matching.multilevel_ot import absolute_difference, column_logps, rank_columns, row_cross_entropy, sinkhorn_plan, transport_cost
from xtokd.objectives.matching.uld import sorted_l1_distance
from xtokd.alignment.pair import Pair


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


class Three:
    name = "three words"
    def __len__(self): return 3


T, S = (LogitRows([torch.tensor(x).log()], [[0, 0]], Three()) for x in ([[.7, .2, .1], [.2, .5, .3]], [[.6, .3, .1], [.1, .2, .7]]))


def test_published_terms():
    t, s = (column_logps(x, np.arange(2), rank_columns(x, np.arange(2), 50)) for x in (T, S))
    assert rank_columns(T, np.arange(2), 50).tolist() == [0, 1, 2] and rank_columns(S, np.arange(2), 50).tolist() == [2, 0, 1]
    assert abs(absolute_difference(t.exp(), s.exp()).sum() - 2.2) < 1e-5
    assert abs(row_cross_entropy(t.exp(), s).sum() - 3.53983) < 1e-5
    assert abs(sorted_l1_distance(S.logp().exp(), T.logp().exp()).sum() - .6) < 1e-5           # a ranking for each row sees less


@pytest.mark.parametrize("cost,want", [([[0., 1], [1, 0]], 9.0796e-5), ([[.2, 1], [1, .4]], .60205)])
def test_published_transport(cost, want):
    c = torch.tensor(cost)
    assert abs((sinkhorn_plan(c) * c).sum() - want) < 1e-5 * max(want, 1e-3)


def test_the_plan_is_the_plain_iteration_and_never_underflows():
    c = 2 * torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = torch.exp(-c / .1)
    for _ in range(20):
        k = k / k.sum(1, keepdim=True)
        k = k / k.sum(0, keepdim=True)
    assert torch.allclose(sinkhorn_plan(c), k) and torch.allclose(sinkhorn_plan(c).sum(0), torch.ones(7).double())
    assert torch.isfinite(sinkhorn_plan(torch.full((3, 3), 2.).half().float(), .001)).all()


def test_transport_follows_shuffled_positions():
    rows = torch.softmax(3 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), 1)
    shuffled = rows[torch.tensor([3, 0, 5, 1, 2, 4])]
    assert torch.allclose(transport_cost(rows, shuffled).sum(), transport_cost(rows, rows).sum(), atol=1e-4) and absolute_difference(rows, shuffled).sum() > 1


def plain_loss(s, t, k=50):
    "The paper's loss of one answer from logits [n, Vs], [m, Vt]."
    n = min(len(s), len(t))
    probs = lambda x, temp: torch.softmax(x[:n] / temp, 1)
    ids = [probs(x, 1.).sum(0).topk(k).indices for x in (s, t)]
    (a, b), (c, d) = ((probs(s, x)[:, ids[0]], probs(t, x)[:, ids[1]]) for x in (1., 2.))
    cost = (d[:, None] - c[None]).abs().sum(2)
    plan = torch.exp(-cost / .1)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return .15 * ((b - a).abs().sum() - .1 * (b * a.log()).sum() + .1 * (plan * cost).sum())


def test_the_loss_is_the_papers_for_each_answer(pair):
    b, _ = full(pair)
    p = parts(pair)
    out = objective("multilevel_ot")(b)
    want = sum(plain_loss(s, t) for s, t in zip(p["student_logits"], p["teacher_logits"]))
    assert out.unit == "sequence" and abs(out.num_units - len(TEXTS)) < 1e-4 and torch.allclose(out.loss_sum, want, rtol=1e-4)
    mine, plain = torch.autograd.grad(out.loss_sum, b.student.logits), torch.autograd.grad(want, p["student_logits"])
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(mine, plain))


def test_rows_beyond_the_shorter_answer_have_a_reason(pair):
    b, _ = full(pair)
    out = objective("multilevel_ot")(b)
    a = b.alignment
    for k in range(len(a)):
        n, m = (int(x[k + 1] - x[k]) for x in (a.student_offsets, a.teacher_offsets))
        w = out.ledger["weight"][a.student_offsets[k]: a.student_offsets[k + 1]]
        assert (w[:m] > 0).all() and (w[m:] == 0).all() and abs(w.sum() - 1) < 1e-5
    assert (out.ledger["reason"][out.ledger["weight"] == 0] > 0).all()
    chunk = objective("multilevel_ot", pairing="chunk")(b)
    assert set(np.flatnonzero(chunk.ledger["weight"])) == set(a.chunks[:, 0]) and abs(chunk.num_units - len(TEXTS)) < 1e-4


def test_an_answer_does_not_see_its_neighbours(pair):                                 # the released ranking runs over the batch
    alone, among = objective("multilevel_ot")(full(pair, TEXTS[:1])[0]), objective("multilevel_ot")(full(pair)[0])
    n = len(alone.token_loss)
    assert torch.allclose(alone.token_loss, among.token_loss[:n], atol=1e-6)


def test_identity_is_ignored_and_the_ranking_has_no_gradient(pair):
    one = make_pair(pair.teacher, pair.teacher)
    p = parts(one, TEXTS[:2])
    order = torch.randperm(len(pair.teacher), generator=torch.Generator().manual_seed(0))
    q = {**p, "teacher_logits": [x[:, order] for x in p["teacher_logits"]]}
    a, b = (objective("multilevel_ot")(batch(one, x)).loss_sum for x in (p, q))
    assert torch.allclose(a, b, rtol=1e-5)
    assert not rank_columns(batch(one, p).student, np.arange(3), 5).is_floating_point()


def test_equal_models_leave_the_documented_rest(pair):
    one = make_pair(pair.teacher, pair.teacher)
    out = objective("multilevel_ot", beta=0., gamma=0.)(batch(one, parts(one, same=True)))
    assert out.loss_sum.abs() < 1e-6                                                       # only the differences vanish
    out = objective("multilevel_ot")(batch(one, parts(one, same=True)))
    assert out.loss_sum > 0 and out.stats["differences"] < 1e-6 < out.stats["cross_entropy"] and "I3" in objective("multilevel_ot").known_exceptions


def test_cross_entropy_is_a_knob_for_gold_text(pair):
    with pytest.raises(ValueError, match="gold"): objective("multilevel_ot", ce=1.)(full(pair)[0])
    b = full(pair, text_source="reference")[0]
    none, some = (objective("multilevel_ot", ce=x)(b) for x in (0., 1.))
    off = b.student.offsets
    want = none.loss_sum - sum(b.student.token_logp()[x: y].mean() for x, y in zip(off, off[1:]))
    assert torch.allclose(some.loss_sum, want, rtol=1e-4) and abs(some.num_units - len(TEXTS)) < 1e-4


def test_what_every_method_keeps(pair):
    check_parts(pair, objective("multilevel_ot"))
    check_hard_cases(pair, objective("multilevel_ot"))
    check_relabelling(pair, objective("multilevel_ot"))


def test_wrong_knobs_are_refused():
    for knob in (dict(pairing="words"), dict(k=0), dict(regularization=0.), dict(alpha=-1.)):
        with pytest.raises(ValueError): objective("multilevel_ot", **knob)
