"Nothing lost: what can happen to a run, brought about on purpose. Each test is a row of the table in nbs/21_studies/04_faults.ipynb; some rows stand in other files, where their rooms are tested."
import errno, json, os, resource, shutil, signal, subprocess, sys, threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import xtokd.train.checkpoint, xtokd.train.distiller, xtokd.train.evaluate, xtokd.train.forward_batch, xtokd.train.samples
from faults import fault, rows
from test_distill import ROOT, SMALL, Wrapped, distiller, same, weights
from xtokd.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint, atomic_folder
from xtokd.cli.commands import main
from xtokd.train.distiller import Distiller, open_run, run_to_end
from xtokd.train.config import DistillConfig
from xtokd.train.runlog import Control, Run
from xtokd.hub import ModelNotFound
from xtokd.models.loading import load_model, load_tokenizer, remote_code
from xtokd.objectives import objective
from xtokd.train.runlog import RunLog, to_line

DATA = ROOT / "data"


def little(width=16, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=width, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))


def in_child(do):
    "Run `do` in a copy of this process; how that ended."
    pid = os.fork()
    if not pid:
        try: do(); os._exit(0)
        except BaseException: os._exit(7)
    return os.waitpid(pid, 0)[1]


# ---- kill -------------------------------------------------------------------------------------------------------------------
@fault("kill while a checkpoint is written", how="the kernel kills the process at byte n of a file (RLIMIT_FSIZE with SIGXFSZ), for n from 0 to the largest file",
       outcome="the half-written folder is never read; the checkpoint before it is whole and loads; the next save removes the rest")
def test_killed_at_any_byte_of_a_checkpoint(tmp_path):
    old, new = little(seed=0), little(seed=1)
    save_checkpoint(tmp_path, 1, old, None, {"note": "one"}, keep=1)
    largest = max(f.stat().st_size for f in (tmp_path/"step-000001").iterdir())
    def die(n):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
        save_checkpoint(tmp_path, 2, new, None, {"note": "two"}, keep=1)
    killed = 0
    for n in [0, 1, 7, 100, *np.linspace(200, largest - 512, 12).astype(int).tolist()]:      # the next one may be some bytes shorter: what Python's generator holds is pickled
        killed += os.WIFSIGNALED(in_child(lambda: die(n)))
        assert [p.name for p in checkpoints(tmp_path)] == ["step-000001"]
        found = little(seed=2)
        assert load_checkpoint(checkpoints(tmp_path)[-1], found)["note"] == "one" and all(torch.equal(a, b) for a, b in zip(found.parameters(), old.parameters()))
    assert killed > 10, "the kernel did not kill"
    save_checkpoint(tmp_path, 2, new, None, {"note": "two"}, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002"]


@fault("kill between any two acts on the file system of a save", how="SIGKILL at the n-th rename, sync or removal, for every n until the save comes through; an older folder of the same name is there",
       outcome="one whole folder, the old or the new one, has its name after the next look")
def test_killed_between_any_two_acts(tmp_path):
    acts = [(os, "replace"), (os, "fsync"), (shutil, "rmtree")]
    def die(at):
        left = [at]
        def counted(real):
            def call(*a, **k):
                left[0] -= 1
                if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)
                return real(*a, **k)
            return call
        for module, name in acts: setattr(module, name, counted(getattr(module, name)))
        with atomic_folder(tmp_path/"step-000001") as work: (work/"state.pt").write_text("new")
    for at in range(40):
        shutil.rmtree(tmp_path, ignore_errors=True)
        with atomic_folder(tmp_path/"step-000001") as work: (work/"state.pt").write_text("old")
        ended = in_child(lambda: die(at))
        assert (found := checkpoints(tmp_path)) and (found[0]/"state.pt").read_text() in ("old", "new")
        with atomic_folder(tmp_path/"step-000001") as work: (work/"state.pt").write_text("newest")
        assert [p.name for p in tmp_path.iterdir()] == ["step-000001"] and (found[0]/"state.pt").read_text() == "newest"
        if ended == 0: break
    assert 4 < at < 39


