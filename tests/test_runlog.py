"The run log: valid JSON whatever happens, readable while it grows."
import json, math, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from faults import fault
from xtokd.hub import data_dir
from xtokd.train.config import DistillConfig
from xtokd.train.runlog import (
    Control, Costs, Run, RunLog, Table, effective_events, to_json, sparkline, to_line, wilson,
)


def strict(line):
    def refuse(x): raise ValueError(x)
    return json.loads(line, parse_constant=refuse)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.binary(max_size=4),
                      lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3), max_leaves=8)


@given(values)
def test_every_value_is_one_line_of_strict_json(x):
    line = to_line({"event": "step", "x": x})
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    strict(line.decode())


def test_numbers_of_numpy_and_torch():
    torch = pytest.importorskip("torch")
    assert to_json([np.float32(.5), np.int64(3), np.bool_(True), torch.tensor(2.), torch.tensor([1, 2]), np.array([math.nan])]) == [.5, 3, True, 2., [1, 2], ["NaN"]]


def test_every_event_has_event_step_and_time(tmp_path):
    log = RunLog(tmp_path)
    r = log.write("step", np.int64(3), loss=math.inf)
    assert set(r) == {"event", "step", "time", "loss"} and r["step"] == 3 and abs(r["time"] - time.time()) < 5
    with pytest.raises(ValueError, match="one of start"): log.write("epoch", 1)
    with pytest.raises(ValueError, match="sets `time` itself"): log.write("step", 1, time=3)
    assert math.isinf(Run(tmp_path).column("loss")[0])


def test_a_run_is_read_while_it_is_written(tmp_path):
    log = RunLog(tmp_path); log.write("start", 0, config={"max_steps": 2})
    run = Run(tmp_path)
    for step in (1, 2):
        log.write("step", step, loss=1 / step)
        assert len(run.steps) == step and not run.finished
    log.write("end", 2)
    assert run.finished and run.config == {"max_steps": 2} and run.column("loss").tolist() == [1, .5] and np.isnan(run.column("nothing")).all()


@given(st.integers(1, 80))
@settings(max_examples=30)
def test_a_log_cut_anywhere_is_readable_and_goes_on(cut):
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        f = Path(d)/"run.jsonl"
        data = b"".join(to_line({"event": "step", "step": i, "loss": i}) for i in range(4))
        f.write_bytes(data[:max(1, len(data) - cut)])
        whole = f.read_bytes().count(b"\n")
        run = Run(d)
        assert len(run.steps) == whole
        log = RunLog(d); log.write("step", 9); log.close()
        tail = data[:max(1, len(data) - cut)].rpartition(b"\n")[2]
        complete = tail.endswith(b"}")   # a line that only lacks its line end is whole
        assert [s["step"] for s in Run(d).steps] == [*range(whole + complete), 9]
        assert [s["step"] for s in run.steps] == [*range(whole + complete), 9]


def test_resume_undoes_what_came_after_the_checkpoint(tmp_path):
    log = RunLog(tmp_path); log.write("start", 0, config={})
    for s in (1, 2, 3): log.write("step", s, loss=1)
    log.write("eval", 3, accuracy=.1); log.write("sample", 3, text="old"); log.write("end", 3, reason="stopped")
    log.write("resume", 2)
    run = Run(tmp_path)
    assert not run.finished and [s["step"] for s in run.steps] == [1, 2] and run.evals == run.samples == []
    log.write("step", 3, loss=2); log.write("eval", 3, accuracy=.2); log.write("eval", 3, accuracy=.3)
    assert run.column("loss").tolist() == [1, 1, 2] and run.column("accuracy", "eval").tolist() == [.3] and len(run.events) == 11


