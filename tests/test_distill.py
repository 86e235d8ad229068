"The Distiller: splitting changes nothing, a kill changes nothing, nothing is dropped in silence."
import os, signal, subprocess, sys, time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from faults import fault
from xtokd.data.chat import render_prompt
from xtokd.models.optimizer import OPTIMIZERS, SCHEDULES
from xtokd.train.config import check_config, learning_rate_factor, prompt_indices
from xtokd.train.callbacks import Callback
from xtokd.train.distiller import Distiller
from xtokd.train.config import DistillConfig
from xtokd.train.runlog import Run
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.objectives import objective
from xtokd.data.prompts import load_prompts
from xtokd.train.forward_batch import finite_rows, teacher_rows
from xtokd.train.samples import generate_samples
from xtokd.models.side import load_side

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
SMALL = dict(max_steps=2, batch_size=4, max_new_tokens=24, eval_size=0, progress=False, warmup_steps=1)


def distiller(out, obj="strict", student="tiny", teacher="tiny", callbacks=(), prompts="tiny", **kw):
    return Distiller(student, teacher, prompts, obj, DistillConfig(**SMALL | kw | {"output_dir": out}), callbacks=callbacks)


def weights(d): return [p.detach().clone() for p in (d.student if isinstance(d, Distiller) else d).model.parameters()]
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
def gap(a, b): return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


class Wrapped:
    "An objective around another one; `change(batch_number, out)` may alter what it returns."
    name = "wrapped"
    def __init__(self, change, inner="strict"): self.inner, self.change, self.calls = objective(inner), change, 0; self.requires, self.text_source = self.inner.requires, self.inner.text_source
    def __call__(self, batch):
        self.calls += 1
        return self.change(self.calls, self.inner(batch))


class StopAfter(Callback):
    "Ask for a stop after this step."
    def __init__(self, step): self.step = step
    def on_step(self, distiller, record):
        if record["step"] == self.step: distiller.control.stop()


# ---- settings ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad, says", [(dict(max_steps=0), "steps is 0: it must be at least 1"), (dict(learning_rate=float("nan")), "finite number above 0"), (dict(learning_rate="1e-3"), "must be a number"),
    (dict(batch_size=2.5), "whole number"), (dict(lr_scheduler_type="step"), "constant, linear, cosine"), (dict(mixed_precision="fp16"), "one of"), (dict(temperature=-1), "at least 0"), (dict(max_length=True), "must be a number")])
def test_settings_are_checked(bad, says):
    with pytest.raises(ValueError, match=says): DistillConfig(**bad)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 5))
def test_every_prompt_once_an_epoch(n, batch, seed):
    steps = -(-2 * n // batch)
    seen = [i for s in range(1, steps + 1) for i in prompt_indices(n, s, batch, seed)]
    assert sorted(seen[:n]) == list(range(n)) == sorted(seen[n:2 * n])


@settings(deadline=None)          # the first example imports transformers
@given(st.sampled_from(SCHEDULES), st.integers(0, 10), st.integers(1, 50))
def test_schedules(schedule, warmup, steps):
    needed = {"warmup_stable_decay": {"num_decay_steps": 2}, "cosine_with_min_lr": {"min_lr_rate": .1}}
    c = DistillConfig(lr_scheduler_type=schedule, warmup_steps=warmup, max_steps=steps, lr_scheduler_kwargs=needed.get(schedule))
    factor = learning_rate_factor(c)
    f = [factor(s) for s in range(steps + 2)]
    assert all(0 <= x <= 1 and type(x) is float for x in f) and f[0] > 0


def test_names_are_those_of_transformers():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames
    assert set(SCHEDULES) <= {s.value for s in SchedulerType} and set(OPTIMIZERS) <= {o.value for o in OptimizerNames}


@pytest.mark.parametrize("bad, says", [(dict(optim="adam"), "optim is 'adam'.*adamw_torch"), (dict(lr_scheduler_type="warmup_stable_decay"), "num_decay_steps"), (dict(lr_scheduler_kwargs={"speed": 2}, lr_scheduler_type="cosine"), "speed"),
    (dict(lr_scheduler_kwargs="speed"), "it is a dict or JSON"), (dict(adam_beta1=2.), "at most 1"), (dict(adam_epsilon=0.), "above 0")])
def test_optimizer_settings_are_checked(bad, says):
    with pytest.raises(ValueError, match=says): DistillConfig(**bad)


@pytest.mark.parametrize("kw", [dict(optim="adafactor", optim_args="scale_parameter=False,relative_step=False"), dict(optim="sgd", lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 2}), dict(adam_beta1=.5, adam_beta2=.9, lr_scheduler_type="polynomial")])
def test_other_optimizers_train_and_resume(tmp_path, kw):
    whole = distiller(tmp_path/"whole", max_steps=4, save_steps=2, **kw)
    whole.fit()
    first = distiller(tmp_path/"parts", max_steps=4, save_steps=2, callbacks=[StopAfter(2)], **kw)
    first.fit()
    second = distiller(tmp_path/"parts", max_steps=4, save_steps=2, **kw)
    second.fit(resume=True)
    assert same(weights(whole), weights(second)) and not same(weights(whole), weights(first))


