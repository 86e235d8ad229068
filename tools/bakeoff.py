"""The bake-off: every method that can train on a pair with two vocabularies, on two tasks, under one protocol.

    python tools/bakeoff.py plan                       what would be run, and how long it takes on this machine
    python tools/bakeoff.py sweep [--task tiny]        learning rates: a short run for each method and rate
    python tools/bakeoff.py run [--task tiny]          the runs, at each method's own rate
    ... --only cover strict --seeds 0 1                some of them

The protocol, whole:

* Both tasks come with a pair of models (`tiny`, `tiny2`) and three sets of prompts: train, validation, held out.
* A method's learning rate is chosen from RATES by one short run each (SWEEP, seed 100), judged on *validation* prompts by the
  mean of its sampled and its greedy accuracy at the end. All else is the same for all methods, the budget too: steps times prompts.
* Then SEEDS runs at that rate, judged on the *held-out* prompts.
* A method whose best rate ends below the start in the sweep is weak: it gets one seed, so that its end is seen but not paid for three times.
* A method that is weak on the first task is not swept on the second: it runs there once, at its best rate of the first.
* Costs are counted in student tokens, teacher tokens scored and written, FLOPs and seconds.

Left out, with the reason: see LEFT_OUT. A run that is there is not made again; delete its file to make it anew. What goes to data/runs/bakeoff/
is each run's log without texts and with every twentieth step, and `rates-TASK.json`, the outcome of the sweep.
One process makes one run at a time; on two cores, after the sweep of the first task, start one for each task (`--task tiny`, `--task tiny2`).
"""
import argparse, json, shutil, sys, tempfile, time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
KEPT, WORK = REPO / "data/runs/bakeoff", Path("runs/bakeoff")
RATES, SEEDS, SWEEP_SEED, THIN = (1e-4, 4e-4, 1.5e-3), (0, 1, 2), 100, 20

COMMON = dict(batch_size=16, micro_batch_size=16, lr_scheduler_type="cosine", max_grad_norm=.3, save_steps=0, eval_log_samples=10 ** 6, progress=False)
TASKS = {"tiny": dict(max_new_tokens=16, max_steps=300, eval_steps=100, eval_size=256), "tiny2": dict(max_new_tokens=96, max_steps=80, eval_steps=40, eval_size=96)}
SWEEP = {"tiny": dict(max_steps=80, eval_steps=0, eval_size=256), "tiny2": dict(max_steps=40, eval_steps=0, eval_size=64)}
FIRST = {"tiny2": "tiny"}                                                                                # the task whose sweep says which methods are swept here

by_teacher = dict(on_policy_fraction=0., off_policy_source="teacher")
METHODS = { # name: objective, knobs, settings beside the common ones
    "cover": ("cover",), "bpm": ("bpm",), "pkl": ("pkl",),
    "escd": ("escd",), "escd-root": ("escd", dict(child=0.)),                                           # with and without child events
    "strict": ("strict",), "strict-span": ("strict", dict(span=.25)), "strict-span1": ("strict", dict(span=1.)),  # with and without span terms
    "simct": ("simct",), "gold": ("gold",), "gold-renormalise": ("gold", dict(mass="renormalise")), "uld": ("uld",), "multilevel_ot": ("multilevel_ot",),
    "alm": ("alm",), "alm-teacher": ("alm", {}, by_teacher), "xtoken": ("xtoken",), "sedi": ("sedi",), "mined": ("mined",), "cdm": ("cdm",),
    "dskd": ("dskd",), "dskdv2": ("dskdv2",),                                                            # dskd writes with the teacher, as published
    "sampled": ("sampled",), "sampled-shift": ("sampled", dict(credit="shift")), "sampled-prior": ("sampled", dict(credit="semantic_prior")),
    "dpca": ("dpca",), "opd": ("opd",), "minillm": ("minillm",), "compass": ("compass",),
    "sft": ("sft",),
}
WEAK = {"compass"}                                                                                       # methods that get the pair's weak model
LEFT_OUT = {"gkd": "compares rows of equal vocabularies only", "ctpd": "needs preference pairs and teachers tuned on them; these tasks have neither",
            "olive": "newer than these runs; it stands in the study of when on-policy training wins",
            "sharpen": "a control that asks no teacher; it stands in the study of when on-policy training wins"}


