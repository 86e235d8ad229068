"The dashboard without a browser: curves, rules, hostile texts, the replay, and buttons as traits."
import json, threading, time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from xtokd.alignment.pair import Pair
from xtokd.train.monitor import Limits
from xtokd.train.runlog import Control, Run, RunLog
from xtokd.viz.dashboard import Dashboard, Replay, Snapshot, snapshot_svg, snapshot_text, wrap_text
from xtokd.viz.run_state import (
    RunState, axis_range, axis_ticks, dashboard_data, decimate, headline_numbers, printable, run_panels, run_warnings, seconds_left)

RUNS = Path(__file__).resolve().parent.parent / "data/runs"
HOSTILE = ["<script>alert(1)</script>", "</text></svg><img src=x onerror=alert(1)>", "]]>&amp;\"'", "\u202eright to left\u202c\u2066", "a\u200d\u200bb\ufeff", "\x00\x07\x1b[31m\x7f", "\ud800 \udfff", "x" * 10_000, "\ufffe\uffff", "e" + "\u0301" * 200, "", "\n\r\t\v\x85\u2028"]


def events(n=40, config=None, **columns):
    "A made-up log; a column is a number, (first half, second half), or a function of the step."
    at = lambda v, k: v(k) if callable(v) else v[k > n // 2] if isinstance(v, tuple) else v
    start = {"event": "start", "step": 0, "time": 0., "objective": "cover", "config": {"max_new_tokens": 64, "max_steps": n, **(config or {})}}
    return [start] + [{"event": "step", "step": k, "time": float(k), **{c: at(v, k) for c, v in columns.items()}} for k in range(1, n + 1)]


def rules(**columns): return {a.rule for a in run_warnings(RunState(events(**columns)))}
def training(path, control=None): return Run(path, control or Control())


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(.02)


# ---- curves -----------------------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=400), st.integers(4, 60))
@settings(max_examples=80, deadline=None)
def test_decimation_keeps_ends_and_extremes(values, most):
    x, y = decimate(np.arange(len(values)), values, most)
    good = [v for v in values if np.isfinite(v)]
    assert len(x) == len(y) <= max(most, 2) and (np.diff(x) > 0).all() and np.isfinite(y).all()
    if good: assert y[0] == good[0] and y[-1] == good[-1] and y.min() == min(good) and y.max() == max(good)


def test_a_long_run_stays_small():
    state = dashboard_data(RunState(events(20_000, loss=lambda k: k % 97 / 7, entropy=1., coverage=.9, tokens_per_second=lambda k: k * 1.234567, **{f"loss_{k}": .5 for k in ("1-1", "1-n", "n-1", "n-m")})))
    assert all(len(c["x"]) <= 500 for p in state["panels"] for c in p["curves"]) and len(json.dumps(state)) < 200_000


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low, wide):
    high = low + wide
    found = axis_ticks(low, high)
    assert len(found) <= 5 and all(low - wide * 1e-3 <= v <= high + wide * 1e-3 for v, _ in found)


def test_panels_show_what_the_log_has():
    now = RunState(events(loss=1., **{"loss_1-1": .5, "loss_n-m": 2.}, response_tokens=20) + [{"event": "eval", "step": 40, "time": 41., "rkl_per_byte": .5, "rkl_error": .1}])
    found = {p.key: p for p in run_panels(now)}
    assert list(found) == ["loss", "kl", "length"] and [c.look for c in found["loss"].curves] == ["all", "1-1", "n-m"]
    assert found["kl"].curves[0].low == [pytest.approx(.304)] and [c.look for c in found["length"].curves] == ["all", "limit"]
    assert axis_range(found["length"].curves, 0., None)[1] > 64


def test_logs_from_before_these_columns_still_draw():
    for log in sorted(RUNS.glob("*.jsonl")):
        state = dashboard_data(RunState(Run(log).events), log.stem)
        ET.fromstring(snapshot_svg(state)); snapshot_text(state)
        assert state["panels"] and json.dumps(state, allow_nan=False)
    later = ("entropy", "peak_memory_gib", "loss_")           # columns that logs of the first days do not have
    events = [{k: v for k, v in e.items() if not (e["event"] == "step" and k.startswith(later))} for e in Run(RUNS / "tiny-cover-0.jsonl").events]
    old = dashboard_data(RunState(events))
    assert "entropy" not in {p["key"] for p in old["panels"]} and "svg" in old["sample"]


