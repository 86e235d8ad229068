"""Seconds of the parts of a step, read where the library itself names its parts, and what only two tokenizers cost.

    parts = Parts("cpu")
    with parts.watching():
        row = whole_step(models, objective, optimizer, config, items, seed=0, parts=parts)
    row["seconds"], row["parts"], cross_seconds(row)

Parts: writing, retokenise, teacher, student, alignment, objective, backward, optimiser. Time of a part that lies within another is counted once, in the inner one.
"""
import time
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import torch

import xtokd.rows.pair_batch as pair_batch
import xtokd.train.forward_batch as forward_batch
import xtokd.train.samples as samples_module
import xtokd.train.step as step
from xtokd.alignment.pair import Pair
from xtokd.models.side import load_side
from xtokd.rows.chunked_loss import chunked_loss, rows_per_chunk
from xtokd.rows.topk import TopKRows
from xtokd.train.forward_batch import ModelSet
from xtokd.train.samples import generate_samples
from xtokd.train.step import DistillStep


class Parts:
    "A clock of named parts; on a GPU it waits for the device at each end of a part."
    def __init__(self, device):
        self.device, self.found, self.open = torch.device(device).type, {}, []

    def now(self):
        if self.device == "cuda": torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name):
        tic = self.now()
        self.open.append(0.)
        try: yield
        finally:
            took = self.now() - tic
            self.found[name] = self.found.get(name, 0.) + took - self.open.pop()
            if self.open: self.open[-1] += took

    def timed(self, function, name):
        def run(*args, **kwargs):
            with self.part(name): return function(*args, **kwargs)
        return run

    @contextmanager
    def watching(self):
        "Clock every part of the library's steps while the context lasts."
        with ExitStack() as stack:
            for module in (samples_module, forward_batch, step):
                stack.enter_context(patch.object(module, "step_part", lambda name, *_: self.part(name)))
            for module, function, name in ((samples_module, "retokenize", "retokenise"), (pair_batch, "align_batch", "alignment")):
                stack.enter_context(patch.object(module, function, self.timed(getattr(module, function), name)))
            yield self


def load_models(student, teacher, objective, device, dtype=None):
    "A ModelSet of two sources on a device, and the objective prepared for it."
    sides = [load_side(source, role, device, dtype) for source, role in ((student, "student"), (teacher, "teacher"))]
    models = ModelSet(*sides, pair=Pair(*(side.vocab for side in sides)))
    models.teacher.model.eval().requires_grad_(False)
    objective.prepare(models.pair, *sides)
    return models


def whole_step(models, objective, optimizer, config, items, seed, parts, samples=None, autocast=nullcontext):
    "Take one step; `samples`: texts that are there already. Returns seconds, tokens, parts, and the seconds of plain reading."
    parts.found, parts.open = {}, []
    tic = parts.now()
    source = objective.text_source
    if samples is None: samples = generate_samples(items, models.student, models.teacher, config, source, seed=seed)
    stepper = DistillStep(models, objective, config, autocast)
    totals = stepper.forward_backward(samples, source)
    with parts.part("optimiser"):
        torch.nn.utils.clip_grad_norm_(models.student.model.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
    seconds, found = parts.now() - tic, dict(parts.found)
    read = 0.
    for part in stepper.micro_batches(samples):
        with autocast(): read += reading_seconds(stepper.batch(part, source)[0], parts)
    models.student.model.zero_grad()
    return {"seconds": seconds, "tokens": sum(len(sample.student_ids) for sample in samples), "parts": found, "reading": read, "loss": totals.loss / max(totals.num_units, 1)}


def reading_seconds(batch, parts):
    "Seconds for the log-probabilities of the rows of both sides, a handful at a time, and the gradient of a sum of the student's."
    tic = parts.now()
    teacher = batch.teacher
    if teacher is not None and not isinstance(teacher, TopKRows):
        with torch.no_grad():
            size = rows_per_chunk(teacher)
            for first in range(0, len(teacher), size): teacher.logp(first, min(first + size, len(teacher)))
    chunked_loss(batch.student, np.arange(len(batch.student)), lambda logp, at: (logp.exp() * logp).sum(1))
    return parts.now() - tic


def cross_seconds(row):
    "Seconds of a step that only two tokenizers cost: retokenising, alignment, and the objective beyond plain reading of its rows."
    parts = row["parts"]
    return parts.get("retokenise", 0.) + parts.get("alignment", 0.) + max(parts.get("objective", 0.) - row["reading"], 0.)
