"Thoughts and calls of tools in bytes, whatever the marks are in tokens; and what a run does with them."
import re

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtokd.vocab.bytevocab import ByteVocab
from xtokd.data.chat import (
    kwargs_for, parse_template_kwargs, render_prompt, chat_template_kwargs, side_with_template_kwargs,
    unused_template_kwargs, with_template_kwargs,
)
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.data.marks import TEXT_READER
from xtokd.data.response_format import open_region
from xtokd.data.segments import REGIONS, exclude_thoughts, find_regions, region_stats, token_regions
from xtokd.train.runlog import Run
from xtokd.train.samples import Sample

REGION_MARKS = {pair.kind: (pair.opening.encode(), pair.closing.encode()) for pair in TEXT_READER.pairs}
ALL = [m.decode() for pair in REGION_MARKS.values() for m in pair]


def toy(control=(), merges=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, *(a + b for a, b in merges)])}, list(merges)))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    tok.add_special_tokens(["<end>", *control])
    return ByteVocab(tok, stops=tok.token_to_id("<end>"))


PLAIN, CONTROL = toy(), toy(ALL)
MERGED = toy(merges=[("a", "<"), (">", "b"), ("t", "h"), ("<", "/")])
texts = st.lists(st.sampled_from([*ALL, "a", "b", "é", " ", "<", ">", "<thi", "</think"]), max_size=12).map("".join)


def by_hand(text, kind=None):
    "The region of every byte, by a plain walk."
    data, out, i = text.encode(), [], 0
    while i < len(data):
        if kind is None:
            kind = next((k for k, (a, _) in REGION_MARKS.items() if data.startswith(a, i)), None)
            n, stop = (len(REGION_MARKS[kind][0]), False) if kind else (1, False)
        else: n, stop = (len(REGION_MARKS[kind][1]), True) if data.startswith(REGION_MARKS[kind][1], i) else (1, False)
        out += [REGIONS.index(kind or "text")] * n
        i, kind = i + n, None if stop else kind
    return out, kind


# ---- where they are ---------------------------------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None)
@given(texts, st.sampled_from([None, "think", "tool"]))
@example("<think>", None)
@example("</think>", "think")
@example("<think>x", "think")
def test_each_byte_is_in_its_region(text, kind):
    ids = PLAIN.encode(text)
    want, still = by_hand(text, kind)
    assert token_regions(PLAIN, ids, kind).tolist() == want
    found = find_regions(PLAIN, ids, kind)
    painted = np.zeros(len(ids), int)
    for r in found: painted[slice(*r.outer)] = REGIONS.index(r.kind)
    assert painted.tolist() == want and all(r.closed for r in found[:-1]) and (not found or found[-1].closed == (still is None))


@settings(max_examples=300, deadline=None)
@given(texts, st.sampled_from([None, "think"]))
@example("<think></think<think>>", None)
def test_control_tokens_and_text_hold_the_same_regions(text, kind):
    a, b = CONTROL.tokenizer.encode(text).ids, PLAIN.encode(text)
    one, other = find_regions(CONTROL, a, kind), find_regions(PLAIN, b, kind)
    assert [(r.kind, r.closed, CONTROL.decode(a)[slice(*r.inner)]) for r in one] == [(r.kind, r.closed, unmarked(PLAIN.decode(b)[slice(*r.inner)])) for r in other]
    assert token_regions(CONTROL, [*a, CONTROL.stop_ids[0]], kind)[-1] == token_regions(PLAIN, [*b, PLAIN.stop_ids[0]], kind)[-1] == REGIONS.index(by_hand(text, kind)[1] or "text")


def unmarked(data):
    "Text in which another kind's marks, which are bytes here and control tokens there, are gone."
    return re.sub("|".join(map(re.escape, ALL)).encode(), b"", data)      # at once: what is left may spell a mark


@settings(max_examples=200, deadline=None)
@given(texts)
def test_a_token_that_reaches_into_a_region_belongs_to_it(text):
    ids, (want, _) = MERGED.encode(text), by_hand(text)
    at = MERGED.starts(ids)
    for k, (a, b) in zip(token_regions(MERGED, ids).tolist(), zip(at, at[1:])): assert k in set(want[a:b]) and (k > 0) == any(want[a:b])


@pytest.mark.parametrize("prompt,kind", [("a<think>", "think"), ("a<think>\n\n", "think"), ("<think>\n\n</think>\n\n", None), ("<think>x", None), ("", None), ("<tool_call>", "tool")])
def test_what_a_prompt_leaves_open(prompt, kind):
    assert open_region(PLAIN, PLAIN.encode(prompt)) == open_region(CONTROL, CONTROL.tokenizer.encode(prompt).ids) == kind


def test_windows_meet():
    ids = PLAIN.encode("<think>a</think>bc")
    s = Sample({}, [], [], ids, [], window=np.array([True] * 17 + [False]))
    assert exclude_thoughts([s], PLAIN)[0].window.tolist() == [False] * 16 + [True, False]
    plain = Sample({}, [], [], PLAIN.encode("bc"), [])
    assert exclude_thoughts([plain], PLAIN)[0].window is None


# ---- template arguments -----------------------------------------------------------------------------------------------------
THINKS = ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{% if think_first %}{{ '<think>' }}{% endif %}{{ ': ' }}{% endif %}")


def with_template(role):
    tok = load_tokenizer("tiny", role)
    tok.chat_template = THINKS
    return tok


