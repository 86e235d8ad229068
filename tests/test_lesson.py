"""The experiment on the tiny pair, from the terminal's side, and its journey to another machine."""
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tools"))
import away
from xtokd.experiments import headroom_study
from xtokd.experiments.headroom_study import HABIT_SIZES, Data, Lesson, Size, experiment, habit_lesson, headroom, snapshots_svg, record
from xtokd.cli.study import run_study
from xtokd.data.chat import render_prompt
from xtokd.data.tasks.json_records import record_examples, record_items
from xtokd.hub import cache_dir, data_dir
from xtokd.models.loading import load_model
from xtokd.models.sampling import end_at_text
from xtokd.data.prompts import load_prompts
from xtokd.models.side import load_side
from xtokd.data.tasks.number_words import check_number

SIZE = Size(steps=2, batch_size=4, heldout=16, sentences=0, looks=3, max_new_tokens=16, lr=1e-3)


@pytest.fixture
def data(): return Data(load_prompts("tiny", 64), load_prompts("tiny:heldout", 16), check_number)


class TestExperiment:
    def test_both_arms_and_the_looks_are_recorded(self, tmp_path, data):
        lesson = record(experiment("tiny", "tiny", tmp_path / "a", SIZE, data=data, progress=False).path, tmp_path / "kept")
        assert set(lesson.runs) == {"on-policy", "sft"} and [len(lesson.looks(a)) for a in ("start", "on-policy", "sft")] == [3] * 3
        assert all(r.finished for r in lesson.runs.values()) and lesson.start["weights"]["student"]["model.safetensors"]
        assert snapshots_svg(lesson.looks("sft")[0]).startswith("<svg")
        assert str(tmp_path) not in "".join(f.read_text() for f in lesson.path.iterdir() if f.name == "lesson.jsonl")

    def test_the_given_student_is_not_trained(self, tmp_path, data):
        side = load_side("tiny", "student")
        before = {k: v.clone() for k, v in side.model.state_dict().items()}
        experiment(side, "tiny", tmp_path / "a", SIZE, data=data, progress=False)
        assert all(torch.equal(v, before[k]) for k, v in side.model.state_dict().items())

    def test_no_headroom_no_training(self, tmp_path, data):
        teacher = load_side("tiny", "teacher")
        lesson = experiment(teacher, teacher, tmp_path / "a", SIZE, data=data, progress=False)
        assert not lesson.runs and "no training" in lesson.log.warnings[0]["message"] and lesson.log.of("end")[0]["reason"] == "no headroom"
        assert not (tmp_path / "a/on-policy").exists()

    def test_anyway_trains(self, tmp_path, data):
        teacher = load_side("tiny", "teacher")
        assert experiment(teacher, teacher, tmp_path / "a", SIZE, data=data, anyway=True, progress=False).runs

    def test_the_order_of_the_items_does_not_make_headroom(self, data):
        s, t = load_side("tiny", "student"), load_side("tiny", "teacher")
        a, b = (headroom(s, t, items, check_number, SIZE) for items in (data.heldout, data.heldout[::-1]))
        assert a["teacher"]["accuracy"] == b["teacher"]["accuracy"] and a["room"] == b["room"]

    def test_the_terminal(self, tmp_path, capsys):
        assert run_study(["--student", "tiny", "--teacher", "tiny", "--max-steps", "1", "--output-dir", str(tmp_path / "a")]) == 0
        said = capsys.readouterr().out
        assert "student at the start" in said and "after sft" in said
        assert run_study(["--student", "tiny", "--teacher", "tiny", "--output-dir", str(tmp_path / "a")]) == 2
        assert "holds an experiment already" in capsys.readouterr().err

    def test_a_folder_without_one_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no experiment"): Lesson(tmp_path)


