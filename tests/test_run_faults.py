"Faults of building and running that were found from outside: files of prompts, folders of runs, resuming, damaged files, full disks."
import errno, gzip, json, os, pickle, re, resource, shlex, shutil, signal, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from test_distill import SMALL, Wrapped, distiller, same, weights
from xtokd.cli.commands import main
from xtokd.cli.tables import print_runs
from xtokd.errors import disk_write
from xtokd.models.loading import peak_memory, reset_peak_memory
from xtokd.train.checkpoint import checkpoints
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.dry_run import forecast
from xtokd.train.samples import left_out_text, prompts_that_fit
from xtokd.data.chat import render_prompt
from xtokd.models.side import load_side
from xtokd.train.evaluate import checked_score
from xtokd.train.runlog import Run
from xtokd.data.prompts import load_prompts

JSON_LINES = '{"prompt": "a"}\n{"prompt": "b, c"}\n'


# ---- files of prompts -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, text", [
    ("p.jsonl", JSON_LINES), ("p.ndjson", JSON_LINES), ("p.JSONL", JSON_LINES), ("p.v2.NDJson", JSON_LINES),
    ("p.JSON", '[{"prompt": "a"}, {"prompt": "b, c"}]'), ("p.csv", 'prompt,note\na,\n"b, c",\n'), ("p.CSV", '\ufeffprompt\r\na\r\n"b, c"\r\n'),
    ("p.txt", "a\nb, c\n"), ("p.TXT", "a\r\nb, c\r\n"), ("prompts", "a\nb, c\n")])
def test_a_file_is_read_by_its_suffix_in_any_case(tmp_path, name, text):
    plain, packed = tmp_path/name, tmp_path/f"{name}.GZ"
    plain.write_bytes(text.encode()); packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed): assert load_prompts(path) == [{"prompt": "a"}, {"prompt": "b, c"}]


def test_csv_columns(tmp_path):
    path = tmp_path/"p.csv"
    path.write_text('messages,reference\n"[{""role"": ""user"", ""content"": ""x\\ny""}]",z\n')
    assert load_prompts(path) == [{"messages": [{"role": "user", "content": "x\ny"}], "reference": "z"}]
    path.write_text('prompt\n"two\nlines"\n')
    assert load_prompts(path) == [{"prompt": "two\nlines"}]


@pytest.mark.parametrize("name, data, says", [
    ("p.parquet", b"PAR1", "not Parquet|pip install pyarrow"), ("p.yaml", b"- a\n", "not .yaml"), ("p.tsv", b"prompt\na\n", "not .tsv"), ("p.md", b"a\n", "not .md"),
    ("p.yaml.gz", gzip.compress(b"- a\n", mtime=0), "not .yaml"), ("p.zip", b"PK", "not .zip"), ("p.jsonl.gz", b'{"prompt": "a"}\n', "drop the .gz"),
    ("p.txt.gz", gzip.compress(b"abcabcabc", mtime=0)[:-9], "compress it again"), ("p.txt", b'{"prompt": "a"}\n', "line 1: this is JSON"),
    ("p", b'a\n {"messages": []}\n', "line 2: this is JSON"), ("p.csv", b"question\na\n", r"p.csv, line 2: .*\['question'\]"),
    ("p.csv", b"prompt\na,b\n", "line 2: more cells"), ("p.csv", b'prompt\n"a\n', "not CSV")])
def test_other_files_are_refused_with_a_cure(tmp_path, name, data, says):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError, match=says): load_prompts(tmp_path/name)


@pytest.mark.parametrize("name", ["p.NDJSON", "p.csv", "p.jsonl.gz", "p.parquet"])
def test_a_missing_file_is_no_data_set(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no prompt file at"): load_prompts(str(tmp_path/name))


# ---- the folder of a run ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.jsonl", "a.JSON", "new/a.log", "file", "file/under/it", "folder.jsonl"])
def test_a_file_is_no_folder_of_a_run(tmp_path, monkeypatch, capsys, name):
    (tmp_path/"file").write_text("mine")
    (tmp_path/"folder.jsonl").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="output_dir is .*a file.*Give"): DistillConfig(output_dir=tmp_path/name)
    def load(*a, **k): raise AssertionError("models were loaded")
    monkeypatch.setattr("xtokd.train.teachers.routed_step.load_models", load)
    assert main(["distill", "--max-steps", "1", "--output-dir", str(tmp_path/name)]) == 1
    assert "it is the folder of a run" in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["new", "new/er", "old", "old.json", "v0.2", "qwen2.5"])
