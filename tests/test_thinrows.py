"""Thin teacher rows say what whole ones say, wherever an objective claims that they are enough, and nothing where it does not."""
from dataclasses import replace

import pytest
import torch
from batches import TEXTS, batch as make, full, parts
from hypothesis import given, settings, strategies as st

from xtokd.rows.pair_batch import Rows
from xtokd.objectives import OBJECTIVES, methods, objective
from xtokd.objectives.base import TEACHER_ACCESS
from xtokd.alignment.pair import Pair
from xtokd.rows.topk import ThinRows, WholeRowsNeeded, joined, thin

PAIR = Pair("tiny", "tiny")
SAME = Pair(PAIR.teacher, PAIR.teacher)
THIN = [("sampled", {}), ("sampled", {"surrogate": True}), ("opd", {}), ("opd", {"discount": .9}), ("minillm", {}), ("dpca", {}), ("dpca", {"stop": "id"}), ("compass", {}), ("ctpd", {}), ("ctpd", {"reference": "student"}),
        ("strict", {"top_k": 12, "support": "teacher"}), ("strict", {"top_k": 5, "support": "teacher", "divergence": "jsd", "span": .5}),
        ("alm", {"debias": "none", "gamma": None}), ("alm", {"debias": "none", "gamma": None, "ce": .5}), ("uld", {"top_k": 12}), ("uld", {"top_k": 12, "pairing": "index"})]
EQUAL = [("strict", {"top_k": 12, "support": "teacher"}), ("gkd", {"top_k": 12, "support": "teacher"}), ("gkd", {"top_k": 12, "support": "teacher", "tail": "bucket"}), ("minillm", {"single_step": 0})]


class Stops:
    "A ByteVocab with other stop ids."
    def __init__(self, bv, stop_ids): self.bv, self.stop_ids = bv, stop_ids
    def __getattr__(self, name): return getattr(self.bv, name)
    def __len__(self): return len(self.bv)


def text_source(obj): return "reference" if "gold" in obj.requires or obj.text_source == "reference" else obj.text_source


def both(name, knobs, pair=PAIR, seed=0):
    "What an objective says, and the gradients, on whole and on thin teacher rows."
    found = []
    for slim in (False, True):
        obj = objective(name, **knobs)
        b, leaves = full(pair, text_source=text_source(obj), seed=seed)
        if slim: b = replace(b, teacher=thin(b.teacher, obj.teacher_top_k))
        out = obj(b)
        if out.loss_sum.requires_grad: out.loss_sum.backward()
        found.append((out, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]))
    return found


@pytest.mark.parametrize("name, knobs, pair", [(*x, PAIR) for x in THIN] + [(*x, SAME) for x in EQUAL])
def test_thin_rows_are_enough_where_the_objective_says_so(name, knobs, pair):
    obj = objective(name, **knobs)
    assert obj.teacher_access_for(pair) in ("sampled", "top_k", "none") and (obj.teacher_access_for(pair) == "top_k") == (obj.teacher_top_k > 0)
    (a, ga), (b, gb) = both(name, knobs, pair)
    assert a.num_units == b.num_units > 0 and torch.allclose(a.loss_sum, b.loss_sum, rtol=1e-5, atol=1e-6) and torch.allclose(a.token_loss, b.token_loss, atol=1e-5)
    assert any(x.abs().sum() > 0 for x in ga) and all(torch.allclose(x, y, atol=1e-6) for x, y in zip(ga, gb))
    assert (a.ledger["reason"] == b.ledger["reason"]).all()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_what_a_class_says_that_it_reads_is_true(name):
    "Realised or none: thin rows do, on this pair. All: they are refused, by the objective's name and with those that would do; and without that check a whole row is asked for."
    obj = objective(name)
    assert obj.teacher_access_for(PAIR) in TEACHER_ACCESS and type(obj).teacher_access in TEACHER_ACCESS
    pair = SAME if obj.equal_vocabularies else PAIR
    b, _ = full(pair, text_source=text_source(obj))
    b = replace(b, teacher=thin(b.teacher))
    if obj.teacher_access_for(pair) != "full":
        assert obj(b).num_units > 0
        return
    with pytest.raises(ValueError, match=f"{name!r} reads whole rows.*sampled") as e: obj(b)
    assert not isinstance(e.value, WholeRowsNeeded)
    if hasattr(obj, "prepare"): obj.prepare(pair)
    with pytest.raises((WholeRowsNeeded, AttributeError, TypeError)): obj.signal(b)