@fault("kill while an old checkpoint is removed", how="SIGKILL in the middle of the removal", outcome="the newest checkpoint is whole, and what is left of the old one does not count")
def test_killed_while_removing(tmp_path):
    for step in (1, 2): save_checkpoint(tmp_path, step, little(), None, {}, keep=2)
    def die():
        real = os.unlink
        os.unlink = lambda *a, **k: (real(*a, **k), os.kill(os.getpid(), signal.SIGKILL))
        save_checkpoint(tmp_path, 3, little(), None, {}, keep=2)
    assert os.WIFSIGNALED(in_child(die))
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000002", "step-000003"]
    for p in checkpoints(tmp_path): load_checkpoint(p, little())


@fault("power cut in the last line of the log", how="the log cut at every byte, in letters of two, three and four bytes too", outcome="whole lines are read, the half one is counted as broken or completed, and the log goes on in a line of its own")
def test_a_log_cut_at_every_byte(tmp_path):
    lines = [to_line({"event": "sample", "step": i, "text": t}) for i, t in enumerate(["plain", "é 数 👩", "\u2028\x85 数据"])]
    data, file = b"".join(lines), tmp_path/"run.jsonl"
    for n in range(1, len(data) + 1):
        file.write_bytes(data[:n])
        whole = data[:n].count(b"\n")
        assert len(Run(tmp_path).samples) == whole
        complete = data[:n].rpartition(b"\n")[2].endswith(b"}")
        log = RunLog(tmp_path); log.write("step", 9); log.close()
        run = Run(tmp_path)
        assert len(run.samples) == whole + complete and [s["step"] for s in run.steps] == [9] and run.broken <= 1, n
        assert [s["text"] for s in run.samples] == ["plain", "é 数 👩", "\u2028\x85 数据"][:whole + complete]


@fault("kill while the log is written", how="a log that ends in the middle of a step's line, and no checkpoint of that step", outcome="a resumed run goes on from the newest checkpoint, with every step once in the log")
def test_killed_in_the_log_and_resumed(tmp_path):
    whole = distiller(tmp_path/"whole", max_steps=4, batch_size=2, save_steps=2); whole.fit()
    size = (tmp_path/"whole/run.jsonl").read_bytes()
    out = tmp_path/"cut"
    shutil.copytree(tmp_path/"whole", out)
    shutil.rmtree(out/"checkpoints/step-000004"); shutil.rmtree(out/"student")
    at = size.index(b'"step": 3') + 20
    (out/"run.jsonl").write_bytes(size[:at])
    d = distiller(out, max_steps=4, batch_size=2, save_steps=2)
    run = d.fit(resume=True)
    assert [s["step"] for s in run.steps] == [1, 2, 3, 4] and run.finished and run.broken <= 1 and same(weights(d), weights(whole))


# ---- a full disk ------------------------------------------------------------------------------------------------------------
def full(*a, **k): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("module, name", [(os, "fsync"), (torch, "save"), (os, "replace")])
@fault("a full disk at a checkpoint", how="ENOSPC from writing, fsync or rename", outcome="the run ends with what was being written and how to go on; checkpoints that were there stay whole, half a one is removed")
def test_a_full_disk_at_a_checkpoint(tmp_path, monkeypatch, module, name):
    calls, real = [0], getattr(module, name)
    class Later:
        def on_step(self, d, r):
            if r["step"] == 3: monkeypatch.setattr(module, name, full)
    with pytest.raises(OSError, match="while writing a checkpoint .* --resume"): distiller(tmp_path/"a", max_steps=4, save_steps=2, batch_size=2, callbacks=[Later()]).fit()
    monkeypatch.undo()
    assert [p.name for p in checkpoints(tmp_path/"a/checkpoints")] == ["step-000002"] and "No space left" in Run(tmp_path/"a").events[-1]["reason"]
    if name != "replace": assert not list((tmp_path/"a/checkpoints").glob(".new-*"))
    assert distiller(tmp_path/"a", max_steps=4, save_steps=2, batch_size=2).fit(resume=True).finished