def settings(task, name, seed, lr=None, sweep=False):
    "Every number of one run."
    own = METHODS[name][2] if len(METHODS[name]) > 2 else {}
    return {**COMMON, **TASKS[task], **own, **(SWEEP[task] if sweep else {}), "learning_rate": lr, "seed": seed}


def label(task, name, tail): return f"{task}-{name}-{tail}"


def train(task, name, config, out, heldout):
    "One ordinary Distiller run in `out`."
    import torch
    from xtokd.train.distiller import Distiller
    from xtokd.train.config import DistillConfig
    torch.set_num_threads(1)
    objective, knobs = (*METHODS[name], {}, {})[:2]
    third = {"weak": task} if name in WEAK else {}
    run = Distiller(task, task, task, (objective, knobs), DistillConfig(**config, output_dir=str(out)), eval_prompts=heldout, **third).fit()
    if any(e.get("reason") == "stopped" for e in run.of("end")): sys.exit("stopped; what was begun is not kept")
    return run


# ---- logs: what is kept of them --------------------------------------------------------------------------------------------
STEP = ("loss", "entropy", "response_tokens", "stop_share", "canonical_fraction", "coverage", "costs")


def lengths(samples, step):
    "Mean digits of the last number and characters of the likeliest answers of one evaluation, and what is right."
    from xtokd.train.monitor import number_digits
    mine = [s for s in samples if s["step"] == step and s.get("source") == "eval"]
    digits = [number_digits(s["text"], s["item"]["answer"]) or 0 for s in mine]
    n = max(len(mine), 1)
    return {"number_length": sum(digits) / n, "answer_length": sum(len(s["text"]) for s in mine) / n, "number_length_right": sum(len(s["item"]["answer"]) for s in mine) / n}


def thin(log, **named):
    "The events of a run log without texts, with every twentieth step, and the study's own names in the first."
    events = [json.loads(l) for l in open(log, encoding="utf8")]
    samples = [e for e in events if e["event"] == "sample"]
    keep = lambda e: {k: e[k] for k in ("event", "step", "time", *STEP) if k in e} if e["event"] == "step" else e | (lengths(samples, e["step"]) if e["event"] == "eval" else {})
    short = [keep(e) for e in events if e["event"] != "sample" and (e["event"] != "step" or e["step"] % THIN == 0 or e["step"] == 1)]
    short[0] = short[0] | named
    return short


def score(e): return (e["accuracy"] + e["accuracy_sampled"]) / 2


# ---- the sweep -------------------------------------------------------------------------------------------------------------
def rates(task):
    "`{\"method rate\": what came of it}` of one task."
    file = KEPT / f"rates-{task}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def keep_rate(task, key, found):
    "Add one outcome to the task's file, whole or not at all."
    KEPT.mkdir(parents=True, exist_ok=True)
    new = KEPT / f"rates-{task}.new"
    new.write_text("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted((rates(task) | {key: found}).items())) + "\n}\n")
    new.replace(KEPT / f"rates-{task}.json")


def sweep_one(task, name, lr):
    key, began = f"{name} {lr:g}", time.perf_counter()
    if "end" in rates(task).get(key, {}) or weak_first(task, name): return
    with tempfile.TemporaryDirectory() as out:
        try:
            run = train(task, name, settings(task, name, SWEEP_SEED, lr, True), Path(out) / "run", f"{task}:validation")
            a, b = run.evals[0], run.evals[-1]
            found = {"start": score(a), "end": score(b), "sampled": b["accuracy_sampled"], "greedy": b["accuracy"], "stop_share": b["stop_share"], "rkl_per_byte": b["rkl_per_byte"],
                     "seconds_a_step": run.steps[-1]["costs"]["seconds"] / len(run.steps), "seconds": time.perf_counter() - began}
        except Exception as e: found = {"failed": f"{type(e).__name__}: {e}"[:300]}
    found = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    keep_rate(task, key, found)
    print(time.strftime("%H:%M:%S"), "sweep", task, key, found, flush=True)


def best_of(task, name):
    "Best rate of the method in the task's sweep, and its outcome; (None, None) where the sweep is not done or every rate failed."
    found = {lr: rates(task).get(f"{name} {lr:g}") for lr in RATES}
    if None in found.values() or not any("end" in f for f in found.values()): return None, None
    return max(((lr, f) for lr, f in found.items() if "end" in f), key=lambda x: x[1]["end"])


