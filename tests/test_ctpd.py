"""CTPD: weights and margins by hand, its ancestors, and pairs that must stay whole."""
import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from batches import TEXTS, batch, full, leaves, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import objective
from xtokd.objectives.chunks import chunk_sum
from xtokd.objectives.policy.ctpd import CTPD, preference_pairs, rewards, span_weights
from xtokd.alignment.pair import Pair

UNICODE = ("naïve café 😀 中", "  two\tspaces\r\n", "e\u0301 ", "x")


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


@pytest.fixture(scope="module")
def same(pair): return Pair(pair.teacher, pair.teacher)


def by_hand(b, beta=.1, low=-.5, high=1.5, weigh=True):
    "The loss of a batch, span by span, from the formula; realised log-probs are one stop id's, as there is only one."
    a, reward = b.alignment, [0.] * len(b.alignment)
    s, t = b.student.token_logp(), b.teacher.token_logp()
    ratio = b.plus_logp - b.minus_logp
    for (s0, s1, t0, t1), k in zip(a.chunks.tolist(), a.chunk_sample.tolist()):
        sign = b.preferences[k]
        w = torch.exp(sign * ratio[t0:t1].sum().clamp(low, high)) if weigh else 1.
        reward[k] = reward[k] + w * (s[s0:s1].sum() - t[t0:t1].sum())
    return sum(-logsigmoid(beta * (reward[k] - reward[k + 1])) for k in range(0, len(reward), 2))


def test_weights_of_the_paper():
    ratio = torch.tensor([-2, -.5, 0, 1, 3])
    assert np.allclose(span_weights(ratio, 1), [.6065, .6065, 1, 2.7183, 4.4817], atol=5e-5)
    assert np.allclose(span_weights(ratio, -1), [1.6487, 1.6487, 1, .3679, .2231], atol=5e-5)


def test_margin_of_the_paper():
    r = rewards(torch.tensor([1.6487, 1, .6065, 1]), torch.tensor([.5, -.2, -.3, .1]), [0, 0, 1, 1], 2)
    assert np.allclose(r, [.62435, -.08195]) and abs(r[0] - r[1] - .7063) < 1e-6
    assert abs(-logsigmoid(.1 * (r[0] - r[1])) - .65846) < 1e-5


def test_the_paper_s_numbers_through_a_batch():
    "Two answers of two spans, with rows that say exactly those gaps and log-ratios."
    p = make_pair(toy_bpe("abc", [("a", "b")]), toy_bpe("abc"))                       # `ab` | `c` against `a` `b` | `c`
    ids_s, ids_t = p.student.encode("abc"), p.teacher.encode("abc")
    def rows(bv, ids, logp):
        out = torch.full((len(ids), len(bv)), -torch.inf)
        for k, (i, x) in enumerate(zip(ids, logp)): out[k, i], out[k, bv.stop_ids[0]] = x, np.log1p(-np.exp(x))
        return out
    s = [rows(p.student, ids_s, x) for x in ([-1.5, -1.2], [-2.3, -.9])]
    t = [rows(p.teacher, ids_t, [-1.2, -.8, -1.])] * 2
    plus, minus = [torch.tensor([.25, .25, -1.]), torch.tensor([.2, .3, -1.])], [torch.tensor([0., 0., -1.])] * 2
    b = PairBatch.from_logits(p, [ids_s] * 2, [ids_t] * 2, s, t, plus_logp=plus, minus_logp=minus, preferences=[1, -1], text_source="reference")
    assert b.alignment.chunks.tolist()[:2] == [[0, 1, 0, 2], [1, 2, 2, 3]]
    out = objective("ctpd")(b)
    assert out.num_units == 1 and abs(out.stats["margin"] - .7063) < 1e-3 and abs(out.loss_sum - .65846) < 1e-4


@pytest.mark.parametrize("texts", [TEXTS, UNICODE])
def test_equals_the_formula(pair, texts):
    b, _ = full(pair, texts, text_source="reference")
    out = objective("ctpd")(b)
    assert abs(out.loss_sum - by_hand(b)) < 1e-4 and out.unit == "pair" and abs(out.num_units - 2) < 1e-6


def test_identical_tokenizers_give_token_level_weights(same):
    b, _ = full(same, text_source="reference")
    b.plus_logp, b.minus_logp = b.plus_logp * .3, b.minus_logp * 2
    w = torch.exp(torch.tensor(b.preferences)[torch.as_tensor(b.alignment.chunk_sample).long()] * (b.plus_logp - b.minus_logp).clamp(-.5, 1.5))
    assert (b.alignment.kind == 0).all()
    r = rewards(w, b.student.token_logp() - b.teacher.token_logp(), b.alignment.chunk_sample, 4)
    assert torch.allclose(objective("ctpd")(b).loss_sum, -logsigmoid(.1 * (r[::2] - r[1::2])).sum(), atol=1e-5)


