"Faults of methods that were found against their papers and the papers' code; each test holds the right value."
import json
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from batches import batch, leaves, parts
from xtokd.alignment.pair import Pair
from xtokd.alignment.reasons import Reason
from xtokd.cli.arguments import read_objective_args
from xtokd.data.prompts import check_item
from xtokd.exact.toy_models import make_pair, toy_bpe
from xtokd.models.forward import retokenize, same_ids
from xtokd.models.side import Side, load_auxiliary_models
from xtokd.objectives import OBJECTIVES, objective
from xtokd.objectives.hidden.dskd import follow_terms, student_to_teacher_kl, teacher_labels
from xtokd.objectives.hidden.dskdv2 import head_map, shared_head_ids
from xtokd.rows.lazy import OutputHead
from xtokd.rows.pair_batch import PairBatch
from xtokd.rows.random_batches import random_batch
from xtokd.train.config import DistillConfig, changed_settings, check_text_source, choose_text_source
from xtokd.train.distiller import Distiller
from xtokd.train.runlog import to_json
from xtokd.train.samples import reference_samples
from xtokd.train.step import StepTotals, check_signal, make_objective
from xtokd.vocab.bytevocab import ByteVocab

NAMES = tuple(OBJECTIVES)


@lru_cache
def tiny(equal_vocabularies=False):
    pair = Pair("tiny", "tiny")
    return Pair(pair.teacher, pair.teacher) if equal_vocabularies else pair


# ---- rows that are not finite ------------------------------------------------------------------------------------------------
SHORT = ("7 + 12", "a 9632.")


def output(obj, pair, samples, text_source, **fields):
    b = replace(batch(pair, samples, text_source), **fields)
    for x in leaves(samples): x.grad = None
    out = obj(b)
    if out.loss_sum.requires_grad: out.loss_sum.backward()
    return out, [torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in leaves(samples)]


def broken(samples, name, sample, row, value):
    "The samples with `value` in one row of a field."
    tensor = samples[name][sample].detach().clone()
    tensor[row, 1] = value
    values = [*samples[name][:sample], tensor.requires_grad_(samples[name][sample].requires_grad), *samples[name][sample + 1:]]
    return {**samples, name: values}


def touched(out): return out.ledger["reason"] == Reason.NOT_FINITE


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_not_finite_masks_what_it_touches_and_nothing_else(name, value):
    entry = OBJECTIVES[name]
    torch.manual_seed(0)
    obj, pair = objective(name), tiny(entry.cls.equal_vocabularies)
    samples = parts(pair, SHORT)
    clean, _ = output(obj, pair, samples, entry.text_source)
    fields = [f"{side}_{what}" for what in ("logits", "hidden") for side in ("student", "teacher")]
    fields = [f for f in fields if (f if "logits" in f else "hidden") in obj.requires]
    masked_once = {field: False for field in fields}
    for field in fields:
        for sample, tensor in enumerate(samples[field]):
            for row in range(len(tensor)):
                out, gradients = output(obj, pair, broken(samples, field, sample, row, value), entry.text_source)
                where = (field, sample, row)
                assert torch.isfinite(out.loss_sum) and all(torch.isfinite(g).all() for g in gradients), where
                kept = out.ledger["weight"] > 0
                assert (touched(out) | (out.ledger["weight"] == clean.ledger["weight"])).all(), where
                assert torch.allclose(out.token_loss[kept], clean.token_loss[kept], rtol=1e-5, atol=1e-6), where
                masked_once[field] |= bool(touched(out).any())
                # without the tokens that are touched, the clean batch has the same gradients
                _, expected = output(obj, pair, samples, entry.text_source, not_finite=touched(out))
                for g, e, x in zip(gradients, expected, leaves(samples)):
                    same = torch.ones(len(x), dtype=torch.bool)
                    if field.startswith("student") and x is samples[field][sample]: same[row] = False
                    assert torch.allclose(g[same], e[same], rtol=1e-4, atol=1e-6), where
    assert all(masked_once.values()), masked_once


