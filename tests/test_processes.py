"""Many processes: two do what one does, with whole models and with models shared out; every launch has a time-out and a group of its own that is killed."""
import json, os, signal, socket, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoModelForCausalLM

import processes_child as child
from xtokd.train.config import DistillConfig
from xtokd.distributed import all_reduce_, buckets, require_sharded, clip_gradient, reduce_gradients
from xtokd.train.runlog import Run

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))} | {"PYTHONPATH": f"{ROOT}:{ROOT/'tests'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(*words, cwd, limit=240):
    "Run a command in a session of its own; after `limit` seconds it and its children are killed. Free ports are found by the launcher (torchrun) or here."
    done = subprocess.Popen([sys.executable, "-m", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=ENV, start_new_session=True)
    try: out, err = done.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)
        pytest.fail(f"no end after {limit} s: two processes wait for each other\n{done.communicate()[1][-3000:]}")
    return done.returncode, out, err


def port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def gap(a, b): return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "One process here, and one launch of two processes that goes through everything."
    out = tmp_path_factory.mktemp("many")
    child.alone(out)
    code, said, err = launch("torch.distributed.run", "--standalone", "--nproc_per_node", 2, ROOT/"tests/processes_child.py", out, cwd=out)
    assert code == 0, err[-4000:]
    return out


@pytest.fixture(scope="module")
def start(): return {k: v.clone() for k, v in child.load_model("tiny").state_dict().items()}


def weights(found, name): return torch.load(found/f"{name}.pt")


# ---- the same as one process ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["no", "student", "both"])
def test_two_processes_take_the_steps_of_one(found, start, how):
    "D13: five prompts (three and two), texts of many lengths, micro-batches (two and one a process); the loss, the norm, the clipped gradient and the weights after three steps."
    one, two = Run(found/"one-texts"), Run(found/f"two-{how}-texts")
    assert len(two.steps) == 3 and [s["samples"] for s in two.steps] == [5] * 3
    for k in ("loss", "grad_norm", "count", "coverage"): assert np.allclose(one.column(k), two.column(k), rtol=1e-4), k
    a, b = weights(found, "one-texts"), weights(found, f"two-{how}-texts")
    assert gap(a, start) > 1e-4 and gap(a, b) < 1e-3 * gap(a, start)
    assert two.evals[-1]["rkl_per_byte"] == pytest.approx(one.evals[-1]["rkl_per_byte"], rel=1e-3)


@pytest.mark.parametrize("how", ["no", "both"])
@pytest.mark.parametrize("case", ["silent", "few"])
def test_a_process_with_nothing_to_learn_from(found, start, how, case):
    "silent: all responses of the second process are empty; few: one prompt, so that it has none."
    one, two = Run(found/f"one-{case}"), Run(found/f"two-{how}-{case}")
    assert two.finished and np.allclose(one.column("loss"), two.column("loss"), rtol=1e-4) and np.allclose(one.column("count"), two.column("count"))
    assert gap(weights(found, f"one-{case}"), weights(found, f"two-{how}-{case}")) < 1e-3 * gap(weights(found, f"one-{case}"), start)


@pytest.mark.parametrize("how", ["no", "both"])
@pytest.mark.parametrize("case", ["stored", "frozen"])
def test_text_that_is_written_once_is_shared(found, start, how, case):
    "Seven prompts, fifteen draws: a text that one process wrote is read by the other, and is paid once; with a filter, all processes go on until the batch is full."
    one, two = Run(found/f"one-{case}"), Run(found/f"two-{how}-{case}")
    assert two.finished and np.allclose(one.column("loss"), two.column("loss"), rtol=1e-4) and np.allclose(one.column("count"), two.column("count"))
    for cost in ("student_tokens_written", "teacher_tokens_written"): assert [s["costs"][cost] for s in one.steps] == [s["costs"][cost] for s in two.steps]
    assert [s["samples"] for s in two.steps] == [5] * 3 and sum(s["texts_written"] for s in two.steps) <= 7 and sum(s["texts_kept"] for s in two.steps) == 15
    keys = [{key: text for line in (found/f"{name}-{case}/texts.jsonl").read_text().splitlines() for key, text in json.loads(line)["texts"].items()} for name in ("one", f"two-{how}")]
    assert keys[0] == keys[1]
    assert gap(weights(found, f"one-{case}"), weights(found, f"two-{how}-{case}")) < 1e-3 * gap(weights(found, f"one-{case}"), start)


def test_an_objective_with_parameters_and_hidden_states(found, start):
    "The student's head is read outside the model's own pass, and the objective's parameters are in every process."
    one, two = Run(found/"one-hidden"), Run(found/"two-both-hidden")
    assert np.allclose(one.column("loss"), two.column("loss"), rtol=1e-3) and np.allclose(one.column("grad_norm"), two.column("grad_norm"), rtol=1e-3)
    assert gap(weights(found, "one-hidden"), weights(found, "two-both-hidden")) < 1e-2 * gap(weights(found, "one-hidden"), start)


# ---- really sharded ---------------------------------------------------------------------------------------------------------
def test_each_process_holds_its_share(found):
    for how, sides in (("no", ()), ("student", ("student",)), ("both", ("student", "teacher"))):
        ranks = [json.loads((found/f"{how}-{r}.json").read_text()) for r in (0, 1)]
        for side in ("student", "teacher"):
            held, total = [r[side]["held"] for r in ranks], ranks[0][side]["all"]
            if side in sides: assert sum(held) == total and max(held) < .51 * total and all(set(r[side]["types"]) == {"DTensor"} for r in ranks)
            else: assert held == [total, total] and all("DTensor" not in r[side]["types"] for r in ranks)
        adam = [r["moments"] for r in ranks]
        assert sum(adam) == ranks[0]["student"]["all"] * (1 if "student" in sides else 2)


def test_a_model_that_is_not_shared_out_is_refused():
    with pytest.raises(RuntimeError, match="is not sharded: this process holds 6 of its 6"): require_sharded(torch.nn.Linear(2, 2), 2)
    with pytest.raises(ValueError, match="there is one process only"): child.Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(fsdp="both", progress=False))
    with pytest.raises(ValueError, match="fsdp is 'all': it is one of"): DistillConfig(fsdp="all")


