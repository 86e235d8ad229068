"""The temperature at which a text is generated is not that of the loss."""
import pytest
import torch

from xtokd.data.prompts import load_prompts
from xtokd.models.side import load_side
from xtokd.objectives import objective
from xtokd.alignment.pair import Pair
from xtokd.train.config import DistillConfig
from xtokd.train.forward_batch import ModelSet, build_batch
from xtokd.train.samples import generate_samples


@pytest.fixture(scope="module")
def twins():
    "The tiny teacher as both sides: nothing is to be learnt."
    return load_side("tiny", "teacher", "cpu"), load_side("tiny", "teacher", "cpu")


def batch_of(sides, name, text_source="student", config=None, **options):
    config = config or DistillConfig(temperature=.6, max_new_tokens=12)
    asked = objective(name, **options)
    samples = generate_samples(load_prompts("tiny")[:4], *sides, config, text_source, seed=0)
    return asked, build_batch(samples, ModelSet(*sides), asked, config, text_source)[0]


@pytest.mark.parametrize("name", ["strict", "simct", "gold", "bpm", "gkd", "cover", "uld"])
def test_equal_models_have_nothing_to_learn_from_text_written_at_another_temperature(twins, name):
    "Of 0.1: simct and strict .465, gold .118, bpm .617, for the student's rows had the temperature of generation."
    asked, batch = batch_of(twins, name)
    assert asked(batch).loss.abs() < 1e-5


def test_cross_entropy_is_that_of_the_model(twins):
    asked, batch = batch_of(twins, "sft", "teacher")
    want = -batch.student.log_softmax(torch.cat(batch.student.logits)).gather(1, torch.as_tensor(batch.student.ids)[:, None])[:, 0]
    assert batch.student.temperature == 1 and torch.allclose(asked(batch).token_loss, want, atol=1e-5)


def test_ratios_are_to_what_the_text_was_sampled_from(twins):
    asked, batch = batch_of(twins, "sampled", surrogate=True)
    ids = torch.as_tensor(batch.student.ids)[:, None]
    at = lambda t: (torch.cat(batch.student.logits) / t).log_softmax(-1).gather(1, ids)[:, 0]
    assert torch.allclose(batch.generation_logp, at(.6), atol=1e-5)
    batch.generation_logp = None
    plain = asked(batch).token_loss
    batch.behaviour_logp = at(1.) - .1                     # an advantage of .1 at each token
    without = asked(batch).token_loss
    batch.generation_logp = at(.6)
    ratio = (at(1.) - at(.6)).exp()
    assert plain.abs().max() < 1e-4 and not torch.allclose(without, asked(batch).token_loss, atol=1e-3)
    signal = torch.as_tensor(asked(batch).ledger["signal"])
    low = torch.maximum(-signal * ratio, -signal * ratio.clamp(.8, 1.28))
    want = torch.where(signal < 0, torch.minimum(low, -10 * signal), low)
    assert torch.allclose(asked(batch).token_loss, want.float(), atol=1e-4)


def test_text_that_the_student_did_not_write_has_no_generation_temperature(twins):
    _, batch = batch_of(twins, "sampled", "teacher")
    assert batch.generation_logp is None


def test_the_loss_has_a_temperature_of_its_own_on_both_sides(twins):
    _, batch = batch_of(twins, "gkd", config=DistillConfig(loss_temperature=2., max_new_tokens=12))
    assert batch.student.temperature == batch.teacher.temperature == 2
    with pytest.raises(ValueError, match="loss_temperature=2.0.*temperature 1 only"):
        batch_of(twins, "sampled", config=DistillConfig(loss_temperature=2., max_new_tokens=12))
    with pytest.raises(ValueError, match="loss_temperature.*above 0"): DistillConfig(loss_temperature=0.)
