"The fidelity lab held against what is known by hand: unbiased signals, biased ones, and objectives that cannot be asked."
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from xtokd.hub import data_dir
from xtokd.objectives import OBJECTIVES, ObjectiveSpec, objective
from xtokd.objectives.base import Objective, make_output
from xtokd.exact.fidelity import (
    TOKEN_CATEGORIES, at_truth, by_state, compare_gradients, exact_gradient, implied_target, kl_to_truth,
    measure_fidelity, objective_variants, row_weights, run_objective, run_objectives, state_numbers,
    student_probabilities, token_position_categories, token_category, toy_case,
)
from xtokd.exact.training_fidelity import accuracy_verdict, model_case, parameter_table, collapse_summary
from xtokd.exact.toy_models import ToyModel, digit_groups, make_pair, random_bpe, random_texts, twin_world


def other(texts, seed=0):
    w = np.random.default_rng(seed).gamma(3., 1., len(texts)) * np.array([float(p) for p in texts.values()])
    return dict(zip(texts, w / w.sum()))


@pytest.fixture(scope="module")
def twin():
    mine, its = twin_world(4)
    return measure_fidelity(toy_case(ToyModel(other(mine.texts), mine.vocab), its, "twin"))


@given(st.integers(0, 10**6), st.sampled_from(["fkl", "rkl"]))
@settings(max_examples=50, deadline=None)
def test_implied_target_inverts_the_exact_gradient(seed, family):
    p, q = np.random.default_rng(seed).dirichlet(np.ones(6), (2, 4)) * .99 + .01 / 6
    grad = exact_gradient(p, q, family)
    assert np.abs(grad.sum(1)).max() < 1e-12 and np.allclose(implied_target(p, grad, family), q, atol=1e-9)
    assert compare_gradients(grad, grad, np.ones(4)) == pytest.approx((1, 1, 0))


def test_bpm_at_the_root_of_the_twin_world():
    mine, its = twin_world(4)
    case = toy_case(mine, its)
    target = implied_target(student_probabilities(case)[:1], run_objective(objective("bpm"), case, family="fkl").grad[:1])
    assert np.allclose(target[0, :3], [.5, .5, 0], atol=1e-5) and np.allclose(case.truth[0], [.5, .25, .25, 0])
    assert kl_to_truth(target, case.truth[:1])[0] == pytest.approx(np.log(2) / 2, abs=1e-5)


def test_who_pulls_at_the_truth(twin):
    for r in twin.rows:
        still = r["objective"].startswith(("cover", "pkl")) or r["objective"] == "sft"      # pkl is fed by the cells of cover
        assert (r["pull at truth"] < 1e-5) == still, r
    assert twin["cover"]["target KL"] < twin.baseline["target KL"] < twin["bpm"]["target KL"]
    assert twin["sft"]["bias"] < 1e-5 < 1 < twin["sft"]["noise"]
    assert twin["sampled"]["bias"] > .5


def test_digits_one_by_one_are_known_exactly():
    rng, texts = np.random.default_rng(0), {}
    for x in ("1", "2", "12", "21", "11", "122", "121", "212"): texts[x] = rng.random()
    texts = {x: p / sum(texts.values()) for x, p in texts.items()}
    found = measure_fidelity(toy_case(ToyModel(other(texts), digit_groups(1)), ToyModel(texts, digit_groups(3))), {k: (k, {}) for k in ("cover", "bpm")})
    assert found["cover"]["bias"] < 1e-3 < .2 < found["bpm"]["bias"]
    assert {n for r in found.where() for n in r} == {"objective", "digit", "stop"}


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_equal_tokenizers_have_no_bias(seed):
    rng = np.random.default_rng(seed)
    bv, texts = random_bpe(rng, "ab", 2), random_texts(rng, "ab", 3)
    case = toy_case(ToyModel(other(texts), bv), ToyModel(texts, bv), leak=1e-9)
    found = measure_fidelity(case, {"sampled": ("sampled", {"clamp": None}), "cover": ("cover", {}), "bpm": ("bpm", {}), "strict": ("strict", {}), "sft": ("sft", {})})
    gap = {r["objective"]: r["bias"] for r in found.rows}
    if found.baseline["target KL"] > 1e-3: assert max(gap.values()) < 1e-2, gap


