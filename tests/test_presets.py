"Published settings of the objectives: each against a number of its paper or program, or a computation of a few lines."
from dataclasses import replace

import numpy as np
import pytest
import torch

from batches import batch, full, parts
from xtokd.alignment.pair import Pair
from xtokd.alignment.reasons import Reason
from xtokd.cli.arguments import read_objective_args
from xtokd.exact.toy_models import make_pair, toy_bpe
from xtokd.objectives import OBJECTIVES, objective, preset_table
from xtokd.objectives.base import Objective, Preset
from xtokd.objectives.projection.dtw import warp
from xtokd.rows.pair_batch import PairBatch
from xtokd.train.config import DistillConfig, check_text_source, choose_text_source
from xtokd.train.step import make_objective
from xtokd.vocab.bytevocab import ByteVocab

ALL = [(name, preset) for name, spec in OBJECTIVES.items() for preset in spec.presets]
WITHOUT = {"cover", "sampled"}        # our own signal, and the ablation of opd, dpca and minillm
TEXTS = ("The number is 9632.", "Certainly: 12", "89 altogether.")


@pytest.fixture(scope="module")
def pair(): return Pair("tiny", "tiny")


def close(a, b, rtol=1e-4):
    a, b = (x.detach() if torch.is_tensor(x) else x for x in (a, b))
    return float(a) == pytest.approx(float(b), rel=rtol, abs=1e-5)


# ---- the mechanism -----------------------------------------------------------------------------------------------------------
def test_every_published_method_has_the_setting_of_its_paper():
    assert {name for name, spec in OBJECTIVES.items() if "paper" not in spec.presets} == WITHOUT


@pytest.mark.parametrize("name, preset", ALL)
def test_a_preset_is_its_options(name, preset):
    setting, defaults = OBJECTIVES[name].presets[preset], OBJECTIVES[name].defaults
    assert isinstance(setting, Preset) and setting.source and "preset" not in defaults
    assert set(setting.options) <= set(defaults) and setting.text_source in (None, *OBJECTIVES[name].text_sources)
    assert all(value != defaults[option] for option, value in setting.options.items())      # what it names is no default
    made = objective(name, preset=preset)
    assert made.name == name and made.text_source == (setting.text_source or OBJECTIVES[name].text_source)
    source = setting.text_source or OBJECTIVES[name].text_source
    if source == "student": assert "gold" not in made.requires                               # its own text is one that it learns from


def sure_of_shared(pair, made):
    "A batch whose teacher has most of its mass on tokens that the student has too, and what gets a gradient."
    samples = parts(pair, TEXTS[:2])
    for x in samples["teacher_logits"]: x[:, pair.overlap.shared_teacher_ids.tolist()] += 6
    return batch(pair, samples, made.text_source), samples["student_logits"]


@pytest.mark.parametrize("name, preset", ALL)
def test_a_preset_trains(name, preset):
    spec = OBJECTIVES[name]
    tiny = Pair("tiny", "tiny")
    pair = Pair(tiny.teacher, tiny.teacher) if spec.cls.equal_vocabularies else tiny
    made = objective(name, preset=preset)
    b, rows = sure_of_shared(pair, made)
    out = made(b)
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and out.num_units > 0 and any(x.grad is not None and x.grad.any() for x in rows)
    same = spec.cls(**{**spec.defaults, **spec.presets[preset].options})
    same.name = name
    assert close(same(sure_of_shared(pair, made)[0]).loss_sum, out.loss_sum)


def test_an_option_beside_the_preset_wins():
    assert objective("uld", preset="paper").factor == 1.5 and objective("uld", preset="paper", factor=3.).factor == 3.
    assert objective("escd", preset="paper", inner=True).inner and not objective("escd", preset="paper").spanning


@pytest.mark.parametrize("name, words", [("escd", "has no preset 'papers'. It has: paper"), ("gold", "It has: paper, trl"), ("cover", "It has none")])
def test_an_unknown_preset_is_answered_with_those_that_exist(name, words):
    with pytest.raises(ValueError, match=words): objective(name, preset="papers")


def test_a_run_takes_the_preset_and_its_text(pair):
    made = make_objective(("uld", read_objective_args(["preset=paper", "factor=2.5"])))
    assert made.factor == 2.5 and made.pairing == "index"
    check_text_source(made, DistillConfig())
    assert choose_text_source(DistillConfig(), 1, made.text_source) == "teacher"
    assert choose_text_source(DistillConfig(off_policy_source="reference"), 1, made.text_source) == "reference"


