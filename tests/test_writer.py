"""An engine that writes for the student: it has the newest weights, or the run ends."""
import pytest
import torch
from transformers import TrainingArguments

from faults import fault
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.serving.client import Engine, probe_logps
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.serving.server import WEIGHT_ROUTES, Server
from xtokd.train.hf_trainer import DistillTrainer
from xtokd.serving.http import RemoteError

TOKENIZER = load_tokenizer("tiny")
VOCAB = ByteVocab(TOKENIZER)
SMALL = dict(max_steps=3, batch_size=4, micro_batch_size=2, max_new_tokens=12, eval_size=0, learning_rate=3e-3, warmup_steps=0, temperature=0., progress=False)


def server(**kw): return Server(load_model("tiny", device="cpu"), TOKENIZER, "tiny", **{"accept_weights": True} | kw)
def run(tmp_path, name, **kw): return Distiller("tiny", "tiny", "tiny", "sampled", DistillConfig(**SMALL, output_dir=str(tmp_path/name), **kw)).fit()


def test_a_run_whose_engine_takes_the_weights_is_the_run_without_one(tmp_path):
    with server() as s:
        start = s.model.get_input_embeddings().weight.clone()
        far = run(tmp_path, "far", generation_url=s.url)
        assert (s.model.get_input_embeddings().weight - start).abs().max() > 1e-3        # it has learned too
    near = run(tmp_path, "near")
    assert [round(x["loss"], 4) for x in far.steps] == [round(x["loss"], 4) for x in near.steps] and len({round(x["loss"], 4) for x in near.steps}) == 3
    assert all(0 <= x["engine_gap"] < 1e-4 for x in far.steps) and "engine_gap" not in near.steps[0]


@fault("an engine that writes for the student keeps its old weights", how="a server that says yes to a reload and does nothing",
       outcome="its log-probs of a probe are compared before it writes: above 0.05 nats a token the run ends and says why; below, the gap is in the log")
def test_an_engine_that_keeps_its_weights_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(WEIGHT_ROUTES, "/collective_rpc", lambda server, body: {"results": [None]})
    with server() as s, pytest.raises(RemoteError, match="other weights than the student.*tied head"): run(tmp_path, "a", generation_url=s.url)


@fault("an engine that cannot be given weights", how="a server without the two development paths", outcome="the run ends before the first text and names the switch: VLLM_SERVER_DEV_MODE=1, or `xtokd serve --accept-weights`")
def test_an_engine_that_takes_no_weights_is_named_with_the_cure(tmp_path):
    with server(accept_weights=False) as s, pytest.raises(RemoteError, match="VLLM_SERVER_DEV_MODE=1.*xtokd serve --accept-weights"): run(tmp_path, "a", generation_url=s.url)


def test_another_student_behind_the_engine_is_refused():
    other = load_model("tiny", device="cpu")
    with torch.no_grad(): other.get_input_embeddings().weight.mul_(1.2)
    with server() as s, pytest.raises(RemoteError, match="other weights"): Engine(s.url, VOCAB).logp_gap(probe_logps(other, VOCAB))


@pytest.mark.parametrize("body, says", [({"method": "exec", "kwargs": {"weights_path": "/"}}, "reload_weights"), ({"method": "reload_weights"}, "reload_weights"),
                                        ({"method": "reload_weights", "kwargs": {"weights_path": "/no/such/folder"}}, "no folder")])
def test_what_a_server_that_accepts_weights_refuses(body, says):
    with server() as s, pytest.raises(RemoteError, match=says): Engine(s.url, VOCAB).api.http.request("/collective_rpc", body)


def test_requests_say_that_nothing_is_cut_off():
    "An engine takes top_k and others from the model's generation_config.json where a request is silent: the text would not be the model's."
    asked = []
    with server() as s:
        e = Engine(s.url, VOCAB)
        http = e.api.http
        request = http.request
        http.request = lambda path, body=None, *a: (asked.append(body), request(path, body, *a))[1]
        e.generate([VOCAB.encode("Mia has")], 3, 1., 0)
    assert {k: asked[0][k] for k in ("top_p", "top_k", "min_p", "repetition_penalty")} == {"top_p": 1., "top_k": -1, "min_p": 0., "repetition_penalty": 1.}


def test_engine_and_lora_are_refused():
    with pytest.raises(ValueError, match="whole weights"): DistillConfig(generation_url="http://127.0.0.1:1/v1", lora_r=4)


def test_a_trainer_refuses_an_engine(tmp_path):
    with pytest.raises(ValueError, match="generation_url"):
        DistillTrainer(model=load_model("tiny", device="cpu"), teacher="tiny", processing_class=TOKENIZER, args=TrainingArguments(str(tmp_path), report_to=[]), distill=DistillConfig(generation_url="http://127.0.0.1:1/v1"))


def test_its_own_opinion_is_without_dropout():
    "A step leaves the student in training mode, where a model with dropout says something else each time."
    model = load_model("tiny", device="cpu")
    for block in model.model.layers: block.self_attn.attention_dropout = .5
    said = probe_logps(model.eval(), VOCAB)
    assert torch.equal(probe_logps(model.train(), VOCAB), said)
