"""Rows made of hidden states are the rows of the logits: for every objective the same value and gradients, and a memory that does not grow with tokens times vocabulary."""
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from batches import TEXTS, parts
from xtokd.rows.pair_batch import HiddenStates, PairBatch
from xtokd.rows.dense import LogitRows
from xtokd.rows.lazy import OutputHead, LazyRows, head_of
from xtokd.models.loading import load_model
from xtokd.objectives import OBJECTIVES, objective
from xtokd.alignment.pair import Pair
from xtokd.rows.chunked_loss import chunked_loss
from xtokd.rows.lazy import capture_hidden
from xtokd.models.forward import response_logits, response_states

text = st.text(alphabet="ab1 7.é中\n", min_size=0, max_size=10)


@lru_cache
def pairs():
    two = Pair("tiny", "tiny")
    return two, Pair(two.teacher, two.teacher)


def both(pair, texts, text_source=None, cap=None, bias=False, scale=1., padding=0, temperature=1., seed=0):
    "A batch of logits, the same batch of hidden states, and what gets a gradient."
    p, g = parts(pair, texts, seed=seed), torch.Generator().manual_seed(seed)
    hs, ht = [x.detach().requires_grad_() for x in p["student_hidden"]], p["teacher_hidden"]
    wide = lambda vocab, d: torch.randn(len(vocab) + padding, d, generator=g)
    weight, other = wide(pair.student, 6).requires_grad_(), wide(pair.teacher, 8)
    b = torch.randn(len(weight), generator=g).requires_grad_() if bias else None
    s_head, t_head = OutputHead(weight, b, scale, cap), OutputHead(other, None, 1 / scale, cap)
    keys = ("student_ids", "teacher_ids", "behaviour_logp", "reference_logp", "weak_logp", "plus_logp", "minus_logp")
    more = {k: p[k] for k in keys} | {"preferences": [1 - 2 * (k % 2) for k in range(len(texts))], "temperature": temperature} | ({"text_source": text_source} if text_source else {})
    hidden = HiddenStates(hs, ht, weight, other)
    dense = PairBatch.from_logits(pair, student_logits=[s_head(h) for h in hs], teacher_logits=[t_head(h) for h in ht], hidden=hidden, **more)
    lazy = PairBatch.from_tensors(pair, student=hs, teacher=ht, student_head=s_head, teacher_head=t_head, hidden=hidden, **more)
    return dense, lazy, [*hs, weight, *([b] if bias else [])]


def fit(name, texts): return [*texts, *texts[-1:]] if "preferences" in objective(name).requires and len(texts) % 2 else list(texts)


def compare(name, pair, texts, **how):
    torch.manual_seed(0)
    obj = objective(name)
    dense, lazy, leaves = both(pair, fit(name, texts), OBJECTIVES[name].text_source, **how)
    outs = [obj(dense), obj(lazy)]
    grads = [torch.autograd.grad(o.loss_sum, leaves, allow_unused=True) if o.loss_sum.requires_grad else [None] * len(leaves) for o in outs]
    size = max([float(x.abs().max()) for x in grads[0] if x is not None and x.numel()] + [1e-6])
    assert torch.allclose(outs[0].loss_sum, outs[1].loss_sum, rtol=1e-5, atol=1e-5) and outs[0].num_units == outs[1].num_units
    for x, y in zip(*grads):
        x, y = (torch.zeros(1) if v is None else v for v in (x, y))
        assert not x.numel() or float((x - y).detach().abs().max()) <= 1e-4 * size
    return size


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_the_same_on_hidden_states(name, monkeypatch):
    monkeypatch.setattr(LazyRows, "chunk_factor", .001)      # a few rows at a time
    pair = pairs()[OBJECTIVES[name].cls.equal_vocabularies]
    assert compare(name, pair, TEXTS, cap=6., bias=True, scale=.7, padding=3, temperature=.8) > 0


