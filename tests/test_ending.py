"An error in one of several processes ends the others; accelerate that starts one process for two says so. Two gloo processes without a launcher, because a launcher would end them itself."
import os, signal, subprocess, sys, time, warnings
from pathlib import Path

import pytest

from faults import fault
from test_processes import ENV, ROOT, launch, port
from xtokd.distributed import make_accelerator
from xtokd.train.checkpoint import checkpoints
from xtokd.train.runlog import Run

CHILD = Path(__file__).parent / "ending_child.py"


def two(how, out, wait_for, limit=400):
    "Start both processes; exit codes and words of those in `wait_for`. The others are killed."
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [subprocess.Popen([sys.executable, str(CHILD), how, str(out)], env=ENV | meet | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    try:
        end = time.monotonic() + limit
        said = {}
        for r in wait_for:
            out_, err = both[r].communicate(timeout=max(1., end - time.monotonic()))
            said[r] = both[r].returncode, out_, err
        return said
    except subprocess.TimeoutExpired: pytest.fail(f"{how}: process {r} still waits after {limit} s")
    finally:
        for p in both:
            if p.poll() is None: p.kill()
            p.communicate()


@fault("an error in one of several processes", how="an objective that raises in one of two gloo processes, which then stays alive", outcome="the other ends at its next exchange with a RuntimeError that names the first error; the log has it")
@pytest.mark.parametrize("how", ["raises", pytest.param("main", marks=pytest.mark.slow)])
def test_an_error_in_one_process_ends_the_other(tmp_path, how):
    failed, other = (1, 0) if how == "raises" else (0, 1)
    code, out, _ = two(how, tmp_path / "a", [other])[other]
    assert code == 1 and f"RuntimeError: another process of the run has failed; process {failed}: ValueError: the " in out and "has had enough" in out
    end = Run(tmp_path / "a").events[-1]
    assert end["event"] == "end" and "had enough" in end["reason"]


@fault("a process that does not come to its end", how="the second of two processes fails while the first hangs", outcome="the first is ended after a while, with the error of the second")
def test_a_process_that_hangs_is_ended(tmp_path):
    code, out, err = two("stuck", tmp_path / "a", [0])[0]
    assert code == 1 and "process 0 ends, because another process of the run has failed: process 1: ValueError: the second" in err


@pytest.mark.slow
@fault("one of several processes is killed", how="SIGKILL of the second of two processes", outcome="the first ends; --resume goes on")
def test_a_killed_process_ends_the_other(tmp_path):
    said = two("killed", tmp_path / "a", [0, 1])
    assert said[1][0] == -signal.SIGKILL and said[0][0] == 1
    said = two("resume", tmp_path / "a", [0, 1])
    assert [code for code, _, _ in said.values()] == [0, 0] and [s["step"] for s in Run(tmp_path / "a").steps] == [1, 2, 3, 4] and checkpoints(tmp_path / "a/checkpoints")


@pytest.mark.parametrize("variables, warns", [({}, False), ({"MASTER_ADDR": "127.0.0.1"}, False), ({"ACCELERATE_USE_CPU": "True"}, False), ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, True), ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1"}, False)], ids=str)
def test_one_process_of_several_is_told_by_what_accelerate_sets(monkeypatch, variables, warns):
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE"): monkeypatch.delenv(name, raising=False)
    for name, value in variables.items(): monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make_accelerator()
    assert any("trains in one process" in str(w.message) for w in told) == warns


@pytest.mark.slow
def test_accelerate_on_a_cpu_says_that_one_process_trains(tmp_path):
    "accelerate 1.15 starts one, whatever is asked for; torchrun, which the notebook names, is tested in test_processes.py."
    words = ("accelerate.commands.launch", "--cpu", "--num_processes", 2, "-m", "xtokd.cli", "distill", "--max-steps", 1, "--batch-size", 2, "--max-new-tokens", 4, "--eval-size", 0, "--no-progress", "--output-dir", tmp_path / "a")
    code, out, err = launch(*words, cwd=tmp_path)
    assert code == 0, err[-2000:]
    processes = Run(tmp_path / "a").start["processes"]
    assert processes == 2 or "trains in one process" in err and "torchrun --standalone --nproc_per_node 2 -m xtokd.cli distill" in err
