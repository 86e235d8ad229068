"""`gold(compat=True)` and `uld(pairing="index")` against trl's own loss, on random logits and clean text. Runs where trl is installed (the dev extra)."""
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
pytest.importorskip("trl", reason="trl 1.16.0 is part of the dev extra")
gold_trainer = pytest.importorskip("trl.experimental.gold.gold_trainer", reason="trl's own requirements are missing")

from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import objective
from xtokd.alignment.pair import Pair

TEXTS = ("The number is 9632.", "Certainly: 12", "894772 altogether.", "naïve 👍🏽 café 31")
PROMPT = 3


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def trl_loss(pair, **knobs):
    plain = dict(uld_crossentropy_weight=0., uld_distillation_weight=1., uld_student_temperature=1., uld_teacher_temperature=1., uld_skip_student_eos=True, uld_skip_teacher_eos=True,
                 use_extended_uld=True, uld_token_merge_strategy="observed", uld_use_hybrid_loss=False, uld_hybrid_matched_weight=None, uld_hybrid_unmatched_weight=None, beta=.5)
    return gold_trainer.ULDLoss(SimpleNamespace(**{**plain, **knobs}), pair.student.tokenizer, pair.teacher.tokenizer)


def side(bv, texts, seed):
    "A padded batch as trl wants it: logits [B, L, V], labels, ids and byte offsets of the completion; position p predicts token p + 1."
    ids = [[*bv.encode(x), bv.stop_ids[0]] for x in texts]
    width = PROMPT + max(map(len, ids)) + 2
    logits = 2 * torch.randn(len(ids), width, len(bv), generator=torch.Generator().manual_seed(seed))
    flat, labels, offsets = torch.zeros(len(ids), width, dtype=torch.long), torch.full((len(ids), width), -100), torch.zeros(len(ids), width, 2, dtype=torch.long)
    for k, x in enumerate(ids):
        at = slice(PROMPT, PROMPT + len(x))
        flat[k, at] = labels[k, at] = torch.tensor(x)
        end = np.cumsum(bv.lengths[x])
        offsets[k, at] = torch.as_tensor(np.stack([end - bv.lengths[x], end], 1))
    return SimpleNamespace(ids=ids, logits=logits, labels=labels, flat=flat, offsets=offsets)


def both(pair, obj, loss, texts=TEXTS):
    "Ours and theirs, loss and gradient to the student's logits [B, L, V]."
    s, t = side(pair.student, texts, 1), side(pair.teacher, texts, 2)
    out = []
    for ours in (True, False):
        x = s.logits.clone().requires_grad_()
        cut = lambda logits, ids: [logits[k, PROMPT - 1: PROMPT - 1 + len(i)] for k, i in enumerate(ids)]
        if ours: value = obj(PairBatch.from_logits(pair, s.ids, t.ids, cut(x, s.ids), cut(t.logits, t.ids))).loss
        else: value = loss(x, t.logits, s.labels, t.labels, s.flat, t.flat, student_byte_offsets=s.offsets, teacher_byte_offsets=t.offsets)
        out.append((value.detach(), torch.autograd.grad(value, x)[0]))
    return out


def agree(pair, obj, loss, texts=TEXTS):
    (a, ga), (b, gb) = both(pair, obj, loss, texts)
    assert abs(a - b) < 2e-5 * max(1, abs(b)) and torch.allclose(ga, gb, atol=2e-6), (a, b, (ga - gb).abs().max())


@pytest.mark.parametrize("merge", ("observed", "bayesian"))
@pytest.mark.parametrize("hybrid, beta", ((True, 0.), (True, .3), (True, .5), (True, 1.), (False, .5)))
def test_gold_is_trls(pair, merge, hybrid, beta):
    agree(pair, objective("gold", compat=True, merge=merge, hybrid=hybrid, beta=beta), trl_loss(pair, uld_token_merge_strategy=merge, uld_use_hybrid_loss=hybrid, beta=beta))


def test_the_presets_are_trls_default_and_its_hybrid_loss(pair):
    agree(pair, objective("gold", preset="trl"), trl_loss(pair))
    agree(pair, objective("gold", preset="paper"), trl_loss(pair, uld_use_hybrid_loss=True))


def test_gold_with_fixed_weights_is_trls(pair):
    agree(pair, objective("gold", compat=True, weights=(.7, 2.)), trl_loss(pair, uld_use_hybrid_loss=True, uld_hybrid_matched_weight=.7, uld_hybrid_unmatched_weight=2.))


@pytest.mark.parametrize("merge", ("observed", "bayesian"))
def test_gold_the_other_way_round_is_trls(merge):
    pair = Pair("tiny")
    back = Pair(pair.teacher, pair.student)
    agree(back, objective("gold", compat=True, merge=merge), trl_loss(back, uld_token_merge_strategy=merge, uld_use_hybrid_loss=True))


@pytest.mark.parametrize("text", TEXTS)
def test_uld_by_index_is_trls_positional_loss(pair, text):
    loss = trl_loss(pair, use_extended_uld=False, uld_token_merge_strategy="bayesian", uld_skip_student_eos=False, uld_skip_teacher_eos=False)
    agree(pair, objective("uld", pairing="index"), loss, (text,))


def test_trls_default_reads_the_rows_one_place_late(pair):                          # D10
    (_, ours), (_, theirs) = both(pair, objective("gold"), trl_loss(pair, uld_use_hybrid_loss=True), TEXTS[:1])
    n = len(pair.student.encode(TEXTS[0])) + 1
    reached = lambda g: torch.nonzero(g[0].abs().sum(1))[:, 0].tolist()
    assert reached(ours) == list(range(PROMPT - 1, PROMPT - 1 + n)) and reached(theirs) == list(range(PROMPT, PROMPT - 1 + n))


def test_trls_matched_part_can_be_negative(pair):                                   # D12
    loss = trl_loss(pair, uld_use_hybrid_loss=True, beta=0.)
    s, t = torch.tensor([[.5, .4]]), torch.tensor([[.1, .1]])
    assert abs(loss._compute_jsd_loss_for_matched_tokens(s, t) + .299573) < 1e-5


def test_trls_mean_over_micro_batches_is_not_that_of_the_batch(pair):               # D13: the trainer adds the micro-batches up, ours are divided by one count
    loss, obj = trl_loss(pair, uld_use_hybrid_loss=True), objective("gold", compat=True)
    whole = both(pair, obj, loss)
    parts = [side(pair.student, TEXTS, 1), side(pair.teacher, TEXTS, 2)]
    one = lambda k: loss(*(x[k: k + 1] for p in ("logits", "labels", "flat") for x in (getattr(parts[0], p), getattr(parts[1], p))),
                         student_byte_offsets=parts[0].offsets[k: k + 1], teacher_byte_offsets=parts[1].offsets[k: k + 1])
    assert torch.isclose(sum(one(k) for k in range(4)), 4 * whole[1][0], rtol=1e-4)