# ---- splitting --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("obj", ["strict", "sampled", "sft"])
def test_micro_batches_change_nothing(tmp_path, obj):
    "D13: the same weights, to float tolerance, for any micro-batch; the responses have different lengths. SGD, because Adam magnifies rounding where a gradient is near zero."
    out, start = {}, [p.detach() for p in load_model("tiny").parameters()]
    for m in (1, 4, 6):
        d = distiller(tmp_path/str(m), obj, micro_batch_size=m, batch_size=6)
        d.state.optimizer = torch.optim.SGD(d.state.parameters, lr=.1)
        d.state.scheduler = torch.optim.lr_scheduler.LambdaLR(d.state.optimizer, lambda s: 1.)
        run = d.fit()
        out[m] = weights(d), [run.column(k)[0] for k in ("loss", "grad_norm", "count", "coverage")]
    moved = gap(out[6][0], start)
    for m in (1, 4):
        assert gap(out[m][0], out[6][0]) < 1e-3 * moved
        assert np.allclose(out[m][1], out[6][1], rtol=1e-4)


# ---- kill and resume --------------------------------------------------------------------------------------------------------
KILL = """
import os, signal, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_distill import distiller, Wrapped
def change(call, out):
    if call == 4: os.kill(os.getpid(), signal.{signal})   # in the middle of step 4, before its gradient
    return out
distiller({out!r}, Wrapped(change), max_steps=5, save_steps=2, batch_size=3).fit(){after}
"""


def child(out, **kw):
    code = KILL.format(**{"tests": str(ROOT/"tests"), "out": str(out), "signal": "SIGKILL", "after": "", **kw})
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=out.parent, capture_output=True, text=True)


@fault("kill in the middle of a step", how="SIGKILL between rollout and gradient of step 4", outcome="--resume goes on from the newest checkpoint to the same weights, bit by bit; every step is once in the log")
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    whole = distiller(tmp_path/"whole", Wrapped(lambda n, out: out), max_steps=5, batch_size=3); whole.fit()
    done = child(tmp_path/"killed")
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [s["step"] for s in Run(tmp_path/"killed").steps] == [1, 2, 3] and not Run(tmp_path/"killed").finished
    d = distiller(tmp_path/"killed", Wrapped(lambda n, out: out), max_steps=5, batch_size=3)
    run = d.fit(resume=True)
    assert same(weights(whole), weights(d)) and same(whole.state.optimizer.state_dict()["state"][0].values(), d.state.optimizer.state_dict()["state"][0].values())
    assert [s["step"] for s in run.steps] == [1, 2, 3, 4, 5] and run.finished
    before, after = Run(tmp_path/"whole").steps, run.steps
    for a, b in zip(before, after): assert a["loss"] == b["loss"] and a["costs"]["flops"] == b["costs"]["flops"]
    kept = AutoModelForCausalLM.from_pretrained(tmp_path/"killed/student")
    assert same([p for p in kept.parameters()], weights(whole))