def weak_first(task, name):
    "The method's rate of the first task, where it was weak there; else None."
    lr, found = best_of(FIRST.get(task, ""), name)
    return lr if lr and found["end"] < found["start"] else None


def chosen(task, name):
    "The method's rate and its seeds; (None, ()) where the sweep is not done or every rate failed."
    if lr := weak_first(task, name): return lr, SEEDS[:1]
    lr, found = best_of(task, name)
    return (None, ()) if lr is None else (lr, SEEDS[:1] if found["end"] < found["start"] else SEEDS)


# ---- the runs --------------------------------------------------------------------------------------------------------------
def run_one(task, name, seed):
    lr, seeds = chosen(task, name)
    to, out = KEPT / f"{label(task, name, seed)}.jsonl", WORK / label(task, name, seed)
    if to.exists() or seed not in seeds: return
    shutil.rmtree(out, ignore_errors=True)
    try: train(task, name, settings(task, name, seed, lr), out, f"{task}:heldout")
    except Exception as e: print(f"{to.stem}: {type(e).__name__}: {e}", flush=True)
    if not (out / "run.jsonl").exists(): return
    from xtokd.train.runlog import write_compact
    write_compact(thin(out / "run.jsonl", task=task, method=name), to)
    shutil.rmtree(out)
    print(time.strftime("%H:%M:%S"), "run", to.stem, lr, flush=True)


# ---- the plan --------------------------------------------------------------------------------------------------------------
def measure(task, name):
    "Seconds a step and seconds an evaluation of 32 prompts, from two steps."
    with tempfile.TemporaryDirectory() as out:
        try: run = train(task, name, settings(task, name, 0, 1e-5) | dict(max_steps=3, eval_steps=0, eval_size=32), Path(out) / "run", f"{task}:validation")
        except Exception as e: return None, f"{type(e).__name__}: {e}"
        return (run.steps[-1]["costs"]["seconds"] - run.steps[0]["costs"]["seconds"]) / 2, run.evals[-1]["seconds"]


def plan(tasks, names, seeds):
    "Print what is still to be done, and estimate it."
    file = WORK / "seconds.json"
    known, total = json.loads(file.read_text()) if file.exists() else {}, 0.
    for task in tasks:
        for name in names:
            key = f"{task} {name}"
            if key not in known:
                known[key] = measure(task, name)
                file.parent.mkdir(parents=True, exist_ok=True); file.write_text(json.dumps(known))
            step, judge = known[key]
            if step is None: print(f"{key}: cannot train: {judge}", flush=True); continue
            cost = lambda c: c["steps"] * step + (2 + (c["eval_steps"] and (c["steps"] - 1) // c["eval_steps"])) * judge * c["eval_size"] / 32
            lr, mine = chosen(task, name)
            to_sweep = [] if weak_first(task, name) else [x for x in RATES if "end" not in rates(task).get(f"{name} {x:g}", {})]
            to_run = [s for s in seeds if s in (mine if lr else seeds) and not (KEPT / f"{label(task, name, s)}.jsonl").exists()]
            a, b = len(to_sweep) * cost(settings(task, name, 0, sweep=True)), len(to_run) * cost(settings(task, name, 0))
            total += a + b
            print(f"{key:24} {step:6.2f} s a step   sweep {len(to_sweep)} ({a / 60:5.1f} min)   runs {len(to_run)} ({b / 60:5.1f} min)   rate {lr or 'not chosen'}", flush=True)
    print(f"left out: {'; '.join(f'{k} ({v})' for k, v in LEFT_OUT.items())}\nin all {total / 3600:.1f} hours on one core")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("plan", "sweep", "run"))
    p.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    p.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    p.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    a = p.parse_args()
    import os, transformers
    os.chdir(REPO); sys.path.insert(0, str(REPO))
    transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar()
    if a.what == "plan": plan(a.task, a.only, a.seeds)
    if a.what == "sweep": [sweep_one(t, n, lr) for t in a.task for n in a.only for lr in RATES]
    if a.what == "run": [run_one(t, n, s) for t in a.task for s in a.seeds for n in a.only]
