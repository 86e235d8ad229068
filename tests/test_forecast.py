"The dry run: what it foretells of a tiny run is what that run then shows; plans that fail are named; nothing is written."
import json

import pytest
import torch

from xtokd.cli.commands import main
from xtokd.train.distiller import Distiller
from xtokd.train.config import DistillConfig
from xtokd.train.dry_run import ActivationMeter, forecast

PLAN = dict(max_steps=6, batch_size=16, micro_batch_size=4, max_new_tokens=24, eval_size=0, learning_rate=1e-6, progress=False)


def planned(out, objective="cover", prompts="tiny", **kw): return Distiller("tiny", "tiny", prompts, objective, DistillConfig(**PLAN | kw | {"output_dir": str(out)}))


def test_a_forecast_is_near_the_run(tmp_path):
    told = forecast(planned(tmp_path/"never"), 24)
    assert not (tmp_path/"never").exists()
    run = planned(tmp_path/"run").fit()
    steps = run.steps
    mean = lambda f: sum(map(f, steps)) / len(steps)
    assert told.tokens["student a step"] == pytest.approx(mean(lambda s: s["response_tokens"] * s["samples"]), rel=.2)
    assert told.tokens["student in all"] == pytest.approx(steps[-1]["costs"]["student_tokens_written"], rel=.2)
    assert told.tokens["teacher a step"] == pytest.approx(steps[-1]["costs"]["teacher_tokens_scored"] / len(steps), rel=.2)
    assert told.coverage["coverage"] == pytest.approx(mean(lambda s: s["coverage"]), abs=.05) and told.coverage["stop_share"] == pytest.approx(mean(lambda s: s["stop_share"]), abs=.15)
    again = forecast(planned(tmp_path/"never"), 24)            # the machine may have become faster or slower since
    low, high = (f(x.seconds["step"][k] for x in (told, again)) for k, f in enumerate((min, max)))
    assert low / 5 < mean(lambda s: s["seconds"]) < high * 5, "time: a factor of five, on a machine that does other work"
    assert told.memory["most at once"] >= max(s["peak_memory_gib"] for s in steps)
    assert not told.warnings and "time in all" in repr(told) and "<table>" in told._repr_html_() and json.dumps(told.to_dict())


def test_memory_grows_with_the_plan(tmp_path):
    parts = {m: forecast(planned(tmp_path/"never", micro_batch_size=m, batch_size=m)).memory for m in (1, 8)}
    assert parts[8]["activations"] > 2 * parts[1]["activations"] and parts[8]["rows"] == pytest.approx(8 * parts[1]["rows"], rel=.3)
    assert all(p["weights"] > 0 and p["optimizer"] == pytest.approx(2 * p["gradients"]) for p in parts.values())
    long = forecast(planned(tmp_path/"never", max_new_tokens=200)).memory
    assert long["activations"] > 3 * forecast(planned(tmp_path/"never")).memory["activations"], "scaled to responses of full length"


def test_what_the_graph_holds_is_counted_once_and_without_weights():
    w, x = torch.ones(100, requires_grad=True), torch.ones(100)
    with ActivationMeter([w]) as held: y = (w * x) * x
    assert held.bytes == 400
    with ActivationMeter([]) as held: (w * x).exp()
    assert held.bytes == 400 + 400 or held.bytes == 400 + 400 + 400


@pytest.mark.parametrize("kw, says", [(dict(max_new_tokens=3), "reached max_new_tokens=3"), (dict(min_coverage=1.), "less than min_coverage=1"), (dict(max_length=30), "has room for 30 tokens")])
def test_a_plan_that_will_fail_is_told(tmp_path, kw, says): assert any(says in w for w in forecast(planned(tmp_path/"never", **kw)).warnings)


def test_a_plan_without_any_signal_is_told_and_does_not_raise(tmp_path):
    from test_distill import Wrapped, silent
    assert any("no token has a signal" in w for w in forecast(planned(tmp_path/"never", Wrapped(lambda n, out: silent(out)))).warnings)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--dry-run", "--objective", "strict", "--max-steps", "3", "--batch-size", "4", "--max-new-tokens", "16", "--eval-size", "0", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "verdict" in out and "student tokens with a signal" in out and "memory: most at once" in out and not any(tmp_path.iterdir())
    assert main(["doctor", "--json", "--dry-run", "--max-steps", "3", "--max-new-tokens", "16", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["forecast"]["samples"] == 10
