"""DSKD: attention by hand, masks in float32, where the gradient goes, the label leak, and what is left on text of the student."""
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, full, heads, ids_of, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import HiddenStates, PairBatch
from xtokd.objectives.divergences import kl_divergence
from xtokd.objectives import objective
from xtokd.objectives.hidden.dskd import (DSKD, cross_states, masked_attention, pad_samples, seeded_linear_maps, student_id_of_teacher_id,
                                           teacher_labels, unit_scale)
from xtokd.alignment.pair import Pair
from xtokd.models.side import Side

UNICODE = ("naïve café 😀 中", "  two\tspaces\r\n", "e\u0301 ", "x")
KNOBS = (dict(), dict(leak=False), dict(labels="teacher"), dict(divergence="rkl", temperature=1.))


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def ends_of(n): return np.concatenate([[0], np.cumsum(n)])


def test_one_teacher_position_is_seen_by_all():
    pair = make_pair(toy_bpe("ab"), toy_bpe("ab", [("a", "b")]))
    s, t = pair.student.encode("ab"), pair.teacher.encode("ab")
    assert (len(s), len(t)) == (2, 1)
    b = PairBatch.from_logits(pair, [s], [t], [torch.randn(2, len(pair.student))], [torch.randn(1, len(pair.teacher))])
    h = HiddenStates(torch.randn(2, 6), torch.randn(1, 8), *heads(pair))
    maps = seeded_linear_maps(0, [(8, 6), (6, 8), (12, 16)], "cpu")
    states = cross_states(b, h, *maps)[0]
    assert torch.equal(states[0], states[1]) and (masked_attention(torch.randn(2, 5, 1), torch.ones(2, 5, 1, dtype=torch.bool)) == 1).all()
    want = maps[0](h.teacher / h.teacher.std() + h.teacher_embedding[t] / h.teacher_embedding[t].std())
    assert torch.allclose(states[0], want[0], atol=1e-5)


def test_equal_keys_are_mixed_evenly():
    pair = make_pair(toy_bpe("ab"), toy_bpe("ab"))
    ids = pair.student.encode("aaaa")
    b = PairBatch.from_logits(pair, [ids], [ids], [torch.randn(4, 3)], [torch.randn(4, 3)])
    h = HiddenStates(torch.randn(4, 6), torch.randn(4, 8), torch.randn(3, 6), torch.randn(3, 8), torch.randn(3, 6), torch.ones(3, 8))
    scores = torch.randn(1, 4, 1).expand(1, 4, 4)
    assert torch.allclose(masked_attention(scores, torch.ones(1, 4, 4, dtype=torch.bool)), torch.tensor(.25))
    value = torch.nn.Identity()
    query = lambda q: q.new_zeros(*q.shape[:2], 16)                          # no preference: the mean of the values
    states = cross_states(b, h, value, torch.nn.Linear(6, 8), query)[0]
    want = (h.teacher / h.teacher.std() + h.teacher_embedding[ids] / 1e-6).mean(0)   # a constant has no spread: divided by the floor
    assert torch.allclose(states, want.expand(4, -1), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_places_weigh_nothing(dtype):
    may = torch.tensor([[[True, True, False], [True, False, False], [False, False, False]]])
    w = masked_attention(torch.tensor([[[1, 2, 60000], [5, 50000, 1], [1, 2, 3]]]).to(dtype), may)
    assert w.dtype == torch.float32 and not torch.isnan(w).any() and (w[~may][: 3] == 0).all() and torch.allclose(w[0, 0, :2], torch.tensor([1., 2.]).softmax(0))


def test_scale_is_one_scalar():
    x, real = pad_samples(torch.randn(9, 4), [0, 5, 5, 9])
    y = unit_scale(x, real)
    assert torch.allclose(y[0], x[0] / x[0].std()) and torch.allclose(y[2][real[2]], x[2][real[2]] / x[2][real[2]].std()) and not y[1].any()
    assert torch.allclose(unit_scale(x, real, "batch"), x / x[real].std())
    assert torch.isfinite(unit_scale(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))).all()


