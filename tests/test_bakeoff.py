"Runs side by side: one row a method, verdicts by rule, and no mixture of protocols; and the tool that makes them."
import json
import subprocess
import sys
from pathlib import Path

import pytest

from xtokd.experiments.comparison import (
    by_method, differing_fields, find_runs, group_by, method_of, terminal_table, require_same_protocol,
    method_verdict,
)
from xtokd.cli.commands import main
from xtokd.train.runlog import write_compact

ROOT = Path(__file__).parent.parent


def log(folder, method, seed, end, task="tiny", steps=40, reason="finished", lr=1e-3, **last):
    config = dict(max_steps=steps, batch_size=16, learning_rate=lr, seed=seed, output_dir=f"runs/{method}")
    start = dict(event="start", step=0, config=config, objective=method, method=method, task=task, given=dict(student=task, teacher=task, prompts=task))
    eval_ = lambda s, y, **kw: dict(event="eval", step=s, n=256, accuracy_sampled=y, accuracy=y, **{**dict(stop_share=1., number_length=5., rkl_per_byte=.2, response_tokens=9.), **kw})
    costs = dict(student_tokens_written=1000, teacher_tokens_scored=700, teacher_tokens_written=0, flops=1e12, seconds=5.)
    entropy = last.pop("entropy", .2)
    steps_ = [dict(event="step", step=s, entropy=e, costs=costs) for s, e in ((1, .2), (steps, entropy))]
    rows = [start, eval_(0, .33), *steps_, eval_(steps, end, **last), dict(event="end", step=steps, reason=reason, costs=costs)]
    write_compact([r | {"time": 0.} for r in rows], folder / f"{task}-{method}-{seed}.jsonl")


def test_verdicts(tmp_path):
    cases = {"learned": dict(end=.8), "no change": dict(end=.35), "lost": dict(end=.1), "collapsed: numbers of 3.0 digits": dict(end=.1, number_length=3.), "collapsed: 20% of the responses end": dict(end=.1, stop_share=.2),
             "collapsed: entropy 1": dict(end=.1, entropy=1.), "collapsed: entropy only": dict(end=.1, entropy=.001), "failed: ValueError: x": dict(end=.8, reason="ValueError: x")}
    for k, (say, how) in enumerate(cases.items()):
        log(tmp_path, f"m{k}", 0, **how)
        assert method_verdict(group_by(find_runs([tmp_path]))[f"m{k}"]).startswith(say)
    log(tmp_path, "short-but-right", 0, .8, number_length=3.)       # who learned did not collapse
    assert method_verdict(group_by(find_runs([tmp_path]))["short-but-right"]) == "learned"


def test_rows_are_means_over_seeds_and_the_best_comes_first(tmp_path):
    for k in range(3): log(tmp_path, "a", k, .4 + .1 * k); log(tmp_path, "b", k, .7, lr=1e-4)
    rows = by_method(find_runs([tmp_path]))
    assert [(r["method"], r["seeds"], round(r["end"], 3), r["rate"]) for r in rows] == [("b", 3, .7, "0.0001"), ("a", 3, .5, "0.001")]
    assert rows[1]["worst-best seed"] == "0.400-0.600" and rows[0]["student wrote"] == 1000 and rows[0]["TFLOP"] == 1
    assert len(terminal_table(rows)) == 2


def test_other_protocols_are_refused_and_named(tmp_path, capsys):
    log(tmp_path, "a", 0, .5); log(tmp_path, "b", 0, .5, steps=80)
    assert set(differing_fields(find_runs([tmp_path]))) == {"max_steps"}
    with pytest.raises(ValueError, match=r"steps: 40 \(tiny-a-0\) or 80 \(tiny-b-0\)"): require_same_protocol(find_runs([tmp_path]))
    assert main(["compare", str(tmp_path)]) == 1 and "--force" in capsys.readouterr().err
    assert main(["compare", "--force", str(tmp_path)]) == 0 and "learned" in capsys.readouterr().out