@pytest.mark.parametrize("block", [True, False])
@fault("a full disk at the log", how="the log is /dev/full, where the system itself says ENOSPC", outcome="the run ends with the same message, in a thread too: nobody waits forever")
def test_a_full_disk_at_the_log(tmp_path, block):
    d = distiller(tmp_path/"a", batch_size=2)
    open_run(d, False)
    log = d.log.file
    log.file.close(); log.file = open("/dev/full", "ab")
    d.control = control = Control()
    if block: run_to_end(d)
    else: (t := threading.Thread(target=run_to_end, args=(d,))).start(); t.join(60)
    assert control.done.is_set()
    with pytest.raises(OSError, match="while writing the run log .* --resume"): Run(tmp_path/"a", control).wait()


def test_a_full_disk_is_one_message_of_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "save", full)
    assert main(["distill", "--objective", "strict", "--max-steps", "1", "--batch-size", "2", "--max-new-tokens", "8", "--eval-size", "0", "--no-progress", "--output-dir", str(tmp_path/"a")]) == 1
    err = capsys.readouterr().err
    assert "No space left on device while writing a checkpoint" in err and "Traceback" not in err


# ---- Ctrl-C -----------------------------------------------------------------------------------------------------------------
@fault("Ctrl-C twice", how="two SIGINT in the middle of a step", outcome="the run ends at once, the log says so and reads, the last checkpoint is whole, and --resume goes on")
def test_ctrl_c_twice(tmp_path):
    def change(call, out):
        if call == 3: os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)
        return out
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): distiller(tmp_path/"a", Wrapped(change), max_steps=4, save_steps=2, batch_size=2).fit()
    assert signal.getsignal(signal.SIGINT) is before
    run = Run(tmp_path/"a")
    assert [s["step"] for s in run.steps] == [1, 2] and run.events[-1]["reason"].startswith("KeyboardInterrupt") and [p.name for p in checkpoints(tmp_path/"a/checkpoints")] == ["step-000002"]
    assert [s["step"] for s in distiller(tmp_path/"a", Wrapped(lambda n, out: out), max_steps=4, save_steps=2, batch_size=2).fit(resume=True).steps] == [1, 2, 3, 4]


