"Any objective inside a transformers or trl trainer: the gradient is our own loop's, and splitting changes nothing."
import contextlib, os, subprocess, sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from xtokd.train.config import DistillConfig, combine_seeds
from xtokd.train.step import make_objective
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.objectives import OBJECTIVES, objective
from xtokd.data.prompts import load_prompts
from xtokd.models.side import Side, load_side
from xtokd.train.forward_batch import ModelSet
from xtokd.train.step import DistillStep
from xtokd.train.samples import generate_samples
from xtokd.distributed import reduce_gradients
from xtokd.serving.client import RemoteTeacher
from xtokd.train.hf_trainer import Distilling, DistillTrainer, collate_prompts

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
TEACHER = load_side("tiny", "teacher", "cpu")
ITEMS = load_prompts("tiny", limit=8)
ARGS = dict(max_steps=1, report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="no", use_cpu=True, learning_rate=1e-3, max_grad_norm=0., train_sampling_strategy="sequential", remove_unused_columns=True)


class Look(TrainerCallback):
    "Keeps the gradients that the optimiser is about to use, step by step"
    def __init__(self): self.found = []
    def on_pre_optimizer_step(self, args, state, control, model=None, **kw): self.found.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.requires_grad]))


def trainer(folder, obj="strict", size=8, times=1, cls=DistillTrainer, items=None, distill=None, arguments=TrainingArguments, **how):
    look, mine = Look(), {k: how.pop(k) for k in [*how] if k in ("auxiliary_models", "supervision_window", "teacher_context", "teacher", "eval_dataset", "processing_class")}
    args = arguments(str(folder), **ARGS | dict(per_device_train_batch_size=size, gradient_accumulation_steps=times) | how)
    t = cls(load_model("tiny", "student", device="cpu"), args, train_dataset=ITEMS if items is None else items, callbacks=[look], objective=obj, distill=distill or DistillConfig(max_new_tokens=16),
            **{"teacher": TEACHER, "processing_class": load_tokenizer("tiny", "student"), **mine})
    t.look = look
    return t


def own_gradient(t, samples, obj, auxiliary_models=None):
    "What our own loop makes of these samples"
    side = Side("student", load_model("tiny", "student", device="cpu").train(), t.student.vocab)
    o = make_objective(obj)
    if hasattr(o, "prepare"): o.prepare(t.pair, side, TEACHER)
    totals = DistillStep(ModelSet(side, TEACHER, auxiliary_models or {}, t.pair), o, t.distill, contextlib.nullcontext).forward_backward(samples, t.text_source)
    reduce_gradients(list(side.model.parameters()), totals.num_units, t.accelerator)
    return torch.cat([p.grad.flatten() for p in side.model.parameters()]), totals


def kept_samples(t):
    "The samples of every step that a trainer is about to take"
    kept, samples = [], t.generator.samples
    t.generator.samples = lambda *a: kept.append(samples(*a)) or kept[-1]
    return kept


@pytest.mark.parametrize("obj", ["strict", "cover", "dpca", "alm", "uld", ("gold", {"beta": .5}), "gkd_reference" if "gkd_reference" in OBJECTIVES else "bpm"], ids=str)
def test_the_gradient_is_that_of_our_own_loop(tmp_path, obj):
    t = trainer(tmp_path, obj)
    kept = kept_samples(t)
    t.train()
    expected, totals = own_gradient(t, kept[0], obj)
    assert expected.norm() > 0 and (t.look.found[0] - expected).abs().max() < 1e-5
    assert t.state.log_history[0]["loss"] == pytest.approx(totals.loss / totals.num_units, rel=1e-3)   # the Trainer rounds it
    assert t.state.log_history[0]["coverage"] == pytest.approx(totals.mean_stats()["coverage"], abs=1e-6)


@pytest.mark.parametrize("split,obj", [((4, 2), "strict"), ((2, 4), "dpca"), ((1, 8), "strict"), ((3, 3), "cover")])
def test_splitting_changes_nothing(tmp_path, split, obj):
    whole, parted = trainer(tmp_path, obj), trainer(tmp_path, obj, *split)
    for t in (whole, parted): t.train()
    assert whole.look.found[0].norm() > 0 and (whole.look.found[0] - parted.look.found[0]).abs().max() < 1e-5
    assert whole.state.log_history[0]["loss"] == pytest.approx(parted.state.log_history[0]["loss"], rel=1e-3)


def test_a_micro_batch_without_any_signal_counts_for_nothing(tmp_path):
    "Two of eight prompts whose window is empty, alone in their micro-batch"
    class Nothing:
        found = True
        def mask(self, bv, ids):
            import numpy as np
            return np.zeros(len(ids), bool)
    dead = {id(i): i["prompt"] for i in ITEMS[2:4]}.values()
    window = lambda item, text: Nothing() if item["prompt"] in dead else None
    whole, parted = trainer(tmp_path, supervision_window=window), trainer(tmp_path, size=2, times=4, supervision_window=window)
    for t in (whole, parted): t.train()
    assert (whole.look.found[0] - parted.look.found[0]).abs().max() < 1e-5