# ---- numbers ----------------------------------------------------------------------------------------------------------------
def test_time_left_follows_the_clock():
    assert seconds_left(RunState(events(40)[:11])) == 30 and np.isnan(seconds_left(RunState(events(40)[:2])))
    assert dict((n, v) for n, v, _ in headline_numbers(RunState(events(40, loss=2.)[:11])))["ETA"] == "0:30"
    assert headline_numbers(RunState(events(40) + [{"event": "end", "step": 40, "time": 75., "reason": "stopped"}]))[-1] == ("took", "1:15", "stopped")
    assert [v for _, v, _ in headline_numbers(RunState([]))] == ["0", "–", "–", "–"]


# ---- rules ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule, good, bad", [
    ("length", dict(response_tokens=(20, 60), stop_share=.9), dict(response_tokens=(20, 64), stop_share=.4)),
    ("length", dict(response_tokens=(30, 15)), dict(response_tokens=(30, 9))),
    ("entropy", dict(entropy=(2., .2)), dict(entropy=(2., .09))),
    ("entropy", dict(entropy=(1., 2.5)), dict(entropy=(1., 3.5))),
    ("signal", dict(coverage=(.9, .6)), dict(coverage=(.9, .4))),
    ("signal", dict(coverage=.2), dict(coverage=.05)),
    ("loss", dict(loss=(1., 2.)), dict(loss=(1., 3.5))),
    ("loss", dict(loss=(1., -2.)), dict(loss=lambda k: "NaN" if k == 38 else 1.)),
])
def test_each_rule_has_its_bound(rule, good, bad):
    assert rules(**good) == set() and rules(**bad) == {rule}
    assert all(a.text and a.step == 40 for a in run_warnings(RunState(events(**bad))))


def test_rules_wait_for_two_windows():
    assert not rules(n=19, entropy=(2., 0.)) and rules(n=20, entropy=(2., 0.)) == {"entropy"}
    few = RunState(events(n=10, entropy=(2., 0.)))
    assert not run_warnings(few) and [a.rule for a in run_warnings(few, Limits(window=3))] == ["entropy"]


def test_the_recorded_collapse_is_seen_and_the_good_run_is_not_accused():
    assert {a.rule for a in run_warnings(RunState(Run(RUNS / "tiny-collapse.jsonl").events))} >= {"length"}
    for name in ("tiny-watched", "tiny-cover-0", "tiny-sft-0"): assert not run_warnings(RunState(Run(RUNS / f"{name}.jsonl").events)), name


def test_a_warning_of_the_run_that_the_rules_give_too_is_shown_once():
    warned = [{"event": "warn", "step": 40, "time": 1., "message": "the entropy fell", "sign": "entropy"}]
    assert [a.rule for a in run_warnings(RunState(events(entropy=(2., .01)) + warned))] == ["entropy"] and [a.rule for a in run_warnings(RunState(events(entropy=1.) + warned))] == ["log"]


def test_a_warning_of_the_run_is_shown():
    assert [a.rule for a in run_warnings(RunState(events(loss=1.) + [{"event": "warn", "step": 3, "time": 1., "message": "the gradient is not finite"}]))] == ["log"]


# ---- hostile texts ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def sample(text, pair, **other):
    ids, teacher = pair.student.encode(text), pair.teacher.encode(text)
    return {"event": "sample", "step": 1, "time": 1., "source": "train", "item": {"prompt": text}, "text": text, "student_ids": ids, "teacher_ids": teacher,
            "alignment": pair.align(ids, teacher).to_record(), "signal": [.5] * len(ids), "weight": [1.] * len(ids), **other}


@pytest.mark.parametrize("k", range(len(HOSTILE)))
def test_hostile_texts_stay_text(k, pair, tmp_path):
    text = HOSTILE[k]
    log = RunLog(tmp_path)
    for e in events(3, loss=1., config={"output_dir": text}): log.write(**{a: b for a, b in e.items() if a != "time"} | ({"objective": text} if e["event"] == "start" else {}))
    clean = text.encode("utf8", "replace").decode("utf8")
    log.write(**{a: b for a, b in sample(clean, pair).items() if a != "time"})
    log.write("sample", 2, source="eval", item={"prompt": text, "messages": text}, text=text, score=text)
    log.write("warn", 2, message=text)
    log.close()
    state = dashboard_data(RunState(Run(tmp_path).events), text)
    tree = ET.fromstring(snapshot_svg(state))
    tags = {e.tag.split("}")[1] for e in tree.iter()}
    assert tags <= {"svg", "g", "rect", "text", "title", "desc", "style", "path", "polyline"} and not any(a.startswith("on") or "href" in a for e in tree.iter() for a in e.attrib)
    said = json.dumps(state, ensure_ascii=False).encode("utf8").decode("utf8") + snapshot_text(state)
    assert not any(c in said for c in "\u202e\u2066\x00\x1b\u200b\ufeff\u2028") and len(snapshot_text(state)) < 60_000 and len(snapshot_svg(state)) < 400_000


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_printable_has_no_controls(text):
    import unicodedata
    shown = printable(text + "\ud800")
    assert all(unicodedata.category(c)[0] != "C" for c in shown) and shown.encode("utf8")


