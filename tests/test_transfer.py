"""Tokenizer transfer: rows from rows, roles, a model that moves and teaches itself, bytes, and ensembles."""
import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xtokd.vocab.bytevocab import ByteVocab
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.models.made_tokenizers import byte_tokenizer
from xtokd.exact.toy_models import toy_bpe
from xtokd.alignment.doctor import probe_texts
from xtokd.data.prompts import load_prompts
from xtokd.models.sampling import generate_responses
from xtokd.models.forward import response_logits
from xtokd.experiments.tokenizer_transfer import (
    Ensemble, longest_cover, fvt, ensemble_logp, plan_transfer, control_token_sources,
    old_ids_of, transfer_tokenizer, with_tokenizer,
)
from xtokd.vocab.trie import ByteTrie


@pytest.fixture(scope="module")
def teacher(): return load_model("tiny", "teacher")


@pytest.fixture(scope="module")
def student(): return load_model("tiny", "student")


@pytest.fixture(scope="module")
def t_bv(): return ByteVocab(load_tokenizer("tiny", "teacher"))


@pytest.fixture(scope="module")
def s_bv(): return ByteVocab(load_tokenizer("tiny", "student"))


def short(tmp_path, **more):
    how = dict(max_steps=6, batch_size=8, micro_batch_size=8, learning_rate=2e-3, warmup_steps=1, max_new_tokens=12, eval_size=0, save_steps=0, progress=False, output_dir=str(tmp_path / "run"))
    return DistillConfig(**how | more)


def model_for(n, tied=True, bias=False, seed=0):
    torch.manual_seed(seed)
    m = LlamaForCausalLM(LlamaConfig(vocab_size=n, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=8, tie_word_embeddings=tied)).eval()
    if bias: m.lm_head.bias = torch.nn.Parameter(torch.randn(n))
    return m


def named(words, **roles):
    "A word-free tokenizer: the letters a, b and some control tokens, in this order."
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    tok = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(w, normalized=False) for w in words])
    return ByteVocab(PreTrainedTokenizerFast(tokenizer_object=tok, **{f"{k}_token": v for k, v in roles.items()}))


# ---- rows -------------------------------------------------------------------------------------------------------------------
def test_the_same_tokenizer_gives_the_same_rows(t_bv, s_bv, teacher):
    for bv in (t_bv, s_bv): assert plan_transfer(bv, bv).counts() == {"copied": len(bv), "averaged": 0, "role": 0, "fallback": 0}
    E = teacher.get_input_embeddings().weight
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16): assert torch.equal(fvt(E.to(dtype), plan_transfer(t_bv, t_bv)), E.detach().to(dtype)[:len(t_bv)])


def test_two_pieces_are_their_mean():
    old, new = toy_bpe("ab"), toy_bpe("ab", [("a", "b")])
    W = torch.randn(len(old), 5)
    out, p = fvt(W, plan_transfer(old, new)), plan_transfer(old, new)
    a, b, ab = (new.bytes.index(x) for x in (b"a", b"b", b"ab"))
    assert torch.equal(out[ab], (W[old.bytes.index(b"a")] + W[old.bytes.index(b"b")]) / 2) and torch.equal(out[a], W[old.bytes.index(b"a")])
    assert p.counts() == {"copied": 2, "averaged": 1, "role": 1, "fallback": 0} and torch.equal(out[new.stop_ids[0]], W[old.stop_ids[0]])
    r = fvt(W, p, rescale=True)
    assert r[ab].norm().item() == pytest.approx((W[old.bytes.index(b"a")].norm() + W[old.bytes.index(b"b")].norm()).item() / 2, rel=1e-5) and torch.equal(r[a], out[a])
    assert b != ab and fvt(W[:, 0], p).shape == (len(new),)


