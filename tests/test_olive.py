"""OLIVE: the student begins, the teacher continues; where the prefix may end, what has a loss, what it costs, and that any teacher that writes will do."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from batches import full
from test_remote import remote, serve
from xtokd.alignment.pair import Pair
from xtokd.alignment.reasons import Reason
from xtokd.data.prompts import load_prompts
from xtokd.exact.toy_models import toy_bpe
from xtokd.models.continuation import TakeOver, beginning, takeover_places, whole_characters
from xtokd.models.side import load_side
from xtokd.objectives import OBJECTIVES, names_without_full_rows, objective
from xtokd.train.config import DistillConfig, check_text_source
from xtokd.train.distiller import Distiller
from xtokd.train.forward_batch import ModelSet, build_batch
from xtokd.train.runlog import Run
from xtokd.train.samples import generate_samples, writing_counts

torch.set_num_threads(1)
STUDENT, TEACHER = load_side("tiny", "student"), load_side("tiny", "teacher")
ITEMS = load_prompts("tiny", limit=16)
CONFIG = DistillConfig(max_new_tokens=24)
SMALL = dict(max_steps=4, batch_size=4, micro_batch_size=2, max_new_tokens=16, eval_size=0, eval_on_start=False, progress=False, warmup_steps=0, learning_rate=1e-2, save_steps=0)


def begun(seed=0, **how): return generate_samples(ITEMS, STUDENT, TEACHER, replace(CONFIG, **how), "continuation", seed)
def distiller(out, obj="olive", teacher="tiny", **how): return Distiller("tiny", teacher, ITEMS, obj, DistillConfig(**SMALL | how | {"output_dir": str(out)}))
def weights(d): return torch.cat([p.detach().flatten() for p in d.student.model.parameters()])


# ---- the text -----------------------------------------------------------------------------------------------------------------
def test_a_prefix_ends_where_both_sides_have_a_boundary():
    "The prefix is the beginning of what the student wrote; both sides have the same bytes before and behind the place, and the place is one of all that there are."
    rollouts = generate_samples(ITEMS, STUDENT, TEACHER, CONFIG, "student", 0)
    lengths = set()
    for own, sample in zip(rollouts, begun()):
        places = takeover_places(own.student_ids, own.teacher_ids, STUDENT.vocab, TEACHER.vocab)
        assert TakeOver(sample.prefix, sample.teacher_prefix) in places
        assert sample.student_ids[:sample.prefix] == own.student_ids[:sample.prefix] and sample.teacher_ids[:sample.teacher_prefix] == own.teacher_ids[:sample.teacher_prefix]
        for part in (slice(None, sample.prefix), slice(sample.prefix, None)):
            teacher_part = slice(None, sample.teacher_prefix) if part.start is None else slice(sample.teacher_prefix, None)
            assert STUDENT.vocab.decode(sample.student_ids[part]) == TEACHER.vocab.decode(sample.teacher_ids[teacher_part])
        assert sample.rollout == len(own.student_ids) and len(sample.teacher_ids) > sample.teacher_prefix
        lengths.add(sample.prefix)
    assert 0 in lengths and len(lengths) > 4


def test_no_prefix_ends_inside_a_token_of_the_teacher():
    "Three letters are one token of the teacher and three of the student: there is no place inside them."
    student, teacher = toy_bpe("ab", []), toy_bpe("ab", [("a", "b"), ("ab", "a")])
    ids = student.encode("abaab"), teacher.encode("abaab")
    assert [teacher.decode([i]) for i in ids[1]] == [b"aba", b"ab"]
    assert takeover_places(*ids, student, teacher) == [TakeOver(0, 0), TakeOver(3, 1), TakeOver(5, 2)]
    random = np.random.default_rng(0)
    assert {tuple(map(len, beginning(*ids, student, teacher, random, 9, 9))) for _ in range(50)} == {(0, 0), (3, 1), (5, 2)}
    assert {tuple(map(len, beginning(*ids, student, teacher, random, 4, 9))) for _ in range(50)} == {(0, 0), (3, 1)}


def test_no_prefix_ends_inside_a_character():
    vocab = STUDENT.vocab
    ids = vocab.encode("é🙂"), TEACHER.vocab.encode("é🙂")
    for place in takeover_places(*ids, vocab, TEACHER.vocab): vocab.decode(ids[0][:place.student]).decode()


@pytest.mark.parametrize("text", ["a 🙂", "é", "中文", "ab", ""])
def test_half_a_character_at_the_end_is_cut_off(text):
    for vocab in (STUDENT.vocab, TEACHER.vocab):
        ids = vocab.encode(text)
        for k in range(len(ids) + 1):
            kept = whole_characters(vocab, ids[:k])
            assert text.startswith(vocab.decode(kept).decode()) and kept == ids[:len(kept)]
            assert len(kept) == k or len(vocab.decode(ids[:k]).decode(errors="ignore").encode()) == len(vocab.decode(kept))
    broken = [vocab.bytes.index(b"\x9f"), *vocab.encode("a")]
    assert whole_characters(vocab, broken) == broken                          # invalid inside: nothing to repair at the end


def test_the_teacher_goes_on_from_the_prefix_and_its_stop_is_the_students():
    samples = begun(temperature=0, teacher_temperature=0)
    from xtokd.models.sampling import generate_responses
    for sample in samples:
        prompt = [*sample.teacher_prompt_ids, *sample.teacher_ids[:sample.teacher_prefix]]
        room = CONFIG.max_new_tokens - sample.teacher_prefix
        assert generate_responses(TEACHER.model, TEACHER.vocab, [prompt], room, 0.)[0] == sample.teacher_ids[sample.teacher_prefix:]
        stopped = sample.teacher_ids[-1] in TEACHER.vocab.end_ids
        assert stopped == (sample.student_ids[-1] in STUDENT.vocab.end_ids)
    assert sum(s.student_ids[-1] in STUDENT.vocab.end_ids for s in samples) > 12


def test_limits_of_prefix_and_continuation():
    for sample in begun(max_prefix_tokens=3, max_continuation_tokens=2):
        assert sample.prefix <= 3 and sample.rollout <= 3 and 1 <= len(sample.teacher_ids) - sample.teacher_prefix <= 2
    assert {s.prefix for s in begun(max_prefix_tokens=1)} <= {0, 1}
    assert all(len(s.teacher_ids) <= 24 for s in begun())
    tight = max(len(s.teacher_prompt_ids) for s in begun()) + 6
    assert all(len(s.teacher_prompt_ids) + len(s.teacher_ids) <= tight for s in begun(max_length=tight))


def test_the_same_seed_draws_the_same_places():
    a, b, c = begun(5), begun(5), begun(6)
    assert [s.student_ids for s in a] == [s.student_ids for s in b] != [s.student_ids for s in c]


# ---- the loss -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["olive", "cover", "strict"])
def test_the_prefix_has_no_loss_and_says_why(name):
    samples = begun()
    batch, _ = build_batch(samples, ModelSet(STUDENT, TEACHER), objective(name), CONFIG, "continuation")
    out = objective(name)(batch)
    prefix = np.concatenate([np.arange(len(s.student_ids)) < s.prefix for s in samples])
    assert prefix.any() and (out.ledger["reason"][prefix] == Reason.STUDENT_PREFIX).all() and not out.ledger["weight"][prefix].any() and not out.token_loss[prefix].any()
    assert out.ledger["weight"][~prefix].any() and not (out.ledger["reason"][~prefix] == Reason.STUDENT_PREFIX).any()


def test_the_loss_is_the_plain_sum_over_the_continuation():
    samples = begun()
    batch, counts = build_batch(samples, ModelSet(STUDENT, TEACHER), objective("olive"), CONFIG, "continuation")
    out = objective("olive")(batch)
    total, n = 0., 0
    for sample in samples:
        ids = torch.tensor([[*sample.student_prompt_ids, *sample.student_ids]])
        logp = STUDENT.model(ids).logits[0, :-1, :len(STUDENT.vocab)].log_softmax(-1)
        own = logp[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(sample.student_prompt_ids) - 1:]
        total, n = total - float(own[sample.prefix:].detach().sum()), n + len(sample.student_ids) - sample.prefix
    assert out.num_units == n and float(out.loss_sum.detach()) == pytest.approx(total, rel=1e-4)
    assert "teacher_tokens_scored" not in counts and batch.teacher is None


def test_a_window_and_a_prefix_leave_out_what_either_leaves_out():
    whole, _ = full(Pair("tiny", "tiny"), text_source="continuation")
    n = len(whole.alignment.student_ids)
    window, prefix = np.arange(n) < n - 6, np.arange(n) < 5
    weights = [objective("olive")(replace(whole, **how)).ledger["weight"] for how in (dict(window=window), dict(prefix=prefix), dict(window=window, prefix=prefix))]
    assert (weights[2] == weights[0] * weights[1]).all() and weights[2].any() and not weights[2][~window | prefix].any()


# ---- a run --------------------------------------------------------------------------------------------------------------------
def test_a_run_counts_what_both_have_written(tmp_path):
    d = distiller(tmp_path)
    seen, write = [], d.generator.samples
    d.generator.samples = lambda *a: seen.append(write(*a)) or seen[-1]
    start = weights(d)
    run = d.fit()
    costs = run.steps[-1]["costs"]
    samples = [s for step in seen for s in step]
    assert costs["student_tokens_written"] == sum(s.rollout for s in samples) and costs["teacher_tokens_scored"] == 0
    assert costs["teacher_tokens_written"] == sum(len(s.teacher_ids) - s.teacher_prefix for s in samples) > 0
    flops = 0
    for s in samples:
        counts = writing_counts(s, "continuation")
        flops += 2 * d.student.params * (counts["read_by_student"] + s.rollout) + 2 * d.teacher.params * (counts["read_by_teacher"] + counts["generated_by_teacher"]) + 6 * d.student.params * len(s)
    assert costs["flops"] == pytest.approx(flops) and (weights(d) != start).any()
    assert all(s["text_source"] == "continuation" for s in run.steps) and run.steps[0]["count"] == sum(len(s.student_ids) - s.prefix for s in seen[0])


def test_a_resumed_run_takes_the_same_steps(tmp_path):
    whole = distiller(tmp_path / "whole")
    want = whole.fit()
    distiller(tmp_path / "part", max_steps=2).fit()
    d = distiller(tmp_path / "part")
    got = d.fit(resume=True)
    assert torch.equal(weights(whole), weights(d)) and [s["loss"] for s in want.steps] == [s["loss"] for s in got.steps]


@pytest.mark.parametrize("name", [name for name, spec in OBJECTIVES.items() if "teacher" in spec.text_sources and "preferences" not in spec.requires and not spec.equal_vocabularies])
def test_every_objective_that_reads_text_of_the_teacher_reads_continuations(tmp_path, name):
    run = distiller(tmp_path, name, max_steps=1, on_policy_fraction=0, off_policy_source="continuation").fit()
    assert np.isfinite(run.steps[0]["loss"]) and run.steps[0]["count"] > 0


def test_a_served_teacher_continues_and_gives_no_log_prob(tmp_path):
    near = distiller(tmp_path / "near", temperature=0).fit()
    with serve() as server:
        far = distiller(tmp_path / "far", teacher=remote(server), temperature=0).fit()
        asked = server.seen
    assert asked and all("prompt_logprobs" not in body and "logprobs" not in body for body in asked)
    assert [s["loss"] for s in far.steps] == pytest.approx([s["loss"] for s in near.steps], rel=1e-5)
    assert far.steps[-1]["costs"]["teacher_tokens_written"] == near.steps[-1]["costs"]["teacher_tokens_written"]


def test_filtered_continuations_and_the_command_line(tmp_path, capsys):
    from xtokd.cli.commands import main
    flags = ["--max-steps", "2", "--batch-size", "2", "--max-new-tokens", "16", "--eval-size", "0", "--no-progress", "--objective", "olive", "--min-score", "1", "--num-candidates", "2", "--max-prefix-tokens", "6"]
    assert main(["distill", *flags, "--output-dir", str(tmp_path / "run")]) == 0
    steps = Run(tmp_path / "run").steps
    assert [s["texts_kept"] for s in steps] == [2, 2] and all(s["texts_written"] >= 2 for s in steps)
    assert main(["methods", "olive"]) == 0 and "arXiv 2609.36246" in capsys.readouterr().out


def test_it_asks_for_nothing_but_text():
    spec = OBJECTIVES["olive"]
    assert spec.teacher_access == "none" and "olive" in names_without_full_rows() and spec.text_sources == ("continuation",)


MISMATCH = [(dict(on_policy_fraction=.5), "makes no sense on text of the student"), (dict(off_policy_source="teacher"), "makes no sense on text of the teacher"), (dict(store_text=True), "the student begins each text anew")]


@pytest.mark.parametrize("how, says", MISMATCH)
def test_other_text_is_refused(how, says):
    with pytest.raises(ValueError, match=says): check_text_source(objective("olive"), DistillConfig(**how))
    with pytest.raises(ValueError, match="makes no sense on text of the student"): objective("olive")(full(Pair("tiny", "tiny"), text_source="student")[0])


@pytest.mark.parametrize("how", [dict(max_prefix_tokens=0), dict(max_continuation_tokens=0), dict(max_prefix_tokens=1.5), dict(max_prefix_tokens="3")])
def test_limits_are_checked(how):
    with pytest.raises(ValueError, match=next(iter(how))): DistillConfig(**how)