@pytest.mark.parametrize("broken", [{"alignment": {}}, {"alignment": None}, {"alignment": {"student": {"name": 1, "ids": [], "pieces": ["zz"], "names": []}}}, {"signal": None, "weight": None}, {"signal": [1.]}, {"item": None}, {"item": {"messages": []}}])
def test_a_broken_sample_breaks_nothing(broken, pair):
    state = dashboard_data(RunState(events(3, loss=1.) + [sample("one two", pair, **broken)]))
    assert state["sample"]["text"] == "one two" and ET.fromstring(snapshot_svg(state)) is not None


def test_signal_is_drawn_per_token(pair):
    state = dashboard_data(RunState(events(3) + [sample("twenty-one", pair, weight=[1.] + [0.] * 50)]))
    s = state["sample"]
    assert s["none"] == len(pair.student.encode("twenty-one")) - 1 and s["svg"].count('class="v"') == 1
    assert "student" in s["table"]


def test_fold():
    assert wrap_text("") == [""] and all(len(l) <= 30 for l in wrap_text("word " * 50 + "x" * 100, 29))


# ---- live, by traits --------------------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path):
    "A log that a thread writes as training would; it obeys its Control."
    control, log = Control(), RunLog(tmp_path / "run")
    made = events(2_000, loss=1., tokens_per_second=10.)
    write = lambda e: log.write(**{k: v for k, v in e.items() if k != "time"})
    def work():
        k = 0
        for k, e in enumerate(made[1:], 1):
            if control.wait_if_paused(): break
            write(e); time.sleep(.005)
        write({"event": "end", "step": k, "reason": "stopped" if control.stopping.is_set() else "finished"})
        log.close(); control.done.set()
    write(made[0])
    control.thread = threading.Thread(target=work, daemon=True)
    control.thread.start()
    yield Run(tmp_path / "run", control)
    control.stop(); control.thread.join(10)


def test_buttons_by_traits(run, tmp_path):
    dash = Dashboard(run)
    until(lambda: dash.data["step"] > 3)
    assert dash.can == ["pause", "stop"] and dash.data["status"] == "training"
    dash.wish = "pause"                                     # what the page does when Pause is pressed
    assert not run.control.running.is_set() and dash.data["status"] == "paused"
    time.sleep(.05); held = len(run.steps); time.sleep(.1)
    assert len(run.steps) == held
    dash.wish = "run"
    until(lambda: len(run.steps) > held)
    dash.snaps += 1
    assert "snapshot" in dash.said and len(list((tmp_path / "run").glob("*.svg"))) == len(list((tmp_path / "run").glob("run-*.json"))) == 1
    dash.wish = "stop"
    dash.wait(10)
    assert dash.data["status"] == "stopped" and dash.can == [] and run.wait(5).finished and dash.data["step"] == run.steps[-1]["step"]
    assert not dash._thread.is_alive() or dash._thread.join(5) is None


def test_pause_from_python_shows_on_the_button(run):
    dash = Dashboard(run)
    run.pause()
    until(lambda: dash.wish == "pause" and dash.data["status"] == "paused")
    run.resume()
    until(lambda: dash.wish == "run" and dash.data["status"] == "training")
    dash.stop(); dash.wait(10)
    dash.pause()                                            # too late: says so, raises nothing
    assert dash.data["status"] == "stopped" and "over" in dash.said


def test_at_most_four_looks_a_second(run):
    dash, seen = Dashboard(run), []
    dash.observe(lambda c: seen.append(time.monotonic()), "data")
    time.sleep(1.6)
    assert 2 <= len(seen) <= 7 and np.diff(seen).min() >= .24
    dash.stop(); dash.wait(10)


def test_closing_ends_the_view_and_not_the_run(run):
    dash = Dashboard(run)
    dash.close()
    dash._thread.join(5)
    n = len(run.steps)
    until(lambda: len(run.steps) > n)


