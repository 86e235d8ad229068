"""Cross-vocabulary losses, forward and backward: ours from hidden states (`states`) and on ready logits (`logits`), and trl's hybrid loss on ready logits.

    python bench/losses.py                                        49k by 152k, T = 1,024: gold, strict, cover against trl
    python bench/losses.py --memory                               their memory at T = 512, 1,024, 4,096
    python bench/losses.py --all                                  every objective that takes such a batch
    python bench/losses.py --pair qwen gemma --tokens 512 4096    other vocabularies and lengths
    python bench/losses.py --device cuda --dtype bfloat16         on a GPU

Vocabularies are those of real tokenizers (smollm2 49k, qwen 152k, deepseek 129k, gemma 262k), texts are new in every round, rows are drawn: the realised token is the likeliest in most, and the rest falls
like a power of its rank, as rows of real models do. Heads and their gradients belong to the models; all else that a loss needs counts as its memory, its inputs (logits or states) included. Memory is
measured in processes of its own for each figure: the highest resident size after the inputs' beginning (on a GPU: the highest allocation) less the size before. On a CPU there are two figures: with an
allocator that hands freed blocks back at once (glibc's MALLOC_MMAP_THRESHOLD_, 1 MB: what is really alive), and with the allocator as it comes, which keeps holes.
Times of one line are taken in turns in one process. `--trl-tokens` caps the length at which trl's loss is timed: it sorts whole rows.
"""
import argparse, gc, json, os, re, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import alternate, head, ratio, show, spread, store
from xtokd.alignment.byte_align import align
from xtokd.rows.pair_batch import PairBatch
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.rows.lazy import OutputHead
from xtokd.objectives import OBJECTIVES, objective
from xtokd.alignment.pair import Pair

WIDTHS = {"smollm2": 576, "qwen": 896, "deepseek": 1024, "gemma": 640}       # of hidden states, as in the small models with these tokenizers
WORDS = ("The teacher, which cuts the same bytes into other tokens, scores what was written.", "def area(r):\n    return 3.14159 * r ** 2  # naïve\n", "1234 apples at 56.78 each make", "学生写，老师评分。", "Ça va? 👩‍👩‍👧",
         "Marie Curie discovered polonium and radium in 1898.", "for i in range(10): print(i)", "Guten Morgen, wie geht es Ihnen heute?", "Water boils at 100 degrees Celsius at sea level.")


def vocabulary(name):
    if name in ("qwen", "deepseek"):
        from align import tokenizers
        return tokenizers()[name == "deepseek"]
    return ByteVocab(name)