@fault("Ctrl-C once", how="SIGINT in the middle of a step", outcome="the step is finished and saved, and the command that goes on is printed")
def test_ctrl_c_ends_the_step_saves_and_says_how_to_go_on(tmp_path):
    done = child(tmp_path/"run", signal="SIGINT", after="")
    assert done.returncode == 0, done.stderr[-2000:]
    run = Run(tmp_path/"run")
    assert [s["step"] for s in run.steps] == [1, 2, 3, 4] and run.events[-1]["reason"] == "stopped" and "--resume" in done.stderr
    assert (tmp_path/"run/checkpoints/step-000004/state.pt").exists()


@fault("a resume with another tokenizer or other settings", how="a student with the teacher's tokenizer; another lr; a folder that holds a run", outcome="other tokenizers are refused by fingerprint, other settings are named in a warning, a run is not written over")
def test_resume_refuses_other_tokenizers_and_warns_of_other_settings(tmp_path):
    distiller(tmp_path/"a").fit()
    assert any("learning_rate 0.0001 -> 0.01" in w["message"] for w in distiller(tmp_path/"a", learning_rate=.01, max_steps=3).fit(resume=True).warnings)
    with pytest.raises(ValueError, match="other tokenizers"): distiller(tmp_path/"a", student=(load_model("tiny", "teacher"), load_tokenizer("tiny", "teacher"))).fit(resume=True)
    with pytest.raises(FileExistsError, match="holds a run already"): distiller(tmp_path/"a").fit()


@fault("a resume behind the warm-up", how="each schedule, stopped at step 3 of 5 with one step of warm-up", outcome="the run goes on to the weights of a run that was never stopped")
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_every_schedule_is_resumed(tmp_path, schedule):
    whole = distiller(tmp_path/"whole", lr_scheduler_type=schedule, max_steps=5)
    whole.fit()
    stopped = distiller(tmp_path/"stopped", lr_scheduler_type=schedule, max_steps=5, save_steps=3, callbacks=[StopAfter(3)])
    stopped.fit()
    resumed = distiller(tmp_path/"stopped", lr_scheduler_type=schedule, max_steps=5, save_steps=3)
    run = resumed.fit(resume=True)
    assert [s["step"] for s in run.steps] == [1, 2, 3, 4, 5]
    assert list(run.column("learning_rate")) == list(Run(tmp_path/"whole").column("learning_rate"))
    assert same(weights(whole), weights(resumed))


def test_checkpoints_of_version_0_1_with_numpy_rates_are_read(tmp_path):
    "Version 0.1 wrote the rates of a cosine schedule as numpy.float64, which torch.load(weights_only=True) refuses."
    whole = distiller(tmp_path/"whole", lr_scheduler_type="cosine", max_steps=4)
    whole.fit()
    distiller(tmp_path/"old", lr_scheduler_type="cosine", max_steps=4, callbacks=[StopAfter(2)]).fit()
    file = tmp_path/"old/checkpoints/step-000002/state.pt"
    state = torch.load(file, weights_only=True)
    state["scheduler"]["_last_lr"] = [np.float64(x) for x in state["scheduler"]["_last_lr"]]
    for group in state["optimizer"]["param_groups"]: group["lr"] = np.float64(group["lr"])
    torch.save(state, file)
    with pytest.raises(Exception, match="numpy"): torch.load(file, weights_only=True)
    resumed = distiller(tmp_path/"old", lr_scheduler_type="cosine", max_steps=4)
    resumed.fit(resume=True)
    assert same(weights(whole), weights(resumed))


LONG = {"prompt": "word " * 2000}