def test_a_step_without_any_signal_is_an_error(tmp_path):
    class Silent:
        name, requires, text_source = "silent", objective("strict").requires, "student"
        def __call__(self, batch):
            out = objective("strict")(batch)
            out.loss_sum, out.num_units = out.loss_sum.detach() * 0, 0
            return out
    with pytest.raises(RuntimeError, match="no student token of this step has a signal.*xtokd doctor"): trainer(tmp_path, Silent()).train()


def test_texts_are_those_of_our_own_loop(tmp_path):
    "The same prompts in the same order, the same seed: the same ids"
    t = trainer(tmp_path, size=2, times=4)
    kept = kept_samples(t)
    t.train()
    student = Side("student", load_model("tiny", "student", device="cpu"), t.student.vocab)
    ours = generate_samples(ITEMS, student, TEACHER, t.distill, "student", combine_seeds(t.distill.seed, 1, 0))
    assert [s.student_ids for s in kept[0]] == [s.student_ids for s in ours] and len({tuple(s.student_ids) for s in ours}) > 1


def test_references_and_preferences(tmp_path):
    refs = trainer(tmp_path, distill=DistillConfig(on_policy_fraction=0., off_policy_source="reference"), items=[{**i, "reference": str(i["answer"])} for i in ITEMS])
    kept = kept_samples(refs)
    refs.train()
    assert [refs.student.vocab.decode(s.student_ids[:-1]).decode() for s in kept[0]] == [str(i["answer"]) for i in ITEMS]
    both = trainer(tmp_path, "ctpd", size=2, times=2, items=[{**i, "chosen": f"It is {i['answer']}.", "rejected": "No."} for i in ITEMS], auxiliary_models={"plus": TEACHER, "minus": load_side("tiny", "weak", "cpu")})
    kept = kept_samples(both)
    both.train()
    assert len(kept[0]) == 8 and torch.isfinite(both.look.found[0]).all() and both.look.found[0].norm() > 0


def test_it_learns_evaluates_saves_and_resumes(tmp_path):
    "Four steps in one go and two times two are the same model"
    how = dict(size=4, max_steps=4, items=load_prompts("tiny", limit=16), eval_dataset=load_prompts("tiny:heldout", 4), max_grad_norm=1., lr_scheduler_type="constant")
    one = trainer(tmp_path/"one", **how)
    before = one.evaluate()
    one.train()
    assert before["eval_n"] == 4 and set(one.evaluate()) >= {"eval_rkl_per_byte", "eval_stop_share"}
    parts = trainer(tmp_path/"two", **how | dict(save_strategy="steps", save_steps=2, save_only_model=False))
    parts.train()
    again = trainer(tmp_path/"two", **how)
    again.train(resume_from_checkpoint=str(tmp_path/"two"/"checkpoint-2"))
    for a, b, c in zip(one.model.parameters(), parts.model.parameters(), again.model.parameters()): assert torch.equal(a, b) and torch.allclose(b, c, atol=1e-6)


def test_the_objective_s_own_parameters_are_trained_and_kept(tmp_path):
    t = trainer(tmp_path, "sedi", max_steps=2, save_strategy="steps", save_steps=2)
    assert t.extra
    before = [p.detach().clone() for p in t.extra]
    t.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, t.extra))
    saved = load_file(tmp_path/"checkpoint-2"/"objective.safetensors")
    assert all(torch.equal(v, saved[k]) for k, v in t.objective.state_dict().items())
    assert not any("objective" in k for k in load_file(tmp_path/"checkpoint-2"/"model.safetensors"))


def test_bf16_and_gradient_checkpointing(tmp_path):
    plain, saving, half = trainer(tmp_path), trainer(tmp_path, gradient_checkpointing=True), trainer(tmp_path, bf16=True)
    for t in (plain, saving, half): t.train()
    assert (plain.look.found[0] - saving.look.found[0]).abs().max() < 1e-5
    assert torch.isfinite(half.look.found[0]).all() and torch.cosine_similarity(half.look.found[0], plain.look.found[0], dim=0) > .5


def test_what_it_refuses(tmp_path):
    with pytest.raises(ValueError, match="processing_class is missing"): trainer(tmp_path, processing_class=None)
    with pytest.raises(ValueError, match="give --aux weak=MODEL, or auxiliary_models="): trainer(tmp_path, "compass")
    with pytest.raises(ValueError, match="do not belong together"): trainer(tmp_path, processing_class=load_tokenizer("tiny", "teacher"))