@pytest.mark.parametrize("name", OBJECTIVES)
@given(texts=st.lists(text, min_size=1, max_size=3), cap=st.sampled_from([None, 4.]), bias=st.booleans(), padding=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_any_head(name, texts, cap, bias, padding, seed):
    compare(name, pairs()[OBJECTIVES[name].cls.equal_vocabularies], texts, cap=cap, bias=bias, padding=padding, seed=seed)


def entropy(logp, at): return -(logp.exp() * logp).sum(-1)


@given(weight=st.lists(st.sampled_from([0., 1., -2., .5]), min_size=9, max_size=9), at_once=st.integers(1, 9), frozen=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_with_different_weights(weight, at_once, frozen, seed):
    vocab, g = pairs()[0].student, torch.Generator().manual_seed(seed)
    ids, w = [[1, 2, 3, 4], [], [5, 6, 7, 8, 9]], torch.tensor(weight)
    matrix = torch.randn(len(vocab), 5, generator=g).requires_grad_(not frozen)
    hidden = [torch.randn(len(i), 5, generator=g, requires_grad=True) for i in ids]
    leaves = [*hidden, *([] if frozen else [matrix])]
    grads = [torch.autograd.grad((chunked_loss(rows, np.arange(9), entropy, at_once) * w).sum(), leaves, allow_unused=True)
             for rows in (LogitRows([OutputHead(matrix)(h) for h in hidden], ids, vocab), LazyRows(hidden, ids, vocab, OutputHead(matrix)))]
    for x, y in zip(*grads):
        if x is not None and x.numel(): assert torch.allclose(x, y, rtol=1e-4, atol=1e-5 * float(x.abs().max() + 1e-3))


def test_a_row_that_does_not_count_may_be_no_number():
    vocab = pairs()[0].student
    matrix, h = torch.randn(len(vocab), 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = chunked_loss(LazyRows([h], [[1, 2, 3]], vocab, OutputHead(matrix)), np.arange(3), lambda logp, at: entropy(logp, at) * torch.tensor([1., float("nan"), 1.])[at], 2)
    loss[[0, 2]].sum().backward()
    assert torch.isfinite(h.grad).all() and torch.isfinite(matrix.grad).all() and h.grad[1].abs().max() == 0 and matrix.grad.abs().max() > 0


def test_half_precision_is_added_up_in_float32():
    vocab = pairs()[0].student
    matrix, h = (torch.randn(n, 16).bfloat16().requires_grad_() for n in (len(vocab), 64))
    rows = LazyRows([h], [[1] * 64], vocab, OutputHead(matrix))
    chunked_loss(rows, np.arange(64), entropy, 4).sum().backward()
    wide, states = matrix.detach().float().requires_grad_(), h.detach().float().requires_grad_()
    entropy(torch.log_softmax(states @ wide.T, -1), None).sum().backward()
    assert matrix.grad.dtype == torch.bfloat16 and torch.nn.functional.cosine_similarity(matrix.grad.float().flatten(), wide.grad.flatten(), 0) > .999
    assert torch.nn.functional.cosine_similarity(h.grad.float().flatten(), states.grad.flatten(), 0) > .999


@pytest.mark.parametrize("side", ("student", "teacher"))
def test_states_of_a_model_make_its_logits(side):
    model, vocab = load_model("tiny", side), getattr(pairs()[0], side)
    prompts, answers = [vocab.encode("the number"), vocab.encode("a"), vocab.encode("three")], [vocab.encode(" is 12."), [], vocab.encode(" 9")]
    head = head_of(model)
    logits, states = response_logits(model, prompts, answers), response_states(model, prompts, answers)
    assert [len(x) for x in states] == [len(a) for a in answers]
    for l, h in zip(logits, states): assert torch.allclose(l, head(h), atol=1e-4)


def test_the_hook_leaves_no_trace():
    model, ids = load_model("tiny", "student"), torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError), capture_hidden(model): raise RuntimeError
    assert torch.equal(before, model(input_ids=ids).logits)


@pytest.mark.parametrize("name, student", (("cover", "tiny"), ("compass", "tiny"), ("strict", "tiny")))
def test_a_run_from_states_is_the_run_from_logits(tmp_path, name, student):
    from xtokd.train.distiller import Distiller
    from xtokd.train.config import DistillConfig
    def weights(rows):
        config = DistillConfig(max_steps=2, batch_size=4, micro_batch_size=2, max_new_tokens=8, eval_steps=0, eval_size=0, save_steps=0, learning_rate=1e-3, warmup_steps=0, progress=False, logits=rows, output_dir=str(tmp_path / rows))
        d = Distiller(student, "tiny", "tiny", name, config, **({"auxiliary_models": {"weak": "tiny"}} if name == "compass" else {}))
        run = d.fit()
        return run, torch.cat([p.detach().flatten() for p in d.student.model.parameters()])
    (a, x), (b, y) = weights("keep"), weights("recompute")
    for key in ("loss", "entropy", "count", "coverage"): assert np.allclose(a.steps[-1][key], b.steps[-1][key], rtol=1e-3, atol=1e-5)
    assert float((x - y).abs().max()) < 2e-4 and float((x - torch.cat([p.detach().flatten() for p in load_model(student, "student").parameters()])).abs().max()) > 1e-3
