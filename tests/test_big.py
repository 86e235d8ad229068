"Teachers in few bits or in several places, students of which an adapter is trained, and gradient checkpointing."
import contextlib, warnings
from importlib.util import find_spec

import pytest
import torch

from xtokd.models import loading
from xtokd.models.lora import WithoutAdapter, adapters, add_lora, load_adapter
from xtokd.models.loading import device_of, is_placed, require_package, placement
from xtokd.train.checkpoint import checkpoints
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.data.prompts import load_prompts
from xtokd.models.sampling import generate_responses
from xtokd.models.loading import accepts
from xtokd.models.forward import reference_logits, response_logits
from xtokd.train.step import DistillStep
from xtokd.train.samples import generate_samples
from xtokd.distributed import reduce_gradients
from xtokd.models.side import load_side

torch.set_num_threads(1)
SMALL = dict(max_steps=2, batch_size=4, max_new_tokens=16, eval_size=0, progress=False, warmup_steps=1, save_steps=0)
IDS = torch.tensor([[3, 4, 5, 6]])
peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
bits = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def distiller(out, obj="strict", student="tiny", teacher="tiny", **kw): return Distiller(student, teacher, "tiny", obj, DistillConfig(**SMALL | kw | {"output_dir": out}))
def logits(model, ids=IDS):
    with torch.no_grad(): return model(ids).logits.float()


@pytest.mark.parametrize("package,ask", [("peft", lambda: add_lora(load_model("tiny", device="cpu"), 4)), ("bitsandbytes", lambda: load_model("tiny", "teacher", device="cpu", bits=8))])
def test_a_package_that_is_missing_is_named_with_the_cure(monkeypatch, package, ask):
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(ImportError, match=f"{package}.*not installed: pip install {package}"): ask()


@pytest.mark.parametrize("where", ["disk", "cpu", '{"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "disk", "model.rotary_emb": "cpu", "model.layers": "disk"}', "auto"])
def test_an_offloaded_teacher_gives_the_same_logits(where, tmp_path):
    whole, away = load_model("tiny", "teacher", device="cpu"), load_model("tiny", "teacher", device="cpu", device_map=where, offload_folder=tmp_path)
    prompts, answers = [[1, 7, 9], [1, 5]], [[8, 9, 10], [11]]
    for a, b in zip(response_logits(whole, prompts, answers), response_logits(away, prompts, answers)): assert torch.equal(a, b)
    vocab = load_side("tiny", "teacher", "cpu").vocab
    assert generate_responses(away, vocab, prompts, 6, 0.) == generate_responses(whole, vocab, prompts, 6, 0.)
    if where == "disk": assert is_placed(away) and all(p.device.type == "meta" for p in away.parameters()) and device_of(away).type != "meta"


@bits
@pytest.mark.parametrize("n,most,memory", [(8, .02, .6), (4, .2, .5)])
def test_few_bits(n, most, memory):
    whole, coarse = load_model("tiny", "teacher", device="cpu"), load_model("tiny", "teacher", device="cpu", bits=n)
    p, q = logits(whole).log_softmax(-1), logits(coarse).log_softmax(-1)
    assert 0 < float((p.exp() * (p - q)).sum(-1).mean()) < most and coarse.get_memory_footprint() < memory * whole.get_memory_footprint()


@bits
def test_a_run_with_a_teacher_of_8_bits_is_near_the_run_with_the_whole_one(tmp_path):
    losses = [distiller(tmp_path/str(b), teacher_quantization=b, max_steps=1).fit().steps[0]["loss"] for b in (None, 8)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=.2)


def test_a_run_with_an_offloaded_teacher_is_the_run_with_the_whole_one(tmp_path):
    runs = [distiller(tmp_path/str(w), teacher_device_map=w) for w in (None, "disk")]
    assert is_placed(runs[1].teacher.model) and [r["loss"] for r in runs[0].fit().steps] == [r["loss"] for r in runs[1].fit().steps]
    with pytest.raises(ValueError, match="this one is in memory"): distiller(tmp_path/"x", teacher=(load_model("tiny", "teacher"), load_tokenizer("tiny", "teacher")), teacher_quantization=8)


@peft
def test_only_the_adapter_is_trained_and_kept(tmp_path):
    from peft import PeftModel
    d, base = distiller(tmp_path, lora_r=4, learning_rate=1e-2), load_model("tiny", "student", device="cpu")
    assert torch.equal(logits(d.student.model), logits(base)) and len(d.state.parameters) == len(adapters(d.student.model)) == 28
    d.fit()
    end = logits(d.student.model)
    assert (end - logits(base)).abs().max() > 1e-3
    for n, p in base.named_parameters(): assert torch.equal(p, dict(d.student.model.named_parameters()).get(n, dict(d.student.model.named_parameters()).get(n.replace(".weight", ".base_layer.weight"))))
    for folder in (tmp_path/"student", checkpoints(tmp_path/"checkpoints")[-1]):
        assert (folder/"adapter_model.safetensors").exists() and not (folder/"model.safetensors").exists()
        assert torch.equal(logits(PeftModel.from_pretrained(load_model("tiny", "student", device="cpu"), folder)), end)
        assert torch.equal(logits(load_model(folder, device="cpu")), end)
    assert load_side(tmp_path/"student", "student", "cpu").vocab.fingerprint == d.student.vocab.fingerprint


