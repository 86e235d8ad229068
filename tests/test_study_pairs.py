"The pairs of the designs `harder` and `too-small`: their task, their models, and what their record says."
import dataclasses
import json
import random
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st

from xtokd.data.tasks.many_phrasings import (
    CLOSING_FORMS, LINE_FORMS, check_phrasing, check_phrasing_lines, make_phrasing_item, phrasing_items, same_phrasing)
from xtokd.data.tasks.running_sums import check_sum, split_of_sum, sum_items
from xtokd.experiments.study_designs import DESIGNS
from xtokd.experiments.study_pairs import LONG_TERMS, PAIR_RECIPES, SHORT_TERMS, study_pair_folder, train_study_model
from xtokd.experiments.tiny_pair import encode_references, generate_answers
from xtokd.experiments.writer_study import Meter, answers, arm_runs
from xtokd.models.loading import load_model, load_tokenizer

MADE = [name for name in PAIR_RECIPES if (study_pair_folder(name) / "training.json").exists()]
MODELS = [(name, role) for name in MADE for role in PAIR_RECIPES[name].models]
MEASURES = {"harder": "7 addends", "too-small": "total"}        # what a design scores


def numbers_of(item): return [int(digits) for digits in re.findall("[0-9]+", item["prompt"])]


def record_of(name): return json.loads((study_pair_folder(name) / "training.json").read_text())


def loaded(name, role):
    folder = str(study_pair_folder(name) / role)
    return load_model(folder, role, torch.float32, "cpu"), load_tokenizer(folder, role)


# ---- the task with many phrasings --------------------------------------------------------------------
@settings(max_examples=50)
@given(st.integers(0, 10 ** 6), st.sampled_from(["train", "validation", "heldout"]))
def test_every_reference_is_right(seed, split):
    item = make_phrasing_item(random.Random(seed), split)
    assert check_phrasing(item, item["reference"]) == check_phrasing_lines(item, item["reference"]) == 1
    assert split_of_sum(numbers_of(item)) == split and sum(numbers_of(item)) == int(item["answer"])


def test_every_form_occurs_and_is_read_back():
    texts = [item["reference"].split("\n") for item in phrasing_items(200, 4)]
    def shape(line): return re.sub("[0-9]+", "#", line)
    def shapes(forms): return {re.sub(r"\{.\}", "#", form) for form in forms}
    assert {shape(line) for lines in texts for line in lines[:-1]} == shapes(LINE_FORMS)
    assert {shape(lines[-1]) for lines in texts} == shapes(CLOSING_FORMS)


def test_one_wrong_digit_is_seen_in_every_place():
    for item in phrasing_items(20, 5):
        text = item["reference"]
        for at in [k for k, character in enumerate(text) if character.isdigit()]:
            wrong = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1:]
            assert check_phrasing_lines(item, wrong) == 0
            assert check_phrasing(item, wrong) == (at < text.rindex("\n"))
        assert check_phrasing_lines(item, text.partition("\n")[2]) == 0        # a line less
        assert check_phrasing(item, text + " no") == check_phrasing(item, "") == 0
        assert same_phrasing(item, text.partition("\n")[0]) == 0


def test_unknown_split():
    with pytest.raises(ValueError, match="'test' is unknown"): phrasing_items(1, split="test")


def test_the_length_of_a_sum_can_be_chosen():
    assert [len(numbers_of(item)) for item in sum_items(5, 0, "train", 3)] == [4] * 5
    assert sum_items(3, 1) == sum_items(3, 1, "train", 7)
    assert check_sum(sum_items(1, 2, "heldout", 9)[0], sum_items(1, 2, "heldout", 9)[0]["reference"]) == 1


# ---- the designs -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PAIR_RECIPES)
def test_designs_are_what_they_say(name):
    design, recipe = DESIGNS[name], PAIR_RECIPES[name]
    trained, measured = design.items(200, 0, "train"), (design.eval_items or design.items)(200, 10_000, "heldout")
    assert not {tuple(numbers_of(item)) for item in trained} & {tuple(numbers_of(item)) for item in measured}
    if name == "harder":
        assert {len(numbers_of(item)) - 1 for item in trained} == {SHORT_TERMS}
        assert {len(numbers_of(item)) - 1 for item in measured} == {LONG_TERMS}
    for side in ("student", "teacher"):
        longest = max(map(len, encode_references(load_tokenizer("tiny", side), measured + trained)))
        assert longest <= design.max_new_tokens == recipe.max_new_tokens
    assert len(design.seeds) == 3 and len(design.arms) == 8 and design.measure_at[-1] == design.steps


# ---- the models --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, role", MODELS)
def test_models_are_what_the_record_says(name, role):
    recipe, row = PAIR_RECIPES[name], record_of(name)["models"][role]
    model, tokenizer = loaded(name, role)
    assert model.num_parameters() == row["parameters"] and len(tokenizer) <= model.config.vocab_size
    assert row["curve"][-1]["step"] <= recipe.models[role].schedule.steps
    for measure, (items_of, check) in recipe.measures.items():
        items = items_of(300, 1, "heldout")[:50]
        texts = generate_answers(model, tokenizer, items, False, 1, recipe.max_new_tokens)
        found, recorded = sum(map(check, items, texts)) / 50, row["heldout"][measure]["greedy"]
        assert abs(found - recorded) <= 3 * (max(recorded * (1 - recorded), .02) / 50) ** .5


@pytest.mark.parametrize("name", MADE)
def test_the_student_has_room_and_the_teacher_knows_the_task(name):
    sampled = {role: row["heldout"][MEASURES[name]]["sampled"] for role, row in record_of(name)["models"].items()}
    assert .2 <= sampled["student"] <= .6 and sampled["teacher"] >= .85
    assert sum(file.stat().st_size for file in study_pair_folder(name).rglob("*")) < 2.5e6


def test_short_sums_are_easier_than_long_ones():
    for row in record_of("harder")["models"].values():
        assert row["heldout"]["3 addends"]["sampled"] > row["heldout"]["7 addends"]["sampled"]


@pytest.mark.slow
@pytest.mark.parametrize("name, role", MODELS)
def test_training_again_begins_as_recorded(name, role):
    "The mean loss up to the first measurement; `stop_at` below 0 ends training there."
    recipe = PAIR_RECIPES[name]
    plan = recipe.models[role]
    short = dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, stop_at=-1.))
    recipe = dataclasses.replace(recipe, models={role: short}, probe_size=2)
    _, curve = train_study_model(recipe, role, load_tokenizer("tiny", role))
    recorded = record_of(name)["models"][role]["curve"][0]
    assert len(curve) == 1 and curve[0]["step"] == recorded["step"]
    assert curve[0]["loss"] == pytest.approx(recorded["loss"], rel=.02)


@pytest.mark.parametrize("name", [name for name in PAIR_RECIPES if arm_runs(name, "start")])
def test_the_start_is_measured_again_as_recorded(name):
    design, recorded = DESIGNS[name], arm_runs(name, "start")[0]
    meter = Meter(design, recorded["seed"])
    items = meter.items(design.sizes.heldout, 10_000 + recorded["seed"], "heldout")[:60]
    _, greedy = answers(meter.start.eval(), meter.vocab, items, design.max_new_tokens, 0.)
    found = [int(design.check(*pair)) for pair in zip(items, greedy)]
    assert sum(a != b for a, b in zip(found, recorded["heldout"]["greedy"])) <= 1
