"The recommendation of the dry run: every branch of the rule, the numbers that it reads, and where a user sees it."
import json
from dataclasses import replace
from html import escape

import numpy as np
import pytest
import torch

from xtokd.cli.commands import main
from xtokd.data.tasks.number_words import check_number
from xtokd.experiments.recommendation import (
    PairMeasures, Rule, SideMeasures, Way, WayCost, difference, measure_pair, measure_side, own_entropy, recommend, recommend_for, way_costs)
from xtokd.models.side import load_side
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.evaluate import mean_over_problems
from xtokd.train.runlog import Run

PLAN = dict(max_steps=3, batch_size=4, micro_batch_size=4, max_new_tokens=24, eval_size=40, progress=False)


def share(x, n=200): return mean_over_problems([1.] * round(n * x) + [0.] * (n - round(n * x)))


def side(greedy, sampled, best, n=200, **more):
    numbers = dict(k=8, truncated=0., tokens=40., prompt_tokens=20., params=10**6, entropy=.1, write_seconds=.1, forward_seconds=.01)
    return SideMeasures(share(greedy, n), share(sampled, n), share(best, n), **numbers | more)


def way(student, teacher, rule=Rule(), **more): return recommend(PairMeasures(**dict(prompts=200, has_check=True, student=student, teacher=teacher) | more), rule).way