@fault("a prompt that does not fit", how="one of 6,000 tokens among 23 that fit, and one among the held-out ones", outcome="left out before the first step, counted in the log; the run and its evaluations finish")
def test_prompts_that_do_not_fit_are_left_out_and_counted(tmp_path):
    short = [{"prompt": f"What is {k}?"} for k in range(23)]
    d = distiller(tmp_path/"a", prompts=[*short[:7], LONG, *short[7:]], max_steps=6, batch_size=4, eval_size=5, max_new_tokens=6)
    assert [x.item for x in d.left_out] == [LONG] and "tokens of the student" in d.left_out[0].reason
    run = d.fit()
    assert run.finished and len(run.steps) == 6 and run.start["prompts_left_out"] == 1
    assert any("1 prompts are left out" in w["message"] for w in run.warnings)
    judged = Distiller("tiny", "tiny", short, "strict", DistillConfig(**SMALL | {"output_dir": tmp_path/"b", "eval_size": 3}), eval_prompts=[*short[:2], LONG])
    assert [x.item for x in judged.left_out_eval_items] == [LONG] and judged.fit().finished
    with pytest.raises(ValueError, match="none of the 2 prompts fits"): distiller(tmp_path/"c", prompts=[LONG, LONG])


def test_max_prompt_length_leaves_out_prompts_of_either_side(tmp_path):
    items = load_prompts("tiny", 12)
    d = distiller(tmp_path/"a", prompts=items)
    longest = {side: [len(render_prompt(getattr(d, side).vocab, x)) for x in items] for side in ("student", "teacher")}
    limit = sorted(map(max, zip(*longest.values())))[5]
    fits = [x for x, s, t in zip(items, *longest.values()) if max(s, t) <= limit]
    assert distiller(tmp_path/"b", prompts=items, max_prompt_length=limit).items == fits and 0 < len(fits) < 12


def test_a_run_of_0_1_with_a_prompt_that_does_not_fit_can_be_resumed(tmp_path):
    "Version 0.1 died at the step that drew the prompt; its folder holds a log and a checkpoint, and the configuration of then."
    items = [*({"prompt": f"What is {k}?"} for k in range(11)), LONG]
    stopped = distiller(tmp_path/"a", prompts=items, max_steps=6, batch_size=4, max_new_tokens=6, callbacks=[StopAfter(2)])
    stopped.fit()
    run = distiller(tmp_path/"a", prompts=items, max_steps=6, batch_size=4, max_new_tokens=6).fit(resume=True)
    assert run.finished and [s["step"] for s in run.steps] == [1, 2, 3, 4, 5, 6]


def test_a_run_folder_knows_how_it_was_begun(tmp_path):
    distiller(tmp_path/"a", ("strict", {"top_k": 8})).fit()
    d = Distiller.from_run(tmp_path/"a", config=DistillConfig(**SMALL | {"max_steps": 3, "output_dir": tmp_path/"a"}))
    assert len(d.fit(resume=True).steps) == 3 and repr(d.objective) and d.arguments["objective"][0] == "strict"
    distiller(tmp_path/"b", prompts=load_prompts("tiny", 20)).fit()
    with pytest.raises(ValueError, match="pass prompts="): Distiller.from_run(tmp_path/"b")


# ---- the log ----------------------------------------------------------------------------------------------------------------
@fault("a run that nobody can repeat", how="a run with evaluations", outcome="its log carries config, versions, seed, fingerprints of both tokenizers, and the command")
def test_the_log_of_a_run(tmp_path):
    run = distiller(tmp_path/"a", max_steps=4, eval_size=8, eval_steps=2).fit()
    start = run.start
    assert {"config", "versions", "seed", "fingerprints", "command", "args"} <= set(start) and start["config"]["max_steps"] == 4
    assert [e["step"] for e in run.evals] == [0, 2, 4] and all({"accuracy", "rkl_per_byte", "n", "accuracy_low", "stop_share"} <= set(e) for e in run.evals)
    for name in ("loss", "grad_norm", "coverage", "tokens_per_second", "response_tokens", "stop_share", "share_1-1", "canonical_fraction"): assert np.isfinite(run.column(name)).all(), name
    spent = [[s["costs"][k] for s in run.steps] for k in ("student_tokens_written", "teacher_tokens_scored", "flops", "seconds")]
    assert all(a < b for c in spent for a, b in zip(c, c[1:])) and run.steps[-1]["costs"]["teacher_tokens_written"] == 0
    sample = next(s for s in run.samples if s["source"] == "train")
    assert len(sample["student_ids"]) == len(sample["token_loss"]) == len(sample["reason"]) and any("score" in s for s in run.samples)
    assert run.compare()[0]["steps"] == 4