def test_other_names_of_folders_are_taken(tmp_path, name):
    (tmp_path/"old").mkdir(); (tmp_path/"old.json").mkdir()
    assert DistillConfig(output_dir=tmp_path/name).output_dir == str(tmp_path/name)


# ---- resuming with something else -------------------------------------------------------------------------------------------
def small(out, steps, prompts, objective="strict", eval_prompts=None, **arguments):
    config = DistillConfig(**SMALL | {"max_steps": steps, "batch_size": 2, "max_new_tokens": 6, "output_dir": out})
    return Distiller("tiny", arguments.pop("teacher", "tiny"), prompts, objective, config, eval_prompts=eval_prompts, **arguments)


def test_another_objective_teacher_and_other_prompts_are_in_the_log(tmp_path):
    one, same_elsewhere, other = (tmp_path/f"{name}.txt" for name in ("one", "same", "other"))
    one.write_text("1 plus 1\n2 plus 2\n"); same_elsewhere.write_bytes(one.read_bytes()); other.write_text("3 plus 3\n4 plus 4\n")
    small(tmp_path/"a", 1, one).fit()
    def goes_on(steps, *a, **k):
        run = small(tmp_path/"a", steps, *a, **k).fit(resume=True)
        return [w["message"] for w in run.warnings if w["step"] == steps - 1 and "goes on with other" in w["message"]]
    assert goes_on(2, one, ("strict", {})) == [] == goes_on(3, same_elsewhere)
    [message] = goes_on(4, other, "cover")
    assert "objective 'strict' -> 'cover'" in message and "other.txt'" in message
    assert goes_on(5, other, "cover") == []             # what was changed at the last resume is no change now
    other.write_text("5 plus 5\n")
    [message] = goes_on(6, other, ("cover", {}))
    assert "other.txt' with other content" in message and "objective '" not in message
    from xtokd.models.loading import load_model, load_tokenizer
    [message] = goes_on(7, other, "cover", teacher=(load_model("tiny", "teacher"), load_tokenizer("tiny", "teacher")))
    assert "teacher 'tiny' -> 'in memory'" in message
    assert Run(tmp_path/"a").compare()[0]["objective"] == "strict -> cover" and Run(tmp_path/"a").warnings


# ---- an error in the middle of a run ----------------------------------------------------------------------------------------
def names(folder): return [path.name for path in checkpoints(folder/"checkpoints")]


def away(*_): raise ConnectionError("the teacher is away")
def interrupted(*_):
    for _ in range(2): os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("happens, error", [(away, ConnectionError), (interrupted, KeyboardInterrupt)])
def test_an_error_in_a_step_loses_no_whole_step(tmp_path, capsys, happens, error):
    settings = dict(max_steps=5, batch_size=2, save_steps=50, lr_scheduler_type="cosine")
    def change(call, out): return out if call != 4 else happens() or out
    whole = distiller(tmp_path/"whole", Wrapped(lambda call, out: out), **settings); whole.fit()
    with pytest.raises(error): distiller(tmp_path/"a", Wrapped(change), **settings).fit()
    assert names(tmp_path/"a") == ["step-000003"] and "after step 3" in capsys.readouterr().err
    end = Run(tmp_path/"a").events[-1]
    assert end["event"] == "end" and error.__name__ in end["reason"] and end["checkpoint"] == "step-000003"
    again = distiller(tmp_path/"a", Wrapped(lambda call, out: out), **settings)
    assert [s["step"] for s in again.fit(resume=True).steps] == [1, 2, 3, 4, 5] and same(weights(again), weights(whole))


def test_a_check_that_raises_loses_no_step(tmp_path):
    def check(item, text): raise TypeError("no such answer")
    d = small(tmp_path/"a", 4, "tiny", check=check)
    d.config.eval_on_start, d.config.eval_steps = False, 3
    d.evaluator.items = d.items[:2]
    with pytest.raises(TypeError, match="no such answer"): d.fit()
    assert names(tmp_path/"a") == ["step-000003"]


def test_half_a_step_and_bad_weights_are_not_saved(tmp_path, monkeypatch):
    d = distiller(tmp_path/"a", batch_size=2, max_steps=3)
    def half(): raise KeyboardInterrupt
    class Later:
        def on_step(self, d, record):
            if record["step"] == 2: monkeypatch.setattr(d.state.scheduler, "step", half)     # behind the optimizer's step
    d.callbacks.append(Later())
    with pytest.raises(KeyboardInterrupt): d.fit()
    assert names(tmp_path/"a") == []
    def not_finite(call, out):
        if call == 2: raise FloatingPointError("not finite")
        return out
    with pytest.raises(FloatingPointError): distiller(tmp_path/"b", Wrapped(not_finite), batch_size=2, max_steps=3).fit()
    assert names(tmp_path/"b") == []