WEAK, GOOD, OFTEN_WRONG = side(.5, .3, .7), side(1., .98, 1.), side(.70, .38, .86)
COSTLY = {Way.SAMPLED_TEXT: WayCost(0, 0, 0, 40., 1.), Way.ON_POLICY: WayCost(0, 0, 0, 10., 1.)}
BRANCHES = {      # (student, teacher, other measurements) -> way
    "no check": (None, None, dict(has_check=False), Way.UNKNOWN),
    "29 prompts": (WEAK, GOOD, dict(prompts=29), Way.UNKNOWN),
    "30 prompts": (WEAK, GOOD, dict(prompts=30), Way.SAMPLED_TEXT),
    "student cut": (side(.5, .3, .7, truncated=.6), GOOD, {}, Way.UNKNOWN),
    "teacher cut": (WEAK, side(1., .98, 1., truncated=.51), {}, Way.UNKNOWN),
    "as good": (GOOD, GOOD, {}, Way.LEAVE),
    "worse in all": (side(.98, .92, 1.), side(.70, .42, .9), {}, Way.LEAVE),
    "lead within the noise": (side(.5, .5, .6, 40), side(.6, .6, .7, 40), {}, Way.UNKNOWN),
    "right and one way": (WEAK, GOOD, {}, Way.SAMPLED_TEXT),
    "right when greedy": (WEAK, side(.95, .6, .97), {}, Way.GREEDY_TEXT),
    "right in many ways": (WEAK, side(.98, .95, 1., entropy=1.5), {}, Way.ON_POLICY),
    "right, entropy not known": (WEAK, side(.98, .95, 1., entropy=None), {}, Way.SAMPLED_TEXT),
    "right and costly": (WEAK, GOOD, dict(costs=COSTLY), Way.ON_POLICY),
    "prototype A: a worse teacher's habit": (side(.0, .055, .3), OFTEN_WRONG, {}, Way.ON_POLICY),
    "prototype tiny: a good teacher": (side(.49, .33, .6), side(1., .97, 1.), {}, Way.SAMPLED_TEXT),
    "often wrong, pass@k above": (side(.2, .2, .3), side(.4, .4, .8), {}, Way.ON_POLICY),
    "often wrong and knows no more": (side(.1, .1, .12), side(.5, .5, .52), {}, Way.FILTERED_TEXT),
    "a student that is never right": (side(0., 0., 0.), OFTEN_WRONG, {}, Way.FILTERED_TEXT),
    "little coverage": (side(.0, .055, .3), OFTEN_WRONG, dict(coverage=.3), Way.FILTERED_TEXT),
    "enough coverage": (side(.0, .055, .3), OFTEN_WRONG, dict(coverage=.9), Way.ON_POLICY),
    "in many ways, little coverage": (WEAK, side(.98, .95, 1., entropy=1.5), dict(coverage=.1), Way.SAMPLED_TEXT),
    "only pass@k is better": (side(.4, .4, .45), side(.4, .4, .8), {}, Way.ON_POLICY),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_every_branch(name):
    student, teacher, more, expected = BRANCHES[name]
    found = recommend(PairMeasures(**dict(prompts=200, has_check=True, student=student, teacher=teacher) | more))
    assert found.way is expected and found.reasons and all(found.reasons)
    assert json.dumps(found.to_dict()) and found.way.value in repr(found) and found.page in repr(found) and escape(found.way.value) in found._repr_html_()


def test_all_ways_are_reached(): assert {expected for *_, expected in BRANCHES.values()} == set(Way)


@pytest.mark.parametrize("limit, value, student, teacher, more, before, after", [
    ("min_prompts", 300, WEAK, GOOD, {}, Way.SAMPLED_TEXT, Way.UNKNOWN),
    ("worth", .0, side(.5, .5, .6, 400), side(.52, .52, .62, 400), {}, Way.LEAVE, Way.UNKNOWN),
    ("max_truncated", .1, WEAK, side(1., .98, 1., truncated=.2), {}, Way.SAMPLED_TEXT, Way.UNKNOWN),
    ("reliable", .99, WEAK, side(.98, .95, 1.), {}, Way.SAMPLED_TEXT, Way.FILTERED_TEXT),
    ("hidden_lead", .7, side(.0, .055, .3), OFTEN_WRONG, {}, Way.ON_POLICY, Way.FILTERED_TEXT),
    ("max_entropy", .05, WEAK, GOOD, {}, Way.SAMPLED_TEXT, Way.ON_POLICY),
    ("max_cost", 5., WEAK, GOOD, dict(costs=COSTLY), Way.ON_POLICY, Way.SAMPLED_TEXT),
    ("min_coverage", .95, side(.0, .055, .3), OFTEN_WRONG, dict(coverage=.9), Way.ON_POLICY, Way.FILTERED_TEXT)])
def test_every_limit_decides_something(limit, value, student, teacher, more, before, after):
    "A study that changes a limit changes a recommendation."
    assert way(student, teacher, **more) is before and way(student, teacher, replace(Rule(), **{limit: value}), **more) is after


def test_every_limit_is_tested(): assert set(Rule.__dataclass_fields__) == {row[0] for row in test_every_limit_decides_something.pytestmark[0].args[1]}


# ---- intervals --------------------------------------------------------------------------------------------------------------
def test_the_interval_of_a_difference():
    "Newcombe 1998, table II: 56/70 - 48/80 by method 10 is .2 with [.0524, .3339]; 9/10 - 3/10 is .6 with [.1705, .8090]."
    def of(right, n): return mean_over_problems([1.] * right + [0.] * (n - right))
    for a, b, low, high in ((of(56, 70), of(48, 80), .0524, .3339), (of(9, 10), of(3, 10), .1705, .8090)):
        found = difference(a, b)
        assert found.low == pytest.approx(low, abs=2e-4) and found.high == pytest.approx(high, abs=2e-4)
    assert difference(of(10, 10), of(0, 10)).high == 1 and difference(of(3, 9), of(3, 9)).value == 0


# ---- measuring --------------------------------------------------------------------------------------------------------------
def test_the_entropy_of_a_side_is_a_plain_sum():
    from xtokd.data.chat import render_prompt
    from xtokd.models.forward import reference_logits
    student = load_side("tiny", "student")
    prompts = [render_prompt(student.vocab, {"prompt": text}) for text in ("twelve", "thirty-one")]
    texts = [student.vocab.encode(text) for text in ("Certainly: 12", "31")]
    rows = torch.cat(reference_logits(student.model, prompts, texts))[:, :len(student.vocab)].softmax(-1)
    assert own_entropy(student, prompts, texts, 1) == pytest.approx(float(-(rows * rows.log()).sum(-1).mean()), rel=1e-4)


def test_costs_are_plain_sums():
    student, teacher = side(.5, .3, .7, params=10), side(1., .5, 1., params=100, tokens=30.)
    costs = way_costs(student, teacher, texts=64, prompts=16, tokens_per_student_token=.5)
    on, text, right = costs[Way.ON_POLICY], costs[Way.SAMPLED_TEXT], costs[Way.FILTERED_TEXT]
    assert (on.teacher_tokens_written, on.teacher_tokens_scored, on.student_tokens_written) == (0, 64 * 20, 64 * 40)
    assert (text.teacher_tokens_written, text.teacher_tokens_scored, text.student_tokens_written) == (16 * 30, 0, 0)
    assert on.flops == 64 * (2 * 10 * 60 + 2 * 100 * 40 + 6 * 10 * 60) and text.flops == 16 * 2 * 100 * 50 + 64 * 6 * 10 * 80
    assert right.teacher_tokens_written == 2 * text.teacher_tokens_written and costs[Way.GREEDY_TEXT] == text
    assert on.seconds == pytest.approx(64 * (.1 + .01 + .03)) and text.seconds == pytest.approx(16 * .1 + 64 * .03)
    assert way_costs(student, replace(teacher, forward_seconds=None), 64, 16)[Way.ON_POLICY].seconds is None
    assert np.isfinite(way_costs(student, side(0., 0., 0.), 64, 16)[Way.FILTERED_TEXT].flops)


def planned(out, prompts="tiny", **more): return Distiller("tiny", "tiny", prompts, "cover", DistillConfig(**PLAN | {"output_dir": out} | more))


def test_the_tiny_pair(tmp_path):
    "Its teacher is nearly always right and answers one way: the record of its runs says SFT .85, cover .66."
    told, found = recommend_for(planned(tmp_path / "never"))
    assert found.way is Way.SAMPLED_TEXT and not (tmp_path / "never").exists() and told.samples == 10
    student, teacher = found.measures.student, found.measures.teacher
    assert teacher.sampled.low > student.sampled.high and teacher.entropy < student.entropy and found.measures.prompts == 40
    assert student.k == 4 and student.best_of_k.value >= student.sampled.value and found.measures.coverage > .9
    assert "pass@4" in repr(found) and "entropy" in repr(found) and set(found.measures.costs) == {Way.ON_POLICY, Way.SAMPLED_TEXT, Way.GREEDY_TEXT, Way.FILTERED_TEXT}
    again = measure_pair(planned(tmp_path / "never", eval_num_generations=6))
    assert again.student.k == 6 and again.student.greedy == student.greedy


def test_the_student_is_measured_as_it_comes(tmp_path):
    "Before the dry run has used it up."
    found = recommend_for(planned(tmp_path / "never", learning_rate=1e-2))[1].measures.student
    fresh = planned(tmp_path / "never")
    assert found.greedy == measure_side(fresh.student, fresh.eval_items, check_number, fresh.config).greedy


@pytest.mark.parametrize("prompts, more, says", [
    ([{"prompt": word} for word in ("twelve", "thirty", "nine", "forty")], dict(eval_size=2), "there is no check of answers"),
    ("tiny", dict(eval_size=8), "only 8 evaluation prompts have an answer, 30 are needed"),
    ("tiny", dict(eval_size=0), "only 0 evaluation prompts"),
    ("tiny", dict(max_new_tokens=2), "texts were cut at max_new_tokens")])
def test_too_little_for_a_recommendation(tmp_path, prompts, more, says):
    found = recommend_for(planned(tmp_path / "never", prompts, **more))[1]
    assert found.way is Way.UNKNOWN and says in found.reasons[0] and "no recommendation" in repr(found)


def test_a_check_that_judges_nothing(tmp_path):
    one = planned(tmp_path / "never")
    one.evaluator.check = lambda item, text: None
    assert recommend(measure_pair(one)).way is Way.UNKNOWN


def test_a_served_side_is_measured_without_entropy():
    from xtokd.models.side import ServedModel
    inner = load_side("tiny", "teacher")
    class Served(ServedModel):
        name, vocab, params = "served", inner.vocab, 0
        def generate(self, prompts, max_new_tokens, temperature=1., seed=None):
            from xtokd.models.sampling import generate_responses
            return generate_responses(inner.model, inner.vocab, prompts, max_new_tokens, temperature, seed=seed)
    from xtokd.data.prompts import load_prompts
    items, config = load_prompts("tiny:heldout", 6), DistillConfig(max_new_tokens=24)
    served, local = (measure_side(x, items, check_number, config, 2) for x in (Served(), inner))
    assert served.entropy is None and served.forward_seconds is None and served.greedy == local.greedy and served.sampled == local.sampled


# ---- the command ------------------------------------------------------------------------------------------------------------
FLAGS = ["--max-steps", "2", "--batch-size", "4", "--max-new-tokens", "16", "--eval-size", "32", "--no-progress"]


def test_the_command_prints_writes_and_returns_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--dry-run", *FLAGS, "--html", "page.html"]) == 0
    said, page = capsys.readouterr().out, (tmp_path / "page.html").read_text(encoding="utf8")
    assert "recommendation: train on the teacher's text" in said and "teacher minus student" in said and "nbs/21_studies" in said
    assert "recommendation: train on the teacher&#x27;s text" in page and "The planned run" in page and "time in all" in page
    assert main(["doctor", "--json", "--dry-run", *FLAGS]) == 0
    found = json.loads(capsys.readouterr().out)["recommendation"]
    assert found["recommendation"] == Way.SAMPLED_TEXT.value and found["measures"]["teacher"]["greedy"]["value"] > .8
    assert main(["doctor", "--html", "alone.html"]) == 0 and "planned run" not in (tmp_path / "alone.html").read_text(encoding="utf8")


CHECK = "def right(item, text): return float(item['want'] in text)\n"


def test_a_check_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_check.py").write_text(CHECK)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"What is {k}?", "want": "1"}) + "\n" for k in range(400)))
    flags = [*FLAGS, "--objective", "strict", "--prompts", "p.jsonl"]
    assert main(["doctor", "--dry-run", *flags]) == 0 and "there is no check" in capsys.readouterr().out
    assert main(["doctor", "--dry-run", *flags, "--check", "my_check:right"]) == 0
    assert "accuracy on 32 prompts" in capsys.readouterr().out
    assert main(["distill", *flags, "--check", "my_check:right", "--output-dir", "run"]) == 0
    assert "accuracy" in Run("run").evals[-1] and Run("run").start["args"]["check"] == "my_check:right"
    assert Distiller.from_run("run").evaluator.check({"want": "1"}, "12") == 1
    assert main(["distill", *flags, "--resume", "run", "--max-steps", "3"]) == 0 and "accuracy" in Run("run").evals[-1]
    capsys.readouterr()
    for bad, says in (("right", "check 'right': write it as MODULE:FUNCTION"), ("my_check:wrong", "my_check has no function 'wrong'")):
        assert main(["distill", *flags, "--check", bad, "--output-dir", "other"]) == 1 and says in capsys.readouterr().err
