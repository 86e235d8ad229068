"""What only the teacher reads: a system message, and text before its prompt; in the step, the evaluation, the doctor, the dry run, the command line and a resume."""
import json

import numpy as np
import pytest
import torch

from chat_formats import CONTROL_THINK, QWEN3, byte_level, side as chat_side
from xtokd.alignment.pair import Pair
from xtokd.data.chat import render_prompt, require_system_role, with_template_kwargs
from xtokd.data.conversation import compare_conversations, conversation_parts
from xtokd.data.prompt_additions import PromptAdditions, read_addition, with_prompt_additions
from xtokd.data.prompts import load_prompts
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.vocab.bytevocab import as_byte_vocab
from xtokd.models.side import load_side
from xtokd.train.config import DistillConfig, text_key
from xtokd.train.distiller import Distiller
from xtokd.train.dry_run import forecast
from xtokd.train.evaluate import evaluate
from xtokd.train.runlog import Run
from xtokd.train.samples import generate_samples

torch.set_num_threads(1)
ITEMS = load_prompts("tiny", limit=12)
SMALL = dict(max_steps=1, batch_size=4, micro_batch_size=4, max_new_tokens=12, eval_size=4, eval_on_start=False, progress=False, warmup_steps=0, save_steps=0)
PREFIX = "one hundred twelve: 112. "
REFUSES = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SILENT = "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chat(template, name="chat"): return chat_side(name, byte_level(["<|im_start|>", "<|im_end|>"]), template, "<|im_end|>")
def text_of(vocab, item): return "".join(vocab.tokenizer.id_to_token(i) if vocab.special[i] else vocab.bytes[i].decode() for i in render_prompt(vocab, item))
def told(vocab, **how): return with_prompt_additions(vocab, PromptAdditions(**how))


def with_template(role, template):
    "The tiny model of a role, whose tokenizer has this chat template."
    tokenizer = load_tokenizer("tiny", role)
    tokenizer.chat_template = template
    return load_model("tiny", role, device="cpu"), tokenizer


def base(): return as_byte_vocab(with_template("teacher", None)[1])


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}say {% endif %}"


def distiller(out, obj="strict", student="tiny", teacher="tiny", **how):
    return Distiller(student, teacher, ITEMS, obj, DistillConfig(**SMALL | how | {"output_dir": str(out)}))


# ---- how a prompt is rendered ---------------------------------------------------------------------------------------------------
def test_a_template_shows_the_system_message_and_the_prefix():
    vocab = told(chat(CONTROL_THINK), system="Answer in JSON.", prefix="Q: 1? A: 1 ")
    assert text_of(vocab, "2?") == "<|im_start|>system\nAnswer in JSON.<|im_end|>\n<|im_start|>user\nQ: 1? A: 1 2?<|im_end|>\n<|im_start|>assistant\n"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3?"}]
    said = text_of(vocab, {"messages": turns})
    assert said.startswith("<|im_start|>system\nAnswer in JSON.\n\nBe brief.<|im_end|>\n<|im_start|>user\nQ: 1? A: 1 2?<|im_end|>") and said.count("Q: 1?") == 1 and turns[1]["content"] == "2?"


def test_a_base_model_reads_the_prefix_before_the_text():
    vocab = base()
    assert render_prompt(told(vocab, prefix=PREFIX), "two") == render_prompt(vocab, PREFIX + "two")
    turns = [{"role": "user", "content": "2?"}]
    assert vocab.decode(render_prompt(told(vocab, prefix=PREFIX), turns)).decode() == PREFIX + vocab.decode(render_prompt(vocab, turns)).decode()


def test_control_tokens_in_an_addition_stay_text():
    vocab = chat(CONTROL_THINK)
    ids = render_prompt(told(vocab, system="<|im_end|>", prefix="<|im_start|>"), "2?")
    assert vocab.special[ids].sum() == vocab.special[render_prompt(told(vocab, system="x", prefix="y"), "2?")].sum()


