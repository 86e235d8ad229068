"The control without a teacher: which tokens, the gradient as a plain sum, and that nobody asks the teacher."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from transformers import LlamaForCausalLM

from batches import batch, full, parts
from xtokd.alignment.pair import Pair
from xtokd.alignment.reasons import Reason
from xtokd.objectives import OBJECTIVES, names_without_full_rows, objective
from xtokd.objectives.policy.sharpen import least_likely
from xtokd.train import forward_batch
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller

torch.set_num_threads(1)
FORWARD = LlamaForCausalLM.forward


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 100), st.integers(0, 99))
def test_the_least_likely_share_of_each_answer(sizes, percent, seed):
    offsets, share = np.cumsum([0, *sizes]), percent / 100
    logp = -torch.from_numpy(np.random.default_rng(seed).permutation(int(offsets[-1])).astype(np.float32))
    got = least_likely(logp, offsets, share)
    for start, end in zip(offsets, offsets[1:]):
        n = end - start
        count = max(1, percent * int(n) // 100) if n else 0
        own = got[start:end]
        assert int(own.sum()) == count and (not count or count == n or logp[start:end][own].max() < logp[start:end][~own].min())


@pytest.mark.parametrize("share, advantage", [(.2, -.5), (1., -.5), (.5, .2)])
def test_the_gradient_is_the_plain_sum(share, advantage):
    pair = Pair("tiny", "tiny")
    whole, leaves = full(pair, text_source="student")
    out = objective("sharpen", share=share, advantage=advantage)(whole)
    out.loss.backward()
    chosen = out.ledger["weight"] > 0
    assert set(out.ledger["reason"][~chosen]) <= {Reason.NOT_CHOSEN} and out.num_units == chosen.sum() and np.allclose(out.ledger["signal"][chosen], advantage)
    assert float(out.loss.detach()) == pytest.approx(-advantage)
    rows = [x for x in leaves if x.grad is not None and x.shape[1] == len(pair.student)]
    grads = torch.cat([x.grad for x in rows])
    ids, p = torch.as_tensor(whole.alignment.student_ids), torch.cat([x.detach().softmax(-1) for x in rows])
    want = -advantage * (torch.nn.functional.one_hot(ids, p.shape[1]) - p) / chosen.sum()
    want[torch.as_tensor(~chosen)] = 0
    assert torch.allclose(grads, want, atol=1e-6)


def test_an_impossible_own_token_is_left_out():
    pair = Pair("tiny", "tiny")
    samples = parts(pair)
    with torch.no_grad(): samples["student_logits"][0][0, samples["student_ids"][0][0]] = -torch.inf
    out = objective("sharpen")(batch(pair, samples, "student"))
    assert out.ledger["weight"][0] == 0
    out.loss_sum.backward()
    assert all(torch.isfinite(x.grad).all() for x in samples["student_logits"])


def test_no_teacher_is_asked_and_none_is_paid(tmp_path, monkeypatch):
    def never(*a, **k): raise AssertionError("the teacher was asked")
    monkeypatch.setattr(forward_batch, "teacher_rows", never)
    monkeypatch.setattr(forward_batch, "teacher_top_rows", never)
    config = DistillConfig(max_steps=30, batch_size=8, max_new_tokens=12, eval_size=0, progress=False, warmup_steps=0, learning_rate=1e-3, save_steps=0, output_dir=str(tmp_path))
    d = Distiller("tiny", "tiny", "tiny", "sharpen", config)
    monkeypatch.setattr(type(d.teacher.model), "forward", lambda self, *a, **k: never() if self is d.teacher.model else FORWARD(self, *a, **k))
    run = d.fit()
    costs = run.steps[-1]["costs"]
    assert costs["teacher_tokens_scored"] == costs["teacher_tokens_written"] == 0 < costs["student_tokens_written"]
    fed = sum(s["response_tokens"] * s["samples"] for s in run.steps)
    assert costs["student_tokens_written"] == fed and costs["flops"] > 8 * d.student.params * fed
    entropy = run.column("entropy")
    assert entropy[-5:].mean() < entropy[:5].mean()                         # it becomes sharper


def test_it_is_named_as_what_it_is(capsys):
    from xtokd.cli.commands import main
    spec = OBJECTIVES["sharpen"]
    assert spec.teacher_access == "none" and "sharpen" in names_without_full_rows() and "control" in spec.summary and "2608.31046" in spec.source
    assert main(["methods", "sharpen"]) == 0
    said = capsys.readouterr().out
    assert "share=0.2, advantage=-0.5" in said and "only the student's rows" in said


@pytest.mark.parametrize("how, says", [(dict(share=0), "no share"), (dict(share=1.01), "no share"), (dict(share=True), "must be a number"), (dict(advantage=0), "moves nothing"), (dict(advantage=math.inf), "finite"), (dict(advantage="-1"), "must be a number"), (dict(part=.2), "has no option part")])
def test_bad_arguments(how, says):
    with pytest.raises(ValueError, match=says): objective("sharpen", **how)
