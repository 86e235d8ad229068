"One answer as it is written, a run's newest checkpoint, an adapter, and answers side by side."
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from xtokd.cli import commands as cli
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.data.chat import render_prompt
from xtokd.train.callbacks import Callback
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.vocab.bytevocab import response_text
from xtokd.cli.generate import (
    ByteStreamer, answer_prompt, compared_model, is_run, load_answering_side, newest_weights,
    terminal_safe, print_answers,
)
from xtokd.hub import ModelNotFound
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.models.sampling import generate_responses
from xtokd.models.side import load_side

BV = ByteVocab("tiny")
PROMPT = "What is 12 + 30?"
peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture(scope="module")
def side(): return load_side("tiny", "student", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Two steps of the tiny pair, large ones, so that the student is another."
    out = tmp_path_factory.mktemp("runs")/"one"
    Distiller("tiny", "tiny", "tiny", config=DistillConfig(max_steps=2, learning_rate=3e-2, warmup_steps=0, batch_size=2, max_new_tokens=8, eval_size=0, save_steps=1, progress=False, output_dir=str(out))).fit()
    return out


# ---- streaming --------------------------------------------------------------------------------------------------------------
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(BV) - 1), max_size=30))
def test_what_is_streamed_is_the_text_and_only_whole_characters(ids):
    said, stream = [], ByteStreamer(BV, None)
    stream.write = said.append
    stream.put(torch.tensor([[1, 2, 3]]))
    for k, i in enumerate(ids):
        stream.put(torch.tensor([i]))
        assert BV.decode(ids[:k + 1]).decode("utf-8", "replace").startswith("".join(said))
    stream.end()
    assert "".join(said) == BV.decode(ids).decode("utf-8", "replace") and "" not in said


def test_a_character_waits_for_its_last_byte():
    class Bytes:
        def decode(self, ids): return bytes(ids)
    said, stream = [], ByteStreamer(Bytes(), None)
    stream.write = said.append
    for x in ([7], *[[b] for b in "é€".encode()]): stream.put(x)
    assert said == ["é", "€"]


@pytest.mark.parametrize("temperature", [0, 1.])
def test_an_answer_is_the_rollout_of_the_same_seed(side, temperature):
    said = []
    a = answer_prompt(side, PROMPT, max_new_tokens=12, temperature=temperature, seed=3, say=said.append)
    assert a.ids == generate_responses(side.model, side.vocab, [render_prompt(side.vocab, PROMPT)], 12, temperature, seed=3)[0]
    assert "".join(said) == a.text == response_text(side.vocab, a.ids) and a.stopped == (a.ids[-1] in side.vocab.stop_ids)


def test_bad_numbers_are_refused_by_name(side):
    with pytest.raises(ValueError, match="max_new_tokens is 0"): answer_prompt(side, PROMPT, max_new_tokens=0)
    with pytest.raises(ValueError, match="temperature is -1"): answer_prompt(side, PROMPT, temperature=-1)
    with pytest.raises(ValueError, match="shorten it"): answer_prompt(side, "1" * 5000)


def test_no_control_character_reaches_the_terminal():
    assert terminal_safe("a\x1b[2J\x07\r\x9b\tb\n") == "a\ufffd[2J\ufffd\ufffd\ufffd\tb\n"


# ---- which model ------------------------------------------------------------------------------------------------------------
def test_a_run_stands_for_its_newest_checkpoint(run):
    assert is_run(run) and newest_weights(run).name == "step-000002" and load_answering_side(run).name == str(run)
    now, kept = load_answering_side(run, ).model.state_dict(), load_model(run/"checkpoints"/"step-000002").state_dict()
    assert all(torch.equal(now[k], kept[k]) for k in kept) and not torch.equal(now["model.norm.weight"], load_model("tiny").state_dict()["model.norm.weight"])


