"Scores: the shift at the door, under every padding, length and head width."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, Lfm2Config, Lfm2ForCausalLM, LlamaConfig,
                          LlamaForCausalLM, MambaConfig, MambaForCausalLM, Qwen2Config, Qwen2ForCausalLM)

from xtokd.models import forward, prefix_cache
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.models.loading import load_tokenizer
from xtokd.models.forward import (
    closing_id, left_pad, reference_logits, response_logits, response_states, retokenize, sequence_logp,
    teacher_ids, token_logp,
)
from xtokd.models.prefix_cache import supports_prefix_cache, attention_window

torch.set_num_threads(1)
SMALL = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64)


def build(kind, window=4):   # gemma3: a sliding window shorter than the sequences
    torch.manual_seed(0)
    if kind == "llama": m = LlamaForCausalLM(LlamaConfig(**SMALL))
    if kind == "qwen2": m = Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True))
    if kind == "gpt2": m = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    if kind == "gemma3": m = Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=window, layer_types=["sliding_attention", "full_attention"]))
    return m.eval()


MODELS = {k: build(k) for k in ("llama", "qwen2", "gpt2", "gemma3")}
ids = lambda low, high: st.lists(st.integers(0, 49), min_size=low, max_size=high)
batches = st.lists(st.tuples(ids(1, 12), ids(0, 12)), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=12, deadline=None)
@given(batch=batches, micro=st.sampled_from([1, 2, None]))
def test_equal_to_the_reference(kind, batch, micro):
    prompts, responses = map(list, zip(*batch))
    got = response_logits(MODELS[kind], prompts, responses, micro)
    for g, w, r in zip(got, reference_logits(MODELS[kind], prompts, responses), responses):
        assert g.shape == w.shape == (len(r), 50)
        if len(r): assert (g - w).abs().max() < 1e-4


@pytest.fixture
def shared(monkeypatch):
    "Every common beginning is read once, however short; the numbers of first ids that were."
    lengths, prefill = [], prefix_cache.prefill
    def counting(model, ids, mask):
        lengths.append(len(ids))
        return prefill(model, ids, mask)
    monkeypatch.setattr(prefix_cache, "_MIN_SAVED", {"cpu": 1})
    for module in (forward, prefix_cache): monkeypatch.setattr(module, "prefill", counting)
    return lengths


@pytest.mark.parametrize("kind", [*MODELS, "gemma3, long windows"])
def test_a_common_beginning_read_once_changes_nothing(kind, shared):
    m, rng = MODELS.get(kind) or build("gemma3", 64), np.random.default_rng(0)
    if kind == "gemma3": assert attention_window(m) == 4
    some = lambda n: rng.integers(50, size=n).tolist()
    for k in range(12):
        begin = some(rng.integers(1, 9))
        prompts, responses = zip(*[(begin + some(rng.integers(1, 12)), some(rng.integers(0, 12))) for _ in range(rng.integers(2, 6))])
        rows, states = response_logits(m, prompts, responses, hidden=True)
        for g, w, h in zip(rows, reference_logits(m, prompts, responses), states):
            if len(g): assert (g - w).abs().max() < 1e-4 and torch.allclose(m.get_output_embeddings()(h), g, atol=1e-4)
        for h, w in zip(response_states(m, prompts, responses), states): assert h.shape == w.shape and torch.allclose(h, w, atol=1e-5)
    assert sum(n > 3 for n in shared) > 5 if kind != "gemma3" else max(shared, default=0) < 4       # the first is the trial


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_gradient_comes_through_a_common_beginning(kind, shared, monkeypatch):
    m, prompts, responses = build(kind), [[5, 6, 7, 8, 9], [5, 6, 7, 1], [5, 6, 7, 1, 2, 3]], [[4, 4], [1, 2, 3], [9]]
    found = []
    for least in (1, 1000):
        monkeypatch.setattr(prefix_cache, "_MIN_SAVED", {"cpu": least})
        m.zero_grad()
        sum((r.log_softmax(-1)[:, 3] ** 2).sum() for r in response_logits(m, prompts, responses, grad=True)).backward()
        found.append([p.grad.clone() for p in m.parameters()])
    assert shared == [3, 3] and all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*found))


