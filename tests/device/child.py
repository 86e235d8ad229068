"""Runs the library on the pretend accelerator, in a process of its own, and prints what came out as JSON lines."""
import json
import os
import sys
import tempfile
from pathlib import Path

import pretend          # first: it registers the device
import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cases import TRAINS_ALONE
from outcomes import CASES, compare
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.objectives import OBJECTIVES
from xtokd.train.callbacks import Callback
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller

torch.set_num_threads(1)


def report(case, act):
    "Print one line: what `act` returned, or the error."
    try: found = act()
    except Exception as e: found = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps({"case": case} | found), flush=True)


def objectives():
    for name, rows, options in CASES:
        report(f"{name} {rows}", lambda: compare(name, options, rows, "pretend", counted=pretend.counted))


# ---- whole runs --------------------------------------------------------------------------------------------------------------
class StopAfter(Callback):
    def __init__(self, step): self.step = step
    def on_step(self, distiller, record):
        if record["step"] == self.step: distiller.control.stop()


def run(folder, objective_name="cover", callbacks=(), resume=False, **settings):
    "A short run; its distiller."
    config = DistillConfig(**{"max_steps": 3, "batch_size": 4, "max_new_tokens": 12, "eval_size": 4, "eval_steps": 2, "save_steps": 1, "warmup_steps": 1,
                              "progress": False, "min_coverage": 0., "output_dir": str(folder)} | settings)
    distiller = Distiller("tiny", "tiny", "tiny", objective_name, config, callbacks=callbacks)
    distiller.fit(resume=resume)
    return distiller


def weights(distiller): return torch.cat([p.detach().cpu().float().flatten() for p in distiller.student.model.parameters()])


def whole_run(**settings):
    "A short run on the device, and what became of it."
    with tempfile.TemporaryDirectory() as folder:
        done = run(Path(folder) / "run", **settings)
        types = {str(p.dtype) for p in done.student.model.parameters()}
        return {"device": str(done.device), "steps": done.state.step, "finite": bool(weights(done).isfinite().all()), "types": sorted(types)}


def step_gradient(device):
    "The student's gradient of a step on reference texts, computed on a device."
    os.environ["ACCELERATE_TORCH_DEVICE"] = device
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory() as folder:
        config = DistillConfig(max_steps=2, batch_size=4, max_new_tokens=12, eval_size=0, save_steps=0, progress=False, on_policy_fraction=0.,
                               off_policy_source="reference", output_dir=str(Path(folder) / "run"))
        teacher = load_model("tiny", "teacher", torch.float32, "cpu"), load_tokenizer("tiny", "teacher")    # by name: bfloat16 on a device
        distiller = Distiller("tiny", teacher, "tiny", "cover", config)
        samples = distiller.generator.samples([distiller.items[k] for k in range(4)], "reference", 0)
        distiller.stepper.forward_backward(samples, "reference")
        gradients = [p.grad for p in distiller.student.model.parameters()]
        assert {p.device.type for p in gradients} == {device}
        return torch.cat([p.cpu().float().flatten() for p in gradients])


def same_as_cpu():
    "The largest difference of the gradient of a step, here and on the CPU."
    here, there = step_gradient("cpu"), step_gradient("pretend")
    return {"gap": float((here - there).abs().max()), "scale": float(here.abs().max())}


def resumed():
    "The difference of weights of a run and of the same run that was stopped and resumed."
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        whole = run(folder / "whole")
        run(folder / "parts", callbacks=[StopAfter(2)])
        second = run(folder / "parts", resume=True)
        return {"gap": float((weights(whole) - weights(second)).abs().max()), "steps": second.state.step}


class Counted:
    "An objective whose calls are counted."
    def __init__(self, inner): self.inner, self.counts = inner, None
    def __getattr__(self, name): return getattr(self.inner, name)
    def __call__(self, batch):
        before = dict(pretend.extension.counts())
        out = self.inner(batch)
        self.counts = {key: value - before.get(key, 0) for key, value in pretend.extension.counts().items()}
        return out


def step_counts(name, tokens=1024):
    "What the device is asked for in a step of 16 texts, forward and backward, and in its objective."
    source = OBJECTIVES[name].text_source
    with tempfile.TemporaryDirectory() as folder:
        config = DistillConfig(max_steps=4, batch_size=16, micro_batch_size=16, max_new_tokens=tokens // 16, eval_size=0, save_steps=0, progress=False,
                               min_coverage=0., output_dir=str(Path(folder) / "run"))
        distiller = Distiller("tiny2", "tiny2", "tiny2", name, config)
        samples = distiller.generator.samples([distiller.items[k] for k in range(16)], source, 0)
        stepper = distiller.stepper
        stepper.forward_backward(samples, source)              # tables are made
        stepper.objective = counted = Counted(stepper.objective)
        _, counts = pretend.counted(lambda: stepper.forward_backward(samples, source))
        return {"step": counts, "objective": counted.counts, "tokens": sum(len(sample.student_ids) for sample in samples)}


def runs():
    "What every test run looks at."
    report("run cover", whole_run)
    report("run lora", lambda: whole_run(lora_r=2, max_steps=2))
    report("run checkpointing", lambda: whole_run(gradient_checkpointing=True, max_steps=1, eval_size=0))
    report("run bf16", lambda: whole_run(mixed_precision="bf16", max_steps=1, eval_size=0))
    report("run recompute", lambda: whole_run(logits="recompute", max_steps=1, eval_size=0))
    report("gradient of a step", same_as_cpu)
    report("resume", resumed)
    for name in ("cover", "strict", "gold"): report(f"counts {name}", lambda: step_counts(name))


def all_runs():
    "A step of every objective that needs no more than two models."
    for name in TRAINS_ALONE:
        report(f"run {name}", lambda: whole_run(objective_name=name, max_steps=1, eval_size=0, save_steps=0))


if __name__ == "__main__": {"objectives": objectives, "runs": runs, "all_runs": all_runs}[sys.argv[1]]()
