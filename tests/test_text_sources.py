"""Who writes the text of a step: fresh, stored, frozen and filtered text, its costs, and what a resume makes of it."""
import json
from collections import Counter

import numpy as np
import pytest
import torch

from xtokd.data.prompts import load_prompts
from xtokd.data.response_format import readable_response
from xtokd.data.stored_texts import StoredText, StoredTexts
from xtokd.models.lora import WithoutAdapter
from xtokd.models.sampling import generate_responses
from xtokd.objectives import OBJECTIVES, objective
from xtokd.train.callbacks import Callback
from xtokd.train.config import DistillConfig, check_text_source, prompt_indices, prompts_from
from xtokd.train.distiller import Distiller
from xtokd.train.runlog import Run
from xtokd.train.samples import CandidateWriter, TextSource, generate_samples
from xtokd.models.side import load_side

torch.set_num_threads(1)
ITEMS = load_prompts("tiny", limit=8)
SMALL = dict(max_steps=4, batch_size=4, micro_batch_size=4, max_new_tokens=12, eval_size=0, eval_on_start=False, progress=False, warmup_steps=0, learning_rate=1e-2, save_steps=0)
OFF = dict(on_policy_fraction=0)


def distiller(out, obj="sft", items=ITEMS, callbacks=(), check=None, **how):
    return Distiller("tiny", "tiny", items, obj, DistillConfig(**SMALL | how | {"output_dir": str(out)}), callbacks=callbacks, check=check)


def watch(d):
    "The samples of each step of a run that is trained now."
    seen, write = [], d.generator.samples
    def samples(items, text_source, seed):
        found = write(items, text_source, seed)
        seen.append([(s.item["prompt"], tuple(s.student_ids), tuple(s.teacher_ids)) for s in found])
        return found
    d.generator.samples = samples
    return seen


def weights(d): return torch.cat([p.detach().flatten() for p in d.student.model.parameters()])
def tokens(samples, side): return sum(len(ids[1 + (side == "teacher")]) for ids in samples)
def even(item, text): return float(len(text) % 2 == 0)
def of_step(run, name): return np.diff([0, *[s["costs"][name] for s in run.steps]])


class StopAfter(Callback):
    def __init__(self, step): self.step = step
    def on_step(self, d, record):
        if record["step"] == self.step: d.control.stop()


# ---- which writers there are --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sft", "cover", "strict"])
@pytest.mark.parametrize("how", [dict(off_policy_source="teacher"), dict(off_policy_source="teacher", store_text=True), dict(off_policy_source="frozen_student"),
                                 dict(off_policy_source="teacher", min_score=1, num_candidates=3), dict(off_policy_source="frozen_student", min_score=1, num_candidates=3), dict(off_policy_source="teacher", teacher_temperature=0)],
                         ids=["fresh", "stored", "frozen", "filtered", "frozen filtered", "greedy"])
def test_every_source_trains_and_its_costs_are_those_of_its_texts(tmp_path, name, how):
    d = distiller(tmp_path, name, check=even, **OFF, **how)
    seen, start = watch(d), weights(d)
    run = d.fit()
    assert run.finished and len(run.steps) == 4 and (weights(d) != start).any()
    writer = "student" if how["off_policy_source"] == "frozen_student" else "teacher"
    written = of_step(run, f"{writer}_tokens_written")
    other = of_step(run, f"{'teacher' if writer == 'student' else 'student'}_tokens_written")
    assert not other.any()
    if how.get("min_score"): assert sum(s["texts_kept"] for s in run.steps) == 16 and sum(s["texts_written"] for s in run.steps) > (8 if writer == "student" else 16)
    elif writer == "teacher" and not how.get("store_text"): assert written.tolist() == [tokens(s, writer) for s in seen]
    else: assert written.tolist() == [tokens(s, writer) for s in seen[:2]] + [0, 0] and [s["texts_read_again"] for s in run.steps] == [0, 0, 4, 4]
    assert of_step(run, "teacher_tokens_scored").any() == (name != "sft")