class TestHabitLesson:
    """`make lesson` without models of one's own: SmolLM2 learns a form from Gemma, which reads examples."""

    def test_without_the_models_it_says_how_to_get_them(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("XTOKD_HOME", str(tmp_path))
        assert run_study(["--output-dir", str(tmp_path / "a")]) == 2
        assert "xtokd models get smollm2" in capsys.readouterr().err

    def test_examples_are_for_the_teacher_alone_and_the_terminal_runs_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(headroom_study, "load_side", lambda name, role: load_side("tiny", role))
        # the tiny teacher writes a blank line in two tokens
        monkeypatch.setattr(headroom_study, "end_at_text", lambda model, vocab, text: end_at_text(model, vocab, "\n"))
        size = replace(HABIT_SIZES["smoke"], steps=1, heldout=6)
        given = habit_lesson(size)
        prompt = given["data"].train[0]
        assert given["objective"] == ("cover", {"divergence": "rkl"})
        rendered = {side: given[side].vocab.decode(render_prompt(given[side].vocab, prompt)).decode() for side in ("student", "teacher")}
        assert record_examples() in rendered["teacher"] and '{"name"' not in rendered["student"]
        monkeypatch.setitem(HABIT_SIZES, "smoke", size)
        assert run_study(["--anyway", "--output-dir", str(tmp_path / "a")]) == 0
        assert "after sft" in capsys.readouterr().out
        assert (tmp_path / "a/on-policy/student/adapter_config.json").exists()
        assert Lesson(tmp_path / "a").runs["on-policy"].start["config"]["lora_r"] == 16

    def test_no_held_out_record_is_trained_on(self):
        data = [{item["reference"] for item in record_items(200, 0, split)} for split in ("train", "validation", "heldout")]
        assert not (data[0] & data[1] or data[0] & data[2] or data[1] & data[2])

    @pytest.mark.slow
    @pytest.mark.skipif(not all((cache_dir() / "models" / name).is_dir() for name in ("smollm2", "gemma")), reason="xtokd models get smollm2 gemma")
    def test_the_real_pair(self, tmp_path):
        assert run_study(["--max-steps", "1", "--anyway", "--output-dir", str(tmp_path / "a")]) == 0
        room = Lesson(tmp_path / "a").start["headroom"]
        assert room["teacher"]["accuracy"] > room["student"]["accuracy_sampled"]


class TestAway:
    @pytest.fixture
    def parcel(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XTOKD_AWAY", str(tmp_path / "store"))
        monkeypatch.chdir(tmp_path)
        names = {r: str(data_dir() / "tiny" / r) for r in ("student", "teacher")}
        return away.pack(**names, to=tmp_path / ".away", mb=.3), tmp_path

    def test_parts_are_small_and_come_in_any_order(self, parcel):
        parts, tmp = parcel
        assert len(parts) > 2 and all(p["bytes"] <= 300_000 for p in parts)
        inbox = tmp / "inbox"
        inbox.mkdir()
        (inbox / "parts.json").write_bytes((tmp / ".away/parts.json").read_bytes())
        for i, p in enumerate(reversed(parts)):
            (inbox / p["name"]).write_bytes((tmp / ".away" / p["name"]).read_bytes())
            assert len(away.take(inbox)) == len(parts) - 1 - i
            (inbox / p["name"]).unlink()
        folders = away.join()
        assert away.join() == folders
        for role, folder in folders.items():
            ours, theirs = load_model(folder, role).state_dict(), load_model("tiny", role).state_dict()
            assert ours.keys() == theirs.keys()
            for k, w in theirs.items(): assert (ours[k] - w).abs().max() <= w.abs().max() / 127 * .51 + w.abs().max() / 256

    def test_a_broken_part_is_refused(self, parcel):
        parts, tmp = parcel
        f = tmp / ".away" / parts[0]["name"]
        f.write_bytes(f.read_bytes()[:-1] + b"x")
        with pytest.raises(ValueError, match="came broken"): away.take(tmp / ".away")

    def test_missing_parts_are_named_before_anything_runs(self, parcel):
        parts, tmp = parcel
        (tmp / ".away" / parts[-1]["name"]).unlink()
        with pytest.raises(FileNotFoundError, match=parts[-1]["name"]): away.run("smoke", tmp / "out")

    def test_it_runs_where_the_notebook_packages_are_not(self, parcel):
        parts, tmp = parcel
        (tmp / "bare.py").write_text("import sys, runpy\n"
            "for name in ('gguf', 'plotly', 'nbdev', 'fastcore', 'IPython', 'ipywidgets', 'anywidget', 'jupyterlab', 'tqdm.notebook'): sys.modules[name] = None\n"
            f"sys.argv = ['away.py', 'run', '--size', 'smoke', '--out', 'out', '--max-steps', '1', '--anyway']\nrunpy.run_path({str(REPO / 'tools/away.py')!r}, run_name='__main__')\n")
        done = subprocess.run([sys.executable, "bare.py"], cwd=tmp, capture_output=True, text=True, env={**os.environ, "XTOKD_AWAY": str(tmp / "store"), "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        assert sorted(f.name for f in (tmp / "out").iterdir()) == ["lesson.jsonl", "on-policy.jsonl", "sft.jsonl", "tables.txt"]
        start = json.loads((tmp / "out/lesson.jsonl").read_text().splitlines()[0])
        assert str(tmp) not in json.dumps(start)