def test_a_permuted_vocabulary_is_the_same_model(t_bv, teacher):
    state = json.loads(t_bv.tokenizer.to_str())
    size = len(state["model"]["vocab"])
    to = np.random.default_rng(0).permutation(size)
    state["model"]["vocab"] = {t: int(to[i]) for t, i in state["model"]["vocab"].items()}
    new = ByteVocab(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<|open|>", eos_token="<|done|>", pad_token="<|fill|>"))
    full = np.r_[to, np.arange(size, len(t_bv))]
    made, report = with_tokenizer(teacher, t_bv, new)
    assert report["averaged"] == report["fallback"] == 0
    assert torch.equal(made.get_input_embeddings().weight[torch.as_tensor(full)], teacher.get_input_embeddings().weight[:len(t_bv)])
    x = torch.tensor([[t_bv.hf.bos_token_id, *t_bv.encode("Certainly: 9632")]])
    with torch.no_grad(): assert torch.allclose(made(torch.as_tensor(full)[x]).logits[..., full], teacher(x).logits[..., :len(t_bv)], atol=1e-5)


def test_pieces(s_bv, t_bv):
    for old, new in ((s_bv, t_bv), (t_bv, s_bv)):
        cut = old_ids_of(old, new.bytes)
        assert all(old.decode(x) == p for p, x in zip(new.bytes, cut))
    assert old_ids_of(s_bv, ["é".encode()[:1], "数".encode()[1:], b"", b"\xff"]) == [[s_bv.bytes.index(b"\xc3")], [s_bv.bytes.index(bytes([b])) for b in "数".encode()[1:]], [], [s_bv.bytes.index(b"\xff")]]
    trie = ByteTrie([b"a", b"ab", b"", b"c"])
    assert longest_cover(trie, [b"abc", b"aab", b"", b"abd", b"x"]) == [[1, 3], [0, 1], [], [], []]


def test_what_nobody_writes_is_the_mean_of_all_text():
    old, new = toy_bpe("ab"), toy_bpe("abx")
    W = torch.randn(len(old), 3)
    p = plan_transfer(old, new)
    assert p.counts()["fallback"] == 1 and torch.allclose(fvt(W, p)[new.bytes.index(b"x")], W[:2].mean(0))


# ---- roles ------------------------------------------------------------------------------------------------------------------
def test_roles_not_strings():
    old = named(["<s>", "</s>", "<pad>", "<tool>"], bos="<s>", eos="</s>", pad="<pad>")
    new = named(["</s>", "<end>", "<s>", "<tool>"], bos="</s>", eos="<end>", pad="<s>")        # the strings play other roles
    i, j = (lambda w: new.tokenizer.token_to_id(w)), (lambda w: old.tokenizer.token_to_id(w))
    assert control_token_sources(old, new) == {i("</s>"): [j("<s>")], i("<end>"): [j("</s>")], i("<s>"): [j("<pad>")], i("<tool>"): [j("<tool>")]}
    assert control_token_sources(old, new, {"<tool>": "ab", "<s>": "<tool>"})[i("<tool>")] == [2] and control_token_sources(old, new, {"<s>": "<tool>"})[i("<s>")] == [j("<tool>")]


def test_one_token_with_two_roles():
    old, new = named(["<s>", "</s>"], bos="<s>", eos="</s>"), named(["<|end|>"], bos="<|end|>", eos="<|end|>")
    bos, stop = old.hf.bos_token_id, old.stop_ids[0]
    assert control_token_sources(old, new)[3] == [bos] and control_token_sources(old, new, first="stop")[3] == [stop]
    for tied in (True, False):
        m = model_for(len(old), tied, bias=not tied)
        made, _ = with_tokenizer(m, old, new)
        assert torch.equal(made.model.embed_tokens.weight[3], m.model.embed_tokens.weight[bos])
        assert torch.equal(made.lm_head.weight[3], m.lm_head.weight[bos if tied else stop])
        assert tied or torch.equal(made.lm_head.bias[3], m.lm_head.bias[stop])
        assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied


def test_several_stops():
    old, new = named(["<s>", "</s>", "<eot>"], bos="<s>", eos="</s>"), named(["<s>", "<x>", "<y>"], bos="<s>", eos="<x>")
    more = ByteVocab(new.hf, stops=[4, 5])
    assert control_token_sources(old, more)[4] == [old.stop_ids[0]] and 5 not in control_token_sources(old, more)
    made, _ = with_tokenizer(model_for(len(old)), ByteVocab(old.hf, stops=[4, 5]), more)
    assert made.generation_config.eos_token_id == [4, 5] and control_token_sources(ByteVocab(old.hf, stops=[4, 5]), more)[5] == [5]


# ---- models -----------------------------------------------------------------------------------------------------------------
def test_tied_untied_and_saved(teacher, t_bv, s_bv, tmp_path):
    before = deepcopy(teacher.state_dict())
    for untie in (False, True):
        made, report = with_tokenizer(teacher, t_bv, s_bv, untie=untie)
        assert made.get_output_embeddings().weight.shape == made.get_input_embeddings().weight.shape == (len(s_bv), 128)
        assert report["tied"] == (not untie) == (made.get_output_embeddings().weight is made.get_input_embeddings().weight)
        assert (made.config.bos_token_id, made.config.eos_token_id, made.generation_config.pad_token_id, made.config.vocab_size) == (1, 2, 0, len(s_bv))
        if untie:
            with torch.no_grad(): made.get_output_embeddings().weight.add_(1)
        made.save_pretrained(tmp_path / str(untie))
        again = load_model(tmp_path / str(untie))
        x = torch.tensor([[1, *s_bv.encode("twenty")]])
        with torch.no_grad(): assert torch.allclose(again(x).logits, made(x).logits, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_wrong_pairs_are_refused(student, t_bv, s_bv):
    with pytest.raises(ValueError, match="embedding rows"): with_tokenizer(student, t_bv, s_bv)
    with pytest.raises(ValueError, match="is no token of"): plan_transfer(t_bv, s_bv, {"<nobody>": "x"})


# ---- bytes ------------------------------------------------------------------------------------------------------------------
def test_byte_tokenizer_round_trip(s_bv, t_bv):
    for like in (s_bv, t_bv, t_bv.hf):
        tok = byte_tokenizer(like)
        bv, like = ByteVocab(tok), ByteVocab(like)
        for text in (*probe_texts().values(), "", "</reply>\x00\ufeff 👩‍👩‍👧"):
            assert bv.encode(text) == list(text.encode()) and bv.decode(bv.encode(text)) == text.encode()
        assert len(bv) == 256 + like.special.sum() and bv.bytes[:256] == [bytes([b]) for b in range(256)] and bv.complete
        assert (tok.bos_token, tok.eos_token, tok.pad_token) == (like.hf.bos_token, like.hf.eos_token, like.hf.pad_token)
        assert (tok("")["input_ids"][:1] == [tok.bos_token_id]) == (like.hf("")["input_ids"][:1] == [like.hf.bos_token_id])
        chat = [[{"role": "user", "content": "a"}]]
        assert tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == like.hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert tok.decode(bv.encode("naïve")) == "naïve"
    assert plan_transfer(s_bv, ByteVocab(byte_tokenizer(s_bv))).counts() == {"copied": 256, "averaged": 0, "role": 5, "fallback": 0}


def test_byte_tokenizer_of_a_bare_one():
    raw = toy_bpe("ab", [("a", "b")])
    bv = ByteVocab(byte_tokenizer(raw))
    assert len(bv) == 257 and bv.stop_ids == (256,)


# ---- self-distillation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("objective, text_source", [("alm", "teacher"), ("cover", "teacher"), (("alm", {"form": "limit"}), "student")], ids=str)
def test_subwords_to_subwords(teacher, t_bv, s_bv, tmp_path, objective, text_source):
    before, flags = deepcopy(teacher.state_dict()), [p.requires_grad for p in teacher.parameters()]
    steps = 12 if text_source == "teacher" else 3
    out = transfer_tokenizer(teacher, t_bv, s_bv, load_prompts("tiny", 32), objective, short(tmp_path, max_steps=steps), text_source, {"<user>": "Question:\n", "<reply>": "Answer:\n"})
    loss = out.run.column("loss")
    assert len(loss) == steps and np.isfinite(loss).all()
    if text_source == "teacher": assert np.mean(loss[-4:]) < .9 * np.mean(loss[:4])
    costs = out.run.steps[-1]["costs"]
    assert (costs["teacher_tokens_written"] > 0) == (text_source == "teacher")
    assert out.model.get_output_embeddings().weight is out.model.get_input_embeddings().weight and not out.model.training
    assert [p.requires_grad for p in teacher.parameters()] == flags and all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    folder = out.save(tmp_path / "saved")
    assert ByteVocab(folder) == s_bv and torch.equal(load_model(folder).get_input_embeddings().weight, out.model.get_input_embeddings().weight)


def test_subwords_to_bytes(student, s_bv, tmp_path):
    out = transfer_tokenizer(student, s_bv, byte_tokenizer(s_bv), load_prompts("tiny", 32), config=short(tmp_path, max_steps=10, max_new_tokens=16), untie=True)
    loss = out.run.column("loss")
    assert np.mean(loss[-3:]) < np.mean(loss[:3]) and out.report["tied"] is False and out.report["copied"] == 256
    folder = out.save(tmp_path / "saved")
    again, bv = load_model(folder), ByteVocab(folder)
    assert bv.stop_ids == (258,) and not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)
    assert len(generate_responses(again, bv, [[257, *b"twenty"]], 8, seed=0)[0]) > 0


def test_transfer_refuses(teacher, t_bv, s_bv):
    with pytest.raises(ValueError, match="old model"): transfer_tokenizer(teacher, t_bv, s_bv, ["x"], text_source="reference")
    with pytest.raises(ValueError, match="does not learn from text of the teacher"): transfer_tokenizer(teacher, t_bv, s_bv, ["x"], objective="sampled")


# ---- ensembles --------------------------------------------------------------------------------------------------------------
def test_means():
    two = torch.tensor([[.9, .1], [.5, .5]]).log()
    assert torch.allclose(ensemble_logp(two).exp(), torch.tensor([.7, .3])) and torch.allclose(ensemble_logp(two, "logp").exp(), torch.tensor([.75, .25]))
    assert torch.allclose(ensemble_logp(two, weights=[3, 1]).exp(), torch.tensor([.8, .2])) and torch.allclose(ensemble_logp(two, "logp", [0, 1]).exp(), torch.tensor([.5, .5]))
    gone = torch.tensor([[1., 0.], [.5, .5]]).log()
    assert torch.allclose(ensemble_logp(gone).exp(), torch.tensor([.75, .25])) and torch.allclose(ensemble_logp(gone, "logp").exp(), torch.tensor([1., 0.]))
    for wrong in (dict(mean="max"), dict(weights=[1]), dict(weights=[-1, 1]), dict(weights=[0, 0])):
        with pytest.raises(ValueError): ensemble_logp(two, **wrong)


def test_an_ensemble_is_a_model(student, teacher, t_bv, s_bv, tmp_path):
    moved, _ = with_tokenizer(teacher, t_bv, s_bv)
    prompts = [[1, *s_bv.encode(x)] for x in ("twenty-seven", "two hundred thousand and one, please")]
    said = [s_bv.encode("The number is 27."), s_bv.encode("1")]
    alone = [[x.detach().softmax(-1) for x in response_logits(m, prompts, said)] for m in (student, moved)]
    both = Ensemble([student, moved], s_bv)
    for k, row in enumerate(both.rows(prompts, said)): assert torch.allclose(row.exp(), (alone[0][k] + alone[1][k]) / 2, atol=1e-5) and row.shape[1] == len(s_bv)
    for temperature in (0, 1.): assert generate_responses(Ensemble([student], s_bv), s_bv, prompts, 12, temperature, seed=1) == generate_responses(student, s_bv, prompts, 12, temperature, seed=1)
    assert generate_responses(Ensemble([student, moved], s_bv, weights=[1, 0]), s_bv, prompts, 12, 0) == generate_responses(student, s_bv, prompts, 12, 0)
    with pytest.raises(ValueError, match="bring it to this tokenizer first"): Ensemble([student, teacher], t_bv)
    run = Distiller((deepcopy(student), s_bv), (both, s_bv), load_prompts("tiny", 8), "strict", short(tmp_path, max_steps=1)).fit()
    assert np.isfinite(run.column("loss")).all()


def test_cached_writing_is_uncached_writing(student, teacher, t_bv, s_bv):
    both = Ensemble([student, with_tokenizer(teacher, t_bv, s_bv)[0]], s_bv, "logp")
    prompt = [1, *s_bv.encode("nine thousand")]
    ids, = generate_responses(both, s_bv, [prompt], 10, 0)
    rows, = both.rows([prompt], [ids])
    assert rows.argmax(-1).tolist() == ids