@pytest.mark.parametrize("which", ["pair", "same"])
def test_without_weights_and_with_the_student_as_reference_it_is_dpo(which, request):
    b, _ = full(request.getfixturevalue(which), text_source="reference")
    gap = chunk_sum(b.student.token_logp() - b.reference_logp, np.repeat(np.arange(4), np.diff(b.student.offsets)), 4)
    out = objective("ctpd", weights="none", reference="student")(b)
    assert torch.allclose(out.loss_sum, -logsigmoid(.1 * (gap[::2] - gap[1::2])).sum(), atol=1e-5)


def test_equal_tuned_teachers_weigh_alike(pair):
    p = parts(pair)
    p["minus_logp"] = p["plus_logp"]
    b = batch(pair, p, text_source="reference")
    for k in (1., 2.): assert torch.allclose(objective("ctpd", k=k)(b).loss_sum, objective("ctpd", weights="none", k=k)(b).loss_sum)
    assert objective("ctpd")(b).stats["span_weight"] == 1


def test_swapping_the_answers_flips_the_margin(pair):
    p, obj = parts(pair, TEXTS[:2]), objective("ctpd", weights="none")
    a, b = (obj(batch(pair, some(p, at), text_source="reference")).stats["margin"] for at in ((0, 1), (1, 0)))
    assert abs(a + b) < 1e-4 and abs(a) > 1e-3


def test_the_rejected_answer_may_come_first(pair):
    p = parts(pair)
    b, c = batch(pair, p, text_source="reference"), batch(pair, some(p, (1, 0, 3, 2)), text_source="reference")
    c.preferences = [-1, 1, -1, 1]
    assert torch.allclose(objective("ctpd")(b).loss_sum, objective("ctpd")(c).loss_sum)


def test_the_sign_of_the_push(pair):
    b, ls = full(pair, text_source="reference")
    out = objective("ctpd")(b)
    sign = np.array(b.preferences)[out.ledger["sample"]]
    assert (out.ledger["signal"] * sign > 0)[out.ledger["weight"] > 0].all()
    grad = torch.cat(torch.autograd.grad(out.loss_sum, ls[:4]))
    at = torch.arange(len(grad)), torch.as_tensor(b.student.ids)
    assert np.allclose(-grad[at] / (1 - b.student.logp().exp()[at]).detach(), out.ledger["signal"], atol=1e-5)


def test_pairs_must_stand_side_by_side(pair):
    p = parts(pair)
    for wrong in ([1, 1, -1, -1], [1, -1, 0, 0], [1, -1, 2, -2]):
        b = batch(pair, p, text_source="reference")
        b.preferences = wrong
        with pytest.raises(ValueError, match="side by side"): objective("ctpd")(b)
    with pytest.raises(ValueError, match="no pairs"): objective("ctpd")(batch(pair, some(p, (0, 1, 2)), text_source="reference"))
    with pytest.raises(ValueError, match="Give one for each"): preference_pairs([1], 2)


def test_refuses_what_makes_no_sense(pair):
    b, _ = full(pair, text_source="student")
    with pytest.raises(ValueError, match="no sense on text of the student"): objective("ctpd")(b)
    b, _ = full(pair, text_source="reference")
    for need in ("plus_logp", "minus_logp", "preferences"):
        c = batch(pair, parts(pair), text_source="reference")
        setattr(c, need, None)
        with pytest.raises(ValueError, match=f"needs {need}"): objective("ctpd")(c)
    assert objective("ctpd", weights="none", reference="student").requires == {"student_logits", "preferences", "reference_logp"}
    for knobs in (dict(reference="x"), dict(weights="x"), dict(beta=0), dict(low=2)):
        with pytest.raises(ValueError): objective("ctpd", **knobs)


def test_splitting_and_permuting_pairs(pair):
    p = parts(pair)
    whole = objective("ctpd")(batch(pair, p, text_source="reference"))
    halves = [objective("ctpd")(batch(pair, some(p, at), text_source="reference")) for at in ((0, 1), (2, 3))]
    turned = objective("ctpd")(batch(pair, some(p, (2, 3, 0, 1)), text_source="reference"))
    assert torch.allclose(whole.loss_sum, sum(h.loss_sum for h in halves)) and torch.allclose(whole.loss_sum, turned.loss_sum)
    assert abs(whole.num_units - sum(h.num_units for h in halves)) < 1e-9


def test_the_reference_teacher_matters(pair):
    a, b = (objective("ctpd")(full(pair, text_source="reference", scale=s)[0]).loss_sum for s in (1., 2.))
    assert abs(a - b) > 1e-3