def test_the_table_shows_what_is_not_the_default():
    rows = {row["option"]: row for row in preset_table("gold")}
    assert rows["hybrid"] == {"option": "hybrid", "default": True, "paper": True, "trl": False} and rows["compat"]["trl"] is True
    assert rows["text of"] == {"option": "text of", "default": "student", "paper": "student", "trl": "student"}
    for name, preset in ALL:
        table = {row["option"]: row[preset] for row in preset_table(name)}
        assert all(table[option] == value for option, value in OBJECTIVES[name].presets[preset].options.items())


# ---- matching ----------------------------------------------------------------------------------------------------------------
def cross_entropy(b): return -b.student.token_logp()


def test_uld_is_the_sum_of_the_paper(pair):
    for text in TEXTS:
        b, _ = full(pair, (text,), text_source="teacher")
        n = min(len(b.student), len(b.teacher))
        sides = [x.logp()[:n].exp().sort(1, descending=True).values for x in (b.student, b.teacher)]
        sides[0] = torch.nn.functional.pad(sides[0], (0, sides[1].shape[1] - sides[0].shape[1]))
        assert close(objective("uld", preset="paper")(b).loss, cross_entropy(b).mean() + 1.5 * (sides[0] - sides[1]).abs().sum(1).mean())


def test_trls_gold_is_all_columns_by_rank_and_the_papers_is_hybrid(pair):
    "One answer whose chunks are one token each: row k is read one place late, and the last group is left out."
    text = "a is the"
    b, _ = full(pair, (text,))
    assert (b.alignment.kind == 0).all()
    s, t = (x.logp()[1:].exp() for x in (b.student, b.teacher))
    by_rank = [x.sort(1, descending=True).values for x in (s, t)]
    by_rank[0] = torch.nn.functional.pad(by_rank[0], (0, by_rank[1].shape[1] - by_rank[0].shape[1]))
    assert close(objective("gold", preset="trl")(b).loss, (by_rank[0] - by_rank[1]).abs().sum(1).mean())
    names = [bv.tokenizer.get_vocab() for bv in (pair.student, pair.teacher)]
    both = sorted(set(names[0]) & set(names[1]), key=lambda x: names[1][x])
    ids = [[v[x] for x in both] for v in names]
    p, q = (x[:, i].clamp_min(1e-8) for x, i in zip((s, t), ids))
    m = .5 * (p + q)
    matched = .5 * (q * (q / m).log() + p * (p / m).log()).sum(1)
    rest = [x[:, np.setdiff1d(np.arange(x.shape[1]), i)].sort(1, descending=True).values for x, i in zip((s, t), ids)]
    width = max(x.shape[1] for x in rest)
    rest = [torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in rest]
    share = len(both) / t.shape[1]
    expected = share * matched + (1 - share) * (rest[0] - rest[1]).abs().sum(1)
    assert close(objective("gold", preset="paper")(b).loss, expected.mean())
    assert abs(objective("gold", preset="paper")(b).loss - objective("gold", preset="trl")(b).loss) > .01


def test_multilevel_ot_is_the_papers_sum_with_gold_text(pair):
    b, _ = full(pair, TEXTS[:1], text_source="teacher")
    assert close(objective("multilevel_ot", preset="paper")(b).loss, objective("multilevel_ot")(b).loss + cross_entropy(b).mean())


def test_simct_and_strict_of_the_paper_are_the_defaults_and_their_other_forms_are_named(pair):
    b, _ = full(pair, TEXTS)
    for name in ("simct", "strict", "compass", "gkd"): assert OBJECTIVES[name].presets["paper"].options == {}
    released = objective("simct", variant="released", denominator="response")
    assert close(objective("simct", preset="released")(b).loss, released(b).loss)
    assert objective("strict", preset="paper-top16").top_k == 16 and objective("gkd", preset="kdflow", beta=.1).beta == pytest.approx(.9)


# ---- policy ------------------------------------------------------------------------------------------------------------------
def test_minillm_without_discount_is_sampled_without_clamp_across_tokenizers(pair):
    b, _ = full(pair, TEXTS, text_source="student")
    default, plain = objective("minillm")(b), objective("sampled", clamp=None)(b)
    assert np.allclose(default.ledger["signal"], plain.ledger["signal"], atol=1e-4)
    for preset in ("paper", "released"):
        assert not np.allclose(objective("minillm", preset=preset)(b).ledger["signal"], plain.ledger["signal"], atol=1e-2)