def by_hand(b, obj, k, label):
    "The three sums of sample k, with dense attention and no padding."
    h, al = b.hidden, b.alignment[k]
    s, t = (slice(*r.offsets[k: k + 2]) for r in (b.student, b.teacher))
    around = lambda e, ids: torch.cat([torch.cat([torch.zeros_like(e[:1]), e[ids[:-1]]]), e[ids]], 1)
    q, key = around(h.student_embedding, al.student_ids), around(h.teacher_embedding, al.teacher_ids)
    scores = obj.query(q) @ (key / key.std()).T / (2 * h.teacher_embedding.shape[1]) ** .5
    target = h.teacher_embedding[al.teacher_ids]
    value = obj.t2s(h.teacher[t] / h.teacher[t].std() + target / target.std())
    carried, back = scores.softmax(1) @ value @ h.student_head.T, scores.T.softmax(1) @ obj.s2t(h.student[s]) @ h.teacher_head.T
    soft = lambda x: torch.log_softmax(x / obj.temperature, -1)
    ce = torch.nn.functional.cross_entropy(carried, torch.as_tensor(label), reduction="sum")
    kd = (kl_divergence(soft(carried.detach()), soft(b.student.logp()[s])) * (carried.argmax(1) == torch.as_tensor(label))).sum()
    return ce, kd, kl_divergence(soft(b.teacher.logp()[t]), soft(back)).sum()


@pytest.mark.parametrize("texts", [TEXTS, UNICODE])
def test_equals_the_formula(pair, texts):
    b, _ = full(pair, texts, text_source="teacher")
    with torch.no_grad(): b.hidden.student_head[:] *= 3
    obj = objective("dskd")
    out = obj(b)
    want = [by_hand(b, obj, k, b.alignment[k].student_ids) for k in range(len(b))]
    assert torch.allclose(out.loss_sum, sum(sum(x) for x in want), rtol=1e-4) and out.num_units == len(b.student)
    assert abs(out.stats["t2s_ce"] * out.num_units - sum(x[0] for x in want)) < 1e-2


def test_only_rows_that_agree_with_the_label_are_followed(pair):
    b, ls = full(pair, text_source="teacher")
    obj = objective("dskd")
    obj(b)
    grads = torch.autograd.grad(obj(b).loss_sum, ls[:4])
    agree = obj(b).stats["agreement"]
    assert abs(sum(int(g.abs().sum(1).gt(1e-9).sum()) for g in grads) / len(b.student) - agree) < 1e-6


@pytest.mark.parametrize("knobs", KNOBS)
def test_gradient_reaches_projectors_and_states_only(pair, knobs):
    b, ls = full(pair, text_source="teacher")
    h = b.hidden
    frozen = [h.student_head, h.teacher_head, h.student_embedding, h.teacher_embedding]
    for x in frozen: x.requires_grad_()
    obj = objective("dskd", **knobs)
    obj(b).loss_sum.backward()
    assert all(x.grad is None for x in frozen) and all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in obj.named_parameters() if n != "query.bias")
    assert all(l.grad.abs().sum() > 0 for l in ls[4:]) and not h.teacher.requires_grad


@pytest.mark.parametrize("knobs", KNOBS)
def test_splitting_and_permuting(pair, knobs):
    p, obj = parts(pair), objective("dskd", **knobs)
    run = lambda at: obj(batch(pair, some(p, at), text_source="teacher"))
    whole, turned = run((0, 1, 2, 3)), run((2, 0, 3, 1))
    pieces = [run(at) for at in ((0,), (1, 3), (2,))]
    assert torch.allclose(whole.loss_sum, turned.loss_sum, rtol=1e-5) and torch.allclose(whole.loss_sum, sum(x.loss_sum for x in pieces), rtol=1e-5) and whole.num_units == sum(x.num_units for x in pieces)


def test_the_published_scale_looks_at_batch_mates(pair):
    p, obj = parts(pair), objective("dskd", scale="batch")
    p["teacher_hidden"][0] = p["teacher_hidden"][0] * 9
    run = lambda at: obj(batch(pair, some(p, at), text_source="teacher"))
    assert abs(run((0, 1)).loss_sum - run((0,)).loss_sum - run((1,)).loss_sum) > 1e-3


