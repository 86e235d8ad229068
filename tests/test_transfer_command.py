"`xtokd transfer`: another tokenizer for a model, as a run that generate, doctor and distill --resume read."
from pathlib import Path

import pytest

from xtokd.cli.arguments import read_config
from xtokd.cli.commands import main
from xtokd.data.chat import render_prompt
from xtokd.hub import resolve
from xtokd.models.loading import load_tokenizer
from xtokd.models.made_tokenizers import tokenizer_with_control_tokens
from xtokd.train.runlog import Run
from xtokd.vocab.bytevocab import ByteVocab

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SMALL = ["--batch-size", "4", "--max-new-tokens", "12", "--eval-size", "4", "--no-progress", "--learning-rate", "2e-3", "--warmup-steps", "1"]


def test_to_bytes_then_generate_doctor_and_resume(tmp_path, capsys):
    out = tmp_path / "moved"
    assert main(["transfer", "tiny", "--tokenizer", "bytes", "--untie", "--max-steps", "8", *SMALL, "--output-dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert "261 ids, of which 256 are old tokens" in said and "xtokd generate" in said
    run = Run(out)
    assert run.start["args"] | {"prompts": None} == run.start["args"] | {"student": str(out / "start"), "teacher": str(resolve("tiny", "student")), "prompts": None}
    assert run.start["objective"] == "alm" and all(step["text_source"] == "teacher" and 0 < step["ce_weight"] < step["alm_weight"] < 1 for step in run.steps)
    assert run.evals[-1]["rkl_per_byte"] < run.evals[0]["rkl_per_byte"], "nearer to the model with its old tokenizer"
    vocab = ByteVocab(load_tokenizer(out / "student", "student"))
    assert len(vocab) == 261 and vocab.encode("naïve 12") == list("naïve 12".encode())
    assert main(["generate", str(out), "What is 12?", "--compare", "start", "--max-new-tokens", "4"]) == 0
    assert main(["doctor", str(out / "student"), str(resolve("tiny", "student"))]) == 0
    assert main(["distill", "--resume", str(out), "--max-steps", "9"]) == 0 and len(Run(out).steps) == 9
    capsys.readouterr()
    assert main(["transfer", "tiny", "--tokenizer", "bytes", "--output-dir", str(out)]) == 1 and "xtokd distill --resume" in capsys.readouterr().err


def test_the_old_control_tokens_are_kept(tmp_path):
    out = tmp_path / "moved"
    flags = ["--max-steps", "1", *SMALL, "--output-dir", str(out), "--objective", "cover", "--keep-control-tokens"]
    assert main(["transfer", "tiny", "--tokenizer", "tiny", *flags]) == 0
    old, other = (ByteVocab(load_tokenizer("tiny", role)) for role in ("student", "teacher"))
    new = ByteVocab(load_tokenizer(out / "student", "student"))
    text = "ninety-two <bos> 9632"
    assert new.encode(text) == other.encode(text) != old.encode(text)
    shown = [vocab.hf.decode(render_prompt(vocab, "Write 12.")) for vocab in (old, new)]
    assert shown[0] == shown[1] and new.hf.eos_token == old.hf.eos_token and new.stop_ids
    assert Run(out).start["objective"] == "cover" and Run(out).steps[0]["text_source"] == "teacher"


def test_a_tokenizer_that_adds_its_own_beginning_does_not_any_more():
    other, old = ByteVocab(load_tokenizer("tiny", "teacher")), ByteVocab(load_tokenizer("tiny", "student"))
    kept = tokenizer_with_control_tokens(other, old)
    assert kept("12").input_ids[-1:] == kept("12", add_special_tokens=False).input_ids[-1:]
    added = kept("12").input_ids[:len(kept("12").input_ids) - len(kept("12", add_special_tokens=False).input_ids)]
    assert [kept.decode([i]) for i in added] in ([], [old.hf.bos_token])


def test_the_papers_recipe_is_read(tmp_path, monkeypatch):
    from xtokd.cli import transfer
    from xtokd.cli.commands import make_parser
    args = make_parser(with_config=True).parse_args(["transfer", "--config", str(RECIPES / "alm-transfer.yaml")])
    found = transfer.transfer_settings(args)
    assert found["objective_args"] == {"preset": "paper"} and found["off_policy_source"] == "reference" and found["keep_control_tokens"] is True
    assert found["student"] == found["teacher"] and found["tokenizer"] and found["lora_r"] == 64
    assert read_config(str(RECIPES / "alm-transfer.yaml"))["max_steps"] == found["max_steps"]


@pytest.mark.parametrize("flags, words", [
    ([], "no tokenizer is given: --tokenizer NAME"),
    (["--tokenizer", "no/such"], "no/such"),
    (["--tokenizer", "bytes", "--role", "<user>"], "NEW=OLD"),
    (["--tokenizer", "bytes", "--role", "<nowhere>=x"], "'<nowhere>' is no token of"),
    (["--tokenizer", "bytes", "--teachers", "a=tiny", "b=tiny2"], "the teacher of a transfer is the model"),
    (["--tokenizer", "bytes", "--objective", "opd"], "opd"),
])
def test_what_is_refused(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(["transfer", "tiny", *flags, "--max-steps", "1", "--output-dir", "out"]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "run.jsonl").exists()
