"""Top-k rows give the same loss as full rows wherever an objective says that they are enough, and are refused where not."""
from dataclasses import replace

import pytest
import torch
from batches import TEXTS, batch as make, full, parts
from hypothesis import given, settings, strategies as st

from xtokd.rows.dense import LogitRows
from xtokd.objectives import OBJECTIVES, methods, objective
from xtokd.objectives.base import TEACHER_ACCESS
from xtokd.alignment.pair import Pair
from xtokd.rows.topk import TopKRows, FullRowsRequired, concat_rows, to_top_k

PAIR = Pair("tiny", "tiny")
SAME = Pair(PAIR.teacher, PAIR.teacher)
SMALL = [("sampled", {}), ("sampled", {"surrogate": True}), ("opd", {}), ("opd", {"discount": .9}), ("minillm", {}), ("dpca", {}), ("dpca", {"stop": "id"}), ("compass", {}), ("ctpd", {}), ("ctpd", {"reference": "student"}),
        ("strict", {"top_k": 12, "support": "teacher"}), ("strict", {"top_k": 5, "support": "teacher", "divergence": "jsd", "span": .5}),
        ("alm", {"debias": "none", "gamma": None}), ("alm", {"debias": "none", "gamma": None, "ce": .5}), ("uld", {"top_k": 12}), ("uld", {"top_k": 12, "pairing": "index"}), ("cover", {"teacher_top_k": 12, "max_unknown": 1.})]
EQUAL = [("strict", {"top_k": 12, "support": "teacher"}), ("gkd", {"top_k": 12, "support": "teacher"}), ("gkd", {"top_k": 12, "support": "teacher", "tail": "bucket"}), ("minillm", {"single_step": 0})]


class Stops:
    "A ByteVocab with other stop ids."
    def __init__(self, vocab, stop_ids): self.vocab, self.stop_ids = vocab, stop_ids
    def __getattr__(self, name): return getattr(self.vocab, name)
    def __len__(self): return len(self.vocab)


def text_source(obj): return "reference" if "reference" in obj.text_sources and ("gold" in obj.requires or obj.text_source == "reference") else obj.text_source


def both(name, knobs, pair=PAIR, seed=0):
    "Output and gradients of an objective on full and on top-k teacher rows."
    found = []
    for small in (False, True):
        obj = objective(name, **knobs)
        b, leaves = full(pair, text_source=text_source(obj), seed=seed)
        if small: b = replace(b, teacher=to_top_k(b.teacher, obj.teacher_top_k))
        out = obj(b)
        if out.loss_sum.requires_grad: out.loss_sum.backward()
        found.append((out, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]))
    return found


@pytest.mark.parametrize("name, knobs, pair", [(*x, PAIR) for x in SMALL] + [(*x, SAME) for x in EQUAL])
def test_top_k_rows_are_enough_where_the_objective_says_so(name, knobs, pair):
    obj = objective(name, **knobs)
    assert obj.teacher_access_for(pair) in ("sampled", "top_k", "none") and (obj.teacher_access_for(pair) == "top_k") == (obj.teacher_top_k > 0)
    (a, ga), (b, gb) = both(name, knobs, pair)
    assert a.num_units == b.num_units > 0 and torch.allclose(a.loss_sum, b.loss_sum, rtol=1e-5, atol=1e-6) and torch.allclose(a.token_loss, b.token_loss, atol=1e-5)
    assert any(x.abs().sum() > 0 for x in ga) and all(torch.allclose(x, y, atol=1e-6) for x, y in zip(ga, gb))
    assert (a.ledger["reason"] == b.ledger["reason"]).all()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_what_a_class_says_that_it_reads_is_true(name):
    "Sampled or none: top-k rows are enough. All: they are refused, with the names of objectives that need less; without that check a whole row is asked for."
    obj = objective(name)
    assert obj.teacher_access_for(PAIR) in TEACHER_ACCESS and type(obj).teacher_access in TEACHER_ACCESS
    pair = SAME if obj.equal_vocabularies else PAIR
    b, _ = full(pair, text_source=text_source(obj))
    b = replace(b, teacher=to_top_k(b.teacher))
    if obj.teacher_access_for(pair) != "full":
        assert obj(b).num_units > 0
        return
    with pytest.raises(ValueError, match=f"{name!r} reads whole rows.*sampled") as e: obj(b)
    assert not isinstance(e.value, FullRowsRequired)
    if hasattr(obj, "prepare"): obj.prepare(pair)
    with pytest.raises((FullRowsRequired, AttributeError, TypeError)): obj.signal(b)


