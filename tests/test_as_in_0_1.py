"""What is computed has not changed since version 0.1: loss, number of units and norm of the gradient of every objective on fixed
batches of both tiny pairs, recorded with version 0.1 (tests/reference/losses_0_1.json). A method that is changed on purpose gets
its new numbers there, in the commit that changes it."""
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from batches import TEXTS, full
from xtokd.alignment.pair import Pair
from xtokd.objectives import OBJECTIVES, objective

RECORDED = json.loads((Path(__file__).parent / "reference/losses_0_1.json").read_text())
BATCHES = {"tiny": TEXTS, "tiny2": ("12 + 5 = 17; 17 + 4 = 21", "9 + 1 = 10")}


@lru_cache
def pair_of(task, equal_vocabularies):
    pair = Pair(task)
    return Pair(pair.teacher, pair.teacher) if equal_vocabularies else pair


@pytest.mark.parametrize("task", BATCHES)
@pytest.mark.parametrize("name", sorted(RECORDED["tiny"]))
def test_losses_and_gradients_are_those_of_0_1(task, name):
    method, texts = OBJECTIVES[name].cls, list(BATCHES[task])
    torch.manual_seed(0)
    np.random.seed(0)
    obj = objective(name)
    if "preferences" in obj.requires and len(texts) % 2: texts.append(texts[-1])
    batch, leaves = full(pair_of(task, method.equal_vocabularies), tuple(texts), method.text_source)
    output = obj(batch)
    if output.loss_sum.requires_grad: output.loss_sum.backward()
    norm = sum(float(x.grad.double().norm()) ** 2 for x in leaves if x.grad is not None) ** .5
    loss, units, gradient = RECORDED[task][name]
    assert float(output.loss_sum.detach()) == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert output.num_units == units and norm == pytest.approx(gradient, rel=1e-5, abs=1e-6)


def test_every_method_of_0_1_is_recorded(): assert set(RECORDED["tiny"]) == set(RECORDED["tiny2"]) and len(RECORDED["tiny"]) == 24