@pytest.mark.parametrize("name", [n for n in NAMES if "student_logits" in objective(n).requires])
def test_where_every_row_is_not_finite_there_is_no_signal_and_a_reason(name):
    entry, pair = OBJECTIVES[name], tiny(OBJECTIVES[name].cls.equal_vocabularies)
    samples = parts(pair, SHORT)
    samples["student_logits"] = [torch.full_like(x, torch.nan).requires_grad_() for x in samples["student_logits"]]
    out, gradients = output(objective(name), pair, samples, entry.text_source)
    assert out.num_units == 0 and out.loss_sum == 0 and not any(g.any() for g in gradients) and touched(out).all()
    totals = StepTotals()
    totals.add_output(out, batch(pair, parts(pair, SHORT)), Counter())
    with pytest.raises(RuntimeError, match="no student token of this step has a signal .*not finite"): check_signal(totals, None)


@pytest.mark.parametrize("name", ["strict", "bpm", "sampled", "sft", "xtoken"])
def test_a_hidden_state_that_overflows_the_head_masks_its_token(name):
    "Rows from hidden states, with a head in float16: the product overflows although the state is finite."
    torch.manual_seed(0)
    pair, text_source = tiny(), OBJECTIVES[name].text_source
    ids = [[[*v.encode("7 + 12"), v.stop_ids[0]]] for v in (pair.student, pair.teacher)]
    heads = [OutputHead(torch.randn(len(v), 6).half()) for v in (pair.student, pair.teacher)]
    states = [torch.randn(len(i[0]), 6, requires_grad=True) for i in ids]
    large = states[0].detach().clone()
    large[1] = 6e4
    large.requires_grad_()
    outs = [objective(name)(PairBatch.from_tensors(pair, *ids, [s], [states[1]], *heads, text_source=text_source)) for s in (states[0], large)]
    for out in outs: out.loss_sum.backward()
    kept = outs[1].ledger["weight"] > 0
    assert touched(outs[1])[1] and kept.any() and torch.isfinite(large.grad).all() and not large.grad[1].any()
    assert torch.allclose(outs[1].token_loss[kept], outs[0].token_loss[kept])


def words(vocabulary, split):
    "A tokenizer with these tokens only, and a stop token."
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*vocabulary, "<s>"])}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(split), "isolated")
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return ByteVocab(tokenizer, stops=[len(vocabulary)], name=split)


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"support": "teacher", "top_k": 3}])
def test_strict_without_a_second_shared_column_has_no_signal(options):
    "Was loss 0 with count 8: one renormalised column is 1 on both sides."
    pair = make_pair(words("abcd", "[a-z]"), words(["ab", "cd", "ac", "bd"], "[a-z]{2}"))
    out = objective("strict", **options)(random_batch(pair, ["abcd", "acbd"] * 4))
    at_stops = out.ledger["kind"] == 0
    assert out.num_units == 0 and at_stops.sum() == 8 and (out.ledger["reason"][at_stops] == Reason.NOT_SHARED).all()


# ---- several ways to stop ----------------------------------------------------------------------------------------------------
ONE_EVENT = ("cover", "bpm", "escd", "strict", "simct", "gold", "alm", "uld", "mined", "cdm", "xtoken", "pkl")


def sure_rows(vocab, ids, stops):
    "Logits [n, V] that are sure of each id, and at the end of each of the `stops`."
    logits = torch.zeros(len(ids), len(vocab))
    logits[torch.arange(len(ids)), ids] = 60.
    logits[-1] = 0
    logits[-1, list(stops)] = 60.
    return logits


def stop_batch(order, student_stops, teacher_stops):
    "Text \"7\" of a student and a teacher with two stop ids each, and the student's logits."
    tiny_pair = tiny()
    pair = Pair(ByteVocab(tiny_pair.student, stops=order), ByteVocab(tiny_pair.teacher, stops=[1618, 1617]))
    ids = [[*pair.student.encode("7"), student_stops[0]]], [[*pair.teacher.encode("7"), teacher_stops[0]]]
    student = sure_rows(pair.student, ids[0][0], student_stops).requires_grad_()
    return PairBatch.from_logits(pair, *ids, [student], [sure_rows(pair.teacher, ids[1][0], teacher_stops)], text_source="teacher"), student


