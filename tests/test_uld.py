"""ULD: the published numbers, which rows are compared, and what sorting cannot see."""
import itertools

import numpy as np
import pytest
import torch

from batches import batch, full, ids_of, parts, some
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import objective
from xtokd.objectives.matching.uld import row_pairs, sorted_l1_distance
from xtokd.rows.chunked_loss import chunked_token_logp
from xtokd.alignment.pair import Pair

KNOBS = ({}, {"pairing": "index"}, {"top_k": 5}, {"temperature": 2.}, {"skip_stop": True, "pairing": "index"})
TEXTS = ("The number is 9632.", "Certainly: 12", "894772 altogether.", "7 altogether.", "naïve 👍🏽 café", "")


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def test_numbers_of_the_papers():
    s, t = torch.tensor([.1, .6, .3]), torch.tensor([.5, .2, .2, .1])
    for p in itertools.permutations(range(3)): assert torch.isclose(sorted_l1_distance(s[list(p)], t), torch.tensor(.4))
    assert torch.isclose(sorted_l1_distance(torch.tensor([.7, .2, .1]), torch.tensor([.1, .8, .05, .05])), torch.tensor(.3))


def test_a_wrong_student_can_have_loss_zero():                                     # the weakness of the method, documented
    assert sorted_l1_distance(torch.tensor([.7, .3]), torch.tensor([.3, .7])) == 0


def test_between_zero_and_two():
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(50, 30, generator=g).mul(8).softmax(-1), torch.randn(50, 47, generator=g).mul(.1).softmax(-1)
    loss = sorted_l1_distance(s, t)
    assert (loss >= 0).all() and (loss <= 2).all()
    assert torch.isclose(sorted_l1_distance(torch.tensor([1., 0]), torch.full((10_000,), 1e-4)), torch.tensor(2.), atol=1e-3)


def test_top_k_with_a_rest_is_a_lower_bound_and_whole_at_the_end():
    g = torch.Generator().manual_seed(1)
    s, t = torch.randn(20, 12, generator=g).softmax(-1), torch.randn(20, 17, generator=g).softmax(-1)
    full_, last = sorted_l1_distance(s, t), torch.zeros(20)
    for k in (1, 3, 8, 14, 17, 40):
        now = sorted_l1_distance(s, t, k)
        assert (now <= full_ + 1e-6).all() and (now >= last - 1e-6).all()
        last = now
    assert torch.allclose(last, full_, atol=1e-6)


def test_the_teachers_names_do_not_matter(pair):                                   # D19: blind to every permutation
    p = parts(pair)
    g = torch.Generator().manual_seed(0)
    mixed = {**p, "teacher_logits": [x[:, torch.randperm(x.shape[1], generator=g)] for x in p["teacher_logits"]]}
    for how in KNOBS: assert torch.isclose(objective("uld", **how)(batch(pair, p)).loss_sum, objective("uld", **how)(batch(pair, mixed)).loss_sum, rtol=1e-5)


def test_three_rows_against_two(pair):
    bv = pair.student
    ids, other = bv.encode("abc")[:3], pair.teacher.encode("6 ")
    ids = (ids * 3)[:3]; other = (other * 2)[:2]
    b = PairBatch.from_logits(pair, [ids], [other], [torch.randn(3, len(bv), requires_grad=True)], [torch.randn(2, len(pair.teacher))])
    out = objective("uld", pairing="index")(b)
    assert out.num_units == 2 and out.token_loss[2] == 0 and out.ledger["reason"].tolist() == [0, 0, 103]


def test_index_pairs_start_at_each_samples_first_row(pair):
    b, _ = full(pair, TEXTS)
    a = b.alignment
    s, t = row_pairs(a, "index")
    for k in range(len(a)):
        mine = (s >= a.student_offsets[k]) & (s < a.student_offsets[k + 1])
        n = min(a.student_offsets[k + 1] - a.student_offsets[k], a.teacher_offsets[k + 1] - a.teacher_offsets[k])
        assert mine.sum() == n and (s[mine] - a.student_offsets[k]).tolist() == (t[mine] - a.teacher_offsets[k]).tolist() == list(range(n))


def test_chunk_pairs_stand_at_the_same_byte(pair):
    a = full(pair, TEXTS)[0].alignment
    s, t = row_pairs(a, "chunk")
    before = lambda side, at: [int(x.sum()) for k in at for x in [getattr(a, side).lengths[getattr(a, f"{side}_ids")[: k]]]]
    assert before("student", s) == before("teacher", t) and len(np.unique(s)) == len(s)


@pytest.mark.parametrize("how", KNOBS, ids=str)
def test_parts_padding_and_order(pair, how):                                       # D13, D17
    p = parts(pair, TEXTS)
    obj = objective("uld", **how)
    whole = obj(batch(pair, p))
    for cut in ([[0], [1, 2, 3, 4, 5]], [[3, 0, 5], [4, 1, 2]]):
        out = [obj(batch(pair, some(p, at))) for at in cut]
        assert torch.isclose(whole.loss_sum, sum(o.loss_sum for o in out), rtol=1e-5) and whole.num_units == sum(o.num_units for o in out)
    wide = {k: [torch.cat([x.detach(), torch.full((len(x), 9), 7.)], 1).requires_grad_() for x in p[k]] if k.endswith("logits") else v for k, v in p.items()}
    out = obj(batch(pair, wide))
    assert torch.isclose(whole.loss_sum, out.loss_sum, rtol=1e-5)
    out.loss_sum.backward()
    assert not any(x.grad[:, len(pair.student):].any() for x in wide["student_logits"])


