"""A run is killed at random moments, stopped by signals, or finds the disk full: what goes on from there ends in the state, bit by bit, of a run that nothing has happened to.

Runs are copies of this process (fork), so that a run begins at once and a kill can hit its first step. `make test` has a few kills of each kind; `make test-all` has 50 random ones with every schedule."""
import errno, os, random, resource, signal, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch

from faults import fault
from test_distill import SMALL, distiller
from xtokd.models.optimizer import SCHEDULES
from xtokd.models.side import load_side
from xtokd.train.checkpoint import checkpoints, damage, read_state
from xtokd.train.callbacks import Callback, interruptible
from xtokd.train.runlog import Control, Run

torch.set_num_threads(1)
NEEDED = {"warmup_stable_decay": {"num_decay_steps": 2}, "cosine_with_min_lr": {"min_lr_rate": .1}}


def settings(schedule): return dict(max_steps=6, batch_size=2, max_new_tokens=8, save_steps=2, lr_scheduler_type=schedule, lr_scheduler_kwargs=NEEDED.get(schedule), eval_size=2, eval_steps=3)


def started(out, schedule="constant", before=lambda: None, **kw):
    "A child that trains in `out`, from its newest checkpoint if there is a log; its process id."
    sys.stdout.flush(); sys.stderr.flush()
    pid = os.fork()
    if pid: return pid
    code = 70
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2): os.dup2(null, stream)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1): signal.signal(number, signal.SIG_DFL)
        random.seed(0); np.random.seed(0)       # a run leaves these two as they are
        before()
        log = out / "run.jsonl"
        run = distiller(out, student=SIDES["student"], teacher=SIDES["teacher"], **settings(schedule) | kw).fit(resume=log.exists() and log.stat().st_size > 0)
        code = 75 if run.events[-1]["reason"] == "stopped" else 0
    except OSError as e: code = 28 if e.errno in (errno.ENOSPC, errno.EFBIG) else 71
    finally: os._exit(code)


def ended(pid, seconds=120):
    "Exit code, or minus the signal, of a child; it is killed where it does not come to its end."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(.005)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    pytest.fail(f"no end after {seconds} s")


WHOLE, SIDES = {}, {}


def whole(folder, schedule="constant"):
    "(Folder, seconds) of a run that nothing happens to, made once for each schedule."
    if schedule not in WHOLE:
        out, began = folder / f"whole-{schedule}", time.monotonic()
        assert ended(started(out, schedule)) == 0
        WHOLE[schedule] = out, time.monotonic() - began
    return WHOLE[schedule]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Everything is imported and loaded here, so that no child has to; a child trains its own copy of the student."
    WHOLE.clear()
    SIDES.update({role: load_side("tiny", role) for role in ("student", "teacher")})
    out = tmp_path_factory.mktemp("runs")
    distiller(out / "first", **settings("constant") | {"max_steps": 2}).fit()
    yield out
    SIDES.clear()


def differences(a, b, where=""):
    "Places at which two states of a checkpoint differ."
    if torch.is_tensor(a): return [] if torch.is_tensor(b) and torch.equal(a, b) else [where]
    if isinstance(a, dict): return [where] if a.keys() != b.keys() else [d for k in a for d in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, (list, tuple)): return [where] if len(a) != len(b) else [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b or where.endswith("/seconds") else [where]


def assert_same_run(out, reference):
    "Weights, optimizer, schedule, random states and costs of the last checkpoint, the student's folder, and every line of the log that counts."
    ours, theirs = (checkpoints(place / "checkpoints")[-1] for place in (out, reference))
    assert ours.name == theirs.name and damage(ours) is None
    assert differences(read_state(ours / "state.pt"), read_state(theirs / "state.pt")) == []
    for name in ("checkpoints/" + ours.name, "student"): assert (out / name / "model.safetensors").read_bytes() == (reference / name / "model.safetensors").read_bytes()
    a, b = Run(out), Run(reference)
    assert a.finished and [s["step"] for s in a.steps] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "learning_rate", "response_tokens", "distinct_2"): assert list(a.column(name)) == list(b.column(name)), name
    assert [(e["step"], e["rkl_per_byte"]) for e in a.evals] == [(e["step"], e["rkl_per_byte"]) for e in b.evals]
    assert not [p.name for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]


def resume_to_the_end(out, schedule="constant"):
    code = ended(started(out, schedule))
    assert code == 0, code


# ---- kill -9 ----------------------------------------------------------------------------------------------------------------
def kill_at_random(out, schedule, seconds, rng, kills):
    "Kill `kills` children at moments spread over the length of a run; how many were hit while they trained."
    hits = 0
    for _ in range(kills):
        pid = started(out, schedule)
        time.sleep(rng.uniform(.05, 1.05) * seconds)
        os.kill(pid, signal.SIGKILL)
        hits += ended(pid) == -signal.SIGKILL
        if out.exists() and (out / "run.jsonl").exists() and Run(out).finished: break
    return hits