@pytest.mark.parametrize("order", [[1, 2], [2, 1]])
@pytest.mark.parametrize("name", ONE_EVENT)
def test_all_ways_to_stop_are_one_event_on_both_sides(name, order):
    "Text \"7\", both sides sure of their stop: bpm and escd had 25 nats and gradient (-1, +1), xtoken 81 with stops in the other order."
    for student_stops in ((1,), (2,), (1, 2)):
        for teacher_stops in ((1618,), (1617,), (1618, 1617)):
            b, student = stop_batch(order, student_stops, teacher_stops)
            out = objective(name)(b)
            out.loss_sum.backward()
            assert abs(float(out.loss_sum.detach())) < 1e-5 and student.grad.abs().max() < 1e-5, (student_stops, teacher_stops)
            assert name == "cdm" or out.ledger["weight"][-1] > 0


@pytest.mark.parametrize("name", [n for n in ONE_EVENT if n != "cdm"])    # a row with one mapped id has no signal in cdm
def test_a_student_that_does_not_stop_is_pulled_to_stop_by_any_of_its_stops(name):
    "The other side of the same: where the student is wrong there is a loss, whichever stop the text has."
    losses = []
    for student_stop in (1, 2):
        b, student = stop_batch([1, 2], (student_stop,), (1618,))
        with torch.no_grad(): student[-1] = torch.linspace(0, 1, len(b.pair.student)).roll(7)
        losses.append(float(objective(name)(b).loss_sum.detach()))
    assert losses[0] > .1 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_multilevel_ot_ranks_all_ways_to_stop_as_one():
    "The student divides its mass between two stops, the teacher is sure of one: the difference of ranked rows was 1."
    losses = []
    for student_stops in ((1,), (2,), (1, 2)):
        for teacher_stops in ((1618,), (1618, 1617)):
            b, _ = stop_batch([1, 2], student_stops, teacher_stops)
            assert abs(float(objective("multilevel_ot", beta=0., gamma=0.)(b).loss.detach())) < 1e-5
            losses.append(float(objective("multilevel_ot")(b).loss.detach()))
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-4, abs=1e-6)


def test_the_head_map_of_dskdv2_reads_every_stop():
    "A student that writes its second stop: the map was made with the row of the first one alone."
    tiny_pair = tiny()
    pair = Pair(ByteVocab(tiny_pair.student, stops=[1, 2]), ByteVocab(tiny_pair.teacher, stops=[1618, 1617]))
    ids = shared_head_ids(pair)
    assert [x[:4].tolist() for x in ids] == [[1, 1, 2, 2], [1618, 1617, 1618, 1617]] and len(shared_head_ids(pair, 5)[0]) == 5
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(len(pair.student), 6, generator=g), torch.randn(len(pair.teacher), 6, generator=g)
    maps = []
    for stop in (1, 2):                                                       # a change of either row changes the map
        changed = student.clone()
        changed[stop] += 5
        maps.append(head_map(teacher[ids[1].copy()], changed[ids[0].copy()]))
    plain = head_map(teacher[ids[1].copy()], student[ids[0].copy()])
    assert all((x - plain).abs().max() > 1e-4 for x in maps)


def test_followed_rows_of_dskd_agree_on_stopping_by_any_stop_id():
    "dskd, dskdv2: the carried row is sure of stop 1, student and label of stop 2; was a disagreement with cross-entropy 60."
    head = torch.eye(4)
    states, student = torch.tensor([[0., 60., 0., 0.]]), torch.tensor([[0., 0., 60., 0.]]).log_softmax(1)
    apart = follow_terms(student, head, states, torch.tensor([2]))
    assert apart.cross_entropy > 50 and not apart.agrees
    for label in (1, 2):
        terms = follow_terms(student, head, states, torch.tensor([label]), stop_ids=(1, 2))
        assert terms.agrees and terms.cross_entropy < 1e-5 and terms.divergence < 1e-5


def test_the_teachers_label_is_its_stop_where_its_stops_together_are_most_likely():
    "dskd, labels of the teacher: .3 and .3 for two stops, .4 for another token."
    b, _ = stop_batch([1, 2], (2,), (1618, 1617))
    row = b.teacher.logits[0]
    row[-1] = -60.
    row[-1, [1618, 1617, 5]] = torch.tensor([.3, .3, .4]).log()
    assert teacher_labels(b).tolist()[-1] == 1