# ---- damaged files ----------------------------------------------------------------------------------------------------------
def cut(path): path.write_bytes(path.read_bytes()[:-100])
def emptied(path): path.write_bytes(b"")
def foreign(path): path.write_bytes(pickle.dumps(os.system))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")/"a"
    distiller(folder, max_steps=2, save_steps=1, batch_size=2, max_new_tokens=6).fit()
    return folder


@pytest.mark.parametrize("file, harm", [("model.safetensors", cut), ("model.safetensors", emptied), ("model.safetensors", foreign), ("model.safetensors", os.remove),
                                        ("state.pt", cut), ("state.pt", emptied), ("state.pt", foreign), ("config.json", cut)])
def test_a_damaged_newest_checkpoint(tmp_path, stopped, capsys, file, harm):
    from xtokd.cli.generate import newest_weights
    folder = tmp_path/"a"; shutil.copytree(stopped, folder)
    assert newest_weights(folder).name == "step-000002"
    harm(folder/"checkpoints/step-000002"/file)
    assert newest_weights(folder).name == "step-000001" and "step-000002 is damaged" in capsys.readouterr().err
    d = distiller(folder, max_steps=3, save_steps=0, save_total_limit=1, batch_size=2, max_new_tokens=6)
    run = d.fit(resume=True)
    assert [s["step"] for s in run.steps] == [1, 2, 3] and run.of("resume")[-1]["step"] == 1
    assert [w for w in run.warnings if "step-000002 is damaged" in w["message"]] and names(folder) == ["step-000003"]


def test_no_checkpoint_is_whole(tmp_path, stopped):
    folder = tmp_path/"a"; shutil.copytree(stopped, folder)
    for path in checkpoints(folder/"checkpoints"): cut(path/"state.pt")
    with pytest.raises(ValueError, match="step-000002: state.pt cannot be read .* no other checkpoint is whole"): distiller(folder, max_steps=3, batch_size=2).fit(resume=True)
    assert names(folder) == ["step-000001", "step-000002"]


@pytest.mark.parametrize("line", ["[1, 2]", '{"foo": 1}', "3", "null", '"step"', '{"event": 1, "step": 1}', '{"event": "step"}', '{"event": "step", "step": "1"}', '{"event": ["step"], "step": 1}'])
def test_lines_of_a_log_that_are_no_events(tmp_path, stopped, capsys, line):
    folder = tmp_path/"a"; shutil.copytree(stopped, folder)
    with open(folder/"run.jsonl", "a") as file: file.write(line + "\n")
    with pytest.warns(UserWarning, match="1 lines are no events"): run = Run(folder); assert [s["step"] for s in run.steps] == [1, 2]
    assert run.broken == 1
    with pytest.warns(UserWarning, match="no events"): assert main(["compare", str(folder)]) == 0


def test_a_log_with_foreign_lines_is_resumed(tmp_path, stopped):
    folder = tmp_path/"a"; shutil.copytree(stopped, folder)
    with open(folder/"run.jsonl", "a") as file: file.write('[1, 2]\n{"foo": 1}\n')
    with pytest.warns(UserWarning, match="2 lines are no events"): run = distiller(folder, max_steps=3, batch_size=2, max_new_tokens=6).fit(resume=True)
    assert [s["step"] for s in run.steps] == [1, 2, 3]


# ---- a full disk, as the libraries see it -----------------------------------------------------------------------------------
def torch_file(path): torch.save({"x": torch.zeros(100_000)}, path)
def safetensors_file(path): save_file({"x": torch.zeros(100_000)}, path)


@pytest.mark.parametrize("write", [torch_file, safetensors_file])
def test_a_write_that_the_system_refuses_gets_the_advice(tmp_path, write):
    "A limit on the size of files is refused by the system in the middle of a write, as a full disk is."
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(Exception) as raw: write(tmp_path/"raw")
        with pytest.raises(OSError, match="while writing a checkpoint .* --resume") as told:
            with disk_write("a checkpoint", tmp_path, tmp_path): write(tmp_path/"a")
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits); signal.signal(signal.SIGXFSZ, before)
    assert not isinstance(raw.value, OSError) and told.value.errno in (errno.ENOSPC, errno.EFBIG)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), RuntimeError("inline_container.cc: file not found"), ValueError("unexpected pos"), PermissionError(errno.EACCES, "denied")])