def text(n, rng): return " ".join(f"{rng.integers(10 ** 6)} {WORDS[k]}" for k in rng.integers(len(WORDS), size=n // 12 + 8))


class Case:
    "Ids of one new text, states of both sides, heads."
    def __init__(self, pair, names, device, dtype, tokens):
        self.pair, self.device, self.dtype, self.tokens, g = pair, device, dtype, tokens, torch.Generator().manual_seed(0)
        rank = lambda n: torch.randperm(n, generator=g).float().add(1).log()
        def make(bv, d): return OutputHead((torch.randn(len(bv), d, generator=g) / d ** .5).to(device, dtype), (-1.3 * rank(len(bv))).to(device, dtype))
        self.heads = [make(bv, WIDTHS.get(n, 768)) for bv, n in zip((pair.student, pair.teacher), names)]
        for p in (self.heads[0].weight, self.heads[0].bias): p.requires_grad_(); p.grad = torch.zeros_like(p)

    def new(self, seed, tokens=None):
        n, rng = tokens or self.tokens, np.random.default_rng(seed)
        words = text(n, rng)
        s, t = self.pair.student.encode(words), self.pair.teacher.encode(words)
        c = align(s, t, self.pair.student, self.pair.teacher, granularity="char").chunks
        k = max(np.searchsorted(c[:, 1], n, "right") - 1, 0)
        self.ids = s[: c[k, 1]], t[: c[k, 3]]
        self.states = [self._states(h, i, rng) for h, i in zip(self.heads, self.ids)]
        self.states[0].requires_grad_()
        return self

    def _states(self, head, ids, rng):
        g = torch.Generator().manual_seed(int(rng.integers(2 ** 31)))
        sure = torch.empty(len(ids), 1).uniform_(6, 22, generator=g).to(self.device, self.dtype)
        with torch.no_grad(): return head.weight[torch.as_tensor(ids, device=self.device)] * sure + .5 * torch.randn(len(ids), head.weight.shape[1], generator=g).to(self.device, self.dtype)

    def logits(self):
        with torch.no_grad(): s, t = (h(x) for h, x in zip(self.heads, self.states))
        return s.requires_grad_(), t

    def extra(self): return {"behaviour_logp": [torch.zeros(len(self.ids[0])) - 1], "reference_logp": [torch.zeros(len(self.ids[0])) - 1], "weak_logp": [torch.zeros(len(self.ids[1])) - 2]}

    def run(self, kind, obj, ready=None):
        "Forward and backward, once."
        if kind == "trl": return trl_run(self, *ready)
        how = dict(student_head=self.heads[0], teacher_head=self.heads[1]) if kind == "states" else {}
        make, rows = (PairBatch.from_tensors, self.states) if kind == "states" else (PairBatch.from_logits, ready)
        out = obj(make(self.pair, [self.ids[0]], [self.ids[1]], [rows[0]], [rows[1]], **how, **self.extra()))
        out.loss.backward()

    def sync(self):
        if self.device == "cuda": torch.cuda.synchronize()


def trl_loss(pair):
    from trl.experimental.gold import gold_trainer
    special = lambda bv: SimpleNamespace(eos_token_id=int(bv.stop_ids[0]) if len(bv.stop_ids) else None, pad_token_id=None, decode=lambda x, **_: bv.decode([int(i) for i in np.atleast_1d(x)]).decode("utf8", "replace"),
                                         get_vocab=lambda: {b.decode("utf8", "replace") if ok else f"<{i}>": i for i, (b, ok) in enumerate(zip(bv.bytes, bv.lengths > 0))})
    args = SimpleNamespace(uld_crossentropy_weight=0., uld_distillation_weight=1., uld_student_temperature=1., uld_teacher_temperature=1., uld_skip_student_eos=False, uld_skip_teacher_eos=False, use_extended_uld=True,
                           uld_token_merge_strategy="observed", uld_use_hybrid_loss=True, uld_hybrid_matched_weight=None, uld_hybrid_unmatched_weight=None, beta=.5)
    return gold_trainer.ULDLoss(args, special(pair.student), special(pair.teacher))


def trl_run(case, s, t):
    "trl's hybrid loss on ready logits; one position stands for the prompt. Byte offsets are given."
    if not hasattr(case, "trl"): case.trl = trl_loss(case.pair)
    def side(bv, ids):
        end = np.cumsum(bv.lengths[ids])
        i = torch.tensor([0, *ids], device=case.device)[None]
        labels, offsets = i.clone(), torch.as_tensor(np.stack([np.r_[0, end - bv.lengths[ids]], np.r_[0, end]], 1), device=case.device)[None]
        labels[0, 0] = -100
        return i, labels, offsets
    pad = lambda x: torch.cat([x, x[:1].detach()])[None]      # position p predicts token p + 1: the last row predicts nothing
    (si, sl, so), (ti, tl, to) = side(case.pair.student, case.ids[0]), side(case.pair.teacher, case.ids[1])
    case.trl(pad(s), pad(t), sl, tl, si, ti, student_byte_offsets=so, teacher_byte_offsets=to).backward()


# ---- memory ----------------------------------------------------------------------------------------------------------------
def status(key): return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def peak(case, kind, name, tokens):
    "MiB that a loss takes at most, its inputs included."
    obj = None if kind == "trl" else objective(name)
    def once(seed, n):
        ready = None if kind == "states" else case.new(seed, n).logits()
        if kind == "states": case.new(seed, n)
        case.run(kind, obj, ready)
    once(1, 64)
    for seed in (2, 3): once(seed, 128)                       # tables, memos, buffers of the libraries
    case.states = case.ids = None
    gc.collect()
    if case.device == "cuda":
        torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); before = torch.cuda.memory_allocated()
        once(4, tokens)
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    once(4, tokens)
    return status("VmHWM") - before


TIGHT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}


def peak_elsewhere(a, kind, name, tokens, tight):
    "`peak` in a process of its own."
    words = [sys.executable, __file__, "--peak", kind, name, str(tokens), "--pair", *a.pair, "--device", a.device, "--dtype", a.dtype, "--threads", str(a.threads)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **(TIGHT if tight else {})})
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