def log_ratios(b):
    "Log-ratio of each chunk, by sample."
    s, t = b.student.token_logp().detach(), b.teacher.token_logp()
    chunks, sample = b.alignment.chunks, b.alignment.chunk_sample
    ratio = np.array([float(t[t0:t1].sum() - s[s0:s1].sum()) for s0, s1, t0, t1 in chunks])
    return [ratio[sample == k] for k in range(len(b))]


def test_minillm_of_lmops_divides_the_discounted_sum_by_what_is_left_and_whitens(pair):
    b, _ = full(pair, TEXTS, text_source="student")
    rewards = []
    for ratio in log_ratios(b):
        n = len(ratio)
        rewards += [sum(.95 ** (u - t) * ratio[u] for u in range(t, n)) / (n - t) for t in range(n)]
    rewards = np.array(rewards)
    expected = (rewards - rewards.mean()) / np.sqrt(rewards.var(ddof=1) + 1e-8)
    got = objective("minillm", preset="released")(b).ledger["signal"]
    assert np.allclose(got[b.alignment.chunks[:, 0]], expected, atol=1e-3)


def test_minillm_of_the_paper_has_the_mean_of_what_follows(pair):
    b, _ = full(pair, TEXTS, text_source="student")
    expected = np.concatenate([[ratio[t + 1:].mean() if t + 1 < len(ratio) else 0. for t in range(len(ratio))] for ratio in log_ratios(b)])
    got = objective("minillm", preset="paper")(b).ledger["signal"]
    assert np.allclose(got[b.alignment.chunks[:, 0]], expected, atol=1e-3)


def test_dpca_of_the_release_counts_all_tokens(pair):
    b, _ = full(pair, TEXTS, text_source="student")
    out = objective("dpca", preset="paper", large_chunk=1)(b)
    assert out.num_units == len(b.student) > (out.ledger["weight"] > 0).sum()


def test_ctpd_of_the_authors_has_no_span_for_the_stop_and_rounds_its_weights(pair):
    texts = ("It is 12.", "No.")
    b, _ = full(pair, texts, text_source="reference")
    b = replace(b, preferences=np.array([1, -1]), plus_logp=torch.linspace(-.3, .4, len(b.teacher)), minus_logp=torch.zeros(len(b.teacher)))
    s, t = b.student.token_logp(), b.teacher.token_logp()
    reward = torch.zeros(2)
    stops = {int(x) - 1 for x in b.student.offsets[1:]}
    for (s0, s1, t0, t1), k in zip(b.alignment.chunks.tolist(), b.alignment.chunk_sample.tolist()):
        if s0 in stops: continue
        ratio = float((b.plus_logp - b.minus_logp)[t0:t1].sum().clamp(-.5, 1.5))
        weight = round(float(np.exp(ratio if k == 0 else -ratio)), 2)
        reward[k] += weight * float(s[s0:s1].sum().detach() - t[t0:t1].sum())
    expected = -torch.nn.functional.logsigmoid(.1 * (reward[0] - reward[1]))
    assert close(objective("ctpd", preset="paper")(b).loss, expected)
    assert abs(objective("ctpd", stop=False)(b).loss - expected) > 1e-5 and abs(objective("ctpd", decimals=2)(b).loss - expected) > 1e-4


