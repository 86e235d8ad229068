"""Exposure bias: the numbers of the definition, and what counts as an error between two tokenizers."""
import numpy as np
import pytest
import torch

from batches import full
from xtokd.exact.toy_models import make_pair
from xtokd.objectives.divergences import kl_divergence
from xtokd.experiments.exposure_bias import ERRORS, accumulated_error, exaccerr, exposure, measure_exposure, span_gap, token_kl
from xtokd.alignment.pair import Pair


def test_excess():                                                                # O7
    assert np.allclose(exaccerr([.1, .2, .3], [.1, .1, .1]), [0, 50, 100])
    e = np.random.default_rng(0).random((3, 7))
    assert (exaccerr(e, e) == 0).all() and (exaccerr([0, 0], [0, 0]) == 0).all()


def test_samples_of_different_lengths():
    assert np.allclose(accumulated_error([[1, 2, np.nan], [3, np.nan, np.nan]]), [2, 3]) and len(exaccerr([1, 2, 3], [1, 2])) == 2 and len(exaccerr([], [])) == 0


def minillm(errors, masks):
    "Accumulated error of one prompt [S, L] as in LMOps, without its 1/1000, then the mean of prompts."
    return np.mean([(np.where(m, e, 0).sum(0) / np.maximum(m.sum(0), 1)).cumsum() for e, m in zip(errors, masks)], 0)


def test_a_text_that_has_ended_makes_no_more_errors():
    "Errors of 1 for each token: three tokens and one token, against three and three; was 0, 0, 0."
    ends = [[1, 1, 1], [1, np.nan, np.nan]]
    assert np.allclose(exaccerr(ends, np.ones((2, 3))), [0, -25, -100 / 3])
    rng = np.random.default_rng(0)
    for _ in range(20):
        errors, size = rng.random((2, 3, 4, 6)), rng.integers(1, 7, (2, 3, 4, 1))           # sides, prompts, samples
        masks = np.arange(6) < size
        masks[..., :2, 0] = True
        flat, prompts = np.where(masks, errors, np.nan).reshape(2, 12, 6), np.repeat(np.arange(3), 4)
        order = rng.permutation(12)
        own, other = (minillm(e, m) for e, m in zip(errors, masks))
        steps = int(min(m.any((0, 1)).sum() for m in masks))
        got = exaccerr(flat[0][order], flat[1], prompts[order], prompts)
        assert len(got) == steps and np.allclose(got, ((own - other) / other * 100)[:steps])


def test_exposure_of_two_models():
    from xtokd.data.prompts import load_prompts
    from xtokd.train.config import DistillConfig
    config = DistillConfig(max_new_tokens=6, micro_batch_size=3)
    found = measure_exposure("tiny", "tiny", load_prompts("tiny:heldout", 4), num_samples=2, config=config)
    assert found["unit"] == "chunk" and 0 < len(found["percent"]) <= 7 and np.isfinite(found["percent"]).all()
    again = measure_exposure("tiny", "tiny", load_prompts("tiny:heldout", 4), num_samples=2, config=config)
    assert (again["percent"] == found["percent"]).all()
    with pytest.raises(ValueError, match="Choose kl"): measure_exposure("tiny", "tiny", "tiny", error="x")


def test_errors():
    pair = Pair("tiny")
    same = make_pair(pair.teacher, pair.teacher)
    b, _ = full(same)
    k = token_kl(b)
    assert np.allclose(k[np.isfinite(k)], kl_divergence(b.teacher.logp(), b.student.logp()).detach(), rtol=1e-5) and np.isfinite(k).sum(1).tolist() == np.diff(b.student.offsets).tolist()
    assert np.nanmax(token_kl(full(same, same=True)[0])) < 1e-6 and np.nanmax(span_gap(full(same, same=True)[0], True)) < 1e-6
    b, _ = full(pair)
    gap = span_gap(b, True)
    assert (span_gap(b)[np.isfinite(gap)] <= gap[np.isfinite(gap)]).all() and gap.shape[0] == len(b) and np.isfinite(gap).sum() == len(b.alignment.chunks)


def test_every_number_names_its_error():
    pair = Pair("tiny")
    own, teachers = full(pair)[0], full(pair, ("The number is 12.",))[0]
    for error in ERRORS:
        if error == "kl":
            with pytest.raises(ValueError, match="same tokenizer"): exposure(own, teachers, error)
        else: assert exposure(own, teachers, error)["error"] == error
    with pytest.raises(ValueError, match="Choose"): exposure(own, teachers, "x")
