"Unit and sign of every loss, as each class declares them: held against random batches, and shown where a loss is negative."
import json

import pytest
import torch

from batches import TEXTS, batch, parts
from xtokd.alignment.pair import Pair
from xtokd.cli.commands import main
from xtokd.objectives import OBJECTIVES, methods, objective
from xtokd.objectives.base import LOSS_UNITS, Objective
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.viz.run_charts import loss_chart
from xtokd.viz.run_state import RunState, run_panels

KINDS = tuple({"divergence": kind} for kind in ("fkl", "rkl", "jsd"))
OPTIONS = {      # options that change what is computed, besides the defaults and the presets
    **{name: KINDS for name in ("cover", "bpm", "simct", "mined", "cdm", "escd", "dskd", "dskdv2")},
    "alm": tuple({"form": form} for form in ("kl", "rkl", "ce", "tvd", "k2", "k3")) + ({"form": "limit", "tau": float("inf")},),
    "gkd": tuple({"top_k": 4, "tail": tail} for tail in ("renormalise", "bucket", "drop")) + ({"beta": 0.}, {"beta": 1.}),
    "gold": ({"beta": 0.}, {"beta": 1.}, {"mass": "renormalise"}, {"hybrid": False}, {"compat": True}),
    "xtoken": ({"loss": "p-kl"}, {"loss": "h-kl"}, {"loss": "p-kl", "reverse_kl": True}, {"loss": "h-kl", "reverse_kl": True}),
    "pkl": ({"form": "ce"}, {"top_k": 1}), "sedi": ({"k": None}, {"truncated_entropy": True}, {"collision": "max"}),
    "strict": KINDS + ({"span": 1.}, {"top_k": 4}, {"top_k": 4, "support": "teacher"}),
}
SETTINGS = [(name, options) for name in OBJECTIVES
            for options in ({}, *OPTIONS.get(name, ()), *({"preset": preset} for preset in OBJECTIVES[name].presets))]


@pytest.fixture(scope="module")
def pairs():
    two = Pair("tiny", "tiny")
    return two, Pair(two.teacher, two.teacher)


def adversarial(tensors, change):
    "Rows of random samples pushed to where a sum that is no divergence would fall below zero."
    for rows, ids in zip(tensors["teacher_logits"], tensors["teacher_ids"]):
        if change == "liked": rows[range(len(ids)), ids] += 12.        # the teacher likes what was written
        if change == "sharp": rows *= 6.
    for k, (rows, ids) in enumerate(zip(tensors["student_logits"], tensors["student_ids"])):
        with torch.no_grad():
            if change == "flat": rows *= .05
            if change == "liked": rows[range(len(ids)), ids] -= 2.
            index = torch.tensor(ids, dtype=torch.long)[:, None]
            tensors["behaviour_logp"][k] = rows.detach().log_softmax(-1).gather(1, index)[:, 0]
    if change == "liked":
        tensors["weak_logp"] = [x - 20. for x in tensors["weak_logp"]]
        tensors["reference_logp"] = [x.clone() for x in tensors["behaviour_logp"]]
    return tensors


def losses(name, options, pairs):
    "Outputs of one objective on batches of several kinds."
    pair = pairs[OBJECTIVES[name].cls.equal_vocabularies]
    torch.manual_seed(0)
    made = objective(name, **options)
    for seed, change in enumerate(("", "liked", "sharp", "flat")):
        tensors = adversarial(parts(pair, TEXTS, seed=seed, scale=1.), change)
        yield made, made(batch(pair, tensors, made.text_source))


@pytest.mark.parametrize("name, options", SETTINGS, ids=lambda x: x if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items()) or "defaults")
def test_the_sign_is_as_declared(name, options, pairs):
    values = []
    for made, out in losses(name, options, pairs):
        assert out.unit == made.loss_unit and made.loss_unit in LOSS_UNITS
        values += [float(out.loss.detach()), float(out.token_loss.min())]
    if not made.loss_can_be_negative: assert min(values) >= -1e-5, f"{name} says that its loss is never negative ({made.loss_sign_reason})"


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if objective(name).loss_can_be_negative])
def test_a_loss_that_can_be_negative_is_shown_to_be(name, pairs):
    "Where the teacher finds every written token more probable than the student does."
    found = [float(out.loss.detach()) for _, out in losses(name, {}, pairs)]
    assert min(found) < -.1 and torch.isfinite(torch.tensor(found)).all()


def test_columns_that_do_not_sum_to_one_make_no_divergence(pairs):
    "gkd with tail='drop': one option changes the sign, and the object says so (verl 5041)."
    pair = pairs[1]
    tensors = parts(pair, TEXTS)
    with torch.no_grad():       # the teacher gives the student's four likeliest tokens more than the student does
        for teacher, student in zip(tensors["teacher_logits"], tensors["student_logits"]):
            top = student.topk(4, -1).indices
            teacher.copy_(student).scatter_add_(1, top, torch.full(top.shape, 5.))
    made = objective("gkd", top_k=4, tail="drop", beta=1.)
    assert float(made(batch(pair, tensors)).loss.detach()) < -.1 and made.loss_can_be_negative
    kept = objective("gkd", top_k=4, tail="renormalise", beta=1.)
    assert float(kept(batch(pair, tensors)).loss.detach()) >= -1e-6 and not kept.loss_can_be_negative


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_class_declares_unit_and_sign(name):
    made = objective(name)
    assert isinstance(made.loss_can_be_negative, bool) and made.loss_quantity and made.loss_sign_reason, \
        "declare loss_unit, loss_can_be_negative and loss_sign_reason in the class"
    row = next(row for row in methods() if row["method"] == name)
    assert row["loss"] == made.loss_description and LOSS_UNITS[made.loss_unit] in row["loss"]
    assert ("can be negative" if made.loss_can_be_negative else "never negative") in row["loss"]


def test_an_option_that_changes_the_unit(pairs):
    assert objective("gold").loss_unit == "chunk" and objective("gold", compat=True).loss_unit == "sequence"
    assert objective("alm", form="tvd").loss_quantity != objective("alm").loss_quantity


def test_an_objective_without_a_declaration(): assert Objective().loss_description == "unit and sign not declared"


def test_where_a_user_reads_it(tmp_path, capsys):
    assert main(["methods", "sampled"]) == 0
    assert "nats per student token, can be negative" in capsys.readouterr().out
    config = DistillConfig(max_steps=1, batch_size=2, max_new_tokens=6, eval_size=0, save_steps=0, progress=True, output_dir=tmp_path / "run")
    run = Distiller("tiny", "tiny", "tiny", "strict", config).fit()
    assert run.start["loss"] == objective("strict").loss_description and "never negative" in capsys.readouterr().err
    assert json.dumps(run.start) and loss_chart(run).layout.yaxis.title.text == "nats per student token"
    assert next(p for p in run_panels(RunState(run.events)) if p.key == "loss").unit == "nats per student token"