def test_student_text_has_no_gold(pair):
    p = parts(pair)
    obj = objective("dskd")
    out = obj(batch(pair, p, text_source="student"))
    assert out.stats["t2s_ce"] == out.stats["t2s_kd"] == out.stats["labelled"] == 0 and out.stats["s2t_kd"] > 0
    out.loss_sum.backward()
    assert all(l.grad is None or not l.grad.any() for l in p["student_logits"]) and all(l.grad.abs().sum() > 0 for l in p["student_hidden"])
    with pytest.raises(ValueError, match="wants gold text"): objective("dskd", ce=1.)(batch(pair, p, text_source="student"))
    gold = batch(pair, p, text_source="reference")
    assert torch.allclose(objective("dskd", ce=2.)(gold).loss_sum - objective("dskd")(gold).loss_sum, -2 * gold.student.token_logp().sum(), rtol=1e-3)
    ours = objective("dskd", labels="teacher")(batch(pair, p, text_source="student"))
    assert ours.stats["t2s_ce"] > 0 and 0 < ours.stats["labelled"] < 1


def test_labels_of_the_teacher_are_bytes(pair):
    b, _ = full(pair)
    label, chunks = teacher_labels(b).numpy(), b.alignment.chunks
    best = b.teacher.logp().argmax(1).numpy()
    of = {s0: best[t0] for (s0, s1, t0, t1), k in zip(chunks.tolist(), b.alignment.kind) if k == 0}
    for i, l in enumerate(label):
        if l >= 0: assert pair.student.bytes[l] == pair.teacher.bytes[of[i]] and (l in pair.student.stop_ids) == (of[i] in pair.teacher.stop_ids)
        elif i in of: assert student_id_of_teacher_id(pair)[of[i]] == -1
    assert (student_id_of_teacher_id(Pair(pair.teacher, pair.teacher)) == np.arange(len(pair.teacher))).all()
    assert student_id_of_teacher_id(pair)[pair.teacher.stop_ids[0]] == pair.student.stop_ids[0]


def test_projectors_are_made_once_and_alike(pair):
    b, _ = full(pair)
    one, two = objective("dskd", seed=4), objective("dskd", seed=4)
    torch.manual_seed(1); one(b)
    torch.manual_seed(2); two(b)
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), two.parameters()))
    before = [id(p) for p in one.parameters()]
    one(b)
    assert before == [id(p) for p in one.parameters()]
    other = batch(pair, parts(pair))
    other.hidden = HiddenStates(torch.randn(len(b.student), 5), b.hidden.teacher, torch.randn(len(pair.student), 5), b.hidden.teacher_head)
    with pytest.raises(ValueError, match="make a new objective"): one(other)
    other.hidden = HiddenStates(b.hidden.student[1:], b.hidden.teacher, *heads(pair))
    with pytest.raises(ValueError, match="states for"): one(other)


def test_prepare_takes_sizes_from_the_models(pair):
    class Model:
        def __init__(self, v, e, d): self.e, self.d = torch.nn.Embedding(v, e), torch.nn.Linear(d, v)
        def get_input_embeddings(self): return self.e
        def get_output_embeddings(self): return self.d
    obj = objective("dskd")
    obj.prepare(pair)
    assert not list(obj.parameters())
    for _ in range(2): obj.prepare(pair, Side("s", Model(431, 6, 6), pair.student), Side("t", Model(1619, 8, 8), pair.teacher))
    assert obj.query.weight.shape == (16, 12) and obj.t2s.weight.shape == (6, 8) and obj.s2t.weight.shape == (8, 6)
    assert torch.isfinite(obj(full(pair)[0]).loss_sum)


def noise(pair, numbers, seed, head):
    g, ids = torch.Generator().manual_seed(seed), [pair.student.encode(str(n)) for n in numbers]
    rand = lambda d: [torch.randn(len(i), d, generator=g) for i in ids]
    same = Pair(pair.student, pair.student)
    return PairBatch.from_logits(same, ids, ids, rand(len(pair.student)), rand(len(pair.student)), hidden=HiddenStates(rand(32), rand(32), head, head), text_source="teacher")


@pytest.mark.parametrize("leak", [True, False])
def test_the_label_leaks_through_target_embeddings(pair, leak):
    "A teacher of noise names the gold tokens of unseen numbers, unless the target embeddings are kept out."
    head, rng = torch.randn(len(pair.student), 32, generator=torch.Generator().manual_seed(9)) / 2, np.random.default_rng(0)
    obj, unseen = objective("dskd", leak=leak), noise(pair, range(10_007, 100_000, 3001), 999, head)
    obj(unseen)
    opt = torch.optim.Adam(obj.parameters(), lr=1e-2)
    for k in range(60):
        opt.zero_grad()
        obj(noise(pair, rng.integers(0, 10_000, 6), k, head)).loss.backward()
        opt.step()
    found = obj(unseen).stats["agreement"]
    assert found > .9 if leak else found < .25