def test_where_nothing_is_kept_all_is_read(shared):
    m, how = build("llama"), ([[5, 6, 7, 8], [5, 6, 7, 1]], [[4, 4], [1]])
    truth = response_logits(m, *how)
    same = lambda: all(torch.allclose(a, b, atol=1e-5) for a, b in zip(response_logits(m, *how, grad=True), truth))
    assert shared == [3, 3] and same()
    m.gradient_checkpointing_enable(); m.train()
    assert same() and shared == [3] * 3                                   # forgets its activations, and keeps no cache
    m.eval()
    m.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.}
    assert attention_window(m) == 0 and same() and shared == [3] * 3
    class Forgets(torch.nn.Module):
        "Takes a cache and gives none."
        def __init__(self): super().__init__(); self.m, self.config = MODELS["llama"], MODELS["llama"].config
        def get_output_embeddings(self): return self.m.get_output_embeddings()
        def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False): return self.m(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
    assert not supports_prefix_cache(Forgets()) and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(response_logits(Forgets(), *how), truth))
    class Ignores(Forgets):
        "Gives a cache, and does not go on from it."
        def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False): return self.m(input_ids=input_ids, attention_mask=attention_mask[:, -input_ids.shape[1]:] if attention_mask is not None else None, use_cache=use_cache)
    assert not supports_prefix_cache(Ignores())


def test_models_with_a_state_of_their_own(shared):
    "Convolutions, states: what they keep of a text is no list of its tokens. They are tried, and their rows are right."
    torch.manual_seed(0)
    for m in (Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])), MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4))):
        prompts, responses = [[5, 6, 7, 8, 9], [5, 6, 7, 1, 2]], [[4, 4], [1, 2]]
        for g, w in zip(response_logits(m.eval(), prompts, responses), reference_logits(m, prompts, responses)): assert (g - w).abs().max() < 1e-4, type(m)


def test_row_r_predicts_token_r_in_the_gradient():
    "D10: the gradient of one response token's loss must reach its own row, and changing later tokens must not matter."
    m = MODELS["llama"]
    rows = response_logits(m, [[1, 2, 3]], [[4, 5, 6]], grad=True)[0]
    assert rows.requires_grad and not response_logits(m, [[1, 2]], [[3]])[0].requires_grad
    other = response_logits(m, [[1, 2, 3]], [[4, 5, 7]])[0]
    assert torch.allclose(rows.detach(), other, atol=1e-6), "the last token is predicted, never read"
    changed = response_logits(m, [[1, 2, 3]], [[9, 5, 6]])[0]
    assert torch.allclose(rows[0], changed[0], atol=1e-6) and not torch.allclose(rows[1], changed[1], atol=1e-4)


def test_models_without_the_newer_arguments():
    "A model whose forward knows neither logits_to_keep nor position_ids is scored all the same."
    class Old(torch.nn.Module):
        def __init__(self): super().__init__(); self.m = MODELS["llama"]; self.config = self.m.config
        def get_output_embeddings(self): return self.m.get_output_embeddings()
        def forward(self, input_ids, attention_mask): return self.m(input_ids=input_ids, attention_mask=attention_mask)
    got = response_logits(Old(), [[1, 2], [3]], [[4, 5], []])
    assert torch.allclose(got[0], reference_logits(MODELS["llama"], [[1, 2]], [[4, 5]])[0], atol=1e-4) and got[1].shape == (0, 50)


def test_truncation_masks_the_end_and_never_shifts():
    "D23: what does not fit is cut at the end; the rows that are left are the same as without a limit."
    m, p, r = MODELS["llama"], [[1, 2, 3], [4]], [[5, 6, 7, 8], [9, 10]]
    whole, cut = response_logits(m, p, r), response_logits(m, p, r, max_length=5)
    assert [len(c) for c in cut] == [2, 2]
    for c, w in zip(cut, whole): assert torch.allclose(c, w[:len(c)], atol=1e-5)
    assert [len(c) for c in response_logits(m, p, r, max_length=3)] == [0, 2]