def test_other_errors_of_a_write_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as told:
        with disk_write("a checkpoint", tmp_path, tmp_path): raise error
    assert told.value is error


# ---- two processes in one folder --------------------------------------------------------------------------------------------
def test_two_processes_in_one_run(tmp_path, stopped):
    folder = tmp_path/"a"; shutil.copytree(stopped, folder)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(f'process 77 on there', file=f, flush=True); print(flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code, str(folder/"run.lock")], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        before = (folder/"run.jsonl").read_bytes()
        d = distiller(folder, max_steps=3, batch_size=2, max_new_tokens=6)
        with pytest.raises(RuntimeError, match="in use: process 77 on there trains in it"): d.fit(resume=True)
        assert (folder/"run.jsonl").read_bytes() == before and names(folder) == ["step-000001", "step-000002"]
    finally: other.kill(); other.wait()
    assert d.fit(resume=True).finished and f"process {os.getpid()} on" in (folder/"run.lock").read_text()       # what the killed process left is no lock
    assert distiller(folder, max_steps=4, batch_size=2, max_new_tokens=6).fit(resume=True).finished             # and the run's own ends with it


# ---- what is printed ------------------------------------------------------------------------------------------------------------------------
def test_commands_that_are_printed_can_be_pasted(tmp_path, capsys):
    "A path with a space is quoted."
    folder = tmp_path / "my runs" / "first one"
    quoted = shlex.quote(str(folder))
    assert main(["distill", "--max-steps", "1", "--batch-size", "2", "--max-new-tokens", "4", "--eval-size", "0", "--output-dir", str(folder)]) == 0
    assert f"xtokd compare {quoted}" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=re.escape(f"xtokd distill --resume {quoted}")): Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(max_steps=1, eval_size=0, output_dir=str(folder))).fit()
    with pytest.raises(OSError, match=re.escape(f"xtokd distill --resume {quoted}")):
        with disk_write("a checkpoint", folder / "x", folder): raise OSError(28, "No space left on device")


ROW = {"run": "[red]cover[/red] on a name of some length", "objective": "cover", "steps": 1200, "accuracy before": .1, "accuracy after": .92, "interval": ".88 to .95", "rKL/byte after": .0312, "signal": .99, "student_tokens_written": 1234567, "seconds": 4567.8, "status": "finished"}


@pytest.mark.parametrize("columns", ["80", "40", None])
def test_tables_of_runs_keep_words_and_names(capsys, monkeypatch, columns):
    "In 80 columns what does not fit is a second table; in a pipe a line has no limit. A name in brackets is no markup."
    if columns: monkeypatch.setenv("COLUMNS", columns)
    else: monkeypatch.delenv("COLUMNS", raising=False)
    print_runs([ROW, ROW | {"run": "strict"}])
    out = capsys.readouterr().out
    lines = out.splitlines()
    for word in ("objective", "rKL/byte", "1,234,567", "4567.800", ".88 to .95", "finished"): assert word in out
    if columns: assert max(map(len, lines)) <= int(columns)
    if columns == "40": assert "[red]" in out
    else: assert out.count("[red]cover[/red] on a name of some length") == (1 if columns is None else 2)
    if columns is None: assert any("[red]" in line and "finished" in line for line in lines)


def test_peak_memory_is_that_of_the_run():
    "A large array of before is not counted for a run that begins afterwards."
    if not Path("/proc/self/clear_refs").exists(): pytest.skip("only Linux can begin the count anew")
    device = torch.device("cpu")
    array = torch.ones(2 ** 26)     # 256 MiB
    high = peak_memory(device)
    del array
    reset_peak_memory(device)
    assert peak_memory(device) < high - .2


@pytest.mark.parametrize("score", [2, -.5, float("nan"), "right", [1]])
def test_a_check_gives_a_number_from_0_to_1(score, tmp_path):
    d = Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(max_steps=1, batch_size=2, max_new_tokens=4, eval_size=2, output_dir=str(tmp_path / "run")), check=lambda item, text: score)
    with pytest.raises(ValueError, match="the check gives .* a number from 0 .*divide points"): d.fit()


@pytest.mark.parametrize("score", [True, 1, .5, np.float32(.25), None])
def test_scores_that_a_check_may_give(score): assert checked_score(lambda item, text: score, {}, "") == (None if score is None else float(score))