def test_a_view_that_fails_says_so_and_lets_the_run_go_on(run, monkeypatch):
    dash = Dashboard(run)
    monkeypatch.setattr(dash._source.run, "path", None)
    until(lambda: "has stopped" in dash.said)
    n = len(run.steps)
    until(lambda: len(run.steps) > n)


def test_as_a_callback(run):
    from types import SimpleNamespace
    dash = Dashboard()
    assert dash.data["status"] == "waits for a run"
    dash.on_start(SimpleNamespace(output_dir=run.path.parent, control=run.control), {})
    until(lambda: dash.data["step"] > 0)
    getattr(dash, "on_step", lambda *_: None)(None, {})     # the Distiller calls only what there is
    dash.stop(); dash.wait(10)


def test_a_log_of_another_process_has_no_buttons(tmp_path):
    log = RunLog(tmp_path / "other")
    log.write("start", 0, config={})
    dash = Dashboard(tmp_path / "other")
    assert dash.can == [] and dash.data["status"] == "followed in its log"
    dash.wish = "stop"
    assert "another process" in dash.said
    log.write("step", 1, loss=1.); log.write("end", 1, reason="finished"); log.close()
    dash.wait(10)
    assert dash.data["status"] == "finished" and dash.data["step"] == 1


# ---- replay and bundle ------------------------------------------------------------------------------------------------------
def test_replay_walks_pauses_and_ends():
    dash = Dashboard.replay(RUNS / "tiny-watched.jsonl", speed=100)
    assert dash.data["status"].startswith("replay") and dash.can
    dash.wish = "pause"
    held = dash.data["step"]
    time.sleep(.6)
    assert dash.data["step"] == held and "paused" in dash.data["status"]
    dash.wish = "run"
    until(lambda: dash.data["step"] > held)
    dash.wish = "stop"
    dash.wait(10)
    assert dash.data["status"] == "finished" and dash.data["step"] == 120


def test_replay_at_once(tmp_path):
    dash = Dashboard.replay(RUNS / "tiny-watched.jsonl", speed=None, folder=tmp_path)
    assert dash._thread is None and dash.data["status"] == "finished"
    svg = dash.snapshot()
    assert svg.parent == tmp_path and ET.parse(svg) and json.loads(svg.with_suffix(".json").read_text())["step"] == 120


def test_a_night_without_steps_takes_a_second():
    log = Run(RUNS / "tiny-watched.jsonl")
    replay = Replay(log, speed=1)
    replay.all_events[5]["time"] += 0
    gaps = np.diff(replay.times)
    assert gaps.max() <= 1 and (gaps >= 0).all()


