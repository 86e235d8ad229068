"""How long the atlas of a pair takes to open and to answer.

    python bench/atlas.py                                    vocabularies of 100,000 and 200,000 tokens, made from a seed
    python bench/atlas.py --student DIR --teacher DIR        two tokenizers (names, folders or tokenizer.json files)

Bars: with cached tables it opens in 3 s and answers in 0.3 s. `open` is a fresh process: reading the tables of the pair from disk, the
table of cells and the first picture; loading the two tokenizers is given apart. Seconds of wall clock and of CPU; medians of the answers.
"""
import argparse, json, random, statistics, subprocess, sys, time

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from xtokd.alignment.pair import Pair
from xtokd.vocab.bytevocab import ByteVocab

TEXT = "The student writes and the teacher scores what was written: 1234 apples at 56.78 each.\ndef area(r):\n    return 3.14159 * r ** 2\nnaïve café, данные, 数据\n"
UNITS = ["а", "б", "в", "д", "е", "и", "н", "о", "т", "数", "据", "一", "的", "é", "ñ", "α"]      # characters of several bytes that are merged first


def made_vocab(size, seed):
    "A byte-level BPE vocabulary of `size` tokens from a seed; short tokens come first, so that two of them share many."
    rng, tokenizer_bytes = random.Random(seed), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    known = set(pieces)
    def add(a, b):
        if a + b in known: return
        known.add(a + b)
        pieces.append(a + b)
        merges.append((a, b))
    for unit in UNITS:
        marks = tokenizer_bytes.pre_tokenize_str(unit)[0][0]
        for k in range(1, len(marks)): add(marks[:k], marks[k])
    letters = list("etaoinshrdlucmfwygpbvk0123456789Ġ._(") + [tokenizer_bytes.pre_tokenize_str(u)[0][0] for u in UNITS]
    for a in letters:
        for b in letters: add(a, b)
    while len(pieces) < size:
        a, b = rng.choice(pieces[256:]), rng.choice(letters)
        if len(a) < 12: add(a, b)
    tok = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return ByteVocab(tok, stops=[0], name=f"made-{size}")


def made_pair(sizes=(100_000, 200_000)): return Pair(*(made_vocab(size, seed) for seed, size in enumerate(sizes)))


def read_pair(student, teacher): return Pair(student, teacher) if student else made_pair()


def opened(pair):
    "An atlas and what it takes to open it: {step: (wall, CPU)} in seconds."
    from xtokd.objectives.cover.cells import cell_graph
    from xtokd.viz.cell_table import cells_of_pair
    from xtokd.viz.live.atlas import Atlas
    times, made = {}, []
    for name, act in (("tables of the pair", lambda: cell_graph(pair.student, pair.teacher)), ("table of cells", lambda: cells_of_pair(pair)), ("first picture", lambda: made.append(Atlas(pair, TEXT)))):
        tic = time.perf_counter(), time.process_time()
        act()
        times[name] = time.perf_counter() - tic[0], time.process_time() - tic[1]
    return made[0], times


def answers(atlas, rounds=9):
    "{what was done: (median of wall, median of CPU)} in seconds."
    table, words = atlas.state.table, [w for w in ("the", " and", "a", "12", "(", " student", "数", "e", "th") if atlas.state.offer(w, 0)]
    first, last = table.select()[:1], table.select()[-1:]
    long_text, fresh = TEXT * 60, iter(range(10 ** 6))
    acts = {
        "type a token": lambda k: setattr(atlas, "query", words[k % len(words)]),
        "draw the largest component": lambda k: setattr(atlas, "token", [k % 2, int(table.members(int(first[0]))[k % 2][0])]),
        "draw a small component": lambda k: setattr(atlas, "token", [0, int(table.members(int(last[0]))[0][0])] if k % 2 else [0, int(table.members(int(last[0] - 1))[0][0])]),
        "filter by kind": lambda k: setattr(atlas, "filters", {"kinds": [k % 4]}),
        "filter by script": lambda k: setattr(atlas, "filters", {"script": table.scripts[k % min(6, len(table.scripts))]}),
        "filter by link": lambda k: setattr(atlas, "filters", {"links": [k % 3]}),
        "order by mass, in the text": lambda k: setattr(atlas, "filters", {"sort": "mass", "in_text": bool(k % 2)}),
        "order by bytes": lambda k: setattr(atlas, "filters", {"sort": "bytes", "sizes": [1, 2 + k]}),
        "next rows": lambda k: setattr(atlas, "start", 25 * (1 + next(fresh))),
        "type a short text": lambda k: setattr(atlas, "text", TEXT[:40 + next(fresh)]),
        "type a long text": lambda k: setattr(atlas, "text", long_text[next(fresh):]),
    }
    found = {}
    for name, act in acts.items():
        runs = []
        for k in range(rounds):
            tic = time.perf_counter(), time.process_time()
            act(k)
            runs.append((time.perf_counter() - tic[0], time.process_time() - tic[1]))
            assert not atlas.error, (name, atlas.error)
        found[name] = tuple(statistics.median(column) for column in zip(*runs))
        atlas.filters, atlas.start = {}, 0
    return found


def one(student, teacher):
    "Everything in this process, as a dict."
    tic = time.perf_counter(), time.process_time()
    pair = read_pair(student, teacher)
    loaded = time.perf_counter() - tic[0], time.process_time() - tic[1]
    import xtokd.viz.live.atlas      # noqa: F401    imports are not measured
    atlas, times = opened(pair)
    table = atlas.state.table
    return {"ids": [len(v) for v in table.vocabs], "cells": table.n, "links": len(table.links), "load both tokenizers": loaded,
            "open": tuple(map(sum, zip(*times.values()))), "open, by part": times, "answers": answers(atlas)}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--student"); p.add_argument("--teacher"); p.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.inner: return print(json.dumps(one(a.student, a.teacher)))
    from common import store
    command = [sys.executable, __file__, "--inner"] + (["--student", a.student, "--teacher", a.teacher] if a.student else [])
    for _ in range(2): out = subprocess.run(command, check=True, capture_output=True, text=True).stdout     # the first fills the cache of tables
    row = json.loads(out.splitlines()[-1])
    print(f"{row['ids'][0]:,} x {row['ids'][1]:,} ids, {row['cells']:,} components, {row['links']:,} links\n\n| | wall, s | CPU, s |\n| --- | ---: | ---: |")
    lines = {"load both tokenizers": row["load both tokenizers"], "**open**": row["open"], **row["open, by part"], **row["answers"]}
    for name, (wall, cpu) in lines.items(): print(f"| {name} | {wall:.3f} | {cpu:.3f} |")
    store("atlas", [row], vocabularies="made from a seed" if not a.student else "two tokenizers")


if __name__ == "__main__": main()