def test_minillm_reads_whole_rows_only_with_equal_vocabularies():
    assert objective("minillm").teacher_access_for(PAIR) == "sampled" and objective("minillm").teacher_access_for(SAME) == "full" == objective("minillm", single_step=.5).teacher_access_for(PAIR)
    assert objective("minillm", single_step=0).teacher_access_for(SAME) == "sampled"


def test_the_list_of_methods_says_what_each_reads():
    found = {m["method"]: m["teacher access"] for m in methods()}
    assert set(found.values()) <= set(TEACHER_ACCESS.values()) and found["sampled"] == TEACHER_ACCESS["sampled"] and found["cover"] == TEACHER_ACCESS["full"] and found["sft"] == TEACHER_ACCESS["none"]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), min_size=0, max_size=4), k=st.integers(0, 30), stops=st.lists(st.integers(0, 400), min_size=1, max_size=4, unique=True), seed=st.integers(0, 99))
def test_top_k_rows_keep_the_numbers_of_the_full_rows(sizes, k, stops, seed):
    from xtokd.objectives.chunks import token_logps_merged_stops
    g, vocab = torch.Generator().manual_seed(seed), Stops(PAIR.student, tuple(stops))
    ids = [torch.randint(len(vocab), (n,), generator=g).tolist() for n in sizes]
    if ids and ids[0]: ids[0][-1] = stops[0]
    dense = LogitRows([torch.randn(n, len(vocab), generator=g) for n in sizes], ids, vocab)
    small = to_top_k(dense, k)
    assert len(small) == len(dense) and (small.ids == dense.ids).all() and (small.offsets == dense.offsets).all()
    assert torch.equal(small.token_logp(), dense.token_logp())
    assert torch.allclose(token_logps_merged_stops(small, stops), token_logps_merged_stops(dense, stops), atol=1e-6)
    if k and len(dense):
        assert torch.equal(small.topk(k).values, dense.topk(k).values) and torch.equal(small.topk(k, 0, 1).indices, dense.topk(k, 0, 1).indices)
        known = (small.topk(k).values.exp().sum(1) + torch.where((small.topk(k).indices == torch.as_tensor(small.ids)[:, None]).any(1), 0., small.token_logp().exp()))
        assert torch.allclose(small.unknown_mass() + known, torch.ones(len(dense)), atol=1e-5)
        assert torch.equal(small.gather(torch.as_tensor(small.ids)[:, None])[:, 0], small.token_logp())
    cut = [to_top_k(LogitRows([l], [i], vocab), k) for l, i in zip(dense.logits, ids)]
    again = concat_rows(cut, vocab)
    assert torch.equal(again.token_logp(), small.token_logp()) and torch.equal(again.token_logp_merged_stops(), small.token_logp_merged_stops()) and (again.offsets == small.offsets).all()


def test_an_unknown_log_prob_is_left_out_with_a_reason():
    b, _ = full(PAIR)
    small = to_top_k(b.teacher)
    small._token_logp[3] = small._merged_stops[3] = float("nan")
    out = objective("sampled")(replace(b, teacher=small))
    chunk = b.alignment.teacher_chunk[3]
    lost = b.alignment.student_chunk == chunk
    assert torch.isfinite(out.loss_sum) and (out.ledger["reason"][lost] == 109).all() and (out.ledger["weight"][~lost & (b.alignment.student_chunk >= 0)] > 0).all()


@pytest.mark.parametrize("ask", ["logp", "take", "raw"])
def test_full_rows_are_refused_with_a_hint(ask):
    b, _ = full(PAIR)
    with pytest.raises(FullRowsRequired, match="Choose one that does not"): getattr(to_top_k(b.teacher, 4), ask)([0])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 log-probs for 3 ids"): TopKRows([[1, 2, 3]], [[-1., -2.]], PAIR.student)
    with pytest.raises(ValueError, match="most likely ids of 1 rows for 2"): TopKRows([[1, 2]], [[-1., -2.]], PAIR.student, ([[-1.]], [[4]]))
    b, _ = full(PAIR)
    with pytest.raises(FullRowsRequired, match="top_k=9"): to_top_k(b.teacher, 4).topk(9)
    with pytest.raises(FullRowsRequired, match="larger top_k"): to_top_k(b.teacher, 1).gather([5, 6, 7])
    with pytest.raises(FullRowsRequired, match="top_k=12"): objective("uld", top_k=12)(replace(b, teacher=to_top_k(b.teacher, 4)))


def test_an_empty_batch():
    p = parts(PAIR, ())
    b = make(PAIR, p)
    out = objective("sampled")(replace(b, teacher=to_top_k(b.teacher)))
    assert out.num_units == 0 and not out.loss_sum.isnan()
    assert len(concat_rows([], PAIR.teacher)) == 0
