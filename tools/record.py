"""Record the runs that the notebooks replay: every objective on the tiny pair, five seeds, one budget.

    python tools/record.py                     all of them, two at a time (about an hour and a half on two cores)
    python tools/record.py cover sft --seeds 0 some of them
    python tools/record.py --rates sampled     try learning rates for an objective, 150 steps each, and print accuracies

Each run is an ordinary `Distiller` run in runs/record/; what goes to data/runs/ is its log with every fifth step (and all other events), numbers rounded to six digits.
"""
import argparse, json, os, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OBJECTIVES = {"cover": "cover", "cover-jsd": ("cover", {"divergence": "jsd"}), "bpm": "bpm", "strict": "strict", "sft": "sft",
              "sampled": "sampled", "sampled-shift": ("sampled", {"credit": "shift"}), "sampled-prior": ("sampled", {"credit": "semantic_prior"})}
SETTINGS = dict(max_steps=400, batch_size=32, micro_batch_size=32, learning_rate=1.5e-3, max_grad_norm=.3, lr_scheduler_type="cosine", max_new_tokens=16,
                eval_steps=50, eval_size=512, save_steps=0, progress=False)
# A policy gradient is noisier than a row: at 1e-3 and 3e-4 it falls to nothing within 150 steps (see `--rates`), so it gets the mildest rate.
OWN, RATES = {name: dict(learning_rate=1e-4) for name in ("sampled", "sampled-shift", "sampled-prior")}, (1e-4, 3e-4, 1e-3)
THIN, REPO = 5, Path(__file__).resolve().parent.parent


def thin(log, to):
    "Write every fifth step of a run log and all its other events."
    from xtokd.train.runlog import write_compact
    events = [json.loads(l) for l in open(log, encoding="utf8")]
    write_compact([e for e in events if e["event"] != "step" or e["step"] % THIN == 0 or e["step"] == 1], to)


def one(name, seed, out, **other):
    "Train one run in this process."
    import torch
    from xtokd.train.distiller import Distiller
    from xtokd.train.config import DistillConfig
    torch.set_num_threads(1)
    config = DistillConfig(**{**SETTINGS, **OWN.get(name, {}), **other}, seed=seed, output_dir=out)
    return Distiller("tiny", "tiny", "tiny", objective=OBJECTIVES[name], config=config).fit()


def rates(name, steps=150):
    "Sampled accuracy over a short run at each of RATES."
    import tempfile
    for lr in RATES:
        with tempfile.TemporaryDirectory() as out:
            evals = one(name, 0, out + "/run", learning_rate=lr, max_steps=steps, eval_steps=50).evals
        print(f"{name}, lr {lr:g}:", [round(e["accuracy_sampled"], 3) for e in evals], flush=True)


def record(job):
    name, seed = job
    folder = REPO / f"runs/record/{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "tools/record.py", name, "--seeds", str(seed), "--here"], cwd=REPO, check=True, stderr=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)})
    thin(folder / "run.jsonl", REPO / f"data/runs/tiny-{name}-{seed}.jsonl")
    print(f"{name}, seed {seed}: recorded", flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("objectives", nargs="*", default=list(OBJECTIVES))
    p.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    p.add_argument("--here", action="store_true", help="train in this process, one run")
    p.add_argument("--rates", choices=OBJECTIVES, help="try learning rates for one objective")
    a = p.parse_args()
    if a.rates: rates(a.rates)
    elif a.here: one(a.objectives[0], a.seeds[0], f"runs/record/{a.objectives[0]}-{a.seeds[0]}")
    else:
        (REPO / "data/runs").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool: list(pool.map(record, [(n, s) for s in a.seeds for n in a.objectives]))
