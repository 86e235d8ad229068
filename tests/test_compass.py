"""Compass: the published number, its fixed point, and what every objective must keep."""
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, full, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import objective
from xtokd.objectives.policy.compass import span_means
from xtokd.alignment.pair import Pair

BV = toy_bpe("abc")
ONE = make_pair(BV, BV)
UNICODE = ("", "日本 é\u0301 😊!", "\ta  b\r\n ", "12 apples")


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def fresh(pair, texts=TEXTS, **how):
    p = parts(pair, texts, **how)
    p.pop("behaviour_logp")
    return p


def row(logp):
    p = torch.full((1, len(BV)), float(np.log((1 - np.exp(logp)) / (len(BV) - 1))))
    p[0, 0] = logp
    return p


def test_oracle_of_8_4():
    b = PairBatch.from_logits(ONE, [[0]], [[0]], [row(-1.5)], [row(-1.)], weak_logp=[torch.tensor([-2.])], reference_logp=[torch.tensor([-1.7])])
    assert abs(objective("opd")(b).ledger["signal"][0] - .5) < 1e-5 and abs(objective("compass")(b).ledger["signal"][0] - .9) < 1e-5
    b.weak_logp = torch.tensor([-1.])                                    # the sibling is the teacher: a pure pull to the start
    assert abs(objective("compass")(b).ledger["signal"][0] - -.5 * (-1.5 + 1.7)) < 1e-5


def test_the_fixed_point():
    g = torch.Generator().manual_seed(1)
    T, R, start = (torch.log_softmax(torch.randn(1, len(BV), generator=g), 1) for _ in range(3))
    def update(w, alpha):
        p = torch.softmax(w, 1).detach()
        case = lambda i: PairBatch.from_logits(ONE, [[i]], [[i]], [w], [T], weak_logp=[R[:, i]], reference_logp=[start[:, i]])
        return sum(p[0, i] * torch.autograd.grad(objective("compass", alpha=alpha)(case(i)).loss_sum, w)[0] for i in range(len(BV))).abs().max()
    for alpha in (.5, 2.): assert update((start + (T - R) / alpha).requires_grad_(), alpha) < 1e-6
    assert update(start.clone().requires_grad_(), .5) > .01


def test_one_shift_for_each_chunk_and_own_by_token(pair):
    b = batch(pair, fresh(pair))
    out, own = objective("compass")(b), objective("compass", own="token")(b)
    a, chunk = b.alignment, out.ledger["chunk"]
    teacher, student = (b.teacher.token_logp() - b.weak_logp).numpy(), b.student.token_logp().detach().numpy() - b.reference_logp.numpy()
    for k, (s0, s1, t0, t1) in enumerate(a.chunks.tolist()):
        assert np.allclose(out.ledger["signal"][s0:s1], teacher[t0:t1].mean() - .5 * student[s0:s1].mean(), atol=1e-4)
        assert np.allclose(own.ledger["signal"][s0:s1], teacher[t0:t1].mean() - .5 * student[s0:s1], atol=1e-4)
    assert (a.kind > 0).any() and 0 <= out.stats["sign_agreement"] <= 1 and len(span_means(b, b.student.token_logp())) == len(a.chunks)


def test_the_student_as_sibling_without_pull(pair):                               # 8.4: plain OPD on 1-1 chunks, L_T / m - L_S / n on others
    p = fresh(pair)
    b = batch(pair, p)
    means = span_means(b, b.teacher.token_logp(), "teacher") - span_means(b, b.student.token_logp().detach())
    one = np.flatnonzero(b.alignment.kind == 0)
    plain = objective("opd")(b).ledger["signal"]
    assert np.allclose(means[one], plain[b.alignment.chunks[one, 0]], atol=1e-4)
    same = Pair(pair.teacher, pair.teacher)
    p = fresh(same)
    p["weak_logp"] = [torch.log_softmax(l, 1)[torch.arange(len(i)), torch.tensor(i)].detach() for l, i in zip(p["student_logits"], p["student_ids"])]
    b = batch(same, p)
    assert np.allclose(objective("compass", alpha=0)(b).ledger["signal"], objective("opd")(b).ledger["signal"], atol=1e-4)