def test_the_bundle_has_a_picture_a_text_and_the_live_view():
    dash = Dashboard.replay(RUNS / "tiny-watched.jsonl", speed=None)
    found = dash._repr_mimebundle_()
    assert {"image/svg+xml", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(found) and "text/html" not in found
    assert ET.fromstring(found["image/svg+xml"]).attrib["role"] == "img" and "step 120" in found["text/plain"]
    snapshot = Snapshot.of(RUNS / "tiny-watched.jsonl")._repr_mimebundle_()
    assert set(snapshot) == {"image/svg+xml", "text/plain"} and len(snapshot["image/svg+xml"]) < 100_000


def test_nothing_is_fetched():
    for name in ("dashboard.js", "dashboard.css"):
        text = (Path(__file__).resolve().parent.parent / "xtokd/viz" / name).read_text()
        assert len(text.splitlines()) < 400 and not [l for l in text.splitlines() if ("http" in l and "w3.org" not in l) or "import " in l or "fetch(" in l or "innerHTML" in l]


def test_a_missing_log_says_where():
    with pytest.raises(FileNotFoundError, match="no run log at"): Dashboard("no/such/run")


# ---- faults that were seen --------------------------------------------------------------------------------------------------
def test_snapshots_of_a_run_with_a_dot_in_its_name_keep_their_step(tmp_path):
    for step in (3, 12):
        path = Snapshot(dashboard_data(RunState(events(step, loss=1.)), "qwen2.5-from-llama3.1")).save(tmp_path / f"qwen2.5-from-llama3.1-{step:06d}")
        assert path.name == f"qwen2.5-from-llama3.1-{step:06d}.svg"
    assert len(list(tmp_path.glob("*.svg"))) == len(list(tmp_path.glob("*.json"))) == 2
    assert Snapshot(dashboard_data(RunState([]))).save(tmp_path / "named.svg").name == "named.svg"
    log = RunLog(tmp_path / "run-1795844887.6442251")
    for event in events(7, loss=1.): log.write(event.pop("event"), event.pop("step"), **{k: v for k, v in event.items() if k != "time"})
    log.close()
    dash = Dashboard.replay(tmp_path / "run-1795844887.6442251", speed=None, folder=tmp_path)
    assert dash.snapshot().name == "run-1795844887.6442251-000007.svg"


def test_the_step_axis_ends_at_the_last_step_of_a_run_that_goes_on():
    data = dashboard_data(RunState(events(10, {"max_steps": 200}, loss=1.), "training"))
    assert (data["last"], data["newest"], data["step"]) == (200, 10, 10) and ">200<" in snapshot_svg(data)
    over = events(10, {"max_steps": 200}, loss=1.) + [{"event": "end", "step": 10, "time": 11., "reason": "stopped"}]
    assert dashboard_data(RunState(over))["last"] == 10 and dashboard_data(RunState([]))["last"] == 1


def test_accuracy_has_lines_of_the_start_and_of_the_teacher_where_they_are_known():
    evals = [{"event": "eval", "step": k, "time": k + .5, "accuracy": .2 + k / 100} for k in (0, 5, 10)]
    def lines(found, **kw):
        panel = next(p for p in run_panels(RunState(found, **kw)) if p.key == "accuracy")
        return {c.name: (c.x, c.y) for c in panel.curves if c.look == "limit"}
    log = events(10, {"max_steps": 40})
    assert lines(log + evals) == {"start": ([0, 40], [.2, .2])}
    assert lines(log + evals[1:]) == {} and lines(log + evals[1:], teacher_accuracy=.97) == {"teacher": ([0, 40], [.97, .97])}
    log[0]["teacher_accuracy"] = .9
    assert lines(log + evals)["teacher"] == ([0, 40], [.9, .9])
    dash = Dashboard.replay(RUNS / "tiny-watched.jsonl", speed=None, teacher_accuracy=.99)
    names = [c["name"] for p in dash.data["panels"] if p["key"] == "accuracy" for c in p["curves"]]
    assert {"start", "teacher"} <= set(names) and "teacher 0.99" in snapshot_svg(dash.data)


def test_numerals_are_known_for_every_step():
    state = RunState(events(40, loss=lambda k: k, tokens_per_second=lambda k: 10. * k))
    at = dict((step, numbers) for step, numbers in dashboard_data(state)["at"])
    assert list(at) == list(range(1, 41)) and at[40][:3] == [v for _, v, _ in headline_numbers(state)[:3]]
    assert at[5] == ["5", "3", "30", "0:05"] and at[30] == ["30", "25.5", "255", "0:30"]
    assert len(dashboard_data(RunState(events(5000, loss=1.)))["at"]) == 300


def test_a_stopped_run_says_how_to_go_on():
    end = [{"event": "end", "step": 40, "time": 75., "reason": "stopped"}]
    data = dashboard_data(RunState(events(40, loss=1.) + end))
    assert "fit(resume=True)" in data["hint"] and "fit(resume=True)" in snapshot_svg(data) and "fit(resume=True)" in snapshot_text(data)
    assert dashboard_data(RunState(events(40, loss=1.)))["hint"] == ""
    assert dashboard_data(RunState(events(40) + [end[0] | {"reason": "finished"}]))["hint"] == ""


def test_a_pause_is_not_in_the_time_that_is_left():
    log = events(40)
    for event in log[1:]: event["costs"] = {"seconds": float(event["step"])}
    plain = seconds_left(RunState(log[:21]))
    for event in log[15:]: event["time"] += 600.             # ten minutes between step 14 and step 15
    assert plain == 20 and seconds_left(RunState(log[:21])) == 20
    evals = [{"event": "eval", "step": k, "time": k + .1 + 600. * (k >= 15), "seconds": 4.} for k in (5, 10)]
    slow = [event | {"time": event["time"] + 4. * sum(e["step"] < event["step"] for e in evals)} if event["event"] == "step" else event for event in log[:21]]
    assert seconds_left(RunState(slow + evals)) == pytest.approx((19 + 8) / 19 * 20), "evaluations do count"
    assert seconds_left(RunState(events(40)[:21])) == 20, "without costs: the wall clock"


def test_numerals_stand_apart_from_their_labels():
    import re
    text = re.sub(r"<[^>]+>", "", snapshot_svg(dashboard_data(RunState(events(40, loss=2.5, tokens_per_second=479.)))))
    assert "tokens/s 479 " in text and "loss 2.5 " in text