def test_a_setting_that_a_log_is_too_old_for_had_its_default(tmp_path):
    for name, more in (("old", {}), ("new", {"loss_on": "all", "report_to": "wandb"}), ("other", {"loss_on": "answer"})):
        log(tmp_path, name, 0, .5)
        path = tmp_path / f"tiny-{name}-0.jsonl"
        first, *rest = path.read_text().splitlines()
        start = json.loads(first)
        path.write_text("\n".join([json.dumps(start | {"config": start["config"] | more}), *rest]) + "\n")
    old, new, other = (find_runs([tmp_path / f"tiny-{n}-0.jsonl"])[0] for n in ("old", "new", "other"))
    assert differing_fields([old, new]) == {} and list(differing_fields([old, new, other])) == ["loss_on"]


def test_tasks_get_tables_of_their_own(tmp_path, capsys):
    log(tmp_path, "a", 0, .5); log(tmp_path, "a", 0, .5, task="tiny2", steps=80)
    assert main(["compare", str(tmp_path)]) == 0
    assert "tiny: 1 runs" in (out := capsys.readouterr().out) and "tiny2: 1 runs" in out
    assert main(["compare", "--json", str(tmp_path)]) == 0 and len(json.loads(capsys.readouterr().out)) == 2


def test_runs_of_no_study_are_grouped_by_objective_and_knobs(tmp_path):
    write_compact([dict(event="start", step=0, time=0., objective="gold", args={"objective": ["gold", {"beta": .1}]}, config={})], tmp_path / "x.jsonl")
    assert method_of(find_runs([tmp_path / "x.jsonl"])[0]) == "gold beta=0.1"


# ---- the tool -------------------------------------------------------------------------------------------------------

@pytest.fixture
def tool(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import bakeoff
    monkeypatch.setattr(bakeoff, "KEPT", tmp_path / "kept"); monkeypatch.setattr(bakeoff, "WORK", tmp_path / "work")
    monkeypatch.setitem(bakeoff.TASKS, "tiny", dict(max_new_tokens=16, max_steps=2, eval_steps=0, eval_size=4))
    monkeypatch.setitem(bakeoff.SWEEP, "tiny", dict(max_steps=1, eval_steps=0, eval_size=4))
    monkeypatch.setitem(bakeoff.COMMON, "batch_size", 2)
    return bakeoff


def test_every_method_is_in_the_bake_off_or_left_out_with_a_reason(tool):
    from xtokd.objectives import OBJECTIVES, objective
    assert {m[0] for m in tool.METHODS.values()} | set(tool.LEFT_OUT) == set(OBJECTIVES) - {n for n in OBJECTIVES if n.startswith("toy")}
    for m in tool.METHODS.values(): objective(m[0], **(m[1] if len(m) > 1 else {}))


def test_sweep_then_run_then_not_again(tool, tmp_path, capsys):
    for lr in tool.RATES: tool.sweep_one("tiny", "strict", lr)
    assert len(tool.rates("tiny")) == len(tool.RATES) and tool.chosen("tiny", "strict")[0] in tool.RATES
    tool.run_one("tiny", "strict", 0)
    file = tmp_path / "kept/tiny-strict-0.jsonl"
    text = file.read_text()
    assert len(text) < 20_000 and '"event": "sample"' not in text and "number_length" in text and str(tmp_path) not in text.replace(str(tmp_path / "work"), "")
    tool.run_one("tiny", "strict", 0)
    assert file.read_text() == text
    assert by_method(find_runs([tmp_path / "kept"]))[0]["method"] == "strict"


def test_a_weak_method_gets_one_seed(tool):
    for k, lr in enumerate(tool.RATES): tool.keep_rate("tiny", f"cover {lr:g}", {"start": .4, "end": .3 - .1 * k})
    assert tool.chosen("tiny", "cover") == (tool.RATES[0], tool.SEEDS[:1])
    tool.keep_rate("tiny", f"cover {tool.RATES[1]:g}", {"start": .4, "end": .5})
    assert tool.chosen("tiny", "cover") == (tool.RATES[1], tool.SEEDS) and tool.chosen("tiny", "bpm") == (None, ())


def test_plan_says_what_it_would_do():
    out = subprocess.run([sys.executable, "tools/bakeoff.py", "plan", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0 and "weak" in out.stdout