# ---- all prompts are checked before the first step ---------------------------------------------------------------------------------------------
def test_one_error_lists_all_rows_that_are_no_prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n{"prompt": \n\n{"prompt": ""}\n{"prompt": "c", "system": "d"}\n' + '{"prompt": 1}\n' * 30)
    with pytest.raises(ValueError) as error: load_prompts(path)
    lines = str(error.value).split("\n  ")
    assert lines[0] == "34 of 35 rows are no prompts:" and len(lines) == 22 and lines[-1] == "and 14 more"
    for number, says in ((2, "rename one of them"), (3, "not JSON"), (5, "the prompt is empty"), (6, "'system'")): assert any(f"{path}, line {number}: " in line and says in line for line in lines)
    items = load_prompts(path, limit=1)
    assert items == [{"prompt": "a"}] and items[0].where == f"{path}, line 1"


NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}{{ 'A:' if add_generation_prompt }}"
SYSTEM, USER = dict(role="system", content="Be brief."), dict(role="user", content="Hi")


def side_with_template(template, name):
    "The tiny student under a chat template."
    side = load_side("tiny", "student")
    side.vocab.hf.chat_template, side.name = template, name
    return side


def test_prompts_that_a_template_refuses_are_listed_before_the_first_step(tmp_path):
    "They ended the run at the step that drew one. One error for both sides, with file, line, cause and a cure that was tried."
    path = tmp_path / "p.jsonl"
    rows = [dict(messages=[SYSTEM, USER]), dict(prompt="Hi"), dict(messages=[USER, USER]), dict(prompt="long " * 300), dict(messages=[USER, SYSTEM | dict(role="critic"), SYSTEM | dict(role="critic")])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    student, teacher = load_side("tiny", "student"), side_with_template(NO_SYSTEM, "strict")
    config = DistillConfig(max_steps=1, batch_size=2, eval_size=0, max_new_tokens=4, max_prompt_length=250, output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError) as error: Distiller(student, teacher, path, "sampled", config)
    lines = str(error.value).split("\n  ")
    assert lines[0] == "prompts are refused, 3 times among 5 prompts; 1 others do not fit and would be left out:"
    for line, number, cause, cure in zip(lines[1:], (1, 3, 5), ("System role not supported", "Roles must alternate", "Roles must alternate"),
                                         ("move the system text into the first user message", "join turns of the same role", "what the template takes, or leave the prompt out")):
        assert line.startswith(f"{path}, line {number}, for the teacher: ") and cause in line and cure in line
    assert "system text" not in lines[2] + lines[3] and not (tmp_path / "run").exists()
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows[1], rows[3])))
    d = Distiller(student, teacher, path, "sampled", config)
    assert d.items == [rows[1]] and left_out_text(d.left_out).startswith(f"1 prompts are left out, because they do not fit ({path}, line 2: ")
    assert any("1 of 2 prompts are left out" in message and f"{path}, line 2" in message for message in forecast(d, 1).messages())


def test_a_template_that_refuses_everything_has_another_cure():
    with pytest.raises(ValueError, match="It refuses every conversation: repair the chat_template"): render_prompt(side_with_template("{{ raise_exception('no') }}", "broken").vocab, [SYSTEM, USER])


def test_templates_refuse_before_the_first_step_without_any_limit(monkeypatch):
    "Every prompt is rendered, also where no length limits it."
    side = side_with_template(NO_SYSTEM, "strict")
    monkeypatch.setattr("xtokd.train.samples.context_length", lambda model: None)
    with pytest.raises(ValueError, match="item 1, for the student: .*System role"): prompts_that_fit(load_prompts([dict(messages=[SYSTEM, USER])]), dict(student=side), DistillConfig())


def test_prompts_without_the_text_that_is_learned_are_listed(tmp_path):
    "A missing reference ended the run at the step that drew it, too."
    items = [dict(prompt="a", reference="b"), dict(prompt="c"), dict(prompt="d")]
    with pytest.raises(ValueError, match="2 of 3 prompts lack a text.*\n.*item 2 has no reference\n.*item 3 has no reference"): Distiller("tiny", "tiny", items, "sft", DistillConfig(max_steps=1, eval_size=0, off_policy_source="reference", on_policy_fraction=0, output_dir=str(tmp_path / "run")))