def test_the_teacher_writes_where_the_objective_wants_it(tmp_path):
    run = distiller(tmp_path/"a", "sft").fit()
    costs = run.steps[-1]["costs"]
    assert costs["teacher_tokens_written"] > 0 == costs["student_tokens_written"] == costs["teacher_tokens_scored"]


def test_callbacks_hear_every_record(tmp_path):
    heard = []
    class Ear(Callback):
        def __getattribute__(self, name): return (lambda d, r: heard.append((name, r["step"]))) if name.startswith("on_") else super().__getattribute__(name)
    run = distiller(tmp_path/"a", callbacks=[Ear()], eval_size=4).fit()
    assert heard == [("on_" + e["event"], e["step"]) for e in run.events]


# ---- threads ----------------------------------------------------------------------------------------------------------------
def test_a_run_in_a_thread_can_be_paused_stopped_and_gone_on_with(tmp_path):
    run = distiller(tmp_path/"a", max_steps=10_000).fit(block=False)
    while not run.steps: time.sleep(.05)
    run.pause(); time.sleep(1.); n = len(run.steps); time.sleep(1.)
    assert len(run.steps) <= n + 1 and not run.finished
    run.resume(); m = len(run.steps)
    while len(run.steps) <= m: time.sleep(.05)
    last = run.stop().wait().steps[-1]["step"]
    assert run.finished and (tmp_path/f"a/checkpoints/step-{last:06d}").exists()
    assert distiller(tmp_path/"a", max_steps=last + 1).fit(resume=True).steps[-1]["step"] == last + 1


def test_an_error_in_a_thread_comes_out_of_wait(tmp_path):
    def fail(n, out): raise ZeroDivisionError("on purpose")
    run = distiller(tmp_path/"a", Wrapped(fail)).fit(block=False)
    with pytest.raises(ZeroDivisionError, match="on purpose"): run.wait()
    assert "on purpose" in run.events[-1]["reason"]


# ---- what is refused, counted, masked ---------------------------------------------------------------------------------------
def silent(out):
    out.loss_sum, out.num_units = out.loss_sum * 0, 0.
    return out


@fault("a step without any signal", how="an objective that is silent on every sample, or on every second batch", outcome="no signal at all is an error with the reasons; a silent sample counts zero and is logged")
def test_no_signal_is_an_error_and_some_signal_is_not(tmp_path):
    "D25"
    with pytest.raises(RuntimeError, match="no student token of this step has a signal"): distiller(tmp_path/"a", Wrapped(lambda n, out: silent(out))).fit()
    assert distiller(tmp_path/"b", Wrapped(lambda n, out: silent(out) if n % 2 else out), micro_batch_size=2).fit().finished


def test_a_model_that_does_not_fit_its_tokenizer_is_refused(tmp_path):
    "D17, D18"
    with pytest.raises(ValueError, match="do not belong together"): load_side((load_model("tiny", "student"), load_tokenizer("tiny", "teacher")), "student")
    with pytest.raises(ValueError, match="give a name, a folder, or"): load_side(3, "student")
    wide = load_model("tiny", "student"); wide.resize_token_embeddings(wide.config.vocab_size + 50)
    d = distiller(tmp_path/"a", student=(wide, load_tokenizer("tiny", "student")))
    assert d.fit().finished and d.student.model.get_input_embeddings().weight.shape[0] == len(d.student.vocab) + 50


