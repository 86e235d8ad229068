"""One objective on a device and on the CPU, with the same samples: for the pretend accelerator's tests and for `make gpu`.

`tests` has to be on the path, for the samples."""
from dataclasses import dataclass, replace

import torch

from batches import TEXTS, parts
from cases import TOP_K
from xtokd.alignment.pair import Pair
from xtokd.objectives import OBJECTIVES, objective
from xtokd.rows.lazy import OutputHead
from xtokd.rows.pair_batch import HiddenStates, PairBatch
from xtokd.rows.random_batches import random_heads
from xtokd.rows.topk import to_top_k

CASES = [(name, rows, {}) for name in OBJECTIVES for rows in ("dense", "lazy")] + [(name, "top_k", options) for name, options in TOP_K.items()]
TWO = Pair("tiny", "tiny")
ONE = Pair(TWO.teacher, TWO.teacher)


@dataclass(frozen=True)
class Place:
    "Where samples lie, in which dtype, and to which dtype their values were rounded."
    device: str
    dtype: torch.dtype
    rounded: torch.dtype

    def moved(self, x):
        "A tensor there, as a leaf of its own; what is no tensor stays as it is."
        if not isinstance(x, torch.Tensor): return x
        if not x.is_floating_point(): return x.to(self.device)
        return x.detach().to(self.rounded).to(self.device, self.dtype).requires_grad_(x.requires_grad)


def tensors(pair, place):
    "Random samples at a place, their leaves, and two heads."
    found = {name: [place.moved(x) for x in values] for name, values in parts(pair, list(TEXTS)).items()}
    return found, [head.to(place.rounded).to(place.device, place.dtype) for head in random_heads(pair)]


def make_batch(name, rows, place):
    "(a batch, the tensors that get a gradient)."
    pair = ONE if OBJECTIVES[name].cls.equal_vocabularies else TWO
    fields, heads = tensors(pair, place)
    states = fields.pop("student_hidden"), fields.pop("teacher_hidden")
    fields["preferences"] = [1 - 2 * (k % 2) for k in range(len(TEXTS))]
    fields["text_source"] = OBJECTIVES[name].text_source
    if rows == "lazy":
        for key in ("student_logits", "teacher_logits"): fields.pop(key)
        hidden = HiddenStates(*states, *heads)
        student, teacher = (OutputHead(head) for head in heads)
        ids = fields.pop("student_ids"), fields.pop("teacher_ids")
        batch = PairBatch.from_tensors(pair, *ids, student=states[0], teacher=states[1], student_head=student, teacher_head=teacher,
                                       hidden=hidden, **fields)
        return batch, list(states[0])
    batch = PairBatch.from_logits(pair, **fields, hidden=HiddenStates(*states, *heads))
    return batch, [*fields["student_logits"], *states[0]]


def outcome(name, options, rows, place, counted):
    "(output, gradients, counts) of one objective; `counted(act)` returns what `act` does and its counts."
    torch.manual_seed(0)
    method = objective(name, **options)
    if isinstance(method, torch.nn.Module): method.to(place.device)
    batch, leaves = make_batch(name, rows, place)
    if rows == "top_k": batch = replace(batch, teacher=to_top_k(batch.teacher, getattr(method, "teacher_top_k", 0)))
    def run():
        out = method(batch)
        out.loss.backward()
        return out
    method(batch)                    # tables of the pair and parameters are made at the first batch
    if isinstance(method, torch.nn.Module): method.to(place.device)
    out, counts = counted(run)
    gradients = [torch.zeros_like(x).float().cpu() if x.grad is None else x.grad.float().cpu() for x in leaves]
    return out, gradients, counts


def not_counted(act): return act(), {}


def compare(name, options, rows, device, dtype=torch.float32, counted=not_counted):
    "How far an objective on a device, in a dtype, is from float32 on the CPU on the same rounded values, with the counts."
    here = outcome(name, options, rows, Place("cpu", torch.float32, dtype), not_counted)
    there = outcome(name, options, rows, Place(device, dtype, dtype), counted)
    scale = max(float(x.abs().max()) for x in here[1])
    gap = max(float((x - y).abs().max()) for x, y in zip(here[1], there[1], strict=True))
    return {"loss": [float(found[0].loss.detach()) for found in (here, there)], "gradient": gap, "scale": scale, "counts": there[2],
            "ledger": {key: int((here[0].ledger[key] != there[0].ledger[key]).sum()) for key in ("chunk", "kind", "reason")}}
