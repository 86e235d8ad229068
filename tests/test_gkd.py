"""GKD: the published numbers, both orientations of beta, supports, and what every objective must keep."""
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, full, leaves, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives.divergences import divergence
from xtokd.objectives import objective
from xtokd.objectives.baselines import rows_after_equal_ids
from xtokd.alignment.pair import Pair

BV = toy_bpe("abcd", [("a", "b")])
WORLD = make_pair(BV, BV)
UNICODE = ("", "日本 é\u0301 😊!", "\ta  b\r\n ", "12 apples")


@pytest.fixture(scope="module")
def same(): tiny = Pair("tiny").teacher; return Pair(tiny, tiny)


def one_row(S, T):
    "One token whose rows are S and T on the first ids and nothing elsewhere."
    row = lambda p: torch.cat([torch.tensor(p).log(), torch.full((len(BV) - len(p),), -torch.inf)])[None]
    return PairBatch.from_logits(WORLD, [[0]], [[0]], [row(S).requires_grad_()], [row(T)])


@pytest.mark.parametrize("beta, want", [(0, .193794), (.1, .017563), (.5, .050875), (.9, .019661), (1, .223805)])
def test_oracle_of_5_1(beta, want):
    b = one_row((.5, .3, .2), (.2, .5, .3))
    assert abs(objective("gkd", beta=beta)(b).loss.item() - want) < 2e-6
    assert abs(objective("gkd", beta=1 - beta, orientation="student")(b).loss.item() - want) < 2e-6


def test_small_beta_is_scaled_and_zero_is_special():
    S, T = (torch.tensor(p, dtype=torch.float64).log() for p in ((.5, .3, .2), (.2, .5, .3)))
    assert abs(divergence(S, T, "jsd", .01) / .01 - .191978) < 1e-6
    assert abs(divergence(S, T, "jsd", 1e-6) / 1e-6 - .193794) < 1e-5 and divergence(S, T, "jsd", 0) == divergence(S, T, "fkl")


@pytest.mark.parametrize("beta, want", [(1, .094582), (.5, .024807)])
def test_oracle_of_5_4(beta, want):
    out = objective("gkd", beta=beta, top_k=2, tail="bucket")(one_row((.5, .3, .15, .05), (.4, .2, .1, .3)))
    assert abs(out.loss.item() - want) < 2e-6
    assert abs(out.stats["support_mass_student"] - .8) < 1e-5 and abs(out.stats["support_mass_teacher"] - .6) < 1e-5


@pytest.mark.parametrize("support", ["student", "teacher", "union"])
@pytest.mark.parametrize("tail", ["renormalise", "drop", "bucket"])
@pytest.mark.parametrize("beta", [0, .5, 1])
def test_supports_and_tails_have_finite_gradients(same, support, tail, beta):
    b, rows = full(same, TEXTS[:2])
    objective("gkd", beta=beta, top_k=5, support=support, tail=tail)(b).loss_sum.backward()
    assert all(torch.isfinite(r.grad).all() for r in rows[:2]) and rows[0].grad.abs().max() > 0


def test_a_support_of_everything_is_the_whole_row(same):
    b, _ = full(same)
    assert torch.allclose(objective("gkd", top_k=10 ** 6)(b).loss_sum, objective("gkd")(b).loss_sum)


def test_beta_one_is_strict_and_temperature_is_that_of_the_logits(same):
    b, _ = full(same)
    assert torch.allclose(objective("gkd", beta=1)(b).loss_sum, objective("strict")(b).loss_sum, rtol=1e-5)
    p = parts(same, TEXTS[:1])
    hot = batch(same, p, temperature=.7)
    want = divergence(torch.log_softmax(p["student_logits"][0] / .9, -1), torch.log_softmax(p["teacher_logits"][0] / .9, -1), "jsd", .5).sum()
    assert torch.allclose(objective("gkd", temperature=.9)(hot).loss_sum, want, rtol=1e-5)
    warm = divergence(torch.log_softmax(p["student_logits"][0] / .7, -1), torch.log_softmax(p["teacher_logits"][0], -1), "jsd", .5).sum()
    assert torch.allclose(objective("gkd")(hot).loss_sum, warm, rtol=1e-5)


@pytest.mark.parametrize("beta", [0, .5, 1])
def test_the_students_own_rows_move_nothing(same, beta):
    b, rows = full(same, same=True)
    objective("gkd", beta=beta)(b).loss_sum.backward()
    assert max(r.grad.abs().max() for r in rows if r.grad is not None) < 1e-5


