"""Every registered objective in the Distiller: two steps on the tiny pair, with whatever it asks for, and what a run does that was given too little."""
import numpy as np
import pytest
import torch

from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.objectives import OBJECTIVES, objective
from xtokd.data.segments import SupervisionWindow, window_from_quote, with_reflection
from xtokd.data.prompts import load_prompts
from xtokd.models.side import load_side

ITEMS = [x | {"chosen": x["reference"], "rejected": x["reference"][::-1]} for x in load_prompts("tiny", limit=12)]
THIRD = {"weak_logp": "weak", "plus_logp": "plus", "minus_logp": "minus"}


def config(out, **how): return DistillConfig(**dict(max_steps=2, batch_size=4, micro_batch_size=2, learning_rate=1e-3, max_new_tokens=8, eval_steps=0, eval_size=0, progress=False, output_dir=str(out)) | how)


def third(name):
    "The tiny teacher, less sure than it is (a weak sibling)."
    side = load_side("tiny", "teacher", "cpu")
    with torch.no_grad(): side.model.get_output_embeddings().weight.mul_({"weak": .5, "minus": .8}.get(name, 1.))
    return side.model, side.tokenizer


def distiller(name, out, **how):
    knobs = {"warmup_steps": 0} | how.pop("config", {})
    student = load_side("tiny", "teacher", "cpu") if OBJECTIVES[name].equal_vocabularies else load_side("tiny", "student", "cpu")
    others = {THIRD[n]: "tiny" for n in objective(name).requires & set(THIRD)}
    if others: others = {k: third(k) for k in others}
    return Distiller((student.model, student.tokenizer), "tiny", ITEMS, objective=name, config=config(out, **knobs), auxiliary_models=others, **how)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(name, tmp_path):
    d = distiller(name, tmp_path / name)
    before = [p.detach().clone() for p in d.state.parameters]
    run = d.fit()
    assert run.finished and len(run.steps) == 2 and all(np.isfinite(s["loss"]) for s in run.steps) and run.steps[-1]["count"] > 0
    moved = [not torch.equal(a, b) for a, b in zip(before, d.state.parameters)]
    assert any(moved[: len(before) - len(d.state.objective_parameters)]) and (not d.state.objective_parameters or any(moved[-len(d.state.objective_parameters):]))


def test_a_share_of_the_steps_is_off_policy(tmp_path):
    d = distiller("strict", tmp_path / "mixed", config=dict(max_steps=8, on_policy_fraction=.5, off_policy_source="reference"))
    run = d.fit()
    per_step = np.diff([0, *[s["costs"]["student_tokens_written"] for s in run.steps]])
    assert 0 < (per_step == 0).sum() < 8 and run.steps[-1]["costs"]["teacher_tokens_written"] == 0
    with pytest.raises(ValueError, match="makes no sense on text of the teacher"): distiller("sampled", tmp_path / "no", config=dict(on_policy_fraction=.5))


def test_a_window_and_a_context(tmp_path):
    d = distiller("strict", tmp_path / "window", supervision_window=lambda item, text: window_from_quote(text, "1"), teacher_context=lambda item, text: with_reflection(item["prompt"], f"the answer is {item['answer']}"))
    run = d.fit()
    assert all(0 <= s["window_found"] <= 1 and np.isfinite(s["loss"]) for s in run.steps)
    whole = distiller("strict", tmp_path / "whole", supervision_window=lambda item, text: SupervisionWindow()).fit()
    plain = distiller("strict", tmp_path / "plain").fit()
    assert whole.steps[0]["loss"] == pytest.approx(plain.steps[0]["loss"], rel=1e-5)


def test_what_is_missing_is_said_before_training(tmp_path):
    s, t = (load_side("tiny", role, "cpu") for role in ("student", "teacher"))
    with pytest.raises(ValueError, match="give --aux weak=MODEL, or auxiliary_models="): Distiller("tiny", "tiny", ITEMS, objective="compass", config=config(tmp_path / "a"))
    with pytest.raises(ValueError, match="another tokenizer"): Distiller("tiny", "tiny", ITEMS, objective="compass", config=config(tmp_path / "b"), auxiliary_models={"weak": (s.model, s.tokenizer)})
    with pytest.raises(TypeError, match="no use of it"): Distiller("tiny", "tiny", ITEMS, objective="strict", config=config(tmp_path / "c"), auxiliary_models={"weak": (t.model, t.tokenizer)})
    both = {"plus": (t.model, t.tokenizer), "minus": (t.model, t.tokenizer)}
    with pytest.raises(ValueError, match="has no chosen and no rejected"):
        Distiller("tiny", "tiny", [{"prompt": "one, please"}] * 4, objective="ctpd", config=config(tmp_path / "d"), auxiliary_models=both)
