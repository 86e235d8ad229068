"""DSKDv2: the map between heads, the published walk against byte chunks, labels that are never a silent stop, and where the gradient goes."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from batches import TEXTS, batch, full, heads, parts, some
from xtokd.objectives.released_aligners import eta_walk
from xtokd.exact.toy_models import toy_bpe, make_pair, random_bpe
from xtokd.rows.pair_batch import HiddenStates, PairBatch
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.objectives.divergences import divergence
from xtokd.objectives import objective
from xtokd.objectives.hidden.dskd import student_id_of_teacher_id, teacher_labels
from xtokd.objectives.hidden.dskdv2 import DSKDv2, head_map, shared_head_ids
from xtokd.alignment.pair import Pair
from xtokd.models.side import Side

UNICODE = ("naïve café 😀 中", "  two\tspaces\r\n", "e\u0301 ", "x")
KNOBS = (dict(), dict(divergence="rkl"), dict(divergence="jsd", temperature=2.), dict(top=40))
LLAMA, GPT2 = "▁A ▁group ▁of ▁c ats ▁is ▁called ▁a ▁c low der .".split(), "A Ġgroup Ġof Ġcats Ġis Ġcalled Ġa Ġcl owder .".split()


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


# ---- the map between the heads ----------------------------------------------------------------------------------------------
def test_a_linear_image_is_recovered():
    g = torch.Generator().manual_seed(0)
    W_S, A = torch.randn(60, 6, generator=g, dtype=torch.float64), torch.randn(8, 6, generator=g, dtype=torch.float64)
    assert (head_map(W_S @ A.T, W_S) - A).abs().max() < 2e-14    # to rounding: the published 2e-15 is one draw's, a plain pseudo-inverse has 9e-15 here


@pytest.mark.parametrize("size", [0, 1, 3, 200])
def test_equals_the_pseudo_inverse(size):
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(size, 8, generator=g), torch.randn(size, 6, generator=g)
    want = a.double().T @ torch.linalg.pinv(b.double().T)
    assert torch.allclose(head_map(a, b), want, atol=1e-6) and head_map(a.bfloat16(), b.bfloat16()).dtype == torch.float64


def test_more_rows_than_a_block():
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(9000, 3, generator=g), torch.randn(9000, 2, generator=g)
    assert torch.allclose(head_map(a, b), a.double().T @ torch.linalg.pinv(b.double().T), atol=1e-9)


def test_overlap_is_bytes_and_the_stop_role(pair):
    s, t = shared_head_ids(pair)
    assert (s[0], t[0]) == (pair.student.stop_ids[0], pair.teacher.stop_ids[0]) and all(pair.student.bytes[i] == pair.teacher.bytes[j] for i, j in zip(s, t))
    assert len(s) == len(pair.overlap.shared_student_ids) + 1 and len(shared_head_ids(pair, 5)[0]) == 5
    assert (shared_head_ids(Pair(pair.student, pair.student))[0] == np.arange(len(pair.student))).all()


def marked(words):
    "A tokenizer with `▁` for spaces that has these words, and their letters."
    pieces = dict.fromkeys([*(c for w in words for c in w), *words, "</s>"])
    tok = Tokenizer(models.Unigram([(p, -1. if len(p) > 1 else -9.) for p in ("<unk>", *pieces)], unk_id=0))
    tok.normalizer, tok.pre_tokenizer, tok.decoder = normalizers.Replace(" ", "▁"), None, decoders.Replace("▁", " ")
    tok.add_special_tokens(["</s>"])
    return ByteVocab(tok, stops=[tok.token_to_id("</s>")])


def test_spelling_hides_what_bytes_share():
    "Two spellings of a leading space: by name only the word without one is common."
    raw = {"the", "Ġthe", "Ġcat"} & {"the", "▁the", "▁cat"}
    s, t = toy_bpe(" theca", [("t", "h"), ("th", "e"), (" ", "the"), ("c", "a"), ("ca", "t"), (" ", "cat")]), marked(["the", "▁the", "▁cat"])
    v = make_pair(s, t).overlap
    found = {s.bytes[i] for i in v.shared_student_ids if len(s.bytes[i]) > 1}
    assert raw == {"the"} and found == {b"the", b" the", b" cat"}


# ---- the published walk -----------------------------------------------------------------------------------------------------
def test_walk_on_the_clowder_sentence():
    walk = eta_walk(GPT2, LLAMA)
    assert [t for _, t in walk] == [0, 1, 2, 5, 6, 7, 11] and [s for s, _ in walk] == [0, 1, 2, 4, 5, 6, 9]


def test_walk_never_finds_back_after_mojibake(): assert eta_walk(["c", "af", "Ã©", "Ġx"], ["▁café", "▁x"]) == []


def test_walk_takes_a_word_for_its_spaced_twin(): assert eta_walk(["the"], ["Ġthe"]) == [(0, 0)]


def test_walk_pairs_stops_of_both_names(): assert eta_walk(["a", "<|endoftext|>"], ["▁a", "</s>"]) == [(0, 0), (1, 1)]


def test_bytes_find_what_the_walk_loses():
    "café and x by bytes: the last word is a 1-1 chunk."
    s, t = toy_bpe("cafx \u00e9", [("a", "f"), ("\u00e9".encode()[:1], "\u00e9".encode()[1:]), (" ", "x")]), toy_bpe("cafx \u00e9", [("c", "a"), ("ca", "f"), ("\u00e9".encode()[:1], "\u00e9".encode()[1:]), ("caf", "\u00e9"), (" ", "x")])
    al = Pair(s, t).align("café x")
    assert [al.student.bytes[i] for i in al.student_ids] == [b"c", b"af", "é".encode(), b" x"] and len(al.teacher_ids) == 2
    assert al.chunks[al.kind == 0].tolist() == [[3, 4, 1, 2]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10 ** 6), st.text("abc", max_size=20))
def test_walk_on_plain_text_is_the_1_1_chunks(seed, text):
    rng = np.random.default_rng(seed)
    p = Pair(random_bpe(rng, "abc", 4), random_bpe(rng, "abc", 4))
    al = p.align(text)
    names = lambda bv, ids: [bv.bytes[i].decode() for i in ids]
    assert eta_walk(names(p.student, al.student_ids), names(p.teacher, al.teacher_ids)) == [(c[0], c[2]) for c in al.chunks[al.kind == 0].tolist()]


# ---- labels -----------------------------------------------------------------------------------------------------------------
def test_what_cannot_be_converted_is_dropped_and_never_a_stop():
    p = make_pair(toy_bpe("abc"), toy_bpe("abc", [("a", "b")]))
    ids = p.student.encode("cac")
    favourite = [p.teacher.bytes.index(b"ab"), p.teacher.stop_ids[0], p.teacher.bytes.index(b"b")]
    t = torch.zeros(3, len(p.teacher)).index_put((torch.arange(3), torch.tensor(favourite)), torch.tensor(9.))
    b = PairBatch.from_logits(p, [ids], [p.teacher.encode("cac")], [torch.randn(3, 4).requires_grad_()], [t], hidden=HiddenStates(torch.randn(3, 6), torch.randn(3, 8), *heads(p)))
    assert teacher_labels(b).tolist() == [-1, p.student.stop_ids[0], p.student.bytes.index(b"b")]
    out = objective("dskdv2")(b)
    assert out.ledger["reason"].tolist() == [101, 0, 0] and out.num_units == 2 and abs(out.stats["labelled"] - 2 / 3) < 1e-6
    raw = {"a": 0, "b": 1, "c": 2}                                              # by raw string with a default: the silent stop of the original
    assert raw.get("ab", p.student.stop_ids[0]) == p.student.stop_ids[0] != student_id_of_teacher_id(p)[favourite[0]]


# ---- the objective ----------------------------------------------------------------------------------------------------------
def by_hand(b, obj, only_agreeing=True):
    h, total, count = b.hidden, 0., 0
    s_ids, t_ids = shared_head_ids(b.pair)
    back = (h.student_head[s_ids].double().T @ torch.linalg.pinv(h.teacher_head[t_ids].double().T)).float()
    ours, theirs, map_ = b.student.logp(), b.teacher.logp(), student_id_of_teacher_id(b.pair)
    soft = lambda x: torch.log_softmax(x / obj.temperature, -1)
    for (s0, s1, t0, t1), kind in zip(b.alignment.chunks.tolist(), b.alignment.kind):
        label = map_[int(theirs[t0].argmax())]
        if kind or label < 0: continue
        carried = h.teacher[t0] @ obj.t2s @ h.student_head.T
        total, count = total - torch.log_softmax(carried, 0)[label] + divergence(soft(h.student[s0] @ back @ h.teacher_head.T), soft(theirs[t0]), obj.divergence_kind, obj.beta), count + 1
        if not only_agreeing or int(carried.argmax()) == label: total = total + divergence(soft(ours[s0]), soft(carried.detach()), obj.divergence_kind, obj.beta)
    return total, count


def agreeing(p, pair, top=None):
    "Teacher rows and states of `parts` such that the carried rows often say the label."
    s_head, t_head = heads(pair)
    back = head_map(t_head[shared_head_ids(pair, top)[1]], s_head[shared_head_ids(pair, top)[0]]).float()
    for k, h in enumerate(p["teacher_hidden"]):
        best = (h @ back @ s_head.T).argmax(1).tolist()
        for i, j in enumerate(best):
            to = np.flatnonzero(student_id_of_teacher_id(pair) == j)
            if len(to) and i % 4: p["teacher_logits"][k][i, to[0]] += 20
    return p


@pytest.mark.parametrize("knobs", KNOBS[:3])
@pytest.mark.parametrize("texts", [TEXTS, UNICODE])
def test_equals_the_formula(pair, texts, knobs):
    obj = objective("dskdv2", **knobs)
    b = batch(pair, agreeing(parts(pair, texts), pair))
    out = obj(b)
    total, count = by_hand(b, obj)
    assert count == out.num_units > 0 and abs(out.loss_sum - total) < 1e-3 * total and 0 < out.stats["agreement"] < 1


def test_the_threshold_opens_all_rows(pair):
    p = some(agreeing(parts(pair), pair), (0, 2))
    b, obj = batch(pair, p), objective("dskdv2", agreement=0.)
    out, rate = obj(b), objective("dskdv2")(b).stats["agreement"]
    shares = [objective("dskdv2")(batch(pair, some(p, (k,)))).stats["agreement"] for k in range(2)]
    assert 0 < rate < 1 and min(shares) > 0
    assert abs(out.loss_sum - by_hand(b, obj, only_agreeing=False)[0]) < 1e-2
    assert torch.allclose(objective("dskdv2", agreement=max(shares))(b).loss_sum, objective("dskdv2")(b).loss_sum)


@pytest.mark.parametrize("knobs", KNOBS)
def test_gradient_reaches_the_projector_and_the_student_only(pair, knobs):
    p = agreeing(parts(pair), pair, knobs.get("top"))
    b = batch(pair, p)
    h = b.hidden
    for x in (h.student_head, h.teacher_head): x.requires_grad_()
    obj = objective("dskdv2", **knobs)
    obj(b).loss_sum.backward()
    assert h.student_head.grad is None and h.teacher_head.grad is None and not h.teacher.requires_grad and obj.t2s.grad.abs().sum() > 0
    assert all(l.grad.abs().sum() > 0 for l in p["student_hidden"]) and any(l.grad.any() for l in p["student_logits"])
    assert [n for n, _ in obj.named_parameters()] == ["t2s"]


@pytest.mark.parametrize("knobs", [*KNOBS, dict(agreement=.4)])
def test_splitting_and_permuting(pair, knobs):
    p, obj = agreeing(parts(pair), pair), objective("dskdv2", **knobs)
    run = lambda at: obj(batch(pair, some(p, at)))
    whole, turned = run((0, 1, 2, 3)), run((2, 0, 3, 1))
    pieces = [run(at) for at in ((0,), (1, 3), (2,))]
    assert torch.allclose(whole.loss_sum, turned.loss_sum, rtol=1e-5) and torch.allclose(whole.loss_sum, sum(x.loss_sum for x in pieces), rtol=1e-5) and whole.num_units == sum(x.num_units for x in pieces)


def test_the_way_back_follows_the_current_head(pair):
    b, _ = full(pair)
    obj = objective("dskdv2")
    first = obj(b).stats["s2t_kd"]
    kept = obj.t2s.clone()
    b.hidden.student_head = b.hidden.student_head * 2
    assert abs(obj(b).stats["s2t_kd"] - first) > 1e-3 and torch.equal(kept, obj.t2s)


@pytest.mark.parametrize("kind", ["fkl", "rkl", "jsd"])
def test_a_teacher_that_is_the_student_asks_for_nothing(pair, kind):
    same, g = Pair(pair.student, pair.student), torch.Generator().manual_seed(0)
    head, ids = torch.randn(len(pair.student), 6, generator=g), pair.student.encode("The number is 9632.")
    states = torch.randn(len(ids), 6, generator=g).requires_grad_()
    b = PairBatch.from_logits(same, [ids], [ids], [states @ head.T], [states.detach() @ head.T], hidden=HiddenStates(states, states, head, head))
    obj = objective("dskdv2", divergence=kind)
    out = obj(b)
    assert torch.autograd.grad(out.loss_sum, states)[0].abs().max() < 1e-4 and torch.allclose(obj.t2s, torch.eye(6), atol=1e-5) and out.stats["agreement"] == 1 and abs(out.stats["t2s_kd"]) < 1e-5


def test_on_policy_and_gold(pair):
    p = parts(pair)
    own, gold = batch(pair, p, text_source="student"), batch(pair, p, text_source="reference")
    assert torch.allclose(objective("dskdv2")(own).loss_sum, objective("dskdv2")(gold).loss_sum)          # nothing in it is gold
    with pytest.raises(ValueError, match="wants gold text"): objective("dskdv2", ce=1.)(own)
    for k in range(len(p["student_ids"])):                                          # the mean cross-entropy of the answer is added
        one = batch(pair, some(p, [k]), text_source="reference")
        alone, both = objective("dskdv2")(one), objective("dskdv2", ce=.5)(one)
        if not alone.num_units: continue
        assert both.num_units == alone.num_units and torch.allclose(both.loss - alone.loss, -.5 * one.student.token_logp().mean(), rtol=1e-3)
    out = objective("dskdv2", ce=.5)(gold)


def test_the_teacher_matters(pair):
    a, b = (objective("dskdv2")(full(pair, scale=s)[0]).loss_sum for s in (1., 2.))
    assert abs(a - b) > 1e-3


def test_nothing_to_align():
    "No 1-1 chunk; no shared token at all; no text."
    p = make_pair(toy_bpe("ab"), toy_bpe("ab", [("a", "b")]))
    b, ls = full(p, ("ab", "abab"), stop=False)
    out = objective("dskdv2")(b)
    assert out.num_units == 0 and out.loss_sum == 0 and out.stats["agreement"] == 0
    q = make_pair(ByteVocab(toy_bpe("ab").tokenizer, stops=[]), ByteVocab(toy_bpe("cd").tokenizer, stops=[]))
    assert not len(shared_head_ids(q)[0])
    c = PairBatch.from_logits(q, [[0, 1]], [[0, 1]], [torch.randn(2, 3).requires_grad_()], [torch.randn(2, 3)], hidden=HiddenStates(torch.randn(2, 6), torch.randn(2, 8), *heads(q)))
    out = objective("dskdv2")(c)
    assert out.num_units == 0 and out.loss_sum == 0
    e = objective("dskdv2")(full(p, ("", ""), stop=False)[0])
    assert e.num_units == 0 and e.loss_sum == 0


def test_truncated_and_impossible_teachers(pair):
    p = parts(pair)
    p["teacher_logits"][0], p["teacher_hidden"][0] = p["teacher_logits"][0][:3], p["teacher_hidden"][0][:3]
    for k in ("weak_logp", "plus_logp", "minus_logp"): p[k][0] = p[k][0][:3]
    p["teacher_logits"][1][:, 4:] = -torch.inf
    out = objective("dskdv2")(batch(pair, p))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(l.grad).all() for l in (*p["student_logits"], *p["student_hidden"]) if l.grad is not None)
    with pytest.raises(ValueError, match="states for"):
        b = batch(pair, parts(pair))
        b.hidden.teacher = b.hidden.teacher[1:]
        objective("dskdv2")(b)


def test_padding_and_precision(pair):
    p = parts(pair)
    plain = objective("dskdv2")(batch(pair, p)).loss_sum
    wide = dict(p, student_logits=[torch.cat([l.detach(), torch.full((len(l), 9), 5.)], 1).double().requires_grad_() for l in p["student_logits"]],
                teacher_logits=[torch.cat([l, torch.full((len(l), 9), 50.)], 1).double() for l in p["teacher_logits"]])
    b = batch(pair, wide)
    h = b.hidden
    h.student_head, h.teacher_head = torch.cat([h.student_head, torch.ones(9, 6)]), torch.cat([h.teacher_head, torch.ones(9, 8)])
    out = objective("dskdv2")(b)
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, plain, rtol=1e-5) and not any(l.grad[:, len(pair.student):].any() for l in wide["student_logits"])
    b = batch(pair, p)
    for k in ("student", "teacher", "student_head", "teacher_head"): setattr(b.hidden, k, getattr(b.hidden, k).bfloat16())
    assert torch.allclose(objective("dskdv2")(b).loss_sum, plain, rtol=.05)


def test_prepare_reads_the_heads(pair):
    class Model:
        def __init__(self, v, d): self.d = torch.nn.Linear(d, v, bias=False)
        def get_output_embeddings(self): return self.d
    s, t = Model(len(pair.student), 6), Model(len(pair.teacher), 8)
    obj = objective("dskdv2")
    obj.prepare(pair)
    assert not list(obj.parameters())
    obj.prepare(pair, Side("s", s, pair.student), Side("t", t, pair.teacher))
    first = obj.t2s
    obj.prepare(pair, Side("s", s, pair.student), Side("t", t, pair.teacher))
    i, j = shared_head_ids(pair)
    assert obj.t2s is first and torch.allclose(first.double(), t.d.weight[j].double().T @ torch.linalg.pinv(s.d.weight[i].double().T), atol=1e-5) and first.requires_grad
    obj(full(pair)[0])
    with pytest.raises(ValueError, match="make a new objective"): obj.prepare(pair, Side("s", Model(431, 5), pair.student), Side("t", t, pair.teacher))


def test_relabelling_the_teacher_changes_nothing():
    texts, student = ("abba", "bab", "aab", "b"), toy_bpe("ab", [("a", "b")])
    one, two = (make_pair(student, toy_bpe(x, [("b", "a")])) for x in ("ab", "ba"))
    order = torch.tensor([two.teacher.bytes.index(x) if x else two.teacher.stop_ids[0] for x in one.teacher.bytes])
    p = parts(one, texts)
    q = dict(p, teacher_ids=[[int(order[i]) for i in ids] for ids in p["teacher_ids"]], teacher_logits=[torch.empty_like(l).index_copy(1, order, l) for l in p["teacher_logits"]])
    b, c = batch(one, p), batch(two, q)
    for k in ("teacher_head", "teacher_embedding"): setattr(c.hidden, k, torch.empty_like(getattr(b.hidden, k)).index_copy(0, order, getattr(b.hidden, k)))
    assert torch.allclose(objective("dskdv2")(b).loss_sum, objective("dskdv2")(c).loss_sum, rtol=1e-4)


def test_wrong_knobs():
    for knobs in (dict(divergence="x"), dict(temperature=0), dict(agreement=2)):
        with pytest.raises(ValueError): objective("dskdv2", **knobs)