# ---- xtoken ------------------------------------------------------------------------------------------------------------------
def nemo_h_kl(b, obj, reverse):
    "H-KL of NeMo's code on averaged log-probs: KL over the common columns as they are, L1 of the sorted others, cut off."
    common, losses = obj.common, []
    for s0, s1, t0, t1 in b.alignment.chunks.tolist():
        s, t = b.student.logp(s0, s1).mean(0), b.teacher.logp(t0, t1).mean(0)
        cs, ct = s[torch.as_tensor(common.student)], t[torch.as_tensor(common.teacher)]
        kl = (cs.exp() * (cs - ct)).sum() if reverse else (ct.exp() * (ct - cs)).sum()
        rs, rt = (x[torch.as_tensor(rest)].exp().sort(descending=True).values for x, rest in ((s, common.student_rest), (t, common.teacher_rest)))
        k = min(len(rs), len(rt))
        losses.append(kl + (rs[:k] - rt[:k]).abs().sum())
    return torch.stack(losses).sum()


@pytest.mark.parametrize("reverse", [False, True])
def test_released_h_kl_averages_log_probs_as_nemo_does(reverse):
    b = batch(tiny(), parts(tiny(), SHORT))
    assert (b.alignment.kind > 0).any()
    obj = objective("xtoken", loss="h-kl", aggregate="released", bucket=False, pad=False, reverse_kl=reverse)
    got = obj(b).loss_sum
    assert torch.allclose(got, nemo_h_kl(b, obj, reverse), rtol=1e-5)
    normalised = objective("xtoken", loss="h-kl", aggregate="mean")(b)
    assert float(normalised.loss_sum.detach()) > 0 and not torch.allclose(got, normalised.loss_sum)


def test_reverse_kl_acts_with_p_kl_in_every_aggregate():
    "Was ignored with `released`."
    b = batch(tiny(), parts(tiny(), SHORT))
    for aggregate in ("chain", "mean", "released"):
        forward, reverse = (objective("xtoken", loss="p-kl", aggregate=aggregate, reverse_kl=r)(b).loss_sum for r in (False, True))
        assert not torch.allclose(forward, reverse, rtol=1e-3), aggregate
    row = PairBatch.from_logits(tiny(), [tiny().student.encode("7")], [tiny().teacher.encode("7")], *[[torch.randn(1, len(v), generator=torch.Generator().manual_seed(3))] for v in (tiny().student, tiny().teacher)])
    same = [float(objective("xtoken", loss="p-kl", aggregate=a, reverse_kl=True)(row).loss_sum.detach()) for a in ("chain", "mean")]
    reached = torch.as_tensor(np.flatnonzero(objective_w(row).reached))
    ours, theirs = objective_w(row)(row.student.logp().exp())[:, reached], row.teacher.logp()[:, reached].exp()
    ours = ours / ours.sum()
    assert same[0] == pytest.approx(same[1], rel=1e-5)
    released = objective("xtoken", loss="p-kl", aggregate="released", reverse_kl=True)(row).loss_sum
    assert torch.allclose(released, (torch.where(ours > 0, ours * (ours.clamp_min(1e-37).log() - theirs.log()), 0.)).sum(), rtol=1e-4)


def objective_w(b):
    obj = objective("xtoken")
    obj.prepare(b.pair)
    return obj.W


@pytest.mark.parametrize("reverse", [False, True])
def test_a_chunk_that_the_student_can_also_write_as_one_token_is_one_event(reverse):
    "Student [' ', 'is'], teacher [' is'], which both know: the favourite was pushed down by .67, and cost 52.7 nats under the reverse KL."
    student = toy_bpe(" isx", [("i", "s"), (" ", "is")])
    teacher = toy_bpe(" isx", [("i", "s"), (" ", "is"), (" is", "x")])
    at = [student.bytes.index(x) for x in (b" ", b"is", b" is")]
    rows = torch.full((2, len(student)), -30.)
    rows[0, at[0]], rows[0, at[2]] = float(np.log(.4)), float(np.log(.6))
    rows[1, at[1]] = 0.
    sure = torch.full((1, len(teacher)), -30.)
    sure[0, teacher.bytes.index(b" is")] = 0.
    rows.requires_grad_()
    b = PairBatch.from_logits(make_pair(student, teacher), [at[:2]], [[teacher.bytes.index(b" is")]], [rows], [sure])
    out = objective("xtoken", loss="h-kl", reverse_kl=reverse)(b)
    out.loss_sum.backward()
    assert abs(float(out.loss_sum.detach())) < 1e-4 and rows.grad.abs().max() < 1e-4     # .4 and .6 are two ways to write " is"
    with torch.no_grad(): rows[0, student.bytes.index(b"x")] = float(np.log(1.))          # half of the mass is elsewhere
    rows.grad = None
    objective("xtoken", loss="h-kl", reverse_kl=reverse)(b).loss_sum.backward()
    assert rows.grad[0, at[2]] < -.1 and rows.grad[0, at[0]] < -.1                          # both are pulled up