# ---- data sets ----------------------------------------------------------------------------------------------------------------------------------
def test_names_of_data_sets(monkeypatch):
    "org/name/config:split, with the column of the prompts: the documented example."
    datasets = pytest.importorskip("datasets", reason="the package `datasets` reads data sets of the hub")
    asked = []
    def load_dataset(path, name=None, split=None, streaming=False):
        asked.append((path, name, split))
        if name is None: raise ValueError("Config name is missing. Please pick one among the available configs: ['main', 'socratic']")
        return [{"question": "2 + 2?", "answer": "4", "note": None}]
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_prompts("openai/gsm8k/main:train", prompt_column="question") == [{"prompt": "2 + 2?", "answer": "4"}]
    assert load_prompts("openai/gsm8k/main", prompt_column="question")[0].where == "data set openai/gsm8k/main, row 1"
    with pytest.raises(FileNotFoundError, match="'main', 'socratic'.*org/name/config:split, such as openai/gsm8k/main:train"): load_prompts("gsm8k:test")
    with pytest.raises(ValueError, match=r"row 1: no text in .*the keys are \['answer', 'question'\].*--prompt-column"): load_prompts("openai/gsm8k/main")
    with pytest.raises(FileNotFoundError, match="at most three parts"): load_prompts("a/b/c/d")
    assert asked == [("openai/gsm8k", "main", "train")] * 2 + [("gsm8k", None, "test"), ("openai/gsm8k", "main", "train")]


ROWS = [{"messages": [{"role": "user", "content": "x"}], "reference": "r"}, {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z", "name": "n"}]}]


def test_parquet_and_packed_parquet(tmp_path):
    "A table fills in what a row has not; such keys are left out."
    pyarrow = pytest.importorskip("pyarrow", reason="the package pyarrow reads .parquet")
    from pyarrow import parquet
    parquet.write_table(pyarrow.Table.from_pylist(ROWS + [{"messages": None, "reference": "r"}]), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="p.parquet, row 3: no text"): load_prompts(tmp_path / "p.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "p.Parquet")
    (tmp_path / "p.parquet.gz").write_bytes(gzip.compress((tmp_path / "p.Parquet").read_bytes()))
    for name in ("p.Parquet", "p.parquet.gz"): assert load_prompts(tmp_path / name) == ROWS


def test_folders_of_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package `datasets` reads such folders")
    saved = datasets.Dataset.from_list([{"question": "a"}, {"question": "b"}])
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=saved, test=saved.select([1])).save_to_disk(str(tmp_path / "both"))
    both = [{"prompt": "a"}, {"prompt": "b"}]
    for name in ("one", "both", "both:train"): assert load_prompts(str(tmp_path / name), prompt_column="question") == both
    assert load_prompts(f"{tmp_path}/both:test", prompt_column="question") == both[1:]
    with pytest.raises(FileNotFoundError, match="has no split 'dev': give .* train, test"): load_prompts(f"{tmp_path}/both:dev", prompt_column="question")


def test_without_the_packages_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("xtokd.data.prompts.find_spec", lambda name: None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="pip install pyarrow"): load_prompts(tmp_path / "p.parquet")
    (tmp_path / "state.json").write_text("{}")
    for name in (str(tmp_path), "openai/gsm8k/main:train"):
        with pytest.raises(FileNotFoundError, match="pip install datasets"): load_prompts(name)


def test_the_column_of_the_prompts_on_the_command_line(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("question,prompt\n" + "What is 3?,other\n" * 4)
    with pytest.raises(ValueError, match=r"line 2: no column 'text'; the keys are \['prompt', 'question'\]"): load_prompts(path, prompt_column="text")
    assert main(["distill", "--prompts", str(path), "--prompt-column", "question", "--max-steps", "1", "--batch-size", "2", "--max-new-tokens", "4", "--eval-size", "0", "--output-dir", str(tmp_path / "run")]) == 0
    start = Run(tmp_path / "run").start
    assert start["config"]["prompt_column"] == "question" and Distiller.from_run(tmp_path / "run").items[0] == {"prompt": "What is 3?"}


@pytest.mark.parametrize("part", [dict(type="image_url", image_url=dict(url="x")), dict(type="image"), dict(type="input_audio", input_audio={}), dict(video="x"), dict(type="file")])
def test_images_in_messages_are_refused(part):
    "They were dropped, or the template failed at the step that drew them; parts with text are read."
    text = dict(type="text", text="What is in the file image.png?")
    assert load_prompts([dict(messages=[dict(role="user", content=[text, dict(type="thinking", thinking="x")])])])
    with pytest.raises(ValueError, match="item 1: a message of the role user has a part .*only text is read"): load_prompts([dict(messages=[dict(role="user", content=[text, part])])])