class Broken(torch.nn.Module):
    "A teacher some of whose rows are NaN."
    def __init__(self, inner, share): super().__init__(); self.inner, self.share, self.config = inner, share, inner.config
    def get_output_embeddings(self): return self.inner.get_output_embeddings()
    def get_input_embeddings(self): return self.inner.get_input_embeddings()
    def forward(self, input_ids, attention_mask, position_ids, logits_to_keep=0):
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, logits_to_keep=logits_to_keep)
        if self.share: out.logits[:, 1::round(1 / self.share)] = float("nan")
        return out


@fault("teacher rows that are not finite", how="NaN in every second row", outcome="counted, the tokens after them left without a signal; above 1 % the run ends and says what to load")
def test_teacher_rows_that_are_not_finite(tmp_path):
    "D14: counted and neutralised; more than 1 % end the run."
    t = load_side("tiny", "teacher"); s = load_side("tiny", "student")
    samples = generate_samples(load_prompts("tiny", 4), s, t, DistillConfig(**SMALL), seed=0)
    t.model = Broken(t.model, .5)
    scored = teacher_rows(samples, t)
    rows, counts = scored.rows, scored.counts
    assert all(torch.isfinite(r).all() for r in rows) and counts["teacher_rows_not_finite"] > 0
    bad = Broken(load_model("tiny", "teacher"), .5), load_tokenizer("tiny", "teacher")
    with pytest.raises(FloatingPointError, match="not finite, more than 1 %"): distiller(tmp_path/"a", teacher=bad).fit()
    assert finite_rows(torch.tensor([[0., -torch.inf]]), 2) == 1 and finite_rows(torch.tensor([[-torch.inf] * 2]), 2) == 0


@fault("a student loss or gradient that is not finite", how="an objective times NaN in one step", outcome="the step is left out with a warning, the weights stay finite, the run goes on")
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(tmp_path):
    def nan(n, out):
        if n == 1: out.loss_sum = out.loss_sum * float("nan")
        return out
    d = distiller(tmp_path/"a", Wrapped(nan)); run = d.fit()
    assert run.finished and "not finite" in run.warnings[0]["message"] and all(torch.isfinite(p).all() for p in weights(d)) and np.isnan(run.column("loss")[0])


@fault("a teacher context that is too short", how="max_length four tokens above the longest prompt", outcome="the rows that do not fit are masked and counted, the run goes on")
def test_a_teacher_without_room_masks_and_counts(tmp_path):
    "D23"
    d = distiller(tmp_path/"a")
    longest = max(len(s.teacher_prompt_ids) for s in generate_samples(load_prompts("tiny", 12), d.student, d.teacher, d.config, seed=0))
    d.config.max_length = longest + 4
    run = d.fit()
    assert run.finished and run.column("teacher_tokens_masked").sum() > 0


@fault("a prompt that fills the context", how="five thousand words", outcome="refused before writing, with the length and what the model holds")
def test_a_prompt_without_room_is_named(tmp_path):
    sides = load_side("tiny", "student"), load_side("tiny", "teacher")
    for text_source in ("student", "teacher"):
        with pytest.raises(ValueError, match=f"leaves the {text_source} no room to write"): generate_samples([LONG], *sides, DistillConfig(), text_source)


def test_heldout_prompts_are_not_trained_on(tmp_path):
    items = load_prompts("tiny", 30)
    d = Distiller("tiny", "tiny", items, "strict", DistillConfig(**SMALL | {"eval_size": 100, "output_dir": tmp_path/"a"}))
    assert len(d.eval_items) == 6 and not {x["prompt"] for x in d.eval_items} & {x["prompt"] for x in d.items}


# ---- what comes out ---------------------------------------------------------------------------------------------------------
def test_the_saved_student_is_an_ordinary_folder(tmp_path):
    d = distiller(tmp_path/"a"); d.fit()
    for place in (tmp_path/"a/student", tmp_path/"a/checkpoints/step-000002"):
        assert same(list(AutoModelForCausalLM.from_pretrained(place).parameters()), weights(d))
        assert AutoTokenizer.from_pretrained(place).encode("number 9632") == load_tokenizer("tiny").encode("number 9632")