# ---- escd --------------------------------------------------------------------------------------------------------------------
WHOLE = toy_bpe("Certain", [("C", "e"), ("Ce", "r"), ("Cer", "t"), ("Cert", "a"), ("Certa", "i"), ("Certai", "n")])
PARTS = toy_bpe("Certain", [("e", "r"), ("t", "a"), ("ta", "i"), ("tai", "n")])


def certain_batch():
    "Student [Certain, stop] at .6 each, teacher [C, er, tain, stop] at .9 each; the student's logits."
    ids, logits = [], []
    for vocab, p in ((WHOLE, .6), (PARTS, .9)):
        ids.append([*vocab.encode("Certain"), vocab.stop_ids[0]])
        logits.append(torch.full((len(ids[-1]), len(vocab)), float(np.log((1 - p) / (len(vocab) - 1)))))
        logits[-1][torch.arange(len(ids[-1])), ids[-1]] = float(np.log(p))
    assert list(map(len, ids)) == [2, 4]
    return PairBatch.from_logits(make_pair(WHOLE, PARTS), [ids[0]], [ids[1]], [logits[0].requires_grad_()], [logits[1]]), logits[0]


def test_escd_of_the_paper_keeps_no_spanning_mass_in_the_root():
    "Ours gave Certain the mass .9 * .9 * .9 in both forms."
    for preset, target in (("paper", 0.), (None, .9 ** 3)):
        b, student = certain_batch()
        objective("escd", preset=preset)(b).loss_sum.backward()
        assert float(student.grad[0, b.student.ids[0]]) == pytest.approx(.6 - target, abs=1e-4)
    projected = torch.full((len(WHOLE),), .1 / (len(PARTS) - 1))       # er, ta, tain, ... go to their first letter, by hand
    width = {x: sum(t.startswith(x) for t in PARTS.bytes if t) for x in (x for x in WHOLE.bytes if len(x) == 1)}
    for x, n in width.items(): projected[WHOLE.bytes.index(x)] *= n
    projected[WHOLE.bytes.index(b"C")] = .9
    for i, x in enumerate(WHOLE.bytes):
        if len(x) > 1: projected[i] = 0
    p = certain_batch()[0].student.logp()[0].exp().detach()
    has, none = projected > 0, p[projected == 0].sum()
    assert float(projected.sum()) == pytest.approx(1., abs=1e-5) and none > .6
    root = (projected[has] * (projected[has] / p[has]).log()).sum()
    assert float(objective("escd", preset="paper")(certain_batch()[0]).token_loss[0]) == pytest.approx(float(root), rel=1e-4)


def test_escd_of_the_paper_divides_by_all_response_positions():
    b = batch(tiny(), parts(tiny(), SHORT))
    out = objective("escd", preset="paper", child=0.)(b)
    assert out.num_units == len(b.student) > int((out.ledger["weight"] > 0).sum())
    halves = [objective("escd", preset="paper")(batch(tiny(), parts(tiny(), (text,)))).num_units for text in SHORT]
    assert sum(halves) == out.num_units
    masked = replace(b, not_finite=np.arange(len(b.student)) == 1)
    assert objective("escd", preset="paper")(masked).num_units == len(b.student) - 1
    inside = [np.arange(n) < n - 1 for n in np.diff(b.student.offsets)]
    assert objective("escd", preset="paper")(replace(b, window=np.concatenate(inside))).num_units <= len(b.student) - 2


# ---- cross-entropy of gold text ------------------------------------------------------------------------------------------------
CE = [("uld", {"pairing": "index", "factor": 1.5}), ("uld", {"skip_stop": True}), ("gold", {}), ("gold", {"merge": "bayesian"}), ("xtoken", {}),
      ("xtoken", {"loss": "h-kl"}), ("alm", {}), ("alm", {"gamma": .99})]


