"MinED: which rows have a partner, what is carried over, and where the written token stands in."
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, full, parts
from warped import check_hard_cases, check_parts, check_relabelling, same_gradient
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.objectives.divergences import divergence
from xtokd.objectives import objective
from xtokd.objectives.projection.dtw import NearestToken, warp
from xtokd.objectives.projection.mined import matched_tokens, stops_last, transfer_by_spelling
from xtokd.alignment.pair import Pair


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def words(*names): return toy_bpe(" abcdefghijklmnoprstuvwCDIOV0129", [(w[:k], w[k]) for w in names for k in range(1, len(w))])


def toy(student, teacher, text):
    "A pair of tokenizers that know these words only, and a batch of one text."
    p = make_pair(words(*student), words(*teacher))
    return p, full(p, (text,))[0]


def partners(p, b, **how):
    got = matched_tokens(b, warp(b).pairs, **how)
    return {p.student.bytes[i].decode(): p.teacher.bytes[b.teacher.ids[j]].decode() if j >= 0 else None for i, j in zip(b.student.ids, got)}


def test_wrong_paths_leave_rows_without_partner():                                # the published wrong alignments, through the whole method
    p, b = toy((" of", " cats", " was"), (" of", " c", "ats", " was"), " of cats was")
    assert partners(p, b) == {" of": None, " cats": None, " was": " was", "": ""} and warp(b).cost.tolist() == [3]
    p, b = toy((" CO", "VID", " 19"), (" COVID", " 1"), " COVID 19")
    assert partners(p, b)["VID"] is None and partners(p, b)[" 19"] is None
    p, b = toy((" during", " the", " flag", " carrier"), (" during", " the", " flag", " car", "rier"), " the flag carrier during")
    assert partners(p, b) == {" the": " the", " flag": None, " carrier": None, " during": " during", "": ""} and warp(b).cost.tolist() == [6]


def test_soft_matches_go_by_the_vocabulary_map():
    p, b = toy((" car",), (" cart", " c"), " cart")                               # [ car, t] against [ cart]: both student tokens have one partner
    assert partners(p, b)[" car"] == " cart" and partners(p, b, match="hard")[" car"] is None and partners(p, b)["t"] is None


def test_transfer_by_hand():
    p = make_pair(words("cat", "dog"), words("cats", "cat"))
    to = NearestToken(p.teacher, p.student)
    row = torch.zeros(1, len(p.teacher))
    at = lambda bv, x: bv.bytes.index(x.encode())
    row[0, [at(p.teacher, "cat"), at(p.teacher, "cats"), p.teacher.stop_ids[0]]] = torch.tensor([.5, .3, .2])
    got = transfer_by_spelling(row.log(), to, len(p.student))[0]
    assert torch.allclose(got[[at(p.student, "cat"), p.student.stop_ids[0]]], torch.tensor([.8, .2])) and abs(got.sum() - 1) < 1e-6     # collisions add up
    exact = transfer_by_spelling(row.log(), to, len(p.student), top_k=0)[0]
    assert abs(exact[at(p.student, "cat")] - .5) < 1e-6 and abs(exact.sum() - .7) < 1e-6


def test_stops_are_one_event():
    from types import SimpleNamespace
    two = SimpleNamespace(student=SimpleNamespace(stop_ids=(0, 2)), overlap=SimpleNamespace(identical=False))
    x = torch.tensor([[.5, .2, .3]]).log()
    assert torch.allclose(stops_last(two, x)[0].exp(), torch.tensor([[.2, .8]]))
    two.overlap.identical = True
    assert stops_last(two, x)[0] is x


def test_one_hot_on_gold_text_only(pair):
    b, _ = full(pair)
    own = objective("mined")(b)
    gold = objective("mined")(full(pair, text_source="reference")[0])
    alone = own.ledger["weight"] == 0
    assert 0 < alone.sum() < len(alone) and (own.ledger["reason"][alone] == 100).all() and own.stats["one_hot_share"] == 0
    assert gold.num_units == len(b.student) and abs(gold.stats["one_hot_share"] - alone.mean()) < 1e-6
    written = -b.student.token_logp().detach().numpy()
    assert np.allclose(gold.token_loss.numpy()[alone], written[alone], atol=1e-5) and np.allclose(gold.token_loss.numpy()[~alone], own.token_loss.numpy()[~alone], atol=1e-5)


def test_cross_entropy_is_a_knob_for_gold_text(pair):
    with pytest.raises(ValueError, match="gold"): objective("mined", ce=.9)(full(pair)[0])
    b = full(pair, text_source="teacher")[0]
    none, some, all_ = (objective("mined", ce=x)(b) for x in (0., .25, 1.))
    assert torch.allclose(some.loss_sum, .75 * none.loss_sum + .25 * all_.loss_sum, rtol=1e-4) and torch.allclose(all_.loss_sum, -b.student.token_logp().sum(), rtol=1e-4)


@pytest.mark.parametrize("kind", ["fkl", "rkl", "jsd"])
def test_equal_tokenizers_are_ordinary_distillation(pair, kind):
    one = make_pair(pair.teacher, pair.teacher)
    b, _ = full(one)
    out = objective("mined", divergence=kind, top_k=3)(b)
    assert out.stats["warping_cost"] == 0 and out.stats["matched_share"] == 1
    assert torch.allclose(out.loss, divergence(b.student.logp(), b.teacher.logp(), kind).mean(), rtol=1e-4)


def test_the_target_sums_to_one_and_zero_at_the_carried_teacher(pair):
    b, _ = full(pair, TEXTS[:1])
    found = matched_tokens(b, warp(b).pairs)
    s = np.flatnonzero(found >= 0)
    target = transfer_by_spelling(b.teacher.take(found[s]), NearestToken(pair.teacher, pair.student), len(pair.student))
    kept = target.sum(1)
    out = objective("mined")(b)
    assert (kept <= 1 + 1e-5).all() and np.allclose(out.ledger["unknown"][s], 1 - kept.numpy(), atol=1e-5)
    p = parts(pair, TEXTS[:1])
    logits = torch.zeros_like(p["student_logits"][0])
    logits[s] = (target / kept[:, None]).clamp_min(1e-30).log()
    p["student_logits"][0] = logits.requires_grad_()
    assert objective("mined")(batch(pair, p)).loss.abs() < 1e-4


@pytest.mark.parametrize("text_source", ["student", "reference"])
def test_what_every_method_keeps(pair, text_source):
    obj = objective("mined")
    check_parts(pair, obj, text_source=text_source)
    check_hard_cases(pair, obj, text_source=text_source)
    check_relabelling(pair, obj, text_source=text_source)


def test_zero_gradient_at_equal_models(pair): assert same_gradient(pair, objective("mined")) < 1e-6


def test_wrong_knobs_are_refused():
    for knob in (dict(match="loose"), dict(divergence="tvd"), dict(ce=2.)):
        with pytest.raises(ValueError): objective("mined", **knob)