@fault("Ctrl-C twice while a checkpoint is written", how="KeyboardInterrupt out of the sync", outcome="the half checkpoint is removed, the one before is whole")
def test_ctrl_c_in_a_save(tmp_path, monkeypatch):
    def stop(path): raise KeyboardInterrupt
    save_checkpoint(tmp_path, 1, little(), None, {})
    monkeypatch.setattr(xtokd.train.checkpoint, "sync", stop)
    with pytest.raises(KeyboardInterrupt): save_checkpoint(tmp_path, 2, little(), None, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


# ---- memory -----------------------------------------------------------------------------------------------------------------
PARTS = {"generate_responses": ("while the student wrote", "max_new_tokens"), "teacher_rows": ("while the teacher scored", "micro_batch_size"), "response_logits": ("the student's forward pass", "micro_batch_size"),
         "objective": ("in the objective", "micro_batch_size"), "backward": ("in the backward pass", "micro_batch_size"), "optimizer": ("in the optimiser's step", "LoRA"), "evaluate": ("in an evaluation", "eval_size")}


@pytest.mark.parametrize("place", PARTS)
@fault("out of memory on a GPU", how="torch.cuda.OutOfMemoryError out of rollout, teacher, student, objective, backward, optimiser, evaluation", outcome="the run ends with the part of the step, and the settings that make it smaller with their values")
def test_out_of_memory(tmp_path, monkeypatch, place):
    def out_of(*a, **k): raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    class Bursting(Wrapped):
        def __call__(self, batch): return out_of()
    d = distiller(tmp_path/"a", Bursting(None) if place == "objective" else "strict", batch_size=2, eval_size=2 if place == "evaluate" else 0)
    if place == "generate_responses": monkeypatch.setattr(xtokd.train.samples, place, out_of)
    if place == "teacher_rows": monkeypatch.setattr(xtokd.train.forward_batch, place, out_of)
    if place == "response_logits":
        real = xtokd.train.forward_batch.response_logits
        monkeypatch.setattr(xtokd.train.forward_batch, place, lambda *a, **k: out_of() if k.get("grad") else real(*a, **k))
    if place == "backward": monkeypatch.setattr(torch.Tensor, "backward", out_of)
    if place == "optimizer": d.state.optimizer.step = out_of
    if place == "evaluate": monkeypatch.setattr(xtokd.train.evaluate, "evaluate", out_of)
    what, knob = PARTS[place]
    with pytest.raises(torch.cuda.OutOfMemoryError, match=what) as e: d.fit()
    assert knob in str(e.value) and "20.00 GiB" in str(e.value) and what in Run(tmp_path/"a").events[-1]["reason"]


# ---- numbers that are none --------------------------------------------------------------------------------------------------
@fault("a student whose gradient is not finite, five times in a row", how="an objective times NaN", outcome="each step is left out with a warning, the fifth ends the run with what to change; the weights are as before")
def test_five_bad_gradients_end_the_run(tmp_path):
    def nan(n, out): out.loss_sum = out.loss_sum * float("nan"); return out
    d = distiller(tmp_path/"a", Wrapped(nan), max_steps=9, batch_size=2)
    before = weights(d)
    with pytest.raises(FloatingPointError, match="five steps in a row .* lower learning_rate"): d.fit()
    assert same(before, weights(d)) and len([w for w in Run(tmp_path/"a").warnings if w["message"].startswith("the gradient")]) == 5


@fault("a student whose own rows are not finite", how="NaN in its weights", outcome="it cannot write: the run ends before a step with the cause and the cure")
def test_a_student_that_cannot_write(tmp_path):
    d = distiller(tmp_path/"a", batch_size=2)
    with torch.no_grad(): next(d.student.model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the student's own distribution is not finite"): d.fit()


# ---- too little signal ------------------------------------------------------------------------------------------------------
@fault("too few tokens with a signal", how="an objective that leaves most tokens out, under min_coverage=0.5", outcome="after five steps the run ends with the share, the threshold and the reasons; under the threshold of 0.01 it goes on")
def test_a_low_coverage_ends_the_run(tmp_path):
    def thin(n, out): out.stats["coverage"] = .2; return out
    with pytest.raises(RuntimeError, match="20.0% of the student's tokens had a signal over the last 5 steps, less than min_coverage=0.5"): distiller(tmp_path/"a", Wrapped(thin), max_steps=9, batch_size=2, min_coverage=.5).fit()
    assert distiller(tmp_path/"b", Wrapped(thin), max_steps=6, batch_size=2).fit().finished


# ---- other runs, other students, other names --------------------------------------------------------------------------------
@fault("a checkpoint of another student", how="a resume with a model of another width and the same tokenizer", outcome="refused, with the sizes that differ; nothing is put in place")
def test_a_checkpoint_of_another_student(tmp_path):
    distiller(tmp_path/"a", batch_size=2).fit()
    other = LlamaForCausalLM(LlamaConfig(vocab_size=load_model("tiny").config.vocab_size, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2))
    d = distiller(tmp_path/"a", student=(other, load_tokenizer("tiny")), batch_size=2, max_steps=3)
    before = weights(d)
    with pytest.raises(ValueError, match="another student .*hidden_size 96 there, 32 here"): d.fit(resume=True)
    assert same(before, weights(d))


@fault("runs of different protocols side by side", how="xtokd compare on runs of 2 and 3 steps, and --by-method", outcome="the table comes with the fields that differ; a table of methods is refused")
def test_compare_says_what_differs(tmp_path, capsys):
    for name, steps in (("a", 2), ("b", 3)):
        log = RunLog(tmp_path/name); log.write("start", 0, objective="cover", config={"max_steps": steps}, args={}); log.write("eval", 0, accuracy=.3, n=9); log.close()
    assert main(["compare", str(tmp_path)]) == 0 and 'different protocols: max_steps: 2 (a) or 3 (b)' in capsys.readouterr().err
    assert main(["compare", "--by-method", str(tmp_path)]) == 1 and "--force" in capsys.readouterr().err


@fault("a setting with an unknown or mistyped name", how="DistillConfig, a config file and a flag with a name that is not there", outcome="refused, with the nearest name that is")
def test_mistyped_names(tmp_path, capsys):
    with pytest.raises(TypeError, match="no setting 'microbatch': did you mean 'micro_batch_size'"): DistillConfig(microbatch=3)
    (tmp_path/"c.json").write_text('{"min_coverge": 0.1}')
    assert main(["distill", "--config", str(tmp_path/"c.json")]) == 1 and "did you mean 'min_coverage'" in capsys.readouterr().err
    for bad, says in ((dict(min_coverage=2), "at most 1"), (dict(min_coverage=-1), "at least 0")):
        with pytest.raises(ValueError, match=says): DistillConfig(**bad)


# ---- code and weights from elsewhere ----------------------------------------------------------------------------------------
def model_folder(path, **config):
    shutil.copytree(DATA/"tiny/student", path)
    (path/"config.json").write_text(json.dumps(json.loads((path/"config.json").read_text()) | config))
    return path


@fault("a model that brings its own code", how="a folder with auto_map and a module that leaves a trace when it is imported", outcome="the code is not run, and the error names the flag; with --trust-remote-code it is")
def test_remote_code_is_off_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path/"modules"))
    folder = model_folder(tmp_path/"own", model_type="mine", auto_map={"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"})
    (folder/"mine.py").write_text(f"from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\nPath({str(tmp_path/'ran')!r}).write_text('x')\n"
                                  "class MineConfig(LlamaConfig): model_type = 'mine'\nclass Mine(LlamaForCausalLM): config_class = MineConfig\n")
    with pytest.raises(ModelNotFound, match="code of its own, which is not run .* --trust-remote-code"): load_model(folder)
    assert not (tmp_path/"ran").exists()
    with remote_code(): assert type(load_model(folder)).__name__ == "Mine"
    assert (tmp_path/"ran").exists()
    with pytest.raises(ModelNotFound, match="code of its own"): load_model(folder)
    source = "".join(f.read_text() for f in (ROOT/"xtokd").rglob("*.py"))
    assert "trust_remote_code=True" not in source.replace(" ", "")


@fault("weights that are a pickle", how="a folder with pytorch_model.bin and no safetensors", outcome="refused unread, with the line that converts them; what a run saves is safetensors only")
def test_weights_are_safetensors_only(tmp_path):
    folder = model_folder(tmp_path/"old")
    (folder/"model.safetensors").unlink(); (folder/"pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path/"ran").encode() + b"'\ntR.")
    with pytest.raises(ValueError, match="safetensors only.*save_pretrained"): load_model(folder)
    assert not (tmp_path/"ran").exists()
    distiller(tmp_path/"a", batch_size=2, max_steps=1).fit()
    assert list((tmp_path/"a/student").glob("*.safetensors")) and not [f for f in (tmp_path/"a").rglob("*.bin")]


# ---- the table --------------------------------------------------------------------------------------------------------------
def test_every_test_here_is_a_row_and_every_row_is_a_sentence():
    found = rows()
    assert len(found) >= 22 and len({r["test"] for r in found}) == len(found) and all(all(r.values()) for r in found)
    assert {r["test"].split("::")[0] for r in found} >= {"test_faults.py", "test_distill.py", "test_runlog.py"}