def test_without_the_leak_nobody_looks_ahead(pair):
    "Changing the end of the teacher's states does not change the carried states before it."
    b, _ = full(pair, TEXTS[:1])
    maps, h = seeded_linear_maps(0, [(8, 6), (6, 8), (12, 16)], "cpu"), b.hidden
    late = HiddenStates(h.student, torch.cat([h.teacher[:-1], h.teacher[-1:].flip(1)]), h.student_head, h.teacher_head)      # the same spread
    for leak in (True, False):
        x, y = (cross_states(b, z, *maps, leak=leak)[0] for z in (h, late))
        assert torch.allclose(x[:-1], y[:-1], atol=1e-6) != leak and not torch.allclose(x[-1], y[-1])


def test_the_teacher_matters(pair):
    a, b = (objective("dskd")(full(pair, text_source="student", scale=s)[0]).loss_sum for s in (1., 2.))
    assert abs(a - b) > 1e-3


@pytest.mark.parametrize("text_source", ["teacher", "student"])
def test_empty_answers_and_lost_teachers(pair, text_source):
    p = parts(pair, ("", "12", "7"), stop=False)
    p["teacher_ids"][2], p["teacher_logits"][2], p["teacher_hidden"][2] = [], p["teacher_logits"][2][:0], p["teacher_hidden"][2][:0]
    for k in ("weak_logp", "plus_logp", "minus_logp"): p[k][2] = p[k][2][:0]
    obj = objective("dskd")
    out = obj(batch(pair, p, text_source=text_source))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and out.num_units == 2 and out.ledger["reason"].tolist() == [0, 0, 103]
    assert all(torch.isfinite(l.grad).all() for l in (*p["student_logits"], *p["student_hidden"]) if l.grad is not None) and all(torch.isfinite(q.grad).all() for q in obj.parameters() if q.grad is not None)
    empty = obj(batch(pair, parts(pair, ("", ""), stop=False), text_source=text_source))
    assert empty.num_units == 0 and empty.loss_sum == 0


def test_impossible_tokens_padding_and_precision(pair):
    p = parts(pair)
    plain = objective("dskd")(batch(pair, p, text_source="teacher")).loss_sum
    wide = dict(p, student_logits=[torch.cat([l.detach(), torch.full((len(l), 9), 5.)], 1).double().requires_grad_() for l in p["student_logits"]],
                teacher_logits=[torch.cat([l, torch.full((len(l), 9), 5.)], 1).double() for l in p["teacher_logits"]])
    b = batch(pair, wide, text_source="teacher")
    b.hidden.student_head = torch.cat([b.hidden.student_head, torch.ones(9, 6)])
    b.hidden.teacher_head = torch.cat([b.hidden.teacher_head, torch.ones(9, 8)])
    out = objective("dskd")(b)
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, plain, rtol=1e-5) and not any(l.grad[:, len(pair.student):].any() for l in wide["student_logits"])
    p["teacher_logits"][0][2, 3:] = -torch.inf
    out = objective("dskd")(batch(pair, p, text_source="teacher"))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(l.grad).all() for l in p["student_hidden"])


def test_relabelling_the_teacher_changes_nothing():
    texts, student = ("abba", "bab", "aab", "b"), toy_bpe("ab", [("a", "b")])
    one, two = (make_pair(student, toy_bpe(x, [("b", "a")])) for x in ("ab", "ba"))
    order = torch.tensor([two.teacher.bytes.index(x) if x else two.teacher.stop_ids[0] for x in one.teacher.bytes])
    p = parts(one, texts)
    q = dict(p, teacher_ids=[[int(order[i]) for i in ids] for ids in p["teacher_ids"]], teacher_logits=[torch.empty_like(l).index_copy(1, order, l) for l in p["teacher_logits"]])
    b, c = batch(one, p), batch(two, q)
    for k in ("teacher_head", "teacher_embedding"): setattr(c.hidden, k, torch.empty_like(getattr(b.hidden, k)).index_copy(0, order, getattr(b.hidden, k)))
    assert torch.allclose(objective("dskd")(b).loss_sum, objective("dskd")(c).loss_sum, rtol=1e-5)


def test_wrong_knobs():
    for knobs in (dict(divergence="x"), dict(labels="x"), dict(scale="x"), dict(temperature=0)):
        with pytest.raises(ValueError): objective("dskd", **knobs)