def test_stored_text_is_the_same_in_every_epoch_and_fresh_text_is_not(tmp_path):
    texts = {}
    for name, how in {"stored": dict(store_text=True), "fresh": {}}.items():
        d = distiller(tmp_path / name, teacher_temperature=2., **how)
        seen = watch(d)
        d.fit()
        texts[name] = [dict((prompt, ids) for prompt, ids, _ in seen[2 * k] + seen[2 * k + 1]) for k in (0, 1)]
    assert texts["stored"][0] == texts["stored"][1] == texts["fresh"][0] != texts["fresh"][1]
    lines = [json.loads(line) for line in (tmp_path / "stored/texts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and sum(len(line["texts"]) for line in lines) == 8
    assert not (tmp_path / "fresh/texts.jsonl").exists()


def test_frozen_text_is_that_of_the_student_at_the_start(tmp_path):
    "The start writes in epoch 1, when the student has changed already; the student of step 3 would write something else."
    d = distiller(tmp_path, off_policy_source="frozen_student", temperature=0, max_steps=2, learning_rate=.05)
    seen = watch(d)
    d.fit()
    side = load_side("tiny", "student")
    written = {item["prompt"]: s.student_ids for item, s in zip(ITEMS, generate_samples(ITEMS, side, load_side("tiny", "teacher"), d.config, "student", 0))}
    assert {prompt: list(ids) for step in seen for prompt, ids, _ in step} == written
    now = generate_samples(ITEMS, d.student, d.teacher, d.config, "student", 0)
    assert {s.item["prompt"]: s.student_ids for s in now} != written
    assert all(not p.requires_grad for p in d.models.frozen.model.parameters())


def test_a_frozen_student_with_an_adapter_writes_without_it(tmp_path):
    peft = pytest.importorskip("peft")
    d = distiller(tmp_path, off_policy_source="frozen_student", temperature=0, max_steps=1, lora_r=4, learning_rate=.5)
    assert isinstance(d.models.frozen.model, WithoutAdapter) and peft
    prompts = [[5, 6, 7]]
    before = generate_responses(d.models.frozen.model, d.student.vocab, prompts, 8, 0.)
    with torch.no_grad():
        for name, p in d.student.model.named_parameters():
            if "lora_" in name: p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert generate_responses(d.models.frozen.model, d.student.vocab, prompts, 8, 0.) == before != generate_responses(d.student.model, d.student.vocab, prompts, 8, 0.)


# ---- filtered text --------------------------------------------------------------------------------------------------------------
def test_only_good_texts_are_trained_on_and_all_are_paid(tmp_path):
    judged = []
    def check(item, text):
        judged.append((item["prompt"], text))
        return even(item, text)
    d = distiller(tmp_path, check=check, min_score=1, num_candidates=2)
    seen = watch(d)
    run = d.fit()
    vocab = d.student.vocab
    assert all(even({}, readable_response(vocab, list(ids))) for step in seen for _, ids, _ in step)
    assert len(judged) == sum(s["texts_written"] for s in run.steps) and [s["samples"] for s in run.steps] == [4] * 4
    assert [s["texts_kept"] for s in run.steps] == [4] * 4 and sum(s["prompts_left_out"] for s in run.steps) > 0
    kept = sum(tokens(step, "teacher") for step in seen)
    assert run.steps[-1]["costs"]["teacher_tokens_written"] > kept
    best = Counter(prompt for prompt, _ in judged)
    assert max(best.values()) > 2                                # rejected twice in one epoch, judged again in the next


def test_stored_and_filtered_a_prompt_without_a_right_text_is_not_asked_again(tmp_path):
    asked = Counter()
    def check(item, text):
        asked[item["prompt"]] += 1
        return even(item, text) if item["prompt"] != ITEMS[0]["prompt"] else 0
    d = distiller(tmp_path, check=check, min_score=1, num_candidates=2, store_text=True, max_steps=6)
    seen = watch(d)
    run = d.fit()
    assert max(asked.values()) <= 2 and asked[ITEMS[0]["prompt"]] == 2 and run.steps[-1]["texts_written"] == 0 < run.steps[-1]["texts_read_again"]
    assert ITEMS[0]["prompt"] not in {prompt for step in seen for prompt, _, _ in step}
    stored = StoredTexts()
    stored.open(tmp_path / "texts.jsonl", 6)
    assert sum(text.ids is None for text in stored.texts.values()) >= 1 and not stored.unpaid
    assert sum(text.counts["generated_by_teacher"] for text in stored.texts.values()) == run.steps[-1]["costs"]["teacher_tokens_written"]


def test_a_filter_that_keeps_everything_changes_nothing(tmp_path):
    plain, all_good = distiller(tmp_path / "a"), distiller(tmp_path / "b", check=lambda item, text: 1, min_score=.5)
    runs = [d.fit() for d in (plain, all_good)]
    assert torch.equal(weights(plain), weights(all_good)) and runs[0].steps[-1]["costs"]["flops"] == runs[1].steps[-1]["costs"]["flops"]


def test_own_texts_and_references_are_filtered_too(tmp_path):
    items = [item | {"reference": "seven" if k % 2 else "12"} for k, item in enumerate(ITEMS)]
    d = distiller(tmp_path / "a", items=items, check=even, min_score=1, off_policy_source="reference")
    seen = watch(d)
    d.fit()
    assert {prompt for step in seen for prompt, _, _ in step} == {item["prompt"] for item in items[::2]}
    run = distiller(tmp_path / "b", "cover", check=even, min_score=1).fit()
    assert [s["text_source"] for s in run.steps] == ["student"] * 4 and sum(s["prompts_left_out"] for s in run.steps) > 0


BAD = [(dict(num_candidates=3), "num_candidates is 3 without min_score"), (dict(min_score=2), "at most 1"), (dict(min_score="1"), "must be a number"), (dict(num_candidates=0, min_score=1), "at least 1"),
       (dict(num_candidates=1.5, min_score=1), "whole number"), (dict(teacher_temperature=-1), "at least 0"), (dict(off_policy_source="me"), "teacher, reference, frozen_student")]


@pytest.mark.parametrize("how, says", BAD)
def test_settings_are_checked(how, says):
    with pytest.raises(ValueError, match=says): DistillConfig(**how)


MISMATCH = [("cover", dict(store_text=True), "store_text has nothing to store: every step is on fresh text of the student"), ("sft", dict(store_text=True, off_policy_source="reference"), "references are not generated"),
            ("sampled", dict(on_policy_fraction=.5, off_policy_source="frozen_student"), "makes no sense on text of the frozen_student"), ("ctpd", dict(min_score=1), "compares answers that come with the prompts"),
            ("sft", dict(min_score=1, num_candidates=4, teacher_temperature=0), "the same each time"), ("sft", dict(min_score=1, num_candidates=4, off_policy_source="reference"), "text of the reference is")]


@pytest.mark.parametrize("name, how, says", MISMATCH)
def test_settings_that_an_objective_has_no_use_for(name, how, says):
    with pytest.raises(ValueError, match=says): check_text_source(objective(name), DistillConfig(**how))


def test_a_filter_needs_a_check_and_something_that_passes_it(tmp_path):
    with pytest.raises(ValueError, match="no check that gives a score: pass check="): distiller(tmp_path / "a", min_score=1)
    with pytest.raises(ValueError, match="none of the last 8 prompts has a text of the teacher whose score is at least min_score=1"): distiller(tmp_path / "b", check=lambda item, text: 0, min_score=1).fit()
    with pytest.raises(ValueError, match="a score is a number from 0"): distiller(tmp_path / "c", check=lambda item, text: 7, min_score=1).fit()
    assert distiller(tmp_path / "d", items="tiny", min_score=1, num_candidates=2, max_steps=1).fit().finished     # a built-in task has its check


def test_every_objective_says_whether_it_learns_from_frozen_text():
    "Those that learn from references do; policy gradients of the student's own text do not."
    for name, spec in OBJECTIVES.items():
        config = DistillConfig(on_policy_fraction=0, off_policy_source="frozen_student")
        if "reference" in spec.text_sources and "preferences" not in spec.requires: check_text_source(objective(name), config)
        else:
            with pytest.raises(ValueError, match="makes no sense|compares answers"): check_text_source(objective(name), config)


def test_a_check_by_name_filters_on_the_command_line_and_at_a_resume(tmp_path, monkeypatch, capsys):
    from xtokd.cli.commands import main
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_checks.py").write_text("def even(item, text): return float(len(text) % 2 == 0)\n")
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": item["prompt"]}) for item in ITEMS))
    flags = ["--prompts", "p.jsonl", "--max-steps", "1", "--batch-size", "4", "--max-new-tokens", "12", "--eval-size", "0", "--no-progress", "--objective", "sft", "--min-score", "1", "--num-candidates", "2", "--store-text"]
    assert main(["distill", *flags, "--output-dir", "run"]) == 1 and "--check MODULE:FUNCTION" in capsys.readouterr().err
    assert main(["distill", *flags, "--check", "my_checks:even", "--output-dir", "run"]) == 0
    assert main(["distill", "--resume", "run", "--max-steps", "2", "--no-progress"]) == 0
    run = Run(tmp_path / "run")
    assert run.start["args"]["check"] == "my_checks:even" and [s["texts_kept"] for s in run.steps] == [4, 4]
    assert main(["distill", *flags, "--check", "my_checks:odd", "--output-dir", "b"]) == 1 and "my_checks has no function 'odd'" in capsys.readouterr().err
    assert Distiller.from_run(tmp_path / "run").generator.texts.writer.score({}, "ab") == 1


# ---- the temperature of the writer ------------------------------------------------------------------------------------------------
def test_each_writer_has_its_temperature():
    student, teacher = load_side("tiny", "student"), load_side("tiny", "teacher")
    def texts(source, **how): return [s.student_ids for s in generate_samples(ITEMS, student, teacher, DistillConfig(max_new_tokens=12, **how), source, 3)]
    assert texts("teacher", teacher_temperature=0) == texts("teacher", temperature=0) != texts("teacher", teacher_temperature=2.) == texts("teacher", temperature=2.)
    assert texts("student", teacher_temperature=0) == texts("student") and texts("student", temperature=0, teacher_temperature=1.) == texts("student", temperature=0)
    greedy = generate_responses(teacher.model, teacher.vocab, [s.teacher_prompt_ids for s in generate_samples(ITEMS, student, teacher, DistillConfig(max_new_tokens=12, temperature=0), "teacher")], 12, 0.)
    assert [s.teacher_ids for s in generate_samples(ITEMS, student, teacher, DistillConfig(max_new_tokens=12, teacher_temperature=0), "teacher", 9)] == greedy


def test_a_greedy_writer_leaves_the_temperature_of_the_loss_alone(tmp_path):
    "The same greedy teacher text at two temperatures of the loss; the rows of both sides are at that of the loss."
    runs = [distiller(tmp_path / str(t), "cover", **OFF, teacher_temperature=0, loss_temperature=t, max_steps=1) for t in (1., 2.)]
    seen = [watch(d) for d in runs]
    losses = [d.fit().steps[0]["loss"] for d in runs]
    assert seen[0] == seen[1] and losses[0] != losses[1]


# ---- resume -------------------------------------------------------------------------------------------------------------------------
HOW = {"stored": dict(store_text=True), "frozen": dict(off_policy_source="frozen_student"), "filtered": dict(min_score=1, num_candidates=2), "both": dict(min_score=1, num_candidates=2, store_text=True)}


@pytest.mark.parametrize("how", HOW.values(), ids=list(HOW))
def test_a_resumed_run_takes_the_same_steps(tmp_path, how):
    whole = distiller(tmp_path / "whole", check=even, **how)
    want = whole.fit()
    distiller(tmp_path / "part", check=even, callbacks=[StopAfter(2)], **how).fit()
    d = distiller(tmp_path / "part", check=even, **how)
    run = d.fit(resume=True)
    assert torch.equal(weights(whole), weights(d)) and len(run.steps) == 4
    for a, b in zip(want.steps, run.steps): assert a["loss"] == b["loss"] and {k: v for k, v in a["costs"].items() if k != "seconds"} == {k: v for k, v in b["costs"].items() if k != "seconds"}


def test_texts_of_steps_that_are_taken_again_are_not_written_again_but_counted(tmp_path):
    "The checkpoint of step 1 and the texts of steps 1 and 2: as after a kill between them."
    def run_of(name, **how): return distiller(tmp_path / name, store_text=True, max_steps=3, save_steps=1, save_total_limit=9, **how)
    want = run_of("whole").fit()
    run_of("part", callbacks=[StopAfter(2)]).fit()
    import shutil
    shutil.rmtree(tmp_path / "part/checkpoints/step-000002")
    d = run_of("part")
    generated, write = [], d.generator.texts.writer.generate
    d.generator.texts.writer.generate = lambda *a: generated.append(1) or write(*a)
    run = d.fit(resume=True)
    assert run.steps[-1]["costs"]["teacher_tokens_written"] == want.steps[-1]["costs"]["teacher_tokens_written"] and run.steps[-1]["loss"] == want.steps[-1]["loss"]
    assert generated == [1] * len(generated) and not d.generator.texts.stored.unpaid
    assert len((tmp_path / "part/texts.jsonl").read_text().splitlines()) == 2                    # nothing was written twice


def test_a_line_that_a_kill_cut_off_is_written_again(tmp_path):
    file = tmp_path / "texts.jsonl"
    store = StoredTexts()
    store.open(file, 0)
    for step in (1, 2):
        store.add(str(step), StoredText([step], counts={"generated_by_teacher": 1}))
        store.add_changes([store.changes()], step)
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        again = StoredTexts()
        again.open(file, 2)
        assert set(again.texts) == {"1", "2"} or again.open_keys(["1", "2"])[-1] == "2" and file.read_bytes() in (b"", whole[:whole.index(b"\n") + 1])


def test_two_processes_share_what_each_has_written():
    "Both add a text, one pays another's later: every process knows both, and pays each once."
    one, two = StoredTexts(), StoredTexts()
    one.add("a", StoredText([1], counts={"x": 1}))
    two.add("b", StoredText([2], counts={"x": 2}))
    for store in (one, two): store.texts["c"], store.unpaid = StoredText([3], counts={"x": 3}), {"c"}       # read from a file that is ahead
    assert one.pay("c") == Counter(x=3) and not one.pay("a") and one.open_keys("abcd") == ["b", "d"]
    changes = [one.changes(), two.changes()]
    for store in (one, two): store.add_changes(changes, 1)
    assert one.texts == two.texts and not one.unpaid | two.unpaid and not two.pay("c") and one.open_keys("abcd") == two.open_keys("abcd") == ["d"]


def test_settings_that_change_a_text_are_other_texts(tmp_path):
    student, teacher = load_side("tiny", "student"), load_side("tiny", "teacher")
    source = TextSource(CandidateWriter(student, teacher, DistillConfig(max_new_tokens=12, store_text=True)))
    source.samples(ITEMS[:2], "teacher", 0)
    other = TextSource(CandidateWriter(student, teacher, DistillConfig(max_new_tokens=11, store_text=True)))
    other.stored = source.stored
    other.samples(ITEMS[:2], "teacher", 0)
    assert other.take_counts()["texts_written"] == 2


# ---- prompts ------------------------------------------------------------------------------------------------------------------------
def test_prompts_from_a_place_are_the_prompts_of_the_steps():
    steps = [i for step in range(1, 9) for i in prompt_indices(7, step, 3, 5)]
    assert steps == prompts_from(7, 0, 24, 5) == prompts_from(7, 0, 10, 5) + prompts_from(7, 10, 14, 5)


# ---- both halves of a mixed run -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name, spec in OBJECTIVES.items() if {"student", "teacher"} <= set(spec.text_sources) and not spec.equal_vocabularies])
def test_text_of_both_writers_gives_gradients_of_one_scale(tmp_path, name):
    """The same texts, once named the student's and once the teacher's: where an objective has one loss for both, the gradient is the same;
    where it adds cross-entropy on text of others, or leaves a part out, it is of like size. So are those of a mixed run."""
    d = distiller(tmp_path, name, max_steps=1)
    samples = generate_samples(ITEMS, d.student, d.teacher, d.config, "teacher", 0)
    norms = []
    for source in ("student", "teacher"):
        for p in d.state.parameters: p.grad = None
        totals = d.stepper.forward_backward(samples, source)
        own = [p.grad.flatten() for p in d.student.model.parameters() if p.grad is not None]
        norms.append((torch.cat(own) / totals.num_units).norm().item())
    assert .2 < norms[1] / norms[0] < 5
    if name in ("cover", "strict", "bpm", "uld", "simct"): assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_steps_of_a_mixed_run_are_means_over_their_own_units(tmp_path):
    d = distiller(tmp_path, "cover", items="tiny", max_steps=12, on_policy_fraction=.5, off_policy_source="teacher", learning_rate=1e-5, max_new_tokens=24)
    run = d.fit()
    size = {source: [s["grad_norm"] for s in run.steps if s["text_source"] == source] for source in ("student", "teacher")}
    assert min(map(len, size.values())) >= 2 and .2 < np.mean(size["student"]) / np.mean(size["teacher"]) < 5
