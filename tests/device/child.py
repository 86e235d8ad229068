"""Runs the library on the pretend accelerator, in a process of its own, and prints what came out as JSON lines."""
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pretend          # first: it registers the device
import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from batches import TEXTS, parts
from cases import TOP_K, TRAINS_ALONE
from xtokd.alignment.pair import Pair
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.objectives import OBJECTIVES, objective
from xtokd.rows.lazy import OutputHead
from xtokd.rows.pair_batch import HiddenStates, PairBatch
from xtokd.rows.random_batches import random_heads
from xtokd.rows.topk import to_top_k
from xtokd.train.callbacks import Callback
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller

torch.set_num_threads(1)
TWO = Pair("tiny", "tiny")
ONE = Pair(TWO.teacher, TWO.teacher)


def tensors(pair, device):
    "Random samples on a device, their leaves, and two heads."
    found = parts(pair, list(TEXTS))
    moved = {name: [x.detach().to(device).requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x for x in values]
             for name, values in found.items()}
    return moved, [head.to(device) for head in random_heads(pair)]


def make_batch(name, rows, device):
    "(a batch, the tensors that get a gradient)."
    pair = ONE if OBJECTIVES[name].cls.equal_vocabularies else TWO
    fields, heads = tensors(pair, device)
    states = fields.pop("student_hidden"), fields.pop("teacher_hidden")
    fields["preferences"] = [1 - 2 * (k % 2) for k in range(len(TEXTS))]
    fields["text_source"] = OBJECTIVES[name].text_source
    if rows == "lazy":
        for key in ("student_logits", "teacher_logits"): fields.pop(key)
        hidden = HiddenStates(*states, *heads)
        student, teacher = (OutputHead(head) for head in heads)
        ids = fields.pop("student_ids"), fields.pop("teacher_ids")
        batch = PairBatch.from_tensors(pair, *ids, student=states[0], teacher=states[1], student_head=student, teacher_head=teacher,
                                       hidden=hidden, **fields)
        return batch, list(states[0])
    batch = PairBatch.from_logits(pair, **fields, hidden=HiddenStates(*states, *heads))
    return batch, [*fields["student_logits"], *states[0]]


def outcome(name, options, rows, device):
    "Loss, gradients and counts of one objective."
    torch.manual_seed(0)
    method = objective(name, **options)
    if isinstance(method, torch.nn.Module): method.to(device)
    batch, leaves = make_batch(name, rows, device)
    if rows == "top_k": batch = replace(batch, teacher=to_top_k(batch.teacher, getattr(method, "teacher_top_k", 0)))
    def run():
        out = method(batch)
        out.loss.backward()
        return out
    method(batch)                    # tables of the pair and parameters are made at the first batch
    if isinstance(method, torch.nn.Module): method.to(device)
    out, counts = pretend.counted(run)
    gradients = [torch.zeros_like(x).cpu() if x.grad is None else x.grad.cpu() for x in leaves]
    return out, gradients, counts


def compare(name, options, rows):
    "How far the pretend device is from the CPU, with the counts."
    here, there = outcome(name, options, rows, "cpu"), outcome(name, options, rows, "pretend")
    scale = max(float(x.abs().max()) for x in here[1])
    gap = max(float((x - y).abs().max()) for x, y in zip(here[1], there[1], strict=True))
    return {"loss": [float(here[0].loss), float(there[0].loss)], "gradient": gap, "scale": scale, "counts": there[2],
            "ledger": {key: int((here[0].ledger[key] != there[0].ledger[key]).sum()) for key in ("chunk", "kind", "reason")}}


def report(case, act):
    "Print one line: what `act` returned, or the error."
    try: found = act()
    except Exception as e: found = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps({"case": case} | found), flush=True)


def objectives():
    for name in OBJECTIVES:
        report(f"{name} dense", lambda: compare(name, {}, "dense"))
        report(f"{name} lazy", lambda: compare(name, {}, "lazy"))
    for name, options in TOP_K.items(): report(f"{name} top_k", lambda: compare(name, options, "top_k"))


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