def test_what_to_compare_with(run, tmp_path):
    assert compared_model("start", run) == ("tiny", "student") and compared_model("teacher", run) == ("tiny", "teacher") and compared_model("gemma", run) == ("gemma", "student")
    for given, words in (('"in memory"', "given in memory"), ('"http://there:8000/v1#gemma"', "served at http://there:8000/v1: give")):
        (tmp_path/"run.jsonl").write_text(f'{{"event": "start", "step": 0, "time": 0, "given": {{"teacher": {given}}}}}\n')
        with pytest.raises(ValueError, match=words): compared_model("teacher", tmp_path)


@peft
def test_an_adapter_is_put_on_the_model_that_it_was_trained_for(tmp_path):
    d = Distiller("tiny", "tiny", "tiny", config=DistillConfig(max_steps=1, learning_rate=1e-1, warmup_steps=0, lora_r=2, batch_size=2, max_new_tokens=8, eval_size=0, progress=False, output_dir=str(tmp_path/"run")))
    d.fit()
    ids = torch.tensor([BV.encode(PROMPT)])
    with torch.no_grad():
        ends = [s.model.to("cpu")(ids).logits for s in (load_answering_side("tiny", adapter=tmp_path/"run"), load_answering_side(tmp_path/"run"))]
        assert torch.equal(*ends) and not torch.equal(ends[0], load_model("tiny", device="cpu")(ids).logits)
    with pytest.raises(ValueError, match="carries an adapter already"): load_answering_side(tmp_path/"run", adapter=tmp_path/"run")
    with pytest.raises((ValueError, RuntimeError)): load_answering_side("tiny", "teacher", adapter=tmp_path/"run")
    with pytest.raises(ModelNotFound, match="no adapter in"): load_answering_side("tiny", adapter=tmp_path)


# ---- the command ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def xtokd(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    def call(*argv):
        capsys.readouterr()
        return cli.main(["generate", *map(str, argv)]), *capsys.readouterr()
    return call


def test_the_command_prints_the_text_alone(xtokd, side):
    code, out, err = xtokd("tiny", PROMPT, "--max-new-tokens", 9, "--temperature", 0, "--seed", 1)
    assert code == 0 and out == answer_prompt(side, PROMPT, max_new_tokens=9, temperature=0).text + "\n" and ("9 tokens" in err or "ended by itself" in err)


def test_a_raw_prompt_is_only_continued(xtokd, side):
    code, out, _ = xtokd("tiny", "Certainly: 8", "--raw", "--max-new-tokens", 6, "--temperature", 0)
    assert code == 0 and out == answer_prompt(side, "Certainly: 8", raw=True, max_new_tokens=6, temperature=0).text + "\n"


def test_side_by_side(xtokd, run):
    code, out, _ = xtokd(run, PROMPT, "--max-new-tokens", 6, "--compare", "start", "--compare", "teacher")
    assert code == 0 and "start: tiny" in out and "teacher: tiny" in out and out.count(" tokens") == 3


def test_what_it_refuses(xtokd, tmp_path):
    for argv, words in ((("tiny/nothing/here", PROMPT), "no folder"), ((tmp_path, PROMPT, "--compare", "start"), "is no run folder"), (("tiny", PROMPT, "--adapter", tmp_path), "no adapter in")):
        code, out, err = xtokd(*argv)
        assert code == 1 and words in err and out == "" and len(err.strip().splitlines()) == 1


def test_template_arguments_are_the_runs_own_or_those_given(tmp_path, xtokd):
    d = Distiller("tiny", "tiny", "tiny", config=DistillConfig(max_steps=1, batch_size=2, max_new_tokens=4, eval_size=0, progress=False, chat_template_kwargs={"student": {"mood": 1}}, output_dir=str(tmp_path/"run")))
    d.fit()
    say = lambda *argv: xtokd(tmp_path/"run", PROMPT, "--max-new-tokens", 4, *argv)[2]
    assert "makes no use of mood" in say() and "makes no use of tone" in say("--chat-template-kwargs", '{"tone": 2}') and "makes no use" not in say("--chat-template-kwargs", "{}")
    assert "not JSON" in say("--chat-template-kwargs", "{")