class Scaled(torch.nn.Module):
    "An objective with a parameter of its own."
    name = "scaled"
    def __init__(self): super().__init__(); self.scale, self.inner = torch.nn.Parameter(torch.ones(())), objective("strict"); self.requires, self.text_source = self.inner.requires, self.inner.text_source
    def forward(self, batch):
        out = self.inner(batch)
        out.loss_sum = out.loss_sum * self.scale
        return out


def test_parameters_of_an_objective_are_trained_saved_and_resumed(tmp_path):
    d = distiller(tmp_path/"a", Scaled(), max_steps=3); d.fit()
    assert float(d.objective.scale.detach()) != 1
    half = distiller(tmp_path/"b", Scaled(), max_steps=2); half.fit()
    rest = distiller(tmp_path/"b", Scaled(), max_steps=3); rest.fit(resume=True)
    assert torch.equal(rest.objective.scale, d.objective.scale) and same(weights(rest), weights(d))


def test_a_teacher_of_the_same_tokenizer_has_no_distance_from_itself(tmp_path):
    t = load_model("tiny", "teacher"), load_tokenizer("tiny", "teacher")
    run = Distiller((load_model("tiny", "teacher"), t[1]), t, "tiny", "strict", DistillConfig(**SMALL | {"eval_size": 8, "output_dir": tmp_path/"a", "learning_rate": 1e-8})).fit()
    assert abs(run.evals[0]["rkl_per_byte"]) < 1e-4 and run.column("coverage").min() == 1 and abs(run.column("loss")[0]) < 1e-4


# ---- processes --------------------------------------------------------------------------------------------------------------
PROCESSES = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_distill import distiller, weights
d = distiller({out!r}, temperature=0, batch_size=5, micro_batch_size=2, max_grad_norm=1e9)   # greedy: what is written does not depend on who writes it
d.state.optimizer = torch.optim.SGD(d.state.parameters, lr=.1)
d.state.scheduler = torch.optim.lr_scheduler.LambdaLR(d.state.optimizer, lambda s: 1.)
d.fit()
torch.save(weights(d), {out!r} + f"-{{d.accelerator.process_index}}.pt")
"""


def test_two_processes_do_what_one_does(tmp_path):
    "D13: five prompts on two processes, in batches of different sizes, give the gradient of five prompts on one."
    found = {}
    for n in (1, 2):
        (tmp_path/f"p{n}.py").write_text(PROCESSES.format(tests=str(ROOT/"tests"), out=str(tmp_path/f"run{n}")))
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n), str(tmp_path/f"p{n}.py")], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        found[n] = [torch.load(f) for f in sorted(tmp_path.glob(f"run{n}-*.pt"))]
    assert len(found[2]) == 2 and same(*found[2]) and Run(tmp_path/"run2").steps[-1]["samples"] == 5
    start = [p.detach() for p in load_model("tiny").parameters()]
    assert gap(found[1][0], found[2][0]) < 1e-3 * gap(found[1][0], start)


def test_the_progress_bar_names_what_was_measured(capsys):
    from xtokd.train.callbacks import ProgressBar
    from types import SimpleNamespace
    bar = ProgressBar()
    bar.on_start(SimpleNamespace(config=DistillConfig(max_steps=2), state=SimpleNamespace(step=0), objective=objective("cover")), {})
    for found in ({"accuracy": .5, "rkl_per_byte": .25}, {"rkl_per_byte": "NaN"}, {"accuracy": .5}, {}): bar.on_eval(None, {"step": 1, "n": 4, **found})
    bar.on_end(None, {})
    err = capsys.readouterr().err
    assert "accuracy 0.500 of 4, reverse KL per byte 0.2500" in err and "step 1: reverse KL per byte nan" in err and "step 1: accuracy 0.500 of 4\n" in err
