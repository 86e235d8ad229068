"The second tiny task: chains of sums, and the models in data/tiny2."
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from xtokd.models.loading import load_model, load_tokenizer
from xtokd.hub import resolve
from xtokd.data.prompts import load_prompts, builtin_check
from xtokd.data.tasks.running_sums import (
    check_sum, first_mistake, make_sum_item, running_total, split_of_sum, sum_items,
)
from xtokd.experiments.tiny_pair import TINY_TASKS

TINY2 = Path(__file__).parent.parent / "data" / "tiny2"
ROLES = ("student", "teacher", "weak")


def lines(name): return [json.loads(line) for line in (TINY2 / name).read_text(encoding="utf-8").splitlines()]


@given(st.lists(st.integers(1, 99), min_size=1, max_size=9))
def test_worked_lines_are_right_sums(numbers):
    found, total = running_total(numbers)
    assert total == sum(numbers) and len(found) == len(numbers) - 1
    for line in found:
        a, b, c = map(int, line.replace("=", "+").split("+"))
        assert a + b == c


@settings(max_examples=50)
@given(st.integers(0, 10 ** 6), st.sampled_from(["train", "validation", "heldout"]))
def test_every_reference_is_right(seed, split):
    item = make_sum_item(random.Random(seed), split)
    assert check_sum(item, item["reference"]) == 1 and first_mistake(item, item["reference"]) is None
    numbers = [int(x) for x in item["prompt"].removeprefix("add ").replace("+", ",").split(",")]
    assert split_of_sum(numbers) == split and sum(numbers) == int(item["answer"])


def test_one_wrong_digit_is_found_where_it_is():
    item = sum_items(1)[0]
    rows = item["reference"].split("\n")
    for k, row in enumerate(rows):
        at = max(i for i, c in enumerate(row) if c.isdigit())
        wrong = rows[:k] + [row[:at] + str((int(row[at]) + 1) % 10) + row[at + 1:]] + rows[k + 1:]
        assert first_mistake(item, "\n".join(wrong)) == k
    assert check_sum(item, "\n".join(rows[:-1])) == 0 and check_sum(item, "") == 0


def test_unknown_split():
    with pytest.raises(ValueError, match="validation"): make_sum_item(random.Random(0), "dev")


def test_files_hold_what_the_generators_make():
    assert lines("train.jsonl") == sum_items(4096, 0) and lines("heldout.jsonl") == sum_items(512, 1, "heldout") and lines("validation.jsonl") == sum_items(512, 2, "validation")


def test_names():
    assert len(load_prompts("tiny2")) == 4096 and len(load_prompts("tiny2:validation")) == len(load_prompts("tiny2:heldout")) == 512
    assert builtin_check("tiny2") is check_sum and builtin_check("tiny2:heldout") is check_sum and builtin_check("mine.jsonl") is None
    assert resolve("tiny2", "weak") == TINY2 / "weak"
    seen = {i["answer"] for i in load_prompts("tiny")} | {i["answer"] for i in load_prompts("tiny:heldout")}
    assert not seen & {i["answer"] for i in load_prompts("tiny:validation")}


def test_models_are_small_and_know_what_they_should():
    record, rows = json.loads((TINY2 / "training.json").read_text()), load_prompts("tiny2:heldout", 150)
    for role in ROLES:
        assert sum(f.stat().st_size for f in (TINY2 / role).iterdir()) < 4e6
        assert record[role]["parameters"] == load_model("tiny2", role).num_parameters()
    greedy = lambda role: TINY_TASKS["running_sums"].accuracy(load_model("tiny2", role), load_tokenizer("tiny2", role), rows, sample=False)
    assert greedy("teacher") >= .95
    share = TINY_TASKS["running_sums"].accuracy(load_model("tiny2", "student"), load_tokenizer("tiny2", "student"), rows)
    assert .2 <= share <= .6 and record["weak"]["heldout"]["sampled"] < .8


def test_answers_are_long_for_the_student():
    tok = load_tokenizer("tiny2", "student")
    size = [len(tok(i["reference"], add_special_tokens=False)["input_ids"]) for i in lines("heldout.jsonl")]
    assert min(size) >= 55 and sum(size) / len(size) >= 60