def test_gather_leaves_out_what_a_data_set_fills_up():
    assert collate_prompts([{"prompt": "a", "reference": None}, {"prompt": "b", "reference": "c"}]) == {"items": [{"prompt": "a"}, {"prompt": "b", "reference": "c"}]}


def test_inside_trl(tmp_path):
    "The same mixin before trl's SFTTrainer: the same gradient, split or not"
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    class DistillSFT(Distilling, trl.SFTTrainer): pass
    data = datasets.Dataset.from_list([{"prompt": i["prompt"]} for i in ITEMS])
    how = dict(cls=DistillSFT, arguments=trl.SFTConfig, items=data, dataset_kwargs={"skip_prepare_dataset": True}, bf16=False, gradient_checkpointing=False)
    t, parted = trainer(tmp_path, **how), trainer(tmp_path, size=2, times=4, **how)
    kept = kept_samples(t)
    t.train(); parted.train()
    expected, totals = own_gradient(t, kept[0], "strict")
    assert (t.look.found[0] - expected).abs().max() < 1e-5 and (t.look.found[0] - parted.look.found[0]).abs().max() < 1e-5
    assert t.state.log_history[0]["coverage"] == pytest.approx(totals.mean_stats()["coverage"], abs=1e-6)


THOUGHT = [{**item, "reference": f"<think>{item['answer']} it is</think>{item['answer']}"} for item in ITEMS]


def test_the_loss_can_be_on_the_answer_alone(tmp_path):
    "loss_on='answer' leaves thoughts out, with the gradient of our own loop; version 0.1 accepted the setting and ignored it."
    how = dict(on_policy_fraction=0., off_policy_source="reference", max_new_tokens=16)
    grads = {}
    for loss_on in ("response", "answer"):
        t = trainer(tmp_path/loss_on, items=THOUGHT, distill=DistillConfig(loss_on=loss_on, **how))
        kept = kept_samples(t)
        t.train()
        assert any(s.window is not None for s in kept[0]) == (loss_on == "answer")
        grads[loss_on] = t.look.found[0]
        expected, _ = own_gradient(t, kept[0], "strict")
        assert (t.look.found[0] - expected).abs().max() < 1e-5
    assert (grads["response"] - grads["answer"]).abs().max() > 1e-3


def test_a_served_teacher_is_the_local_one(tmp_path):
    "A RemoteTeacher gives sampled log-probs only; version 0.1 crashed on it (get_output_embeddings)."
    from xtokd.serving.server import Server
    local, grads = trainer(tmp_path/"local", "sampled"), {}
    with Server(TEACHER.model, TEACHER.vocab, port=0) as served:
        far = trainer(tmp_path/"far", "sampled", teacher=RemoteTeacher(served.url, TEACHER.vocab))
        for name, t in (("local", local), ("far", far)):
            t.train()
            grads[name] = t.look.found[0]
        with pytest.raises(ValueError, match="reads whole rows"): trainer(tmp_path/"full", "cover", teacher=RemoteTeacher(served.url, TEACHER.vocab))
    assert grads["local"].norm() > 0 and (grads["local"] - grads["far"]).abs().max() < 1e-4


TWO = """
import sys, torch
sys.path.insert(0, "tests")
from test_trainer import *
t = trainer(sys.argv[1], size=int(sys.argv[2]), times=1)
t.generator.samples = lambda items, text_source, seed: generate_samples(items, t.student, TEACHER, DistillConfig(max_new_tokens=16, temperature=0.), "student")
t.train()
if t.accelerator.is_main_process: torch.save((t.look.found[0], t.state.log_history[0]["loss"], t.accelerator.num_processes), sys.argv[1] + "/found.pt")
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    "DDP over gloo: half of the prompts each, the same gradient"
    found = []
    for n in (1, 2):
        folder = tmp_path/str(n); folder.mkdir()
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", f"--master-port={29500 + os.getpid() % 1000}", str(script(tmp_path)), str(folder), str(8 // n)], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"})
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(torch.load(folder/"found.pt"))
    (a, la, na), (b, lb, nb) = found
    assert (na, nb) == (1, 2) and a.norm() > 0 and (a - b).abs().max() < 1e-5 and la == pytest.approx(lb, abs=2e-4)


def script(folder):
    (folder/"two.py").write_text(TWO)
    return folder/"two.py"


def test_prompts_that_do_not_fit_are_left_out(tmp_path):
    long = {"prompt": "word " * 2000}
    with pytest.warns(UserWarning, match="1 of 9 prompts are left out"): t = trainer(tmp_path/"a", items=[*ITEMS[:3], long, *ITEMS[3:]])
    assert t.train_dataset == ITEMS
    t.train()
    with pytest.raises(ValueError, match="none of the 2 prompts fits"), pytest.warns(UserWarning): trainer(tmp_path/"b", items=[long, long])
