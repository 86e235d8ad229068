"Several teachers in one run: one step is the weighted sum of steps with one teacher each; prompts without a teacher; prices."
import json

import pytest
import torch

from xtokd.cli.commands import main
from xtokd.data.prompts import load_prompts
from xtokd.experiments.tokenizer_transfer import with_tokenizer
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.models.made_tokenizers import byte_tokenizer
from xtokd.serving.server import Server
from xtokd.serving.served_costs import TokenPrice
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.dry_run import forecast
from xtokd.train.runlog import Run

SMALL = dict(max_steps=1, batch_size=6, micro_batch_size=2, max_new_tokens=16, eval_size=0, save_steps=0, progress=False, warmup_steps=0, temperature=0.)


@pytest.fixture(scope="module")
def bytewise():
    "The tiny teacher with a tokenizer of bytes: another vocabulary than that of the tiny teacher."
    model, tokenizer = load_model("tiny", "teacher"), load_tokenizer("tiny", "teacher")
    bytes_ = byte_tokenizer(tokenizer)
    return with_tokenizer(model, tokenizer, bytes_)[0], bytes_


def mixed(n=6, names=("words", "bytes")):
    return [dict(item) | {"teacher": names[i % 3 == 0]} for i, item in enumerate(load_prompts("tiny", n))]


def run_of(tmp_path, name, teacher, prompts, objective="cover", **more):
    "(the Distiller, the gradients of its only step before they are clipped, its log)"
    d = Distiller("tiny", teacher, prompts, objective, DistillConfig(**SMALL | more | {"output_dir": str(tmp_path / name)}))
    seen = []
    d.state.update = lambda step, norm: seen.extend(p.grad.clone() for p in d.student.model.parameters())
    return d, seen, d.fit()


@pytest.mark.parametrize("objective, more", [("cover", {}), ("sampled", {}), ("strict", {"logits": "recompute"}), ("sft", {"temperature": 0.})])
def test_a_step_is_that_of_the_single_teachers_weighted_by_units(tmp_path, bytewise, objective, more):
    "Greedy text, so that a run with one teacher writes what its part of the mixed run writes."
    how = more | {"max_grad_norm": 1e9}
    teachers, prompts = {"words": "tiny", "bytes": bytewise}, mixed()
    d, together, run = run_of(tmp_path, "both", teachers, prompts, objective, **how)
    pairs = [own.pair for own in d.models.by_teacher().values()]
    assert pairs[0].teacher.fingerprint != pairs[1].teacher.fingerprint
    loss, units, gradient, counts = 0., 0., 0., []
    for name, teacher in teachers.items():
        own = [item for item in prompts if item["teacher"] == name]
        _, alone, single = run_of(tmp_path, name, teacher, own, objective, **how | {"batch_size": len(own)})
        step = single.steps[0]
        loss, units = loss + step["count"] * step["loss"], units + step["count"]
        gradient = [total + step["count"] * part for total, part in zip(gradient or [0.] * len(alone), alone)]
        counts.append(step)
        logged = run.steps[0]["teachers"][name]
        assert logged["loss"] == pytest.approx(step["loss"], rel=1e-5) and logged["count"] == step["count"] and logged["samples"] == len(own)
        assert logged["teacher_tokens_scored"] == step["costs"]["teacher_tokens_scored"] and logged["teacher_tokens_written"] == step["costs"]["teacher_tokens_written"]
        if "coverage" in step: assert logged["coverage"] == pytest.approx(step["coverage"])
    step = run.steps[0]
    assert step["loss"] == pytest.approx(loss / units, rel=1e-5) and step["count"] == units
    assert len(together) == len(gradient) and any(g.abs().max() > 1e-6 for g in together)
    for mine, naive in zip(together, gradient): torch.testing.assert_close(mine, naive / units, rtol=1e-3, atol=1e-6)
    for name in ("student_tokens_written", "teacher_tokens_scored", "teacher_tokens_written", "flops"):
        assert step["costs"][name] == pytest.approx(sum(single["costs"][name] for single in counts)), name