def test_arguments_reach_the_template_of_their_side():
    vocab = ByteVocab(with_template("student"))
    on = with_template_kwargs(vocab, {"think_first": True})
    assert on.decode(render_prompt(on, "a")) == b"a<think>: " and vocab.decode(render_prompt(vocab, "a")) == b"a: " == on.decode(render_prompt(on, "a", think_first=False))
    assert unused_template_kwargs(vocab, {"think_first": 1, "first": 1, "enable_thinking": 0}) == ["first", "enable_thinking"]


@pytest.mark.parametrize("given_,words", [("{", "not JSON"), ([1], "is a list"), ("3", "is a int"), ({"tokenize": True}, "holds 'tokenize'"), ({"student": {"add_generation_prompt": False}}, "add_generation_prompt")])
def test_bad_arguments_are_refused(given_, words):
    with pytest.raises(ValueError, match=words): DistillConfig(chat_template_kwargs=given_)


def test_both_sides_or_each():
    assert kwargs_for({"a": 1}, "teacher") == {"a": 1} and kwargs_for({"teacher": {"a": 1}}, "student") == {} and kwargs_for(None, "student") == {} and parse_template_kwargs(None) is None


# ---- a run ------------------------------------------------------------------------------------------------------------------
def distiller(out, prompts, **how):
    sides = [(load_model("tiny", r), with_template(r)) for r in ("student", "teacher")]
    return Distiller(*sides, prompts, objective="cover", config=DistillConfig(max_steps=1, batch_size=2, max_new_tokens=12, eval_size=0, progress=False, collapse_warnings=False, output_dir=str(out), **how))


THOUGHT = "<think>8 is even</think>It is 8."
ITEMS = [{"prompt": "a number", "reference": THOUGHT}, {"prompt": "another", "reference": "It is 9."}]


def test_a_run_names_its_regions(tmp_path):
    d = distiller(tmp_path, ITEMS, on_policy_fraction=0., off_policy_source="reference", chat_template_kwargs={"student": {"think_first": False}, "teacher": {"no_such": 1}})
    run = d.fit()
    step, sample = run.steps[0], run.samples[0]
    assert step["share_think"] + step["share_text"] == pytest.approx(1) and 0 < step["share_think"] < 1 and np.isfinite(step["loss_think"])
    assert sample["item"] == ITEMS[1] and "region" not in sample     # the shorter one is logged, and it is all text
    assert [w["message"].split(":")[0] for w in run.warnings] == ["the chat template of the teacher (teacher) makes no use of no_such"]


def test_a_logged_sample_keeps_its_regions(tmp_path):
    sample = distiller(tmp_path, ITEMS[:1] * 2, on_policy_fraction=0., off_policy_source="reference").fit().samples[0]
    vocab = ByteVocab(load_tokenizer("tiny", "student"))
    assert sample["region"] == token_regions(vocab, sample["student_ids"]).tolist() and set(sample["region"]) == {0, 1}


def test_without_thoughts_nothing_is_said(tmp_path):
    step = distiller(tmp_path, ITEMS[1:] * 2, on_policy_fraction=0., off_policy_source="reference").fit().steps[0]
    assert not [k for k in step if "think" in k or k == "share_text"]


def test_learning_from_the_answer_leaves_thoughts_out(tmp_path):
    def output_for(loss_on):
        d = distiller(tmp_path/loss_on, ITEMS, on_policy_fraction=0., off_policy_source="reference", loss_on=loss_on)
        samples = d.generator.samples(d.items[:1], "reference", 0)
        d.stepper.forward_backward(samples, "reference")
        _, out = d.stepper.first
        return out
    every, answer = output_for("response"), output_for("answer")
    think = every.ledger["region"] == REGIONS.index("think")
    assert think.any() and (every.ledger["weight"][think] > 0).any()
    assert (answer.ledger["weight"][think] == 0).all() and set(answer.ledger["reason"][think]) <= {106} and (answer.ledger["weight"][~think] > 0).any()
    kept = answer.ledger["weight"] > 0
    assert np.allclose(every.token_loss.detach().numpy()[kept], answer.token_loss.detach().numpy()[kept], atol=1e-5)


def test_an_open_thought_teaches_nothing_and_says_so(tmp_path):
    items = [{"prompt": "a number", "reference": "<think>It is"}] * 2
    d = distiller(tmp_path, items, on_policy_fraction=0., off_policy_source="reference", loss_on="answer", chat_template_kwargs={"student": {"think_first": True}})
    d.student.vocab.hf.chat_template = d.student.vocab.hf.chat_template.replace(": ", "\n")
    with pytest.raises(RuntimeError, match="outside the supervision window"): d.fit()


def test_preferences_by_name_and_thoughts_outside(tmp_path):
    items = [{"prompt": "a number", "chosen": THOUGHT, "rejected": "It is 9."}] * 2
    d = Distiller("tiny", "tiny", items, objective="ctpd", auxiliary_models={"plus": "tiny", "minus": "tiny"}, config=DistillConfig(max_steps=1, batch_size=2, eval_size=0, loss_on="answer", progress=False, output_dir=str(tmp_path)))
    assert [s.window is not None for s in d.generator.samples(d.items, "reference", 0)] == [True, False] * 2
    assert {n: s.params for n, s in d.models.auxiliary.items() if n != "reference"} == {n: d.teacher.params for n in ("plus", "minus")}
    step = d.fit().steps[0]
    assert np.isfinite(step["loss"]) and step["share_think"] > 0
