"""What the cover signal costs beside a plain projection, and in a whole step, with two real models.

    xtokd models get smollm2 gemma
    python bench/cover.py                          SmolLM2 learns from Gemma: vocabularies of 49k and 262k
    python bench/cover.py --student A --teacher B  other models

Each round writes new texts, to other prompts than the rounds before it (64 prompts, then again from the first). Both objectives are asked of the same batch, in turns; forward and backward to the student's rows.
A run learns which tokens stand side by side as its texts come, so there is a line for every `--each` rounds. The structures of the pair (made once for a run) are made by a round of their own.
"""
import argparse, json, sys, time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, load, show, spread, store

from xtokd.rows.pair_batch import PairBatch
from xtokd.train.config import DistillConfig
from xtokd.hub import data_dir
from xtokd.objectives import objective
from xtokd.alignment.pair import Pair
from xtokd.models.side import load_side
from xtokd.train.forward_batch import ModelSet, build_batch
from xtokd.train.samples import generate_samples


def clock(f):
    tic = time.perf_counter()
    return f(), time.perf_counter() - tic


def loss_time(obj, pair, batch):
    "Seconds of forward and backward of an objective down to the student's rows, on rows of their own."
    a = batch.alignment
    cut = lambda x, at: [x[i:j] for i, j in zip(at, at[1:])]
    leaves = [x.clone().requires_grad_() for x in cut(batch.student.logp().detach(), a.student_offsets)]      # not slices of one leaf: their backward would fill it once for each
    own = PairBatch.from_logits(pair, cut(a.student_ids, a.student_offsets), cut(a.teacher_ids, a.teacher_offsets), leaves, cut(batch.teacher.logp(), a.teacher_offsets))
    if obj is None: return clock(lambda: plain(own).backward())[1]
    return clock(lambda: obj(own).loss_sum.backward())[1]


def plain(batch):
    "What every objective over whole rows reads: log-probabilities of both sides, and a sum over the student's."
    s, t = batch.student.logp(), batch.teacher.logp()
    return (s.exp() * s).sum() + 0 * t[0, 0]


NAMES = ("student tokens", "reading rows, s", "projection, s", "cover, s", "cover / projection", "whole step, s", "cover's share", "cover's share above reading rows")


def one_round(k, items, student, teacher, pair, config, asked):
    "The figures of NAMES for one batch."
    samples, t_write = clock(lambda: generate_samples(items, student, teacher, config, "student", seed=k))
    (batch, _), t_rows = clock(lambda: build_batch(samples, ModelSet(student, teacher), asked["cover"], config))
    t = {n: loss_time(asked[n], pair, batch) for n in (("rows", "bpm", "cover") if k % 2 else ("cover", "bpm", "rows"))}
    out = asked["cover"](batch)
    t_back = clock(lambda: out.loss_sum.backward())[1]
    student.model.zero_grad()
    whole = t_write + t_rows + t_back + t["cover"]            # the loss is asked a second time for the backward pass, and knows its answers then
    return len(batch.alignment.student_ids), t["rows"], t["bpm"], t["cover"], t["cover"] / t["bpm"], whole, t["cover"] / whole, (t["cover"] - t["rows"]) / whole


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--student", default="smollm2"); p.add_argument("--teacher", default="gemma")
    p.add_argument("--rounds", type=int, default=40); p.add_argument("--each", type=int, default=8)
    p.add_argument("--tokens", type=int, default=64); p.add_argument("--prompts", type=int, default=4); p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    student, teacher, pair = load_side(a.student, "student", "cpu"), load_side(a.teacher, "teacher", "cpu"), Pair(a.student, a.teacher)
    config, asked = DistillConfig(max_new_tokens=a.tokens, micro_batch_size=a.prompts), {"rows": None, "bpm": objective("bpm"), "cover": objective("cover")}
    prompts = [json.loads(line) for line in (data_dir() / "prompts" / "sentences.jsonl").read_text(encoding="utf8").splitlines()]
    one_round(0, [{"prompt": "Tell me about the sea."}], student, teacher, pair, config, asked)
    print("| rounds | " + " | ".join(NAMES) + " |\n" + "| ---: " * (len(NAMES) + 1) + "|")
    lines = []
    for first in range(0, a.rounds, a.each):
        found = [one_round(k + 1, [prompts[(k * a.prompts + j) % len(prompts)] for j in range(a.prompts)], student, teacher, pair, config, asked) for k in range(first, min(first + a.each, a.rounds))]
        lines.append({"student": a.student, "teacher": a.teacher, "rounds": f"{first + 1}-{first + len(found)}", **{n: spread(x) for n, x in zip(NAMES, zip(*found))}})
        print(f"| {lines[-1]['rounds']} | " + " | ".join(show(lines[-1][n]) for n in NAMES) + " |", flush=True)
    old = load("cover")["rows"] if (RESULTS / "cover.json").exists() else []
    store("cover", [r for r in old if (r["student"], r["teacher"]) != (a.student, a.teacher)] + lines)


if __name__ == "__main__": main()