def test_template_arguments_and_additions_go_together():
    vocab = chat_side("qwen", byte_level(["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]), QWEN3, "<|im_end|>")
    one = told(with_template_kwargs(vocab, {"enable_thinking": False}), system="S")
    two = with_template_kwargs(told(vocab, system="S"), {"enable_thinking": False})
    assert render_prompt(one, "2?") == render_prompt(two, "2?") and "<think>" in text_of(one, "2?") and "S<|im_end|>" in text_of(one, "2?")


@pytest.mark.parametrize("template, says", [(REFUSES, "has no system role .*System role not supported"), (SILENT, "leaves a system message out"), (None, "has no chat template and so no system role")])
def test_a_template_without_a_system_role_is_an_error_with_the_cure(template, says):
    vocab = chat(template) if template else base()
    with pytest.raises(ValueError, match=f"{says}.*teacher_prefix.*first user's turn"): require_system_role(vocab, "Answer in JSON.", "teacher_system")
    assert "Answer in JSON." in text_of(told(vocab, prefix="Answer in JSON. "), "2?") if template else True
    require_system_role(chat(CONTROL_THINK), "Answer in JSON.", "teacher_system")


def test_a_run_refuses_a_system_message_that_nobody_would_read(tmp_path):
    with pytest.raises(ValueError, match="no chat template.*teacher_prefix"): distiller(tmp_path / "a", teacher=with_template("teacher", None), teacher_system="Be brief.")
    with pytest.raises(ValueError, match="this prompt has none"): render_prompt(told(chat(CONTROL_THINK), prefix="x"), [{"role": "system", "content": "12"}])


# ---- in a run -------------------------------------------------------------------------------------------------------------------
def test_the_teacher_reads_it_and_the_student_does_not(tmp_path):
    plain, prefixed = distiller(tmp_path / "a"), distiller(tmp_path / "b", teacher_prefix=PREFIX)
    for d in (plain, prefixed): d.samples = d.generator.samples(ITEMS[:4], "student", 0)
    n = len(plain.teacher.vocab.encode(PREFIX))
    for a, b in zip(plain.samples, prefixed.samples):
        assert a.student_prompt_ids == b.student_prompt_ids and a.student_ids == b.student_ids and a.teacher_ids == b.teacher_ids
        assert len(b.teacher_prompt_ids) > len(a.teacher_prompt_ids) + n // 2 and plain.teacher.vocab.decode(b.teacher_prompt_ids).decode() == plain.teacher.vocab.decode(a.teacher_prompt_ids).decode().replace(a.item["prompt"], PREFIX + a.item["prompt"])
    runs = [d.fit() for d in (plain, prefixed)]
    assert runs[0].steps[0]["loss"] != runs[1].steps[0]["loss"] and runs[0].steps[0]["costs"]["flops"] < runs[1].steps[0]["costs"]["flops"]
    assert runs[0].evals[0]["rkl_per_byte"] != runs[1].evals[0]["rkl_per_byte"]                 # the evaluation asks the same teacher
    assert runs[0].evals[0]["response_tokens"] > 0 and Run(tmp_path / "b").config["teacher_prefix"] == PREFIX


def test_a_system_message_in_a_run(tmp_path):
    d = distiller(tmp_path, teacher_system="one is 1")
    sample = d.generator.samples(ITEMS[:1], "teacher", 0)[0]
    own, other = (vocab.decode(ids).decode() for vocab, ids in ((d.student.vocab, sample.student_prompt_ids), (d.teacher.vocab, sample.teacher_prompt_ids)))
    assert "one is 1" in other and "one is 1" not in own and d.fit().finished
    metrics, _ = evaluate(d.student.model, d.teacher.model, d.pair, ITEMS[:4], max_new_tokens=12)
    bare, _ = evaluate(d.student.model, d.teacher.model, Pair("tiny"), ITEMS[:4], max_new_tokens=12)
    assert np.isfinite(metrics["rkl_per_byte"]) and metrics["rkl_per_byte"] != bare["rkl_per_byte"] and metrics["response_tokens"] == bare["response_tokens"]


@pytest.mark.parametrize("source", ["teacher", "continuation", "reference"])
def test_every_source_of_text_renders_it(source):
    student, teacher = load_side("tiny", "student"), load_side("tiny", "teacher")
    teacher.vocab = told(teacher.vocab, prefix=PREFIX)
    items = [item | {"reference": "12"} for item in ITEMS[:2]]
    for s in generate_samples(items, student, teacher, DistillConfig(max_new_tokens=6), source, 0):
        assert teacher.vocab.decode(s.teacher_prompt_ids).count(PREFIX.encode()) == 1 and PREFIX.encode() not in student.vocab.decode(s.student_prompt_ids)


def test_a_prompt_that_no_longer_fits_is_left_out(tmp_path):
    d = distiller(tmp_path, teacher_prefix=PREFIX, max_prompt_length=len(load_side("tiny", "teacher").vocab.encode(PREFIX)) + 12, eval_size=0)
    assert d.left_out and "of the teacher" in d.left_out[0].reason


def test_the_dry_run_and_the_doctor_show_it(tmp_path, capsys):
    from xtokd.cli.commands import main
    short, long = (forecast(distiller(tmp_path / str(k), teacher_prefix=text, eval_size=0), 4) for k, text in enumerate((None, PREFIX)))
    assert short.samples == long.samples == 4
    d = distiller(tmp_path / "c", student=with_template("student", CHAT), teacher=with_template("teacher", CHAT), teacher_system="one is 1", teacher_prefix="two is 2 ")
    parts = {part.name: part for part in conversation_parts(d.teacher.vocab)}
    assert "one is 1" in parts["system text"].before and "two is 2 " in parts["question"].before
    assert not list(compare_conversations(d.student.vocab, d.teacher.vocab))                      # it is meant, so it is no finding
    assert "one is 1" in str(d.pair.doctor()) and "one is 1" not in str(Pair(d.student.vocab, d.student.vocab).doctor())
    flags = ["--dry-run", "--batch-size", "2", "--max-new-tokens", "6", "--eval-size", "0", "--no-progress"]
    assert main(["doctor", "tiny", "tiny", *flags, "--teacher-prefix", PREFIX]) == 0
    assert PREFIX in capsys.readouterr().out
    assert main(["doctor", "tiny", "tiny", *flags, "--teacher-system", "one is 1"]) == 0 and "one is 1" in capsys.readouterr().out


def test_the_command_line_yaml_files_and_a_resume(tmp_path, capsys):
    from xtokd.cli.commands import main
    (tmp_path / "examples.txt").write_text(PREFIX)
    settings = {**{k: v for k, v in SMALL.items() if k != "progress"}, "objective": "strict", "eval_size": 0, "progress": False, "teacher_prefix": f"@{tmp_path / 'examples.txt'}"}
    (tmp_path / "run.yaml").write_text("\n".join(f"{k}: {json.dumps(v)}" for k, v in settings.items()))
    assert main(["distill", "--config", str(tmp_path / "run.yaml"), "--output-dir", str(tmp_path / "a")]) == 0
    assert Run(tmp_path / "a").config["teacher_prefix"] == PREFIX                              # the log holds the text, not the place of a file
    (tmp_path / "examples.txt").unlink()
    assert main(["distill", "--resume", str(tmp_path / "a"), "--max-steps", "2", "--no-progress"]) == 0
    run = Run(tmp_path / "a")
    assert len(run.steps) == 2 and not [w for w in run.warnings if "teacher_prefix" in w["message"]]
    assert main(["distill", "--resume", str(tmp_path / "a"), "--max-steps", "3", "--no-progress", "--teacher-prefix", "another. " * 20]) == 0
    warned = [w["message"] for w in Run(tmp_path / "a").warnings if "teacher_prefix" in w["message"]]
    assert len(warned) == 1 and "goes on with other settings" in warned[0] and "another." in warned[0] and "(182 characters)" in warned[0]
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "a"), "two", "--compare", "teacher", "--temperature", "0", "--max-new-tokens", "8"]) == 0


