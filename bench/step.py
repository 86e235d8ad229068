"""A whole on-policy step, by parts, against trl's GOLDTrainer with the same models, prompts and lengths.

    python bench/step.py                                      the tiny pair, then SmolLM2 from Gemma (`xtokd models get smollm2 gemma`)
    python bench/step.py --pairs smollm2:gemma --steps 5      one pair
    python bench/step.py --scaling                            step time against the batch and the length, on the tiny pair; the exponents are printed
    python bench/step.py --device cuda                        on a GPU

Each side runs in processes of its own, in turns; the first steps of a process are not counted. Both sample at temperature 1 without filters, one micro-batch a step, fused AdamW, float32 on a CPU and bfloat16 on a GPU.
Ours learns by each of `--objectives` (cover, gold), trl's by its hybrid loss (`use_uld_loss`, `uld_use_hybrid_loss`, observed merges). Texts are sampled, so their lengths differ a little: the tokens are in the table.
Parts are seconds of wall clock. "Cross-tokenizer" is retokenising, alignment and the objective, less what plain reading of the same rows costs (their log-probabilities, and a sum over the student's with its gradient).
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1"); os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import PROMPTS, exponent, head, ratio, show, spread, store
from step_parts import Parts, cross_seconds, load_models, whole_step

ROLES = {"tiny": dict(new=16, batch=32)}


def items(k, n): return [{"prompt": f"{PROMPTS[(k * n + j) % len(PROMPTS)]} ({k})"} for j in range(n)]


# ---- ours ------------------------------------------------------------------------------------------------------------------
def ours(a, student, teacher):
    from xtokd.train.config import DistillConfig
    from xtokd.objectives import objective
    config, method, parts = DistillConfig(max_new_tokens=a.new, batch_size=a.batch, micro_batch_size=a.batch, logits=a.rows), objective(a.objective), Parts(a.device)
    models = load_models(student, teacher, method, a.device)
    optimizer = torch.optim.AdamW(models.student.model.parameters(), lr=1e-6, fused=True)
    with parts.watching():
        found = [whole_step(models, method, optimizer, config, items(k + 100 * a.turn, a.batch), k + 1000 * a.turn, parts) for k in range(a.warm + a.steps)]
    return [row | {"cross": cross_seconds(row)} for row in found[a.warm:]]


# ---- trl -------------------------------------------------------------------------------------------------------------------
def theirs(a, student, teacher):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.experimental.gold import GOLDConfig, GOLDTrainer
    from xtokd.models.loading import load_tokenizer
    from xtokd.hub import resolve
    parts, found, paths = Parts(a.device), [], [str(resolve(n, r)) for n, r in ((student, "student"), (teacher, "teacher"))]
    dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    s, t = (AutoModelForCausalLM.from_pretrained(p, dtype=dtype) for p in paths)
    n = a.steps + a.warm
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": x["prompt"]}, {"role": "assistant", "content": "Yes."}]} for k in range(n) for x in items(k + 100 * a.turn, a.batch)])
    with tempfile.TemporaryDirectory() as out:
        config = GOLDConfig(output_dir=out, per_device_train_batch_size=a.batch, gradient_accumulation_steps=1, max_steps=n, lmbda=1., temperature=1., top_p=1., max_completion_length=a.new, max_length=None, use_uld_loss=True,
                            uld_use_hybrid_loss=True, teacher_tokenizer_name_or_path=paths[1], bf16=a.device == "cuda", gradient_checkpointing=False, use_cpu=a.device == "cpu", report_to=[], save_strategy="no", logging_strategy="no", learning_rate=1e-6, seed=a.turn, disable_tqdm=True, max_grad_norm=1.)
        trainer = GOLDTrainer(model=s, teacher_model=t, args=config, train_dataset=rows, processing_class=load_tokenizer(student))
        tokens = []
        for owner, name, part in ((trainer, "generate_on_policy_outputs", "rollout"), (trainer.teacher_model, "forward", "teacher"), (trainer, "uld_loss_fn", "alignment and objective"), (trainer.accelerator, "backward", "backward")): 
            if name == "uld_loss_fn": trainer.uld_loss_fn = Counted(trainer.uld_loss_fn, parts, part, tokens)
            else: setattr(owner, name, parts.timed(getattr(owner, name), part))
        class Watch(TrainerCallback):
            def on_step_end(self, args, state, control, **k):
                now = parts.now()
                if hasattr(self, "last") and state.global_step > a.warm: found.append({"seconds": now - self.last, "tokens": tokens[-1], "parts": dict(parts.found)})
                self.last, parts.found = now, {}
        trainer.add_callback(Watch())
        trainer.train()
    return found


class Counted:
    "trl's loss, timed, with the number of completion tokens that it saw."
    def __init__(self, loss, parts, part, tokens): self.__dict__.update(loss=loss, parts=parts, part=part, tokens=tokens)
    def __getattr__(self, name): return getattr(self.loss, name)
    def __call__(self, *x, **k):
        self.tokens.append(int((k["student_labels"] != -100).sum()))
        with self.parts.part(self.part): return self.loss(*x, **k)


# ---- both, in turns --------------------------------------------------------------------------------------------------------
def elsewhere(a, who, pair, turn, **how):
    words = {"--one": who, "--pairs": pair, "--turn": turn, "--steps": a.steps, "--warm": a.warm, "--device": a.device, "--threads": a.threads, "--objective": "cover", "--new": a.new, "--batch": a.batch, "--rows": a.rows} | how
    done = subprocess.run([sys.executable, __file__, *(str(x) for kv in words.items() for x in kv)], capture_output=True, text=True)
    if done.returncode: print(f"{who} {pair}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr); return []
    return json.loads(done.stdout.splitlines()[-1])


def parts_of(runs):
    names = dict.fromkeys(k for r in runs for k in r["parts"])
    return {n: statistics.median(r["parts"].get(n, 0.) for r in runs) for n in names}


def both(a, pair):
    runs = {name: [] for name in (*a.objectives, "trl")}
    for turn in range(a.turns):
        for name in (list(runs) if turn % 2 else list(runs)[::-1]):
            if name != "trl" or find_spec("trl"): runs[name] += elsewhere(a, "trl" if name == "trl" else "ours", pair, turn, **({} if name == "trl" else {"--objective": name}))
    rows = []
    for name, found in runs.items():
        if not found: continue
        who = "trl" if name == "trl" else "ours"
        whole, p = spread([r["seconds"] for r in found]), parts_of(found)
        p["rest"] = max(whole["median"] - sum(p.values()), 0.)
        row = {"what": "step", "pair": pair, "who": who, "objective": name if who == "ours" else "GOLDTrainer, hybrid", "seconds": whole, "tokens": statistics.median(r["tokens"] for r in found), "parts": p}
        if who == "ours":
            row["cross-tokenizer share"] = spread([r["cross"] / r["seconds"] for r in found])
            row["objective's share"] = spread([r["parts"]["objective"] / r["seconds"] for r in found])
            if n := min(len(found), len(runs["trl"])): row["trl / ours"] = ratio([r["seconds"] for r in runs["trl"][:n]], [r["seconds"] for r in found[:n]])
        rows.append(row)
        print(f"| {pair} | {who} | {row['objective']} | {row['tokens']:.0f} | {show(whole)} | {', '.join(f'{k} {v:.2f}' for k, v in p.items())} | {show(row['cross-tokenizer share'], 100, 1) + ' %' if who == 'ours' else ''} | {show(row['trl / ours'], digits=1) if 'trl / ours' in row else ''} |", flush=True)
    return rows


def scaling(a):
    rows = []
    for name, values, fixed in (("batch", (8, 16, 32, 64, 128), {"--new": 16}), ("length", (8, 16, 32, 64), {"--batch": 16})):
        x, y = [], []
        for v in values:
            found = elsewhere(a, "ours", "tiny:tiny", 0, **fixed, **{{"batch": "--batch", "length": "--new"}[name]: v})
            rows.append({"what": "scaling", "by": name, "value": v, "tokens": statistics.median(r["tokens"] for r in found), "seconds": spread([r["seconds"] for r in found])})
            x.append(v); y.append(rows[-1]["seconds"]["median"])
            print(f"| {name} {v} | {rows[-1]['tokens']:.0f} tokens | {show(rows[-1]['seconds'], digits=3)} |", flush=True)
        rows.append({"what": "exponent", "by": name, "exponent": exponent(x, y)})
        print(f"step time grows with {name} to the power of {rows[-1]['exponent']:.2f}\n", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", nargs="+", default=["tiny:tiny", "smollm2:gemma"], metavar="STUDENT:TEACHER"); p.add_argument("--objectives", nargs="+", default=["cover", "gold"]); p.add_argument("--objective", default="cover", help=argparse.SUPPRESS); p.add_argument("--rows", default="auto")
    p.add_argument("--steps", type=int, default=3); p.add_argument("--warm", type=int, default=2); p.add_argument("--turns", type=int, default=2); p.add_argument("--new", type=int, default=64); p.add_argument("--batch", type=int, default=4)
    p.add_argument("--threads", type=int, default=2); p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu"); p.add_argument("--scaling", action="store_true"); p.add_argument("--name", default="step")
    p.add_argument("--one", choices=("ours", "trl")); p.add_argument("--turn", type=int, default=0)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.one: return print(json.dumps({"ours": ours, "trl": theirs}[a.one](a, *a.pairs[0].split(":"))))
    print(f"{head()}\n")
    if a.scaling: return print(store("scaling", scaling(a)))
    print("| pair | who | objective | tokens | step, seconds | parts, seconds | cross-tokenizer | trl / ours |\n| --- | --- | --- | ---: | ---: | --- | ---: | ---: |")
    rows, asked = [], dict(new=a.new, batch=a.batch)
    for pair in a.pairs:
        vars(a).update(ROLES.get(pair.split(":")[0], asked))
        rows += both(a, pair)
    store(a.name, rows, device=a.device)


if __name__ == "__main__": main()