def test_splitting_permuting_and_padding(pair):
    p = parts(pair)
    run = lambda at: objective("compass")(batch(pair, some(p, at)))
    whole = run(range(4))
    for cut in ((1, 3), (2, 2), (1, 1, 1, 1)):
        at, found = 0, []
        for n in cut: found.append(run(range(at, at + n))); at += n
        assert torch.allclose(whole.loss_sum, sum(f.loss_sum for f in found), rtol=1e-4) and whole.num_units == sum(f.num_units for f in found)
    assert torch.allclose(whole.loss_sum, run([3, 1, 0, 2]).loss_sum, rtol=1e-4)
    pad = lambda x: torch.cat([x.detach(), torch.full((len(x), 4), 9.)], 1)
    wide = {**p, "student_logits": [pad(x).requires_grad_() for x in p["student_logits"]], "teacher_logits": [pad(x) for x in p["teacher_logits"]]}
    out = objective("compass")(batch(pair, wide))
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, whole.loss_sum, rtol=1e-5) and not any(x.grad[:, len(pair.student):].any() for x in wide["student_logits"])


def test_every_model_reaches_the_gradient_and_equal_models_move_nothing(pair):
    def grad(where=pair, own=False, **change):
        p = fresh(where, TEXTS[:2], same=own)
        now = [torch.log_softmax(l, 1)[torch.arange(len(i)), torch.tensor(i)].detach() for l, i in zip(p["student_logits"], p["student_ids"])]
        if own: p["weak_logp"] = p["reference_logp"] = now
        for name, by in change.items(): p[name] = [x * by for x in p[name]]
        objective("compass")(batch(where, p)).loss_sum.backward()
        return torch.cat([l.grad for l in p["student_logits"]])
    plain = grad()
    for name in ("teacher_logits", "weak_logp", "reference_logp"): assert not torch.allclose(plain, grad(**{name: 2.}), atol=1e-3), name
    assert grad(Pair(pair.teacher, pair.teacher), own=True).abs().max() < 1e-5    # the documented exception: only then


@pytest.mark.parametrize("stop", [True, False])
def test_odd_texts_and_impossible_tokens(pair, stop):
    p = parts(pair, UNICODE, stop=stop)
    for x in p["teacher_logits"]: x[:, ::3] = -torch.inf
    p["weak_logp"][1][0] = -torch.inf
    out = objective("compass")(batch(pair, p))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(l.grad).all() for l in p["student_logits"] if l.grad is not None)
    silent = out.ledger["weight"] == 0
    assert (out.ledger["reason"][silent] > 0).all() and 109 in out.ledger["reason"]
    none = PairBatch.from_logits(pair, [[]], [[]], [torch.zeros(0, len(pair.student))], [torch.zeros(0, len(pair.teacher))], weak_logp=[[]], reference_logp=[[]])
    assert objective("compass")(none).num_units == 0 and objective("compass")(none).loss == 0


def test_refusals(pair):
    b, _ = full(pair, TEXTS[:1])
    for knobs, text in ((dict(alpha=-1), "away from its start"), (dict(own="chunk"), "Choose span, token")):
        with pytest.raises(ValueError, match=text): objective("compass", **knobs)
    for name, text in (("weak_logp", "weak model"), ("reference_logp", "at the start")):
        p = parts(pair, TEXTS[:1])
        p.pop(name)
        with pytest.raises(ValueError, match=text): objective("compass")(batch(pair, p))
    with pytest.raises(ValueError, match="no sense on text of the teacher"): objective("compass")(full(pair, TEXTS[:1], text_source="teacher")[0])