def test_expectations_are_over_texts(twin):
    case = twin.case
    w = row_weights(case, "student")
    mean, mass = by_state(case, np.ones(len(w)), w)
    assert np.allclose(mean, 1) and mass[0] == pytest.approx(1) and len(mass) == case.state.max() + 1
    assert list(state_numbers([(1, 2), (1, 3), (1, 2)])) == [0, 1, 0, 1, 0, 1]
    rows = np.concatenate([twin.case.truth for _ in range(1)])
    assert np.allclose(student_probabilities(at_truth(case)), rows, atol=1e-5)


def test_the_places_of_tokens():
    said = {(b"caf", b""): "word start", (b"\xc3", b"f"): "partial character", (b"7", b" "): "digit", (b"\n ", b"a"): "space", (b" .", b"a"): "mark", (b"", b"a"): "stop", (b"fe", b"ca"): "word inside"}
    assert all(token_category(*k) == v for k, v in said.items()) and set(said.values()) == set(TOKEN_CATEGORIES)
    mine, its = twin_world(3)
    case = toy_case(mine, its)
    assert (token_position_categories(case) == "stop").sum() == len(case.student_ids)


class Mine(Objective):
    def __init__(self, push=1.): self.push = push
    def signal(self, batch): return make_output(batch, self.push * batch.student.token_logp(), torch.ones(len(batch.student)))


def test_objectives_that_are_registered_later(monkeypatch, twin):
    module = ModuleType("xtokd.objectives.mine")
    module.Mine = Mine
    module.Needy = type("Needy", (Mine,), {"requires": frozenset({"hidden"})})
    module.Flat = type("Flat", (Mine,), {"signal": lambda self, b: make_output(b, torch.zeros(len(b.student)), torch.ones(len(b.student)))})
    monkeypatch.setitem(sys.modules, "xtokd.objectives.mine", module)
    for name in ("Mine", "Needy", "Flat"): monkeypatch.setitem(OBJECTIVES, name.lower(), ObjectiveSpec(f"mine:{name}"))
    monkeypatch.setitem(OBJECTIVES, "gone", ObjectiveSpec("nowhere:Gone"))
    answers, refused = run_objectives(twin.case)
    assert {a.label for a in answers} | set(refused) == set(objective_variants()) and "mine" in {a.label for a in answers}
    assert "hidden" in refused["needy"] and "does not depend" in refused["flat"] and "nowhere" in refused["gone"]
    assert "hidden" in repr(measure_fidelity(twin.case, {"needy": ("needy", {})}))


def test_parameters_see_no_bias_where_the_signal_is_exact():
    from xtokd.models.loading import load_model
    from xtokd.alignment.pair import Pair
    from xtokd.models.forward import response_logits
    bv, model = Pair("tiny").student, load_model("tiny", "student")
    prompts, ids = [[1, 3, 40], [1, 3, 50, 51]], [bv.encode(" 12") + [bv.stop_ids[0]], bv.encode("one 7.")]
    rows = response_logits(model, prompts, ids)
    teacher = [l[:, : len(bv)] * .5 for l in rows]
    exact = [SimpleNamespace(value=torch.softmax(t.double(), -1).numpy(), lost=np.zeros(len(t))) for t in teacher]
    case = model_case(make_pair(bv, bv), ids, ids, rows, teacher, exact)
    answers, refused = run_objectives(case, {"cover": ("cover", {}), "strict": ("strict", {}), "sft": ("sft", {})})
    table = {r["objective"]: r for r in parameter_table(case, model, prompts, answers)}
    assert set(table) == {"cover", "strict"} and "teacher" in refused["sft"]
    assert all(r["bias"] < 1e-3 and r["cosine"] > .9999 for r in table.values())


def test_recorded_runs():
    rows = {k: collapse_summary(data_dir() / "runs" / f"tiny-{k}.jsonl") for k in ("cover-0", "sampled-0", "collapse")}
    assert [rows[k]["verdict"] for k in rows] == ["holds", "collapses", "collapses"]
    assert rows["collapse"]["stops last"] < .1 < rows["collapse"]["stops first"]
    assert [accuracy_verdict(.5, .2, .6), accuracy_verdict(.5, .48, .6)] == ["dips, recovers", "holds"]
