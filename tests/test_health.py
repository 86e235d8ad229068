"Signs of a collapse: an alarm on runs that collapse, none on runs that learn, once each, and the same bounds everywhere."
import json, math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from xtokd.train.monitor import (
    CoverageGuard, CollapseMonitor, Limits, window_means, text_sums, text_stats, find_warnings,
    number_digits, count_repeated, first_warnings,
)
from xtokd.train.runlog import Run, RunLog

RUNS = Path(__file__).resolve().parent.parent / "data/runs"
HEALTHY = [*(f"tiny-cover-{k}" for k in range(5)), *(f"tiny-cover-jsd-{k}" for k in range(3)), *(f"tiny-sft-{k}" for k in range(5)), "tiny-watched", "gemma-from-smollm2", "health/cover", "lesson-cpu/on-policy", "lesson-cpu/sft"]


def steps(n=40, **columns): return [{"step": k + 1, **{c: v(k) if callable(v) else v[2 * k // n] if isinstance(v, tuple) else v for c, v in columns.items()}} for k in range(n)]
def names(*a, **k): return {x.name for x in find_warnings(*a, **k)}


# ---- recorded runs ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HEALTHY)
def test_no_alarm_on_a_run_that_learns(name): assert first_warnings(Run(RUNS / f"{name}.jsonl")) == {}


@pytest.mark.parametrize("name", [f"tiny-sampled{kind}-{k}" for kind in ("", "-shift", "-prior") for k in range(5)] + [f"tiny-strict-{k}" for k in range(5)])
def test_an_alarm_on_a_run_that_unlearns(name): assert "answers" in first_warnings(Run(RUNS / f"{name}.jsonl"))


def test_alarms_on_runs_that_collapse():
    found = first_warnings(Run(RUNS / "tiny-collapse.jsonl"))
    assert {"stop", "length", "entropy", "signal", "answers"} <= set(found)
    found = first_warnings(Run(RUNS / "health/sampled.jsonl"))
    assert {"numbers", "stop", "repetition"} <= set(found) and found["numbers"] == 20 < found["stop"], "the numbers go first, and are seen as soon as there are two windows"


# ---- each sign --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sign, good, bad", [
    ("numbers", (4., 3.6), (4., 3.2)), ("repetition", (.1, .25), (.1, .35)), ("distinct", (.6, .45), (.6, .3)), ("stop", (1., .85), (1., .75)),
    ("entropy", (1., .06), (1., .04)), ("entropy", (1., 2.8), (1., 3.2)), ("length", (20, 9), (20, 7)), ("signal", (.9, .5), (.9, .4)), ("loss", (1., 2.8), (1., 3.2))])
def test_each_sign_has_its_bound(sign, good, bad):
    column = dict(distinct="distinct_2", numbers="number_length", repetition="repetition", stop="stop_share", entropy="entropy", length="response_tokens", signal="coverage", loss="loss")[sign]
    assert names(steps(**{column: good})) == set() and names(steps(**{column: bad})) == {sign}
    assert all(":" in str(x) and x.first != x.last for x in find_warnings(steps(**{column: bad})))


@given(st.lists(st.floats(0, 2), min_size=20, max_size=60), st.sampled_from(["number_length", "stop_share", "response_tokens", "repetition", "distinct_2", "entropy", "coverage", "loss"]))
@settings(max_examples=100, deadline=None)
def test_a_run_that_stays_as_it_began_has_no_sign(values, column):
    half = values[:len(values) // 2] or [1.]
    run = [{column: v + .5} for v in (half * 40)[:40]] * 2
    a, b, noise = window_means(run, column)
    if abs(a - b) < 1e-12: assert not names(run)


def test_noise_is_no_sign():
    "Means of four and of nine digits by chance: without the guard every third such run would be accused."
    rng, draw = np.random.default_rng(0), lambda: steps(20, number_length=lambda _: rng.normal(5, 3))
    runs = [draw() for _ in range(500)]
    assert sum("numbers" in names(r) for r in runs) <= 10 < 100 < sum(bool(find_warnings(r, limits=Limits(standard_errors=0.))) for r in runs)


def test_text_of_others_and_missing_columns_say_nothing():
    bad = steps(entropy=(1., 0.), stop_share=(1., 0.))
    assert names(bad) and not names([e | {"text_source": "teacher"} for e in bad]) and not names(steps()) and not names([])
    assert not names([e if k % 3 else {"step": k} for k, e in enumerate(steps(entropy="NaN"))])


# ---- statistics of text -----------------------------------------------------------------------------------------------------------------
def test_text_stats():
    assert number_digits("") is None and number_digits("", "12") == 0 and number_digits("1 then 234") == 3 and number_digits("no", "no") is None
    assert text_stats(text_sums([], [], [])) == {} and text_stats(text_sums(["a"], [[1]], [None])) == {}
    found = text_stats(text_sums(["9632", "x 12"], [[1] * 8, [1, 2, 3, 4, 5]], ["9632", 12]))
    assert found == {"number_length": 3., "repetition": 4 / 7, "distinct_2": 5 / 11}


@given(st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=6))
def test_distinct_2_is_over_all_responses_of_a_step(ids):
    "Naive: look at every pair of neighbours, and whether an earlier one is the same. The same response twice halves it."
    pairs, new = [], 0
    for one in ids:
        for i in range(len(one) - 1):
            if (one[i], one[i + 1]) not in pairs: new += 1
            pairs.append((one[i], one[i + 1]))
    found = text_stats(text_sums([""] * len(ids), ids, [None] * len(ids))).get("distinct_2")
    assert found == (new / len(pairs) if pairs else None)
    twice = text_stats(text_sums([""] * 2 * len(ids), ids + ids, [None] * 2 * len(ids))).get("distinct_2")
    assert not pairs or twice == found / 2


def test_responses_that_become_alike_are_a_sign():
    "Each response for itself is as before: nothing repeats inside, and they end."
    told = find_warnings(steps(distinct_2=(.6, .2), repetition=0., stop_share=1.))
    assert [w.name for w in told] == ["distinct"] and "20% of the pairs" in str(told[0]) and "60% at the start" in str(told[0])
    assert not names(steps(distinct_2=(.6, .4)))


@given(st.lists(st.integers(0, 3), max_size=30))
def test_repetition_counts_what_stood_there_before(ids):
    again, all_ = count_repeated(ids)
    grams = [tuple(ids[i:i + 4]) for i in range(max(len(ids) - 3, 0))]
    assert all_ == len(grams) and again == sum(g in grams[:i] for i, g in enumerate(grams))


# ---- in a run ---------------------------------------------------------------------------------------------------------------
def collapsing(tmp_path, **kw):
    from test_distill import Wrapped, distiller
    def wide(n, out):
        out.stats["coverage"] = .9 if n <= 10 else .2
        return out
    return distiller(tmp_path / "a", Wrapped(wide), max_steps=24, batch_size=2, max_new_tokens=8, **kw)


def test_a_run_warns_once_and_a_resumed_one_not_again(tmp_path):
    d = collapsing(tmp_path, save_steps=22); d.fit()
    told = [w for w in Run(tmp_path / "a").warnings if w.get("sign") == "signal"]
    assert len(told) == 1 and told[0]["step"] == 20 and told[0]["first"] == .9 and "xtokd doctor" in told[0]["message"]
    again = collapsing(tmp_path); again.config.max_steps = 26
    again.objective.calls = 24
    assert len([w for w in again.fit(resume=True).warnings if w.get("sign") == "signal"]) == 1
    record = Run(tmp_path / "a").steps[0]
    assert {"number_length", "repetition", "distinct_2"} <= set(record) and 0 < record["distinct_2"] <= 1 and record["text_source"] == "student"


def test_it_can_be_turned_off(tmp_path):
    assert not [w for w in collapsing(tmp_path, collapse_warnings=False).fit().warnings if "sign" in w]


def test_a_sign_is_told_again_after_it_was_over():
    said, d = [], SimpleNamespace(config=SimpleNamespace(max_new_tokens=64), log=SimpleNamespace(emit=lambda event, step, **f: said.append(f["sign"])))
    h = CollapseMonitor()
    for e in steps(30, entropy=1.) + steps(20, entropy=.01) + steps(20, entropy=1.) + steps(20, entropy=.01): h.on_step(d, e)
    assert said == ["entropy", "entropy"]


# ---- coverage ---------------------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(0, 1), max_size=40), st.floats(0, 1))
def test_coverage_is_a_mean_of_ten_and_waits_for_five(shares, at_least):
    c, failed = CoverageGuard(at_least), None
    for k, s in enumerate(shares):
        try: c.add(s, "")
        except RuntimeError: failed = k; break
    means = [np.mean(shares[max(0, k - 9):k + 1]) for k in range(len(shares))]
    due = [k for k, m in enumerate(means) if k >= 4 and m < at_least - 1e-9]
    near = [k for k, m in enumerate(means) if k >= 4 and m < at_least + 1e-9]
    assert failed in ({due[0]} if due else {None}) | set(near[:1])