def test_a_lost_span_is_dropped_on_both_sides(pair):
    "A teacher cut short loses its last spans; the student's share of them counts no more."
    p = parts(pair)
    cut = dict(p, teacher_logits=[p["teacher_logits"][0][:-3], *p["teacher_logits"][1:]], teacher_hidden=[p["teacher_hidden"][0][:-3], *p["teacher_hidden"][1:]])
    for k in ("weak_logp", "plus_logp", "minus_logp"): cut[k] = [p[k][0][:-3], *p[k][1:]]
    b = batch(pair, cut, text_source="reference")
    out = objective("ctpd")(b)
    assert abs(out.loss_sum - by_hand(b)) < 1e-4
    out.loss_sum.backward()
    lost = (out.ledger["sample"] == 0) & (b.alignment.student_chunk < 0)
    assert lost.sum() >= 3 and not torch.cat([l.grad for l in p["student_logits"]])[lost].any()


def test_an_answer_that_is_lost_takes_its_pair_out(pair):
    p = parts(pair)
    for k, v in p.items():
        if k in ("teacher_logits", "teacher_hidden", "weak_logp", "plus_logp", "minus_logp"): p[k] = [v[0][:0], *v[1:]]
    b = batch(pair, p, text_source="reference")
    out = objective("ctpd")(b)
    assert abs(out.num_units - 1) < 1e-6 and not out.ledger["weight"][out.ledger["sample"] < 2].any()


def test_impossible_tokens_and_infinite_ratios(pair):
    p = parts(pair)
    p["teacher_logits"][0][1] = -torch.inf
    p["teacher_logits"][0][1, 5] = 0.
    p["plus_logp"][1][0], p["minus_logp"][1][0], p["plus_logp"][2][0] = -torch.inf, -torch.inf, -torch.inf
    b = batch(pair, p, text_source="reference")
    out = objective("ctpd")(b)
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(l.grad).all() for l in p["student_logits"])
    assert (out.ledger["reason"] == 109).sum() >= 2


def test_empty_answers(pair):
    for texts in (("", "", "x", "y"), ("", "x")):
        p = parts(pair, texts, stop=False)
        out = objective("ctpd")(batch(pair, p, text_source="reference"))
        assert torch.isfinite(out.loss_sum) and abs(out.num_units - int("y" in texts)) < 1e-6


def test_leaving_the_end_out(pair):
    b, _ = full(pair, text_source="reference")
    out = objective("ctpd", stop=False)(b)
    assert (out.ledger["reason"] == 107).sum() == 4 and abs(out.num_units - 2) < 1e-6


def test_window(pair):
    p = parts(pair)
    window = [np.arange(len(i)) < 3 for i in p["student_ids"]]
    out = objective("ctpd")(batch(pair, p, text_source="reference", window=window))
    out.loss_sum.backward()
    assert (out.ledger["reason"] == 106).any() and not any(l.grad[3:].any() for l in p["student_logits"]) and abs(out.num_units - 2) < 1e-6


def test_precision_and_padding(pair):
    p = parts(pair)
    wide = dict(p, student_logits=[torch.cat([l.detach(), torch.full((len(l), 9), 5.)], 1).double().requires_grad_() for l in p["student_logits"]],
                teacher_logits=[torch.cat([l, torch.full((len(l), 9), 5.)], 1).double() for l in p["teacher_logits"]])
    b = batch(pair, wide, text_source="reference")
    out = objective("ctpd")(b)
    assert torch.allclose(out.loss_sum.float(), objective("ctpd")(batch(pair, p, text_source="reference")).loss_sum)
    out.loss_sum.backward()
    assert not any(l.grad[:, len(pair.student):].any() for l in wide["student_logits"])


def test_relabelling_the_teacher_changes_nothing():
    texts, student = ("abba", "bab", "aab", "b"), toy_bpe("ab", [("a", "b")])
    one, two = (make_pair(student, toy_bpe(x, [("b", "a")])) for x in ("ab", "ba"))
    order = [two.teacher.bytes.index(x) if x else two.teacher.stop_ids[0] for x in one.teacher.bytes]
    p = parts(one, texts)
    q = dict(p, teacher_ids=[[order[i] for i in ids] for ids in p["teacher_ids"]], teacher_logits=[torch.empty_like(l).index_copy(1, torch.tensor(order), l) for l in p["teacher_logits"]])
    assert q["teacher_ids"] != p["teacher_ids"]
    assert torch.allclose(objective("ctpd")(batch(one, p, text_source="reference")).loss_sum, objective("ctpd")(batch(two, q, text_source="reference")).loss_sum)