def test_rows_after_a_difference_are_left_out():
    a, b, ab = (BV.bytes.index(x) for x in (b"a", b"b", b"ab"))
    stop = BV.stop_ids[0]
    rows = lambda ids: torch.randn(len(ids), len(BV), generator=torch.Generator().manual_seed(1))
    s, t = [b, a, b, stop], [b, ab, stop]
    made = PairBatch.from_logits(WORLD, [s, s], [t, s[:2]], [rows(s), rows(s)], [rows(t), rows(s[:2])])
    got = rows_after_equal_ids(made)
    assert got[0].tolist() == [0, 1, 4, 5] and got[1].tolist() == [0, 1, 3, 4]      # the row that chose `a` where the teacher has `ab` still follows the same ids
    assert got[2].tolist() == [0, 0, 102, 102, 0, 0, 103, 103]
    assert objective("gkd")(made).num_units == 4


def test_control_tokens_inside_a_text_are_compared_too():
    stop = BV.stop_ids[0]
    ids = [0, stop, 1, stop]
    rows = torch.randn(4, len(BV))
    assert objective("gkd")(PairBatch.from_logits(WORLD, [ids], [ids], [rows], [rows + 1])).num_units == 4


@pytest.mark.parametrize("cut", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_splitting_and_permuting_change_nothing(same, cut):
    p = parts(same)
    run = lambda at: objective("gkd", top_k=7)(batch(same, some(p, at)))
    whole, at, found = run(range(4)), 0, []
    for n in cut: found.append(run(range(at, at + n))); at += n
    assert torch.allclose(whole.loss_sum, sum(f.loss_sum for f in found), rtol=1e-5) and whole.num_units == sum(f.num_units for f in found)
    assert torch.allclose(whole.loss_sum, run([2, 0, 3, 1]).loss_sum, rtol=1e-5)


def test_padding_changes_nothing_and_gets_no_gradient(same):
    p = parts(same, TEXTS[:1])
    wide = {**p, "student_logits": [torch.cat([p["student_logits"][0].detach(), torch.full((len(p["student_ids"][0]), 5), 9.)], 1).requires_grad_()],
            "teacher_logits": [torch.cat([p["teacher_logits"][0], torch.full((len(p["teacher_ids"][0]), 3), 9.)], 1)]}
    out = objective("gkd")(batch(same, wide))
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, objective("gkd")(batch(same, p)).loss_sum) and not wide["student_logits"][0].grad[:, len(same.student):].any()


def test_the_teacher_reaches_the_gradient(same):
    def grad(scale):
        b, rows = full(same, TEXTS[:1], scale=scale)
        objective("gkd")(b).loss_sum.backward()
        return rows[0].grad
    assert not torch.allclose(grad(1.), grad(2.), atol=1e-3)


@pytest.mark.parametrize("stop", [True, False])
def test_odd_texts_and_impossible_teacher_tokens(same, stop):
    p = parts(same, UNICODE, stop=stop)
    for x in p["teacher_logits"]: x[:, ::3] = -torch.inf
    for beta in (0, .5, 1):
        out = objective("gkd", beta=beta)(batch(same, p))
        out.loss_sum.backward()
        assert torch.isfinite(out.loss_sum) and out.num_units == sum(map(len, p["student_ids"]))
    assert all(torch.isfinite(l.grad).all() for l in leaves(p)[:4] if len(l))
    empty = PairBatch.from_logits(same, [[]], [[]], [torch.zeros(0, len(same.student))], [torch.zeros(0, len(same.teacher))])
    assert objective("gkd")(empty).num_units == 0 and objective("gkd")(empty).loss == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_types(same, dtype):
    p = parts(same, TEXTS[:1])
    p["student_logits"] = [x.detach().to(dtype).requires_grad_() for x in p["student_logits"]]
    out = objective("gkd")(batch(same, p))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and p["student_logits"][0].grad.dtype == dtype


def test_other_vocabularies_and_wrong_knobs_are_refused():
    with pytest.raises(ValueError, match="different vocabularies"): objective("gkd")(full(Pair("tiny"))[0])
    for knobs, text in ((dict(beta=2), "weight"), (dict(orientation="left"), "Choose teacher, student"), (dict(temperature=0), "above zero"), (dict(support="x"), "Choose student"), (dict(tail="x"), "Choose renormalise")):
        with pytest.raises(ValueError, match=text): objective("gkd", **knobs)


def test_teacher_text_and_windows_are_fine(same):
    for by in ("teacher", "reference"): assert objective("gkd")(full(same, TEXTS[:1], text_source=by)[0]).num_units > 0
    p = parts(same, TEXTS[:1])
    n = len(p["student_ids"][0])
    assert objective("gkd")(batch(same, p, window=[np.arange(n) < 3])).num_units == 3


def test_a_pair_it_cannot_compare_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    from xtokd.train.config import DistillConfig
    from xtokd.train.distiller import Distiller
    import xtokd.train.teachers.routed_step as module
    monkeypatch.setattr(module, "load_models", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="gkd compares rows column by column"):
        Distiller("tiny", "tiny", "tiny", objective="gkd", config=DistillConfig(output_dir=str(tmp_path)))