@peft
def test_a_lora_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = distiller(tmp_path/"a", lora_r=4, max_steps=4, learning_rate=1e-3); whole.fit()
    distiller(tmp_path/"b", lora_r=4, max_steps=2, learning_rate=1e-3).fit()
    again = distiller(tmp_path/"b", lora_r=4, max_steps=4, learning_rate=1e-3); again.fit(resume=True)
    for a, b in zip(adapters(whole.student.model).values(), adapters(again.student.model).values(), strict=True): assert torch.equal(a, b)
    with pytest.raises(ValueError, match="give lora=4"): distiller(tmp_path/"c", student=tmp_path/"b"/"student")
    with pytest.raises(ValueError, match="rank 4, lora is 8"): distiller(tmp_path/"c", student=tmp_path/"b"/"student", lora_r=8)
    more = distiller(tmp_path/"c", student=tmp_path/"b"/"student", lora_r=4)
    assert torch.equal(logits(more.student.model), logits(again.student.model))


@peft
def test_the_reference_is_the_same_model_with_its_adapter_off(tmp_path):
    d = Distiller("tiny", "tiny", "tiny", "compass", DistillConfig(**SMALL | {"output_dir": tmp_path, "lora_r": 4, "learning_rate": 1e-2}), auxiliary_models={"weak": load_side("tiny", "weak", "cpu")})
    start = logits(d.student.model)
    assert isinstance(d.models.auxiliary["reference"].model, WithoutAdapter) and d.models.auxiliary["reference"].model.model is d.student.model
    d.fit()
    assert torch.equal(logits(d.models.auxiliary["reference"].model), start) and not torch.equal(logits(d.student.model), start)
    assert all(p.requires_grad for p in adapters(d.student.model).values())


@peft
def test_adapters_are_float32_and_the_same_for_a_seed():
    a, b, c = (add_lora(load_model("tiny", device="cpu", dtype="bfloat16"), 2, seed=s) for s in (0, 0, 1))
    assert {p.dtype for p in adapters(a).values()} == {torch.float32} and a.get_output_embeddings().weight.dtype == torch.bfloat16
    same = lambda x, y: all(torch.equal(p, q) for p, q in zip(adapters(x).values(), adapters(y).values()))
    assert same(a, b) and not same(a, c) and torch.isfinite(logits(a)).all()


@peft
def test_positions_reach_a_model_inside_peft_s_own_wrapper():
    "Left padding needs position_ids, which the wrapper's forward does not name"
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(load_model("tiny", "student", device="cpu"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    assert accepts(model, "position_ids") and accepts(model, "logits_to_keep")
    prompts, answers = [[1, 7, 9, 4], [1]], [[8, 9], [11, 3, 5]]
    for a, b in zip(response_logits(model, prompts, answers), reference_logits(model, prompts, answers)): assert (a - b).abs().max() < 1e-4


@peft
def test_another_adapter_is_refused_by_name(tmp_path):
    a = add_lora(load_model("tiny", "teacher", device="cpu"), 2); a.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another adapter than the student's"): load_adapter(tmp_path, add_lora(load_model("tiny", "student", device="cpu"), 2))


def gradient(d, samples):
    d.student.model.train(); d.state.optimizer.zero_grad()
    totals = DistillStep(d.models, d.objective, d.config, contextlib.nullcontext).forward_backward(samples)
    reduce_gradients(d.state.parameters, totals.num_units, d.accelerator)
    return torch.cat([p.grad.flatten() for p in d.state.parameters])


@pytest.mark.parametrize("lora", [None, pytest.param(4, marks=peft)])
def test_gradient_checkpointing_changes_no_gradient(tmp_path, lora):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*gradient_checkpointing_enable", category=FutureWarning)      # gone in transformers 6
        plain, saving = (distiller(tmp_path, gradient_checkpointing=g, lora_r=lora) for g in (False, True))
    samples = generate_samples(load_prompts("tiny", limit=4), plain.student, plain.teacher, plain.config, seed=0)
    a, b = gradient(plain, samples), gradient(saving, samples)
    assert saving.student.model.is_gradient_checkpointing and a.norm() > 0 and (a - b).abs().max() < 1e-5


@peft
def test_bfloat16_weights_with_an_adapter(tmp_path):
    d = distiller(tmp_path, lora_r=4, student_dtype="bfloat16", learning_rate=1e-3)
    assert d.student.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert all(0 < r["grad_norm"] < float("inf") for r in d.fit().steps)


def test_what_the_settings_refuse():
    with pytest.raises(ValueError, match="without lora"): DistillConfig(student_dtype="bfloat16")
    with pytest.raises(ValueError, match="one of 4, 8"): DistillConfig(teacher_quantization=3)
    with pytest.raises(ValueError, match="bits is 3"): placement(3)
    with pytest.raises(ImportError, match="pip install no_such"): require_package("no_such", "x")
