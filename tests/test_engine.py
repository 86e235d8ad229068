"""A real engine that serves the tiny teacher, against the teacher in this process. Start one (nbs/07_serving/03_server.ipynb shows the commands for vLLM) and name it:

    XTOKD_ENGINE=http://127.0.0.1:8000/v1 pytest tests/test_engine.py

Without one nothing here runs; tests/test_remote.py holds the same against a server of our own, with faults."""
import os

import pytest
import torch

from test_remote import VOCAB, LOCAL, PROMPTS, RESPONSES, SMALL, TEACHER, hears_the_same, local, same, same_run, samples
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.hub import data_dir
from xtokd.models.loading import load_tokenizer
from xtokd.serving.client import RemoteTeacher
from xtokd.models.sampling import generate_responses
from xtokd.serving.http import RemoteError

ENGINE = os.environ.get("XTOKD_ENGINE")
scoring = pytest.mark.skipif(not ENGINE, reason="no XTOKD_ENGINE: no real engine to ask")
# A student behind an engine that takes new weights: XTOKD_WRITER="URL FOLDER", vLLM started on the folder with VLLM_SERVER_DEV_MODE=1
WRITER = os.environ.get("XTOKD_WRITER", "").split()
writing = pytest.mark.skipif(not WRITER, reason="no XTOKD_WRITER: no real engine to write")


@scoring
@pytest.mark.parametrize("form", ["vllm", "echo"])
def test_it_says_what_the_local_teacher_says(form):
    far, bad = RemoteTeacher(ENGINE, VOCAB, form=form).score_responses(PROMPTS, RESPONSES, 5)
    near = local(5)
    assert bad == 0 and same(far, near) and torch.allclose(far.topk(5).values, near.topk(5).values, atol=1e-4)


@scoring
@pytest.mark.parametrize("name, knobs", LOCAL, ids=lambda x: x if isinstance(x, str) else "")
def test_every_objective_that_can_hears_the_same(samples, name, knobs):
    hears_the_same(RemoteTeacher(ENGINE, VOCAB), samples, name, knobs)


@scoring
def test_a_run_is_the_run_with_the_local_teacher(tmp_path):
    near, far = (Distiller("tiny", t, "tiny", "sampled", DistillConfig(**SMALL, output_dir=str(tmp_path/name))).fit() for name, t in (("near", "tiny"), ("far", RemoteTeacher(ENGINE, VOCAB))))
    same_run(near, far)


@scoring
def test_it_writes_what_the_local_teacher_writes():
    far = RemoteTeacher(ENGINE, VOCAB)
    assert far.generate(PROMPTS, 24, temperature=0.) == generate_responses(TEACHER, VOCAB, PROMPTS, 24, temperature=0.)
    assert len({tuple(map(tuple, far.generate(PROMPTS, 24, 1., seed))) for seed in range(4)}) == 4


@scoring
def test_another_tokenizer_is_refused():
    with pytest.raises(RemoteError, match="tokenizer"): RemoteTeacher(ENGINE, load_tokenizer("tiny", "student"))


@writing
def test_it_follows_a_student(tmp_path):
    settings = dict(SMALL, max_steps=3, learning_rate=3e-3, warmup_steps=0, temperature=0., eval_size=0)
    far, near = (Distiller(WRITER[1], data_dir()/"tiny/weak", "tiny", "sampled", DistillConfig(**settings, output_dir=str(tmp_path/name), generation_url=url)).fit() for name, url in (("far", WRITER[0]), ("near", None)))
    assert all(s["engine_gap"] < 1e-3 for s in far.steps)
    assert all(abs(a["loss"] - b["loss"]) < 1e-3 for a, b in zip(far.steps, near.steps)) and len({round(s["loss"], 3) for s in near.steps}) == 3