def test_minillm_reads_whole_rows_only_with_equal_vocabularies():
    assert objective("minillm").teacher_access_for(PAIR) == "sampled" and objective("minillm").teacher_access_for(SAME) == "full" == objective("minillm", single_step=.5).teacher_access_for(PAIR)
    assert objective("minillm", single_step=0).teacher_access_for(SAME) == "sampled"


def test_the_list_of_methods_says_what_each_reads():
    found = {m["method"]: m["teacher access"] for m in methods()}
    assert set(found.values()) <= set(TEACHER_ACCESS.values()) and found["sampled"] == TEACHER_ACCESS["sampled"] and found["cover"] == TEACHER_ACCESS["full"] and found["sft"] == TEACHER_ACCESS["none"]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), min_size=0, max_size=4), k=st.integers(0, 30), stops=st.lists(st.integers(0, 400), min_size=1, max_size=4, unique=True), seed=st.integers(0, 99))
def test_thin_keeps_what_the_rows_say(sizes, k, stops, seed):
    from xtokd.objectives.chunks import token_logps_merged_stops
    g, bv = torch.Generator().manual_seed(seed), Stops(PAIR.student, tuple(stops))
    ids = [torch.randint(len(bv), (n,), generator=g).tolist() for n in sizes]
    if ids and ids[0]: ids[0][-1] = stops[0]
    dense = Rows([torch.randn(n, len(bv), generator=g) for n in sizes], ids, bv)
    slim = thin(dense, k)
    assert len(slim) == len(dense) and (slim.ids == dense.ids).all() and (slim.offsets == dense.offsets).all()
    assert torch.equal(slim.realised(), dense.realised())
    assert torch.allclose(token_logps_merged_stops(slim, stops), token_logps_merged_stops(dense, stops), atol=1e-6)
    if k and len(dense):
        assert torch.equal(slim.topk(k).values, dense.topk(k).values) and torch.equal(slim.topk(k, 0, 1).indices, dense.topk(k, 0, 1).indices)
        known = (slim.topk(k).values.exp().sum(1) + torch.where((slim.topk(k).indices == torch.as_tensor(slim.ids)[:, None]).any(1), 0., slim.realised().exp()))
        assert torch.allclose(slim.tail() + known, torch.ones(len(dense)), atol=1e-5)
        assert torch.equal(slim.gather(torch.as_tensor(slim.ids)[:, None])[:, 0], slim.realised())
    cut = [thin(Rows([l], [i], bv), k) for l, i in zip(dense.logits, ids)]
    again = joined(cut, bv)
    assert torch.equal(again.realised(), slim.realised()) and torch.equal(again.with_stops(), slim.with_stops()) and (again.offsets == slim.offsets).all()


def test_a_realised_number_that_is_not_known_is_left_out_and_said():
    b, _ = full(PAIR)
    slim = thin(b.teacher)
    slim._realised[3] = slim._stops[3] = float("nan")
    out = objective("sampled")(replace(b, teacher=slim))
    chunk = b.alignment.teacher_chunk[3]
    lost = b.alignment.student_chunk == chunk
    assert torch.isfinite(out.loss_sum) and (out.ledger["reason"][lost] == 109).all() and (out.ledger["weight"][~lost & (b.alignment.student_chunk >= 0)] > 0).all()


@pytest.mark.parametrize("ask", ["logp", "take", "raw"])
def test_whole_rows_are_refused_with_the_cure(ask):
    b, _ = full(PAIR)
    with pytest.raises(WholeRowsNeeded, match="Choose one that does not"): getattr(thin(b.teacher, 4), ask)([0])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 realised log-probs for 3 ids"): ThinRows([[1, 2, 3]], [[-1., -2.]], PAIR.student)
    with pytest.raises(ValueError, match="likeliest ids of 1 rows for 2"): ThinRows([[1, 2]], [[-1., -2.]], PAIR.student, ([[-1.]], [[4]]))
    b, _ = full(PAIR)
    with pytest.raises(WholeRowsNeeded, match="top_k=9"): thin(b.teacher, 4).topk(9)
    with pytest.raises(WholeRowsNeeded, match="larger top_k"): thin(b.teacher, 1).gather([5, 6, 7])
    with pytest.raises(WholeRowsNeeded, match="top_k=12"): objective("uld", top_k=12)(replace(b, teacher=thin(b.teacher, 4)))


def test_an_empty_batch():
    p = parts(PAIR, ())
    b = make(PAIR, p)
    out = objective("sampled")(replace(b, teacher=thin(b.teacher)))
    assert out.num_units == 0 and not out.loss_sum.isnan()
    assert len(joined([], PAIR.teacher)) == 0
