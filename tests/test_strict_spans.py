"The span terms of Strict: what they are, and that they behave like every other loss."
import pytest
import torch

from batches import TEXTS, batch, full, parts, some
from xtokd.objectives import objective
from xtokd.objectives.chunks import ChunkLogps
from xtokd.alignment.pair import Pair


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def test_none_by_default_and_refused_below_zero(pair):
    a, b = objective("strict")(full(pair)[0]), objective("strict", span=0.)(full(pair)[0])
    assert a.loss_sum == b.loss_sum and a.num_units == b.num_units
    with pytest.raises(ValueError, match="span"): objective("strict", span=-1.)


@pytest.mark.parametrize("weight", [.25, 1.5])
def test_each_other_chunk_adds_its_squared_gap(pair, weight):
    b, _ = full(pair)
    score, long = ChunkLogps(b), torch.as_tensor(b.alignment.kind != 0)
    plain, spans = objective("strict")(b), objective("strict", span=weight)(b)
    assert torch.allclose(spans.loss_sum - plain.loss_sum, weight * ((score.student_sum - score.teacher_sum)[long] ** 2).sum(), rtol=1e-5)
    assert spans.num_units == pytest.approx(plain.num_units + int(long.sum()))


def test_splitting_changes_nothing(pair):
    p = parts(pair)
    whole = objective("strict", span=.5)(batch(pair, p))
    halves = [objective("strict", span=.5)(batch(pair, some(p, at))) for at in ([0, 1], [2, 3])]
    assert torch.allclose(whole.loss_sum, sum(h.loss_sum for h in halves), rtol=1e-5) and whole.num_units == pytest.approx(sum(h.num_units for h in halves))


def test_an_impossible_chunk_is_left_out(pair):
    p = parts(pair, TEXTS[:1])
    t = pair.teacher.encode(TEXTS[0])
    at = next(i for i, x in enumerate(t) if pair.teacher.bytes[x] == b"963")
    p["teacher_logits"][0][at, t[at]] = -torch.inf
    out = objective("strict", span=1.)(batch(pair, p))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and torch.isfinite(p["student_logits"][0].grad).all()