def test_compare_and_the_ways_to_show(tmp_path):
    for name, acc in (("a", .5), ("<b>", .9)):
        log = RunLog(tmp_path/name); log.write("start", 0, config={}, objective=name); log.write("eval", 0, accuracy=.3, n=50)
        log.write("step", 1, loss=1, coverage=.9, costs=Costs({"flops": 1e12})); log.write("eval", 1, accuracy=acc, n=50); log.write("end", 1)
    table = Run(tmp_path/"a").compare(tmp_path/"<b>")
    assert [r["accuracy after"] for r in table] == [.5, .9] and [r["accuracy before"] for r in table] == [.3, .3] and table[0]["flops"] == 1e12
    assert "&lt;b&gt;" in table._repr_html_() and "<b>" not in table._repr_html_() and "accuracy after" in repr(table)
    assert repr(Run(tmp_path/"a")) and Run(tmp_path/"a")._repr_html_().startswith("<table>") and repr(Table()) == ""


def test_a_missing_log_and_a_foreign_run_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run log at"): Run(tmp_path/"none")
    RunLog(tmp_path).write("start", 0)
    for what in ("stop", "pause", "resume", "wait"):
        with pytest.raises(RuntimeError, match="only a run from fit"): getattr(Run(tmp_path), what)()


def test_control():
    c = Control(); c.running.clear(); c.stop()
    assert c.wait_if_paused(), "a paused run can be stopped"


@given(st.lists(st.floats(), max_size=200))
def test_sparkline(xs): assert len(sparkline(xs)) == min(60, len(xs))


@given(st.floats(0, 1), st.integers(0, 1000))
def test_wilson(p, n):
    low, high = wilson(p, n)
    assert 0 <= low <= high <= 1 and (n == 0 or low - 1e-9 <= p <= high + 1e-9)


@fault("kill after a line of the log", how="SIGKILL after fifty events", outcome="fifty events are read")
def test_a_killed_writer_loses_nothing_that_it_wrote(tmp_path):
    code = f"from xtokd.train.runlog import RunLog; import os, signal\nlog = RunLog({str(tmp_path)!r})\nfor i in range(50): log.write('step', i)\nos.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    assert len(Run(tmp_path).steps) == 50


def test_runlog_needs_no_torch():
    code = "import sys, xtokd.train.runlog, xtokd.data.prompts; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})


def test_logs_of_version_0_1_are_read_under_todays_names(tmp_path):
    "Fields, settings and values have their names of today; what a prompt holds is left alone."
    old = [{"event": "start", "step": 0, "time": 0., "config": {"steps": 3, "lr": .1, "keep": 2, "rows": "states", "learn_from": "all"}, "given": {"student": "tiny"}, "needs": []},
           {"event": "step", "step": 1, "time": 1., "signal_share": .5, "lr": .1, "writer": "student", "inflation": 1.5},
           {"event": "sample", "step": 1, "time": 1., "source": "heldout", "item": {"prompt": "a", "why": "b"}, "why": [0, 3]}]
    (tmp_path/"run.jsonl").write_text("".join(json.dumps(e) + "\n" for e in old))
    run = Run(tmp_path)
    assert run.config == {"max_steps": 3, "learning_rate": .1, "save_total_limit": 2, "logits": "recompute", "loss_on": "response"}
    assert run.start["args"] == {"student": "tiny"} and run.start["requires"] == []
    assert run.column("coverage")[0] == .5 and run.column("learning_rate")[0] == .1 and run.steps[0]["text_source"] == "student"
    assert run.samples[0]["item"] == {"prompt": "a", "why": "b"} and run.samples[0]["reason"] == [0, 3] and run.samples[0]["source"] == "eval"


def test_a_recorded_log_of_version_0_1_still_replays():
    run = Run(data_dir()/"runs/tiny-cover-0.jsonl")
    assert run.finished and run.config["max_steps"] == 400 and run.config["lr_scheduler_type"] == "cosine"
    assert np.isfinite(run.column("coverage")).all() and 0 < run.evals[0]["accuracy"] < run.evals[-1]["accuracy"]
    assert DistillConfig(**{k: v for k, v in run.config.items() if k in DistillConfig.__dataclass_fields__}).max_steps == 400