def test_errors_name_the_sample():
    m = MODELS["llama"]
    with pytest.raises(ValueError, match="sample 1 has 60 prompt and 10 response tokens, the model holds 64"): response_logits(m, [[1], [1] * 60], [[2], [2] * 10])
    assert len(response_logits(m, [[1] * 60], [[2] * 10], max_length=64)[0]) == 4
    with pytest.raises(ValueError, match="sample 0 has an empty prompt"): response_logits(m, [[]], [[1]])
    with pytest.raises(ValueError): response_logits(m, [[1]], [[1], [2]])
    assert response_logits(m, [], []) == []


def test_positions_count_from_the_first_real_token():
    i, mask, pos = left_pad([[7, 8, 9], [5]], pad=0)
    assert i.tolist() == [[7, 8, 9], [0, 0, 5]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]] and pos.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_stop_is_a_class():
    "Oracle of arXiv 2609.20511 as in the issue: naive -8.987197, by class -.012452."
    rest = lambda a, b: torch.tensor([[a, b, 1 - a - b]], dtype=torch.float64).log()
    S, T = rest(.8, 1e-11), rest(1e-4, .79)
    assert abs(float(sequence_logp(T, [0]) - sequence_logp(S, [0])) + 8.987197) < 1e-4
    assert abs(float(sequence_logp(T, [0], stop_ids=(0, 1)) - sequence_logp(S, [0], stop_ids=(0, 1))) + .012452) < 1e-4


def test_padded_heads_take_no_mass():
    "D17"
    logits = torch.randn(3, 8); logits[:, 6:] = 40.
    assert torch.allclose(token_logp(logits, [0, 1, 2], 6), logits[:, :6].log_softmax(-1)[range(3), [0, 1, 2]])
    assert torch.allclose(token_logp(logits.bfloat16(), [0], 6, temperature=2.).float().exp().sum(), token_logp(logits.bfloat16(), [0], 6, 2.).exp().sum())
    assert token_logp(logits.bfloat16()[:1], [0], 6).dtype == torch.float32


STUDENT, TEACHER = (ByteVocab(load_tokenizer("tiny", role)) for role in ("student", "teacher"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.booleans()), min_size=1, max_size=4))
def test_the_same_bytes_in_the_other_tokens(texts):
    s = [STUDENT.encode(t) + [STUDENT.stop_ids[0]] * stop for t, stop in texts]
    t = retokenize(STUDENT, TEACHER, s)
    for (text, stop), a, b in zip(texts, s, t):
        assert STUDENT.decode(a) == TEACHER.decode(b)
        assert (len(b) > 0 and b[-1] in TEACHER.stop_ids) == stop and sum(i in TEACHER.stop_ids for i in b) == stop


def test_truncated_is_not_stopped_and_half_characters_do_not_break():
    "D20: a stop id inside is a control token of no bytes; only a final one is a stop."
    from types import SimpleNamespace
    pair = SimpleNamespace(student=STUDENT, teacher=TEACHER)
    stop, half = int(STUDENT.stop_ids[0]), STUDENT.encode("é")[:1]
    assert TEACHER.decode(teacher_ids(pair, STUDENT.encode("12"))) == b"12" and teacher_ids(pair, STUDENT.encode("12"))[-1] not in TEACHER.stop_ids
    assert teacher_ids(pair, [stop]) == [closing_id(TEACHER)] and teacher_ids(pair, []) == []
    if STUDENT.decode(half) != "é".encode(): assert TEACHER.decode(teacher_ids(pair, half)) == "\ufffd".encode()


def test_equal_vocabularies_keep_the_sampled_ids():
    "A same-tokenizer pair reads the student's own ids, canonical or not."
    one = [STUDENT.encode(c)[0] for c in "number"]
    assert STUDENT.encode("number") != one and retokenize(STUDENT, STUDENT, [one, one + [int(STUDENT.stop_ids[0])]]) == [one, one + [int(STUDENT.stop_ids[0])]]
