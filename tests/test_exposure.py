"""Exposure bias: the numbers of the definition, and what counts as an error between two tokenizers."""
import numpy as np
import pytest
import torch

from batches import full
from xtokd.exact.toy_models import make_pair
from xtokd.objectives.divergences import kl_divergence
from xtokd.experiments.exposure_bias import ERRORS, exaccerr, exposure, span_gap, step_means, token_kl
from xtokd.alignment.pair import Pair


def test_excess():                                                                # O7
    assert np.allclose(exaccerr([.1, .2, .3], [.1, .1, .1]), [0, 50, 100])
    e = np.random.default_rng(0).random((3, 7))
    assert (exaccerr(e, e) == 0).all() and (exaccerr([0, 0], [0, 0]) == 0).all()


def test_samples_of_different_lengths():
    assert np.allclose(step_means([[1, 2, np.nan], [3, np.nan, np.nan]]), [2, 2]) and len(exaccerr([1, 2, 3], [1, 2])) == 2 and len(exaccerr([], [])) == 0


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