@fault("kill -9 at random moments", how="SIGKILL at a random moment of a run, again and again, with each schedule", outcome="--resume goes on to the same weights, optimizer, random states, costs and log, bit by bit")
def test_killed_at_random_moments(tmp_path, folder, schedule="cosine_with_restarts"):
    reference, seconds = whole(folder, schedule)
    assert kill_at_random(tmp_path / "a", schedule, seconds, random.Random(1), 3) >= 1
    resume_to_the_end(tmp_path / "a", schedule)
    assert_same_run(tmp_path / "a", reference)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fifty_kills(tmp_path, folder, schedule):
    "7 for each of the 8 schedules, in as many runs as they need."
    reference, seconds = whole(folder, schedule)
    rng, hits, runs = random.Random(f"many {schedule}"), 0, 0
    while hits < 7:
        out = tmp_path / f"run-{runs}"
        hits += kill_at_random(out, schedule, seconds, rng, 7 - hits)
        resume_to_the_end(out, schedule)
        assert_same_run(out, reference)
        runs += 1
        assert runs < 20


class Rest(Callback):
    "A step takes a fifth of a second more, so that a signal finds the run on the way also on a busy machine."
    def on_step(self, d, record): time.sleep(.2)


# ---- signals ----------------------------------------------------------------------------------------------------------------
def until_step(out, step, pid, seconds=120):
    "Wait until the log holds this step."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (out / "run.jsonl").exists() and any(s["step"] >= step for s in Run(out).steps): return
        time.sleep(.002)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"no step {step}")


@fault("SIGTERM, SIGINT and SIGHUP", how="each of them at a random moment of a run, behind its next step", outcome="the step is ended and saved; what is resumed ends with the same weights, bit by bit")
def test_stopped_by_signals(tmp_path, folder):
    reference, _ = whole(folder)
    out, rng, step = tmp_path / "a", random.Random(2), 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        pid = started(out, save_steps=0, callbacks=[Rest()])
        until_step(out, step + 1, pid)
        time.sleep(rng.uniform(0, .15))
        os.kill(pid, number)
        assert ended(pid) == 75, number
        run = Run(out)
        assert run.events[-1]["reason"] == "stopped" and step < run.steps[-1]["step"] < 6
        step = run.steps[-1]["step"]
        assert checkpoints(out / "checkpoints")[-1].name == f"step-{step:06d}"
    resume_to_the_end(out)
    assert_same_run(out, reference)


@fault("SIGUSR1", how="the signal behind the first step of a run that saves at its end only, then SIGKILL", outcome="a checkpoint is saved and the run goes on; what is killed later loses no step before it")
def test_sigusr1_saves_and_goes_on(tmp_path, folder):
    reference, _ = whole(folder)
    out = tmp_path / "a"
    pid = started(out, save_steps=0, callbacks=[Rest()])
    until_step(out, 1, pid)
    os.kill(pid, signal.SIGUSR1)
    end = time.monotonic() + 60
    while not checkpoints(out / "checkpoints") and time.monotonic() < end: time.sleep(.002)
    saved = checkpoints(out / "checkpoints")
    assert saved
    until_step(out, min(6, int(saved[-1].name[5:]) + 1), pid)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    resume_to_the_end(out)
    [resumed] = Run(out).of("resume")
    assert resumed["step"] == int(saved[-1].name[5:]) and not [e for e in Run(out).events if e.get("reason") == "stopped"]
    assert_same_run(out, reference)


def test_without_terminal_means_without_sighup():
    "Under nohup SIGHUP is ignored, and stays so; the handlers of before are back afterwards."
    numbers = (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)
    first = {n: signal.getsignal(n) for n in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        control = Control()
        with interruptible(control): signal.raise_signal(signal.SIGHUP)
        assert not control.stopping.is_set() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with interruptible(control): signal.raise_signal(signal.SIGHUP)
        assert control.stopping.is_set() and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        for n, handler in first.items(): signal.signal(n, handler)
    assert {n: signal.getsignal(n) for n in numbers} == first


# ---- a full disk ------------------------------------------------------------------------------------------------------------
def disk_of(limit):
    "The system refuses to write more than `limit` bytes to a file, in the middle of a write."
    def apply():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return apply


@fault("a disk that is full in the middle of a write", how="RLIMIT_FSIZE of a random size from the smallest to the largest file of a checkpoint", outcome="the run ends with the advice; after room was made it goes on to the same weights, bit by bit")
@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_full_disk_again_and_again(tmp_path, folder, times):
    reference, _ = whole(folder)
    out, rng = tmp_path / "a", random.Random(times)
    largest = max(f.stat().st_size for f in checkpoints(reference / "checkpoints")[-1].iterdir())
    for _ in range(times):
        code = ended(started(out, before=disk_of(rng.randrange(60_000, largest))))
        assert code == 28, code
        for path in checkpoints(out / "checkpoints"): assert damage(path) is None
    resume_to_the_end(out)
    assert_same_run(out, reference)