@pytest.mark.parametrize("name,options", CE)
def test_ce_adds_the_mean_cross_entropy_of_the_answer(name, options):
    "Was added once for each token and divided by chunks (gold, xtoken, alm), or thinned out the distances (uld): 12.87 and 7.23 for 6.44 and 8.03."
    samples = parts(tiny(), ("7 altogether. 12",))
    b = batch(tiny(), samples, "reference")
    assert len(b.alignment.chunks) < len(b.student) and len(b.teacher) != len(b.student)
    plain, both = (objective(name, **options, ce=ce)(b) for ce in (0., 1.))
    assert float(both.loss.detach() - plain.loss.detach()) == pytest.approx(-float(b.student.token_logp().detach().mean()), rel=1e-4)
    assert both.num_units == pytest.approx(plain.num_units, abs=1e-3) and both.num_units == pytest.approx(float(both.ledger["weight"].sum()), abs=1e-3)
    both.loss_sum.backward()
    assert (samples["student_logits"][0].grad.abs().sum(1) > 0).all()        # every token of the answer counts


def test_uld_is_the_sum_of_the_paper():
    b = batch(tiny(), parts(tiny(), ("7 altogether. 12",)), "reference")
    n, rows = min(len(b.student), len(b.teacher)), [x.logp().exp().sort(descending=True).values for x in (b.student, b.teacher)]
    width = max(x.shape[1] for x in rows)
    s, t = (torch.nn.functional.pad(x, (0, width - x.shape[1]))[:n] for x in rows)
    expected = -b.student.token_logp().mean() + 1.5 * (s - t).abs().sum(1).mean()
    assert torch.isclose(objective("uld", pairing="index", factor=1.5, ce=1.)(b).loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name,options", CE)
def test_ce_of_several_answers_is_the_sum_over_micro_batches(name, options):
    obj = objective(name, **options, ce=1.)
    whole = obj(batch(tiny(), parts(tiny(), SHORT), "reference"))
    samples = parts(tiny(), SHORT)
    halves = [obj(batch(tiny(), {k: v[i:i + 1] for k, v in samples.items()}, "reference")) for i in range(2)]
    assert float(whole.loss_sum.detach()) == pytest.approx(sum(float(x.loss_sum.detach()) for x in halves), rel=1e-4)
    bad = replace(batch(tiny(), parts(tiny(), SHORT), "reference"), not_finite=np.arange(len(whole.ledger["weight"])) == 1)
    out = obj(bad)
    assert out.ledger["weight"][1] == 0 and out.ledger["reason"][1] == Reason.NOT_FINITE and torch.isfinite(out.loss_sum)


# ---- text of a run, and dskd --------------------------------------------------------------------------------------------------
def sources(tmp_path, name, **settings):
    items = [{"prompt": f"{k} + 1 = ", "reference": str(k + 1)} for k in range(8)]
    config = DistillConfig(output_dir=str(tmp_path / "run"), max_steps=2, batch_size=2, max_new_tokens=6, warmup_steps=0, eval_steps=0, eval_size=0, progress=False, **settings)
    run = Distiller("tiny", "tiny", items, objective=name, config=config).fit()
    return {s["text_source"] for s in run.steps}


@pytest.mark.parametrize("settings,source", [({}, "teacher"), ({"on_policy_fraction": 0., "off_policy_source": "reference"}, "reference"), ({"off_policy_source": "reference"}, "reference"),
                                             ({"on_policy_fraction": 1.}, "student")])
def test_dskd_honours_what_text_a_run_asks_for(tmp_path, settings, source):
    "Was \"teacher\" whatever the settings."
    assert sources(tmp_path, "dskd", **settings) == {source}


def test_text_that_an_objective_cannot_learn_from_is_refused_with_the_reason():
    for name, settings, words in [("sft", {"on_policy_fraction": 1.}, "text of the student: on_policy_fraction must be 0"), ("sft", {"on_policy_fraction": .5}, "teacher or reference"),
                                  ("ctpd", {"on_policy_fraction": 1.}, "text of the student"), ("sampled", {"on_policy_fraction": 0.}, "text of the teacher: on_policy_fraction must be 1")]:
        with pytest.raises(ValueError, match=words): check_text_source(objective(name), DistillConfig(**settings))
    for name in NAMES: check_text_source(objective(name), DistillConfig())


@pytest.mark.parametrize("name", NAMES)
def test_without_settings_every_objective_has_its_own_text(name):
    assert {choose_text_source(DistillConfig(), step, objective(name).text_source) for step in range(1, 30)} == {objective(name).text_source}


def test_a_log_that_names_the_old_defaults_can_be_resumed():
    before = {"config": {"on_policy_fraction": 1.0, "off_policy_source": "teacher", "batch_size": 4}}
    assert changed_settings(before, DistillConfig(batch_size=4)) == []
    assert changed_settings(before, DistillConfig(batch_size=4, on_policy_fraction=0.)) == ["on_policy_fraction 1.0 -> 0.0"]


def test_s2t_of_dskd_is_the_sum_over_teacher_rows_by_student_tokens():
    "Published code: sums over both sides' rows, divided by the student's tokens; ours was the mean over the teacher's, n/m of it."
    b = batch(tiny(), parts(tiny(), SHORT), "teacher")
    n, m = np.diff(b.student.offsets), np.diff(b.teacher.offsets)
    assert (n != m).any()
    carried = torch.randn(len(b.teacher), b.hidden.teacher_head.shape[1], generator=torch.Generator().manual_seed(0))
    rows = (carried @ b.hidden.teacher_head.detach().float().mT).log_softmax(1)
    stops = torch.as_tensor(b.pair.teacher.stop_ids)
    assert len(stops) == 1
    kl = (b.teacher.logp().exp() * (b.teacher.logp() - rows)).sum(1).split(m.tolist())
    got = student_to_teacher_kl(b, b.hidden, carried)
    assert torch.allclose(got * torch.as_tensor(n), torch.stack([x.sum() for x in kl]), rtol=1e-4)


# ---- control tokens that differ in name ----------------------------------------------------------------------------------------
def with_controls(*names):
    "Letters, and three control tokens with these names; \"<end>\" stops."
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*"abcd", *names])}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]"), "isolated")
    tokenizer.add_special_tokens([AddedToken(x, special=True) for x in names])
    return ByteVocab(tokenizer, stops=[4 + names.index("<end>")], name="-".join(names))


