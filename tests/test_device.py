"""The library on a pretend accelerator: memory of its own, as a GPU has, every operation computed by the CPU.

It finds what only a GPU would show otherwise: `.numpy()` on a tensor of the device, operations on tensors of both, and how
often a step waits for the device. The device is built by a compiler and known to one process, a child of this one."""
import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from xtokd.objectives import OBJECTIVES

CHILD = Path(__file__).with_name("device") / "child.py"
sys.path.insert(0, str(CHILD.parent))
from cases import TOP_K, TRAINS_ALONE

missing = [name for name in ("g++", "ninja") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"builds an extension of torch: {' and '.join(missing)} not found")


@lru_cache
def found(part):
    "{case: what the child measured} of one part."
    env = os.environ | {"ACCELERATE_TORCH_DEVICE": "pretend", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(CHILD), part], capture_output=True, text=True, env=env)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    return {row.pop("case"): row for row in rows}


def result(part, case):
    row = found(part)[case]
    assert "error" not in row, row["error"]
    return row


@pytest.mark.parametrize("case", [f"{name} {rows}" for name in OBJECTIVES for rows in ("dense", "lazy")] + [f"{name} top_k" for name in TOP_K])
def test_an_objective_is_the_same_on_the_device(case):
    row = result("objectives", case)
    assert row["loss"][1] == pytest.approx(row["loss"][0], rel=1e-5, abs=1e-6)
    assert row["gradient"] <= 1e-5 * row["scale"] and row["scale"] > 0
    assert not any(row["ledger"].values())


@pytest.mark.parametrize("case", ["cover", "lora", "checkpointing", "bf16", "recompute"])
def test_a_run_stays_on_the_device(case):
    row = result("runs", f"run {case}")
    assert row["device"] == "pretend" and row["finite"] and row["steps"] >= 1


def test_the_gradient_of_a_step_is_that_of_the_cpu():
    row = result("runs", "gradient of a step")
    assert row["gap"] <= 1e-5 * row["scale"]


def test_a_resumed_run_is_bit_equal():
    row = result("runs", "resume")
    assert row["gap"] == 0 and row["steps"] == 3


# of a step with 1,024 tokens of the student: operations, numbers read one by one, results whose size depends on values, copies to the host
# and to the device; a number that grows is a new wait
MOST = {"cover": dict(operations=225, items=1, sizes=0, to_host=21, to_device=52), "strict": dict(operations=210, items=3, sizes=0, to_host=6, to_device=72),
        "gold": dict(operations=450, items=5, sizes=5, to_host=7, to_device=112)}


@pytest.mark.parametrize("name", MOST)
def test_a_step_waits_no_more_often(name):
    row = result("runs", f"counts {name}")
    assert row["tokens"] == 1024
    more = {key: (row["objective"][key], most) for key, most in MOST[name].items() if row["objective"][key] > most}
    assert not more, "an objective asks the device for more than it did"
    assert row["step"]["items"] - row["objective"]["items"] <= 24, "the step around the objective reads more single numbers"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINS_ALONE)
def test_every_objective_trains_on_the_device(name):
    row = result("all_runs", f"run {name}")
    assert row["device"] == "pretend" and row["finite"]