@pytest.mark.parametrize("pairing", ("chunk", "index"))
def test_gradient_is_that_of_the_formula(pair, pairing):
    b, leaf = full(pair, TEXTS)
    objective("uld", pairing=pairing)(b).loss_sum.backward()
    mine = [x.grad.clone() for x in leaf[: len(TEXTS)]]
    for x in leaf: x.grad = None
    s, t = row_pairs(b.alignment, pairing)
    sorted_l1_distance(b.student.take(s).exp(), b.teacher.take(t).exp()).sum().backward()
    for a, x in zip(mine, leaf): assert torch.allclose(a, x.grad, atol=1e-6)


def test_masked_rows_get_no_gradient(pair):                                        # D10: Soup's loss reached rows outside the answer
    p = parts(pair, TEXTS[:2])
    window = [[k % 2 for k in range(len(x))] for x in p["student_ids"]]
    b = batch(pair, p, window=window)
    objective("uld", pairing="index")(b).loss_sum.backward()
    inside = torch.as_tensor(objective("uld", pairing="index")(b).ledger["weight"] > 0)
    grad = torch.cat([x.grad for x in p["student_logits"]])
    assert not grad[~inside].any() and grad[inside].any()


def test_one_row_late_is_another_loss(pair):                                       # D10
    p = parts(pair)
    late = {**p, "teacher_logits": [x.roll(1, 0) for x in p["teacher_logits"]]}
    for how in KNOBS: assert abs(objective("uld", **how)(batch(pair, p)).loss_sum - objective("uld", **how)(batch(pair, late)).loss_sum) > 1e-3


@pytest.mark.parametrize("how", KNOBS, ids=str)
def test_student_equal_to_teacher_has_no_gradient(pair, how):
    same = Pair(pair.student, pair.student)
    p = parts(same, TEXTS, same=True)
    out = objective("uld", **how)(batch(same, p))
    out.loss_sum.backward()
    assert out.loss_sum == 0 and not any(x.grad.any() for x in p["student_logits"])


def test_gold_text(pair):
    p = parts(pair, TEXTS[:2])
    with pytest.raises(ValueError, match="gold"): objective("uld", ce=1.)(batch(pair, p))
    b = batch(pair, p, "teacher")
    plain, both = (objective("uld", pairing="index", factor=1.5, ce=c)(b) for c in (0, 1.))
    compared, means = np.minimum(np.diff(b.student.offsets), np.diff(b.teacher.offsets)), [x.mean() for x in b.student.token_logp().split(np.diff(b.student.offsets).tolist())]
    assert torch.isclose(both.loss_sum, plain.loss_sum - sum(n * x for n, x in zip(compared.tolist(), means)), rtol=1e-5) and both.num_units == plain.num_units == compared.sum()
    assert torch.allclose(chunked_token_logp(b.student, np.arange(len(b.student))), b.student.token_logp(), atol=1e-6)


def test_the_stop_is_left_out_on_request(pair):
    b, _ = full(pair, TEXTS)
    out = objective("uld", skip_stop=True)(b)
    stop = np.isin(b.student.ids, pair.student.stop_ids)
    assert (out.ledger["reason"][stop] == 107).all() and out.num_units == len(b.alignment.chunks) - stop.sum()


def test_rough_input(pair):                                                        # D14
    empty = PairBatch.from_logits(pair, [[]], [[]], [torch.zeros(0, len(pair.student))], [torch.zeros(0, len(pair.teacher))])
    for how in KNOBS:
        assert objective("uld", **how)(empty).loss == 0
        for change in (lambda x: x.masked_fill(torch.arange(x.shape[1]) % 3 == 0, -torch.inf), lambda x: torch.full_like(x, -torch.inf), lambda x: x.bfloat16(), lambda x: x.double(), lambda x: x[:2]):
            p = parts(pair, TEXTS)
            p["teacher_logits"] = [change(x) for x in p["teacher_logits"]]
            p.pop("weak_logp"), p.pop("plus_logp"), p.pop("minus_logp"), p.pop("student_hidden"), p.pop("teacher_hidden")
            out = objective("uld", **how)(PairBatch.from_logits(pair, **p))
            out.loss_sum.backward()
            assert torch.isfinite(out.loss_sum) and all(torch.isfinite(x.grad).all() for x in p["student_logits"])
            assert (out.ledger["reason"][out.ledger["weight"] == 0] > 0).all()


def test_wrong_values_are_refused():
    for how in ({"pairing": "dtw"}, {"top_k": 0}, {"temperature": 0}, {"ce": -1.}, {"factor": -1.}):
        with pytest.raises(ValueError): objective("uld", **how)