def test_a_run_is_evaluated_saved_and_resumed(tmp_path, bytewise):
    "dskd trains projections of its own: one set for each teacher, in the checkpoint too."
    teachers, how = {"words": "tiny", "bytes": bytewise}, dict(max_steps=3, save_steps=1, eval_size=3, temperature=1., objective_learning_rate=1e-3)
    def of(name, **more): return Distiller("tiny", teachers, mixed(18), "dskd", DistillConfig(**SMALL | how | more | {"output_dir": str(tmp_path / name)}))
    whole = of("whole")
    before = [p.clone() for p in whole.state.objective_parameters]
    run = whole.fit()
    changed = [bool((p != q).any()) for p, q in zip(whole.state.objective_parameters, before)]
    assert len(before) > 0 and len(before) % 2 == 0 and any(changed[:len(before) // 2]) and any(changed[len(before) // 2:])
    assert set(run.evals[-1]["teachers"]) == {"words", "bytes"} and run.evals[-1]["teachers"]["bytes"]["n"] + run.evals[-1]["teachers"]["words"]["n"] == 3
    assert set(run.start["fingerprints"]["teacher"]) == {"words", "bytes"} and run.start["args"]["teacher"] == "in memory"
    parts = of("parts")
    stop = parts.state.update
    parts.state.update = lambda step, norm: (stop(step, norm), parts.control.stop() if step == 2 else None)
    parts.fit()
    again = of("parts").fit(resume=True)
    assert [s["loss"] for s in again.steps] == [s["loss"] for s in run.steps]


def test_stored_and_filtered_text(tmp_path):
    teachers = {"words": "tiny", "other": "tiny2"}
    how = dict(objective="sft", max_steps=2, store_text=True, on_policy_fraction=0., temperature=1.)
    d, _, run = run_of(tmp_path, "stored", teachers, mixed(6, ("words", "other")), **how)
    first, second = run.steps
    assert first["texts_written"] == 6 and second["texts_written"] == 0 and second["texts_read_again"] == 6
    assert all(own["teacher_tokens_written"] > 0 for own in first["teachers"].values()) and all(own["teacher_tokens_written"] == 0 for own in second["teachers"].values())
    scores = {}
    def check(item, text): return scores.setdefault(item["prompt"], float(len(scores) % 2))
    config = DistillConfig(**SMALL | dict(min_score=1., temperature=1., max_steps=2, batch_size=4), output_dir=tmp_path / "filtered")
    step = Distiller("tiny", teachers, mixed(12, ("words", "other")), "sft", config, check=check).fit().steps[0]
    assert step["samples"] == 4 and step["prompts_left_out"] > 0 and step["texts_written"] == 4 + step["prompts_left_out"]
    assert sum(own["teacher_tokens_written"] for own in step["teachers"].values()) == step["costs"]["teacher_tokens_written"]


def test_prompts_without_a_known_teacher_are_named(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ({"prompt": "a", "teacher": "words"}, {"prompt": "b"}, {"prompt": "c", "teacher": "word"})))
    config = DistillConfig(**SMALL, output_dir=tmp_path / "never")
    two = {"words": "no/such", "other": "no/such"}                          # said before a model is loaded
    with pytest.raises(ValueError) as error: Distiller("no/such", two, file, config=config)
    assert "2 of 3 prompts have no teacher" in str(error.value) and f"{file}, line 2: nothing in the column 'teacher'" in str(error.value)
    assert f"{file}, line 3: the column 'teacher' gives 'word'" in str(error.value) and "words, other" in str(error.value)
    with pytest.raises(ValueError, match="teacher_of gives None, which is no teacher"): Distiller("no/such", two, file, config=config, teacher_of=lambda item: None)
    with pytest.raises(ValueError, match="there is one"): Distiller("no/such", "no/such", file, config=config, teacher_of=lambda item: "words")
    with pytest.raises(ValueError, match="no prompt is for the teacher 'other'"): Distiller("tiny", {"words": "tiny", "other": "tiny2"}, [{"prompt": "a", "teacher": "words"}], config=config)
    assert not (tmp_path / "never").exists()


PLUGIN = 'def by_length(item): return "words" if len(item["prompt"]) % 2 else "other"\n'


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_teachers.py").write_text(PLUGIN)
    rows = [{"prompt": item["prompt"], "whose": ("words", "other")[i % 2]} for i, item in enumerate(load_prompts("tiny", 8))]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--prompts", "p.jsonl", "--max-steps", "1", "--batch-size", "4", "--max-new-tokens", "6", "--eval-size", "0", "--no-progress", "--teachers", "words=tiny", "other=tiny2"]
    assert main(["distill", *flags, "--teacher-column", "whose", "--output-dir", "column"]) == 0
    assert sum(own["samples"] for own in Run("column").steps[0]["teachers"].values()) == 4
    assert main(["distill", *flags, "--teacher-of", "my_teachers:by_length", "--output-dir", "function"]) == 0
    assert main(["distill", "--resume", "function", "--max-steps", "2"]) == 0 and len(Run("function").steps) == 2
    assert Run("function").start["args"]["teacher"] == {"words": "tiny", "other": "tiny2"} and not [w for w in Run("function").warnings if "other settings: teacher" in w["message"]]
    capsys.readouterr()
    for wrong, words in ((["words"], "NAME=MODEL"), (["words=tiny", "words=tiny2"], "comes twice"), (["a.b=tiny"], "letters, digits"), (["words=tiny", "other=tiny2"], "p.jsonl, line 1: nothing in the column")):
        assert main(["distill", *flags[:-3], "--teachers", *wrong, "--output-dir", "no"]) == 1
        assert words in capsys.readouterr().err
    assert main(["doctor", "--dry-run", *flags, "--teacher-column", "whose"]) == 0 and "several teachers" in capsys.readouterr().out


def test_the_price_of_served_teachers_in_costs_and_dry_run(tmp_path):
    "One of two teachers is served; the price is that of the tokens that it has read and written."
    with Server(load_model("tiny", "teacher", device="cpu"), load_tokenizer("tiny", "teacher"), "tiny") as server:
        teachers = {"served": f"{server.url}#{server_tokenizer()}", "here": "tiny2"}
        prompts, price = mixed(6, ("served", "here")), {"read": 3., "written": 7.}
        plan = dict(max_steps=2, teacher_price=price, teacher_concurrency=2)
        run = run_of(tmp_path, "on", teachers, prompts, "sampled", **plan)[2]
        own = run.steps[0]["teachers"]["served"]
        assert 0 < run.steps[0]["costs"]["teacher_price"] < run.steps[1]["costs"]["teacher_price"] and own["teacher_tokens_written"] == 0
        read_only = TokenPrice(3., 7.).of(own["teacher_tokens_scored"], 0)
        assert run.steps[0]["costs"]["teacher_price"] > read_only, "prompts are read too"
        d = Distiller("tiny", teachers, prompts, "sampled", DistillConfig(**SMALL | plan | {"teacher_price": {"served": price}}, output_dir=tmp_path / "never"))
        assert d.teacher.concurrency == 2
        told = forecast(d, 6)
        assert told.served["price in all"] == pytest.approx(run.steps[1]["costs"]["teacher_price"]) and told.served["price a step"] == pytest.approx(told.served["price in all"] / 2)
        assert 20 < told.served["bytes a token"] < 2000 and told.served["GiB of log-probs"] > 0 and "price in all" in repr(told)
        text = run_of(tmp_path, "off", teachers, prompts, "sft", **plan)[2].steps[0]
        written = text["teachers"]["served"]["teacher_tokens_written"]
        assert written > 0 and text["costs"]["teacher_price"] >= 7e-6 * written
        with pytest.raises(ValueError, match="of 'here' is given, and served teachers are served"): run_of(tmp_path, "no", teachers, prompts, "sampled", **plan | {"teacher_price": {"here": 1.}})
    assert "teacher_price" not in run_of(tmp_path, "free", "tiny", "tiny")[2].steps[0]["costs"]
    with pytest.raises(ValueError, match="no teacher is served"): run_of(tmp_path, "no2", "tiny", "tiny", teacher_price=1.)
    with pytest.raises(ValueError, match="teacher_price is 'cheap': it is the price of a million tokens"): DistillConfig(teacher_price="cheap")


def server_tokenizer():
    from xtokd.hub import resolve
    return resolve("tiny", "teacher")


def test_what_several_teachers_cannot_do(tmp_path):
    config = DistillConfig(**SMALL, output_dir=tmp_path / "never")
    with pytest.raises(ValueError, match="so it has one teacher"): Distiller("tiny", {"words": "tiny", "bytes": "tiny2"}, mixed(), "compass", config, auxiliary_models={"weak": "tiny"})
    with pytest.raises(ValueError, match="take letters, digits"): Distiller("tiny", {"my teacher": "tiny"}, mixed(), config=config)