def test_the_teacher_of_a_run_answers_as_it_did_there(tmp_path):
    from xtokd.cli.generate import load_answering_side, run_additions
    distiller(tmp_path, teacher_prefix=PREFIX, eval_size=0).fit()
    side = load_answering_side("tiny", "teacher", additions=run_additions(tmp_path))
    assert side.vocab.decode(render_prompt(side.vocab, "two")).count(PREFIX.encode()) == 1 and run_additions("tiny") is None


def test_stored_text_of_another_system_message_is_another_text():
    keys = {text_key({"prompt": "2"}, "teacher", "t", DistillConfig(**how)) for how in ({}, dict(teacher_system="a"), dict(teacher_system="b"), dict(teacher_prefix="a"))}
    assert len(keys) == 4


def test_the_trainer_of_transformers_renders_it_too(tmp_path):
    from transformers import TrainingArguments
    from xtokd.train.hf_trainer import DistillTrainer
    model, tokenizer = with_template("student", CHAT)
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = DistillTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=[{"prompt": i["prompt"]} for i in ITEMS], teacher=with_template("teacher", CHAT), objective="strict", distill=DistillConfig(max_new_tokens=6, teacher_system="one is 1", chat_template_kwargs={"student": {"x": 1}}))
    assert "one is 1" in trainer.teacher.vocab.decode(render_prompt(trainer.teacher.vocab, "2")).decode() and trainer.pair.teacher is trainer.teacher.vocab
    assert trainer.student.vocab.chat_template_kwargs == {"x": 1}                               # these were not passed on
    trainer.train()


@pytest.mark.parametrize("value, says", [("", "has no text"), ("  \n", "has no text"), (7, "give a text, or @FILE"), ("@no_such_file.txt", "cannot be read as UTF-8"), ("a\ud800", "lone surrogate")])
@pytest.mark.parametrize("name", ["teacher_system", "teacher_prefix"])
def test_bad_texts(name, value, says):
    with pytest.raises(ValueError, match=f"(?s){name}.*{says}|{says}"): DistillConfig(**{name: value})


def test_files(tmp_path):
    (tmp_path / "a").write_text("  Be brief.\n")
    (tmp_path / "b").write_bytes(b"\xff")
    (tmp_path / "c").write_text("@x")
    assert read_addition(f"@{tmp_path / 'a'}", "teacher_system") == "Be brief." and read_addition(f"@{tmp_path / 'a'}", "teacher_prefix") == "  Be brief.\n"
    with pytest.raises(ValueError, match="cannot be read as UTF-8"): read_addition(f"@{tmp_path / 'b'}", "teacher_prefix")
    with pytest.raises(ValueError, match="begins with @, which names a file"): read_addition(f"@{tmp_path / 'c'}", "teacher_prefix")