NAMES_OF, RENAMED = ("<pad>", "<begin>", "<end>"), ("<end>", "<pad>", "<begin>")


def renamed_batch():
    "The same model on both sides: the teacher's columns stand where its tokenizer has their names."
    student, teacher = with_controls(*NAMES_OF), with_controls(*RENAMED)
    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)) * 2
    order = [0, 1, 2, 3, *(4 + NAMES_OF.index(x) for x in RENAMED)]
    ids = [[*v.encode("abd"), v.stop_ids[0]] for v in (student, teacher)]
    return PairBatch.from_logits(make_pair(student, teacher), [ids[0]], [ids[1]], [rows.clone().requires_grad_()], [rows[:, order]], text_source="teacher")


@pytest.mark.parametrize("name", ["strict", "simct", "gold", "bpm", "escd", "uld", "alm"])
def test_the_same_model_with_renamed_control_tokens_has_no_loss(name):
    "Columns were compared by id: strict and simct 3.78, gold .083."
    b = renamed_batch()
    assert not b.pair.overlap.identical and b.pair.student != b.pair.teacher
    out = objective(name)(b)
    assert abs(float(out.loss_sum.detach())) < 1e-5 and (out.ledger["weight"] > 0).all()


def test_gkd_refuses_renamed_control_tokens():
    with pytest.raises(ValueError, match="different vocabularies"): objective("gkd")(renamed_batch())


def test_an_auxiliary_model_with_renamed_control_tokens_is_refused():
    "Its ids give the same bytes, so its numbers were compared."
    student, other = with_controls(*NAMES_OF), with_controls(*RENAMED)
    assert same_ids(student, other)
    model = torch.nn.Embedding(8, 2)
    model.get_input_embeddings = model.get_output_embeddings = lambda: model
    sides = [Side(name, model, vocab) for name, vocab in (("teacher", student), ("weak", other))]
    with pytest.raises(ValueError, match="other names to their control tokens"):
        load_auxiliary_models({"weak": sides[1]}, SimpleNamespace(name="x", requires={"weak_logp"}), sides[0], sides[0], torch.device("cpu"))