# ---- kept, resumed, logged --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["no", "both"])
def test_an_interrupted_run_goes_on_to_the_same_weights(found, how):
    a, b = weights(found, f"two-{how}-whole"), weights(found, f"two-{how}-stopped")
    assert all(torch.equal(a[k], b[k]) for k in a)
    run = Run(found/f"two-{how}-stopped")
    assert [s["step"] for s in run.steps] == [1, 2, 3, 4] and run.finished and any(e["event"] == "resume" for e in run.events)
    whole = Run(found/f"two-{how}-whole")
    assert [s["loss"] for s in whole.steps] == [s["loss"] for s in run.steps]


def test_a_sharded_run_leaves_whole_files(found):
    "One process reads the student, and goes on from the checkpoint."
    place = found/"two-both-whole"
    kept = AutoModelForCausalLM.from_pretrained(place/"student")
    assert type(kept).__name__ == "LlamaForCausalLM" and gap(weights(found, "two-both-whole"), kept.state_dict()) == 0
    assert len(list((place/"student").glob("*.safetensors"))) == 1 and json.loads((place/"student/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    d = child.distiller(place, **child.SAMPLED | {"max_steps": 5, "fsdp": "no"})
    assert d.fit(resume=True).steps[-1]["step"] == 5 and len(d.state.optimizer.state_dict()["state"][0]["exp_avg"]) == len(d.state.parameters[0])


def test_one_log(found):
    run = Run(found/"two-both-whole")
    assert [e["event"] for e in run.events].count("start") == 1 and run.start["processes"] == 2 and [s["step"] for s in run.steps][:4] == [1, 2, 3, 4]


def test_what_is_written(found):
    "The prompts of a step and greedy texts do not depend on the number of processes; sampled texts do, and are the same each time for the same number."
    ids = lambda name: json.loads((found/f"{name}-ids.json").read_text())
    assert ids("one-greedy") == ids("two-greedy") and ids("two-sampled") == ids("two-again") and ids("one-sampled")[0] == ids("two-sampled")[0]
    assert ids("one-sampled")[1] != ids("two-sampled")[1]


# ---- the command line -------------------------------------------------------------------------------------------------------
def test_accelerate_launch_with_an_fsdp_config(tmp_path):
    "On a CPU accelerate's own plug-in would have given DDP."
    (tmp_path/"fsdp.yaml").write_text(child.FSDP_CONFIG)
    code, out, err = launch("accelerate.commands.launch", "--config_file", tmp_path/"fsdp.yaml", "--main_process_port", port(), "-m", "xtokd.cli.commands", "distill", "--max-steps", 2, "--batch-size", 3, "--max-new-tokens", 16,
                            "--eval-size", 2, "--objective", "strict", "--output-dir", tmp_path/"run", cwd=tmp_path)
    assert code == 0, err[-3000:]
    assert out.count("run log") == 1 and Run(tmp_path/"run").finished and Run(tmp_path/"run").start["processes"] == 2 and Run(tmp_path/"run").start["sharded"] == ["student", "teacher"]


# ---- parts ------------------------------------------------------------------------------------------------------------------
class Twins:
    "As if every process had the same."
    def __init__(self, n): self.num_processes = n; self.calls = 0
    def reduce(self, flat, how): self.calls += 1; return flat * self.num_processes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from([torch.float32, torch.float64])), max_size=12), st.integers(8, 200))
def test_buckets_hold_everything_once(sizes, room):
    given_ = [torch.full((n,), float(i), dtype=d) for i, (n, d) in enumerate(sizes)]
    found = buckets(given_, room)
    assert sorted(id(t) for b in found for t in b) == sorted(map(id, given_)) and all(len({t.dtype for t in b}) == 1 for b in found)
    assert all(len(b) == 1 or sum(t.numel() * t.element_size() for t in b) <= room for b in found)


def test_one_message_for_many_small_gradients():
    twins, x = Twins(2), [torch.full((3, 2), float(i)) for i in range(50)]
    all_reduce_(x, twins)
    assert twins.calls == 1 and all((t == 2 * i).all() for i, t in enumerate(x))


def test_finish_gradient_divides_by_the_global_count():
    p, q = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1., 2., 3.])
    reduce_gradients([p, q], 4, Twins(2))
    assert p.grad.tolist() == [.5, 1., 1.5] and q.grad.tolist() == [0, 0]
    assert clip_gradient([p, q], 1e9) == pytest.approx(float(p.grad.norm()))


ENDS_AFTER_AN_EXCHANGE = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from xtokd.distributed import make_accelerator
held = init_device_mesh("cpu", (make_accelerator().num_processes,)).get_group()
x = torch.ones(1000)
for _ in range(3):
    torch.distributed.all_reduce(x, group=held)
"""


@pytest.mark.slow
def test_a_process_that_ends_after_an_exchange_is_not_aborted(tmp_path):
    "Without `end_gloo` a third of the launches end with signal 6: the thread of gloo still holds the tensors."
    script = tmp_path/"ends.py"
    script.write_text(ENDS_AFTER_AN_EXCHANGE)
    for _ in range(8):
        code, _, err = launch("torch.distributed.run", "--standalone", "--nproc_per_node", 4, script, cwd=tmp_path)
        assert code == 0, err[-2000:]
