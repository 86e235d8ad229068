"""The writer study: its protocol, its statistics, and what its recorded runs have to be."""
import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from xtokd.data.tasks.new_habit import (
    NEW_CLOSING, OLD_CLOSING, check_habit, check_lines, check_reversal, habit_items, has_habit, reversal_items)
from xtokd.experiments import study_parts, writer_study
from xtokd.experiments.comparison import MIN_SEEDS, paired_difference
from xtokd.experiments.study_designs import ARMS, DESIGNS, Sizes
from xtokd.experiments.study_parts import read_json, study_folder
from xtokd.experiments.writer_study import (
    RATE_LIMITS, Meter, answers, arm_runs, best_rate, heldout_scores, kl_from, study_table, train_once)

SMALL = dataclasses.replace(DESIGNS["habit-1"], steps=2, measure_at=(1, 2), train_size=64,
                            sizes=Sizes(validation=12, heldout=10, skill=6, samples=3, greedy=10))


# ---- the task ----------------------------------------------------------------------------------------
def test_splits_of_the_habit_are_disjoint():
    def numbers(item): return item["prompt"].removeprefix("add ").replace(", ", "+")
    parts = [{numbers(item) for item in habit_items(500, seed, split)}
             for seed, split in enumerate(("train", "validation", "heldout"))]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    parts = [{item["prompt"] for item in reversal_items(100, 0, split)} for split in ("train", "validation", "heldout")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    with pytest.raises(ValueError, match="'test' is unknown"): habit_items(1, split="test")


@pytest.mark.parametrize("edit, scores", [
    (lambda lines, total: lines + [NEW_CLOSING.format(total=total)], (1, 1, 1)),
    (lambda lines, total: lines + [OLD_CLOSING.format(total=total)], (0, 0, 1)),
    (lambda lines, total: lines + [NEW_CLOSING.format(total=total + 1)], (0, 1, 0)),
    (lambda lines, total: lines[1:] + [NEW_CLOSING.format(total=total)], (1, 1, 0)),
    (lambda lines, total: lines + [NEW_CLOSING.format(total=total) + "\n"], (1, 0, 0)),
    (lambda lines, total: lines, (0, 0, 0)),
    (lambda lines, total: [NEW_CLOSING.format(total="")], (0, 0, 0))])
def test_checks_of_the_habit(edit, scores):
    item = habit_items(1, 3)[0]
    text = "\n".join(edit(item["reference"].split("\n")[:-1], int(item["answer"])))
    both = scores[0] * scores[1]
    assert (has_habit(item, text), check_lines(item, text)) == scores[1:]
    assert check_habit(item, text) == both
    assert check_reversal({"reference": "Reversed: 12"}, "Reversed: 12 ") == 0


# ---- statistics --------------------------------------------------------------------------------------
def test_an_interval_over_few_seeds_is_no_claim():
    ours, theirs = np.ones((MIN_SEEDS, 50)), np.zeros((MIN_SEEDS, 50))
    assert paired_difference(ours, theirs).is_claim
    assert paired_difference(ours, theirs).low == 1
    few = paired_difference(ours[:-1], theirs[:-1])
    assert few.low == 1 and not few.is_claim and "seeds" in str(few)


def test_an_interval_sees_the_seeds():
    "All problems of a seed agree, seeds differ: a pooled interval would be narrow, this one is wide."
    effect = np.array([.3, -.2, .4, -.3, .1])
    ours = np.repeat(effect[:, None], 400, 1)
    found = paired_difference(ours, np.zeros_like(ours))
    assert found.low < 0 < found.high and found.high - found.low > .2
    assert found.mean == pytest.approx(effect.mean())


# ---- the sweep ---------------------------------------------------------------------------------------
def test_the_sweep_ends_inside_the_grid_or_at_its_limit():
    grid = (1e-4, 3e-4, 1e-3)
    for peak in (1e-7, 2e-5, 3e-4, 4e-3, 1.):
        outcomes = {}
        for _ in range(30):
            best, missing = best_rate(outcomes, grid)
            if best is not None: break
            outcomes[missing] = -abs(np.log(missing / peak))
        rates = sorted(outcomes)
        assert best == max(outcomes, key=outcomes.get)
        inside = rates[0] < best < rates[-1]
        assert inside or not RATE_LIMITS[0] * 3.2 < best < RATE_LIMITS[1] / 3.2


# ---- measuring and training --------------------------------------------------------------------------
def test_one_run_has_all_that_the_tables_read(monkeypatch, tmp_path):
    monkeypatch.setitem(DESIGNS, "small", dataclasses.replace(SMALL, arms=("cover-rkl", "sft"), seeds=(0,)))
    monkeypatch.setattr(study_parts, "data_dir", lambda: tmp_path)
    found = train_once(DESIGNS["small"], "sft", 3e-4, 0)
    again = train_once(DESIGNS["small"], "sft", 3e-4, 0)
    assert found["heldout"] == again["heldout"]             # one seed, one result
    assert [row["step"] for row in found["curve"]] == [1, 2]
    writer_study.run_arm("small", "start", 0, report=lambda line: None)
    folder = study_folder("small")
    assert folder == tmp_path / "runs/writers/small"
    for arm in ("sft", "cover-rkl"): (folder / f"{arm}-0.json").write_text(json.dumps(found | {"arm": arm}))
    rows = study_table("small")
    assert [row["arm"] for row in rows] == ["start", "cover-rkl", "sft"]
    assert rows[1]["sampled, minus sft"].startswith("+0.000")
    before = (folder / "start-0.json").stat().st_mtime_ns
    writer_study.run_arm("small", "start", 0, report=lambda line: None)
    assert (folder / "start-0.json").stat().st_mtime_ns == before   # a run that is there is not made again


def test_a_run_that_was_stopped_goes_on_to_the_same_result(monkeypatch, tmp_path):
    """Stopped in the second step, and again between two passes over the held-out problems."""
    monkeypatch.setattr(study_parts, "cache_dir", lambda: tmp_path)
    design = dataclasses.replace(SMALL, save_steps=1)
    whole = train_once(SMALL, "cover-rkl", 3e-4, 0)
    class Stop(Exception): pass
    def stop_at(number, function):
        calls = []
        def stopping(*args, **kwargs):
            calls.append(1)
            if len(calls) == number: raise Stop
            return function(*args, **kwargs)
        return stopping
    for name in ("on_validation", "_answers"):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(Meter, name, stop_at(2, getattr(Meter, name)))
            train_once(design, "cover-rkl", 3e-4, 0)
    found = train_once(design, "cover-rkl", 3e-4, 0)
    [folder] = (tmp_path / "studies").iterdir()
    assert {"curve.json", "best.safetensors", "sampled-0.json", "greedy.json"} <= {f.name for f in folder.iterdir()}
    for key in ("correct", "greedy"): assert found["heldout"][key] == whole["heldout"][key]
    for key in ("kl", "total", "tokens"): assert found["heldout"][key] == pytest.approx(whole["heldout"][key], rel=1e-3)
    for run in (found, whole): run["scores"] = [row["score"] for row in run["curve"]]
    assert found["scores"] == pytest.approx(whole["scores"], abs=1e-5) and len(found["scores"]) == 2


def test_distance_from_the_start_is_a_sum_over_rows():
    meter = Meter(SMALL, 0)
    torch.manual_seed(0)
    other = copy.deepcopy(meter.start)
    with torch.no_grad():
        for weight in other.parameters(): weight += .02 * torch.randn_like(weight)
    items = meter.validation[:6]
    ids, _ = answers(other, meter.vocab, items, 20, seed=1)
    from xtokd.data.chat import render_prompt
    total = 0.
    for item, response in zip(items, ids):
        prompt = render_prompt(meter.vocab, item)
        now, before = (model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
                       for model in (other, meter.start))
        for row in range(len(prompt) - 1, len(prompt) + len(response) - 1):
            total += float((now[row].exp() * (now[row] - before[row])).sum())
    assert kl_from(meter.start, other, meter.vocab, items, ids) == pytest.approx(total / 6, rel=1e-3)
    assert abs(kl_from(other, other, meter.vocab, items, ids)) < 1e-5


# ---- the record --------------------------------------------------------------------------------------
RECORDED = [(name, arm, run) for name, design in DESIGNS.items() for arm in design.arms for run in arm_runs(name, arm)]


@pytest.mark.parametrize("name", sorted({name for name, *_ in RECORDED}))
def test_recorded_runs_follow_the_protocol(name):
    design, rates = DESIGNS[name], read_json(study_folder(name) / "rates.json", {})
    for arm in design.arms:
        runs = arm_runs(name, arm)
        if not runs: continue
        sweep = rates[design.rate_of.get(arm, arm)]
        rate, missing = best_rate({float(x): row["score"] for x, row in sweep.items()}, design.rates)
        assert missing is None, f"{arm}: the sweep is not finished"
        seeds = [run["seed"] for run in runs]
        assert len(set(seeds)) == len(seeds) and set(seeds) <= set(design.seeds)
        for run in runs:
            settings = {**design.settings, **ARMS[arm].settings, "max_steps": design.steps}
            settings |= {"learning_rate": rate, "seed": run["seed"], "max_new_tokens": design.max_new_tokens}
            assert run["settings"] == settings
            best = max(run["curve"], key=lambda row: row["score"])
            assert run["chosen_step"] == best["step"]
            heldout = run["heldout"]
            assert len(heldout["correct"]) == design.sizes.heldout
            assert len(heldout["greedy"]) == min(design.sizes.heldout, design.sizes.greedy)
            assert heldout["score"] == pytest.approx(heldout_scores([run]).mean(), abs=1e-5)


def test_arms_whose_names_begin_alike_are_kept_apart():
    for name, design in DESIGNS.items():
        for arm in ("start", *design.arms): assert {run["arm"] for run in arm_runs(name, arm)} <= {arm}, (name, arm)
    thresholds = [arm for arm in DESIGNS["habit-1"].arms if arm.startswith("cover-rkl-threshold") and arm_runs("habit-1", arm)]
    assert len(thresholds) > 1, "without two such arms this test says nothing"