@pytest.mark.parametrize("name, options, words", [("gkd", {"top_k": 1}, "leaves one column"), ("gkd", {"top_k": 1, "support": "teacher"}, "leaves one column"), ("gkd", {"top_k": 0}, "1 and more")])
def test_a_single_renormalised_column_is_refused(name, options, words):
    "It is 1 on both sides, so that the loss was always 0."
    with pytest.raises(ValueError, match=words): objective(name, **options)
    assert objective("gkd", top_k=1, tail="bucket").top_k == 1 and objective("gkd", top_k=1, support="union").top_k == 1


def test_equal_control_tokens_stay_identical():
    assert make_pair(with_controls(*NAMES_OF), with_controls(*NAMES_OF)).overlap.identical
    base = ByteVocab(with_controls(*NAMES_OF), stops=[5])        # a base model and its chat version
    assert make_pair(base, with_controls(*NAMES_OF)).overlap.identical


def test_a_control_id_in_mid_response_is_not_handed_over_under_another_name():
    student, teacher = with_controls(*NAMES_OF), with_controls(*RENAMED)
    assert retokenize(student, teacher, [[0, 5, 1, 6], [0, 4, 1]]) == [[0, 1, 4], [0, 1]]
    assert retokenize(student, with_controls(*NAMES_OF), [[0, 5, 1, 6]]) == [[0, 5, 1, 6]]


# ---- settings and messages ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("word,value", [(".9", .9), ("1.", 1.), ("inf", float("inf")), ("-inf", -float("inf")), ("1e-3", 1e-3), ("None", None), ("null", None),
                                        ("True", True), ("true", True), ("[.5, 1]", [.5, 1]), ("byte", "byte"), ("a=b", "a=b"), ("p-kl", "p-kl"), ("16", 16)])
def test_options_of_an_objective_are_read_as_python_writes_them(word, value):
    "`.9`, `1.` and `tau=inf` ended in a TypeError although the notebooks write them so."
    got = read_objective_args([f"x={word}"])["x"]
    assert got == value and type(got) is type(value)


def test_an_infinite_option_survives_the_log_of_a_run():
    options = json.loads(json.dumps(to_json(read_objective_args(["tau=inf", "form=kl"])), allow_nan=False))
    assert make_objective(("alm", options)).tau == float("inf")


def test_pkl_with_given_scores_is_refused_for_a_run_with_a_cure():
    with pytest.raises(ValueError, match="a run makes none. Choose scores=cover"): make_objective(("pkl", {"scores": "given"}))
    with pytest.raises(ValueError, match="Choose scores=cover"): Distiller("tiny", "tiny", ["7 + 5 = "], objective=("pkl", {"scores": "given"}))
    assert make_objective("pkl").requires == {"student_logits", "teacher_logits"}


def test_gkd_refuses_other_vocabularies_before_anything_is_evaluated(tmp_path):
    config = DistillConfig(output_dir=str(tmp_path / "run"), max_steps=1, progress=False)
    with pytest.raises(ValueError, match="gkd compares rows column by column.*Choose \"strict\""): Distiller("tiny", "tiny", ["7 + 5 = "] * 4, objective="gkd", config=config)
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("name,flags", [("compass", "--aux weak=MODEL"), ("ctpd", "--aux minus=MODEL --aux plus=MODEL")])
def test_a_missing_auxiliary_model_is_named_by_the_flag_that_exists(name, flags):
    pair = tiny()
    side = SimpleNamespace(model=None, vocab=pair.student)
    with pytest.raises(ValueError, match=f"give {flags}, or auxiliary_models="): load_auxiliary_models({}, objective(name), side, side, torch.device("cpu"))


def test_ctpd_without_pairs_offers_no_text_that_it_refuses():
    with pytest.raises(ValueError, match="no chosen and no rejected: add it to the prompts: this objective compares") as error:
        reference_samples([{"prompt": "a"}], None, None, ("chosen", "rejected"))
    assert "text of the student" not in str(error.value)
    with pytest.raises(ValueError, match="or learn from text of the student or the teacher"): reference_samples([{"prompt": "a"}], None, None)


@pytest.mark.parametrize("item", [{"prompt": ""}, {"messages": []}, {"prompt": []}])
def test_an_empty_prompt_is_called_empty(item):
    with pytest.raises(ValueError, match="line 3: the prompt is empty"): check_item(item, "line 3")
    with pytest.raises(ValueError, match="rename one of them"): check_item({"question": "a"}, "line 3")
