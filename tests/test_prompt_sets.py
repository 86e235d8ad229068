"Prompts from local data sets of the package `datasets`, and several named evaluation sets in one run."
import json

import pytest

from xtokd.cli.arguments import read_sets
from xtokd.cli.commands import main
from xtokd.data import prompts as module
from xtokd.data.prompts import load_prompts
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.runlog import Run

datasets = pytest.importorskip("datasets")
ROWS = [{"question": f"What is {k} + {k}?", "answer": str(2 * k)} for k in (2, 3, 12)]
SMALL = dict(max_steps=1, batch_size=2, micro_batch_size=2, max_new_tokens=6, save_steps=0, progress=False)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_a_folder_of_save_to_disk(offline, tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(str(tmp_path / "parts"))
    found = load_prompts(str(tmp_path / "one"), prompt_column="question")
    assert [item["prompt"] for item in found] == [row["question"] for row in ROWS] and found[2]["answer"] == "24" and found[2].where == f"{tmp_path / 'one'}, row 3"
    assert len(load_prompts(tmp_path / "parts", prompt_column="question")) == 3 and len(load_prompts(f"{tmp_path / 'parts'}:test", prompt_column="question")) == 1
    with pytest.raises(FileNotFoundError, match="no split 'dev'.*train, test"): load_prompts(f"{tmp_path / 'parts'}:dev")
    with pytest.raises(ValueError, match=f"{tmp_path / 'one'}, row 1.*prompt_column"): load_prompts(tmp_path / "one")


def test_what_the_json_builder_makes(offline, tmp_path):
    "A Dataset in memory is a source too, and trains."
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    data = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert [item["prompt"] for item in load_prompts(data, prompt_column="question")] == [row["question"] for row in ROWS]
    run = Distiller("tiny", "tiny", data, config=DistillConfig(**SMALL, eval_size=0, prompt_column="question", output_dir=tmp_path / "run")).fit()
    assert run.steps[0]["samples"] == 2


def test_a_name_of_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or iter(ROWS))
    assert len(load_prompts("openai/gsm8k/main:test", prompt_column="question")) == 3
    assert asked == [(("openai/gsm8k", "main"), {"split": "test", "streaming": True})]


def test_without_the_package(monkeypatch, tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for source in ("openai/gsm8k", str(tmp_path / "one")):
        with pytest.raises(FileNotFoundError, match="pip install datasets"): load_prompts(source)


def check(item, text): return float(item["prompt"] == "three")


def test_evaluation_sets_by_name(tmp_path):
    sets = {"seen": ["one", "two"], "new": ["three"]}
    run = Distiller("tiny", "tiny", "tiny", config=DistillConfig(**SMALL, eval_size=8, output_dir=tmp_path / "run"), eval_prompts=sets, check=check).fit()
    found = run.evals[-1]
    assert {name: (own["n"], own["accuracy"]) for name, own in found["eval_sets"].items()} == {"seen": (2, 0.), "new": (1, 1.)}
    assert found["n"] == 3 and found["accuracy"] == pytest.approx(1 / 3)
    one = Distiller("tiny", "tiny", "tiny", config=DistillConfig(**SMALL, eval_size=1, output_dir=tmp_path / "one"), eval_prompts={"seen": ["one", "two"]}, check=check)
    assert [item["eval_set"] for item in one.eval_items] == ["seen"]
    with pytest.raises(ValueError, match="no set of prompts in"): Distiller("tiny", "tiny", "tiny", config=DistillConfig(**SMALL), eval_prompts={})


def test_evaluation_sets_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"): (tmp_path / f"{name}.txt").write_text("What is 12?\nWhat is 3?\n")
    flags = ["--max-steps", "1", "--batch-size", "2", "--max-new-tokens", "4", "--no-progress", "--output-dir", "run"]
    assert main(["distill", *flags, "--eval-prompts", "first=a.txt", "second=b.txt"]) == 0
    assert set(Run("run").evals[0]["eval_sets"]) == {"first", "second"} and Run("run").start["args"]["eval_prompts"] == {"first": "a.txt", "second": "b.txt"}
    assert main(["distill", "--resume", "run", "--max-steps", "2"]) == 0
    assert read_sets(["a.txt"]) == "a.txt" and read_sets(["only=a.txt"]) == {"only": "a.txt"}
    for wrong in (["a.txt", "b.txt"], ["x=a.txt", "x=b.txt"]):
        with pytest.raises(ValueError, match="NAME=PROMPTS"): read_sets(wrong)