# ---- times -----------------------------------------------------------------------------------------------------------------
def times(case, names, tokens, rounds, with_trl, kinds, warm):
    "Seconds of each loss, in turns, a new text each round: {(name, kind): [seconds]}."
    objs, runs, seed = {n: objective(n) for n in names}, {}, [100]
    def timed(kind, obj):
        def f():
            ready = None if kind == "states" else [x.detach().requires_grad_(k == 0) for k, x in enumerate(case.ready)]
            case.sync()
            tic = clock(); case.run(kind, obj, ready); case.sync()
            return clock() - tic
        return f
    clock = time.perf_counter if case.device == "cuda" else time.process_time
    runs = {(n, k): timed(k, objs[n]) for n in names for k in kinds} | ({("trl", "logits"): timed("trl", None)} if with_trl else {})
    took = {k: [] for k in runs}
    for r in range(-warm, rounds):
        case.new(seed[0] + r + warm, tokens)
        case.ready = case.logits() if with_trl or "logits" in kinds else None
        for key in (list(runs) if r % 2 else list(runs)[::-1]):
            t = runs[key]()
            if r >= 0: took[key].append(t)
        case.ready = None
    return took


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pair", nargs=2, default=["smollm2", "qwen"], metavar=("STUDENT", "TEACHER"))
    p.add_argument("--tokens", type=int, nargs="+", default=[1024]); p.add_argument("--memory", action="store_true", help="memory instead of time"); p.add_argument("--memory-tokens", type=int, nargs="*", default=[512, 1024, 4096])
    p.add_argument("--only", nargs="+", default=["gold", "strict", "cover"]); p.add_argument("--all", action="store_true"); p.add_argument("--kinds", nargs="+", default=["states", "logits"], choices=("states", "logits"))
    p.add_argument("--rounds", type=int, default=5); p.add_argument("--warm", type=int, default=2); p.add_argument("--threads", type=int, default=2); p.add_argument("--trl-tokens", type=int, default=1024)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu"); p.add_argument("--dtype", default="float32"); p.add_argument("--name", default="losses")
    p.add_argument("--peak", nargs=3, metavar=("KIND", "OBJECTIVE", "TOKENS"), help="only this figure, MiB on the last line")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    bvs = [vocabulary(n) for n in a.pair]
    case = Case(Pair(*bvs), a.pair, a.device, getattr(torch, a.dtype), a.tokens[0])
    if a.peak: return print(json.dumps(peak(case, *a.peak[:2], int(a.peak[2]))))
    names = [n for n, e in OBJECTIVES.items() if not e.cls.equal_vocabularies and not e.requires & {"hidden", "preferences", "plus_logp", "gold", "scores"}] if a.all else a.only
    print(f"{head()}\n{a.pair[0]} ({len(bvs[0]):,}) from {a.pair[1]} ({len(bvs[1]):,}), {a.device}, {a.dtype}\n")
    rows = (memory_rows if a.memory else time_rows)(a, case, names)
    print(store(f"{a.name}-memory" if a.memory else a.name, rows, pair=a.pair, vocabularies=[len(b) for b in bvs], widths=[WIDTHS.get(n) for n in a.pair], device=a.device, dtype=a.dtype))


def time_rows(a, case, names):
    print("| tokens | loss | rows from | seconds | trl's hybrid loss, seconds | trl / ours |\n| ---: | --- | --- | ---: | ---: | ---: |")
    rows = []
    for n in a.tokens:
        took = times(case, names, n, a.rounds, has_trl(a, n), a.kinds, a.warm)
        theirs = took.pop(("trl", "logits"), None)
        for (name, kind), t in took.items():
            row = {"what": "time", "tokens": n, "loss": name, "rows": kind, "seconds": spread(t)} | ({"trl": spread(theirs), "ratio": ratio(theirs, t)} if theirs else {})
            rows.append(row)
            print(f"| {n:,} | {name} | {kind} | {show(row['seconds'])} | {show(row['trl']) if theirs else '-'} | {show(row['ratio'], digits=1) if theirs else '-'} |", flush=True)
    return rows


def memory_rows(a, case, names):
    print("| tokens | loss | rows from | MiB at most | allocator as it comes |\n| ---: | --- | --- | ---: | ---: |")
    rows = []
    for n in a.memory_tokens:
        for name, kind in [*((x, k) for x in names for k in a.kinds if k == "states" or n <= 1024), *([("trl", "trl")] if has_trl(a, n) else [])]:
            mib = [peak_elsewhere(a, kind, name, n, tight) for tight in ((True, False) if a.device == "cpu" else (False,))]
            rows.append({"what": "memory", "tokens": n, "loss": name, "rows": "logits" if kind == "trl" else kind, "MiB": mib[0], "MiB, allocator as it comes": mib[-1]})
            print(f"| {n:,} | {name} | {rows[-1]['rows']} | " + " | ".join("failed" if x is None else f"{x:,.0f}" for x in mib) + " |", flush=True)
    return rows


def has_trl(a, n): return find_spec("trl") is not None and n <= a.trl_tokens


if __name__ == "__main__": main()