# ---- projection --------------------------------------------------------------------------------------------------------------
def test_bpm_of_the_paper_leaves_out_rows_of_white_space():
    vocab = toy_bpe("ab ", [])
    ids = [*vocab.encode("a b"), vocab.stop_ids[0]]
    rows = [torch.randn(len(ids), len(vocab), generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    b = PairBatch.from_logits(make_pair(vocab, toy_bpe("ab ", [("a", " ")])), [ids], [toy_bpe("ab ", [("a", " ")]).encode("a b") + [toy_bpe("ab ", [("a", " ")]).stop_ids[0]]],
                              [rows[0]], [torch.randn(3, len(toy_bpe("ab ", [("a", " ")])))])
    plain, paper = objective("bpm")(b), objective("bpm", preset="paper")(b)
    assert plain.ledger["weight"].tolist() == [1, 1, 1, 1] and paper.ledger["weight"].tolist() == [1, 0, 1, 1]
    assert paper.ledger["reason"][1] == Reason.WHITESPACE and close(paper.loss_sum, plain.token_loss[[0, 2, 3]].sum())


def test_dskd_and_dskdv2_of_the_papers_are_half_cross_entropy(pair):
    for name, options in (("dskd", {"scale": "batch"}), ("dskdv2", {})):
        b, _ = full(pair, TEXTS[:1], text_source="reference")
        torch.manual_seed(0)
        terms, paper = objective(name, **options)(b), objective(name, preset="paper")(b)
        assert close(paper.loss, .5 * terms.loss + .5 * cross_entropy(b).mean(), 1e-3)


def test_pkl_of_the_paper_is_a_cross_entropy_with_a_fifth_of_the_texts_own(pair):
    b, _ = full(pair, TEXTS[:1], text_source="reference")
    own = objective("pkl", form="ce")(b)
    assert close(objective("pkl", preset="paper")(b).loss_sum, .8 * own.loss_sum + .2 * cross_entropy(b).sum())


def test_xtoken_of_nemo_has_its_options(pair):
    b, _ = full(pair, TEXTS[:1], text_source="reference")
    kd = objective("xtoken", aggregate="released", threshold=.6, bucket=False, pad=False)(b)
    assert close(objective("xtoken", preset="nemo")(b).loss, kd.loss + .1 * cross_entropy(b).mean())
    made = objective("xtoken", preset="paper", loss="p-kl")
    made.prepare(pair)
    assert made.free is not None                                          # the matrix is learnt


# ---- mined and cdm: rows by the token that they read ---------------------------------------------------------------------------
A, B = toy_bpe("wxyz", [("z", "w"), ("x", "y")]), toy_bpe("wxyz", [("z", "w")])    # zw xy zw | zw x y zw


def rows_of(vocab, text, seed):
    ids = [*vocab.encode(text), vocab.stop_ids[0]]
    return ids, torch.randn(len(ids), len(vocab), generator=torch.Generator().manual_seed(seed))


def pair_batch(student, teacher, text, **extra):
    (s, p), (t, q) = rows_of(student, text, 0), rows_of(teacher, text, 1)
    return PairBatch.from_logits(make_pair(student, teacher), [s], [t], [p.requires_grad_()], [q], **extra)


def test_mined_pairs_rows_by_what_they_read_as_published():
    "zw is the same token on both sides; xy is one token of the student and two of the teacher."
    b = pair_batch(A, B, "zwxyzw", text_source="student")
    assert [A.bytes[i] for i in b.student.ids[:-1]] == [b"zw", b"xy", b"zw"] and len(b.teacher) == 5
    predicted, read = (objective("mined", rows=rows)(b) for rows in ("predicted", "input"))
    # by prediction: zw, zw and the stop have a partner; by input: the first row, the one behind zw, and the stop behind zw
    assert predicted.ledger["weight"].tolist() == [1, 0, 1, 1] and read.ledger["weight"].tolist() == [1, 1, 0, 1]
    teacher_row = {0: 0, 1: 1, 3: 4}
    to_student = {i: A.bytes.index(x) for i, x in enumerate(B.bytes) if x}
    to_student[B.stop_ids[0]] = A.stop_ids[0]
    for row, other in teacher_row.items():
        q = torch.zeros(len(A))
        for i, j in to_student.items(): q[j] += b.teacher.logp()[other, i].exp()
        q, p = q / q.sum(), b.student.logp()[row]
        expected = torch.where(q > 0, q * (q.clamp_min(1e-30).log() - p), 0.).sum()
        assert close(read.token_loss[row], expected.detach()), row


def test_cdm_groups_of_the_program_share_tokens_and_ours_do_not():
    "Published: the student tokens of each teacher token, without repetition; ours: groups of a path, which share none."
    b = pair_batch(B, A, "xyzw", text_source="reference")                      # x y zw | xy zw
    path = warp(b).pairs
    published = []
    for j in sorted(set(path[:, 1].tolist())):
        students = path[path[:, 1] == j, 0].tolist()
        if students not in published: published.append(students)
    groups = warp(b).groups_of_tokens(len(b.student), len(b.teacher))[0]
    assert published == [[0, 1], [2], [3]] and [np.flatnonzero(groups == k).tolist() for k in range(3)] == published
    shared = np.array([[0, 0], [1, 0], [1, 1], [2, 1]])                       # a path on which token 1 is paired twice
    lists = [shared[shared[:, 1] == j, 0].tolist() for j in (0, 1)]
    assert lists == [[0, 1], [1, 2]] and not (np.diff(shared, axis=0) == 1).all(1).any()   # one group here, two there


def test_cdm_pairs_rows_by_what_they_read_as_published(pair):
    b = pair_batch(B, A, "zwxyzw", text_source="reference")
    by_token = warp(b).groups_of_tokens(len(b.student), len(b.teacher))
    assert [x.tolist() for x in by_token] == [[0, 1, 1, 2, 3], [0, 1, 2, 3]]
    from xtokd.objectives.projection.cdm import groups_by_input
    assert [x.tolist() for x in groups_by_input(*by_token, b.alignment)] == [[3, 0, 1, 1, 2], [3, 0, 1, 2]]
    assert abs(objective("cdm", rows="input")(b).loss - objective("cdm")(b).loss) > 1e-3


@pytest.mark.parametrize("name", ["mined", "cdm"])
def test_an_id_with_text_may_be_a_stop(pair, name):
    digit = pair.student.encode("9")[0]
    own = Pair(ByteVocab(pair.student.hf or pair.student.tokenizer, stops=[digit]), pair.teacher)
    ids = [[*own.student.encode("The 12"), digit], [*own.teacher.encode("The 12"), own.teacher.stop_ids[0]]]
    rows = [torch.randn(len(i), len(v), generator=torch.Generator().manual_seed(0)) for i, v in zip(ids, (own.student, own.teacher))]
    for rows_by in ("predicted", "input"):
        b = PairBatch.from_logits(own, [ids[0]], [ids[1]], [rows[0].requires_grad_()], [rows[1]], text_source="reference")
        out = objective(name, rows=rows_by)(b)
        assert torch.isfinite(out.loss_sum) and out.ledger["weight"][-1] > 0          # the stop has a signal


# ---- sedi, as released -------------------------------------------------------------------------------------------------------
def released_sedi(b, k, adapter, temperature=2., ce=.5):
    "The program's loss of one answer, row by row, with byte strings for its token strings."
    student, teacher, z = b.pair.student, b.pair.teacher, b.student.raw(np.arange(len(b.student)))
    sequence = lambda text: student.encode(text.decode())
    kl, gaps, own, kinds = [], [], [], []
    for c, (s0, s1, t0, t1) in enumerate(b.alignment.chunks.tolist()):
        sampled, written = b.student.ids[s0:s1].tolist(), b.teacher.ids[t0:t1].tolist()
        stop = sampled[0] in student.stop_ids
        first, second = (vocab.bytes[ids[0]] for vocab, ids in ((student, sampled), (teacher, written)))
        for place in range(s1 - s0):
            target, row, before = torch.full((z.shape[1],), -1e4), t1 - 1, b"".join(teacher.bytes[i] for i in written[:-1])
            if s1 - s0 > 1 and t1 - t0 > 1 and place == 0:
                row, before = (t0, b"") if second.startswith(first) else (t0 + 1, second)
            logits = b.teacher.raw(np.array([row]))[0]
            if s1 - s0 == 1 and t1 - t0 == 1 and c > 0:                    # a product with a matrix of zeros and ones
                target = torch.zeros(z.shape[1])
                for j, x in enumerate(teacher.bytes):
                    if x and x in student.bytes: target[student.bytes.index(x)] = logits[j]
                target[student.stop_ids[0]] = logits[teacher.stop_ids[0]]
                kinds.append("stop" if stop else "whole")
            else:
                for j in logits.topk(k).indices.tolist():
                    if not teacher.bytes[j]: pieces = [*sequence(before), student.stop_ids[0]] if j in teacher.stop_ids else []
                    else: pieces = sequence(before + teacher.bytes[j])
                    if place < len(pieces) and target[pieces[place]] == -1e4: target[pieces[place]] = logits[j]
                kinds.append("candidates" if place else ("first of several" if s1 - s0 > 1 and t1 - t0 > 1 else "candidates"))
            if not stop and target.argmax() != sampled[place]:
                target = torch.full_like(target, -1e5)
                target[sampled[place]] = 100.
            target = target + adapter * z[s0 + place]
            entropy = lambda x: -(x.softmax(0) * x.log_softmax(0)).sum()
            gaps.append((entropy(target) - entropy(logits)) ** 2)
            p = (target / temperature).softmax(0)
            kl.append((p * ((target / temperature).log_softmax(0) - (z[s0 + place] / temperature).log_softmax(0))).sum())
            own.append(-z[s0 + place].log_softmax(0)[sampled[place]])
    n = len(kl)
    assert n == len(b.student)
    return ((1 - ce) * (sum(kl) + sum(gaps) / n) + ce * sum(own)) / n, set(kinds)


def letters_pair():
    "Chunks of all kinds: abcd is ab cd | a bcd, and bcd ab | b cda b the other way round."
    student = toy_bpe("abcdef", [("a", "b"), ("c", "d")])
    teacher = toy_bpe("abcdef", [("b", "c"), ("bc", "d"), ("e", "f")])
    return make_pair(student, teacher)


@pytest.mark.parametrize("text", ["fabcdefa", "abcd", "eeabcdbcdf", "ab"])
@pytest.mark.parametrize("swap", [False, True])
def test_sedi_as_released_is_the_programs_loss(text, swap):
    pair = letters_pair()
    if swap: pair = make_pair(pair.teacher, pair.student)
    b = pair_batch(pair.student, pair.teacher, text, text_source="reference")
    sedi = objective("sedi", preset="released", k=5)
    out = sedi(b)
    assert sedi.text_source == "reference" and (sedi.adapter == 1).all() and sedi.temperature == 2
    expected, kinds = released_sedi(b, 5, sedi.adapter.detach())
    assert close(out.loss, expected, 1e-3)
    if text == "eeabcdbcdf": assert kinds == {"stop", "whole", "candidates", "first of several"}
    (ours,), (theirs,) = (torch.autograd.grad(x, b.student.grad_leaves(), retain_graph=True) for x in (out.loss, expected))
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("change", [{"adapter_start": 0.}, {"static_map": False}, {"overwrite": False}, {"temperature": 1.}, {"first_row": "last"}])
def test_each_option_of_sedis_release_matters(change):
    pair = letters_pair()
    b = pair_batch(pair.teacher, pair.student, "eeabcdbcdf", text_source="reference")
    released, other = objective("sedi", preset="released", k=5), objective("sedi", preset="released", k=5, **change)
    assert abs(released(b).loss - other(b).loss) > 1e-4


# ---- alm ---------------------------------------------------------------------------------------------------------------------
def test_alm_of_the_paper_evens_out_the_gradients_of_its_two_losses(pair):
    b, _ = full(pair, TEXTS[:1], text_source="reference")
    paper = objective("alm", preset="paper")
    out = paper(b)
    kd, ce = objective("alm", tau=100., boundary=" \t\n")(b).loss_sum, cross_entropy(b).mean() * out.num_units
    norms = [float(torch.autograd.grad(x, b.student.grad_leaves(), retain_graph=True)[0].norm()) for x in (kd, ce)]
    w = np.array([1 / norms[0], 1 / norms[1]]) / (1 / norms[0] + 1 / norms[1])
    kd = objective("alm", tau=100., boundary=" \t\n")(b).loss
    assert norms[1] > 20 * norms[0] and close(out.loss, w[0] * kd + w[1] * cross_entropy(b).mean(), 1e-3)
    assert close(out.stats["alm_weight"], w[0], 1e-3) and close(out.stats["ce_weight"], w[1], 1e-3)


def test_alms_hidden_term_is_the_mean_over_chunks(pair):
    "Merged to one group for the answer, or not merged: each unit gets the same mean of the chunks."
    from xtokd.objectives.alm import ChunkEnds, hidden_gap
    for gamma in (None, .1, .9):
        b, _ = full(pair, ("The number is 9632.",))
        obj = objective("alm", gamma=gamma, hidden=1., hidden_norm="row")
        plain, more = objective("alm", gamma=gamma)(b), obj(b)
        ends = ChunkEnds(b)
        rows = np.flatnonzero(ends.known)
        gap = hidden_gap(obj.project(b.hidden.student[ends.student[rows]]), b.hidden.teacher[ends.teacher[rows]], "row")
        assert more.num_units == plain.num_units and close(more.loss - plain.loss, gap.mean(), 1e-3)


def test_alm_learns_from_text_of_the_teacher_unless_it_is_told_otherwise():
    made = objective("alm")
    assert made.text_source == "teacher" and choose_text_source(DistillConfig(), 1, made.text_source) == "teacher"
    assert choose_text_source(DistillConfig(on_policy_fraction=1.), 1, made.text_source) == "student"
