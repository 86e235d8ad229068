"Rollouts: the student's own distribution and nothing else."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from xtokd.models.sampling import truncate_at_stop, generate_responses, banned_ids

torch.set_num_threads(1)


class Ids:
    "A stand-in for a ByteVocab: `n` ids, some of them stops and holes."
    def __init__(self, n=30, stops=(3,), holes=()):
        self.lengths, self.special = np.ones(n, np.int32), np.zeros(n, bool)
        self.stop_ids = self.end_ids = stops
        self.lengths[list(holes)] = 0
        self.lengths[list(stops)] = 0; self.special[list(stops)] = True
    def __len__(self): return len(self.lengths)


def model(width=40, **kw):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=width, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, **kw))


M, PROMPTS = model(), [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14, 15]]


@given(st.lists(st.integers(0, 6), max_size=8), st.sets(st.integers(0, 6), max_size=2))
def test_cut(ids, stops):
    got = truncate_at_stop(ids, stops)
    assert got == ids[:len(got)] and not any(i in stops for i in got[:-1])
    assert len(got) == len(ids) or got[-1] in stops


def test_padded_columns_and_holes_are_never_sampled():
    "D17: a head that puts nearly all mass behind the tokenizer and on a hole."
    m, vocab = model(), Ids(holes=(4, 20))
    assert banned_ids(m, vocab) == [4, 20, *range(30, 40)]
    with torch.no_grad():
        m.lm_head.weight.mul_(.01); m.lm_head.weight[30:] += 5; m.lm_head.weight[4] += 5
    wrote = generate_responses(m, vocab, [[5, 6]] * 64, 12, seed=0)
    assert max(max(w) for w in wrote) < 30 and not any({4, 20} & set(w) for w in wrote)


def test_the_models_own_generation_config_has_no_say_and_comes_back():
    m, vocab = model(), Ids()
    plain = generate_responses(m, vocab, PROMPTS, 12, seed=3)
    own = GenerationConfig(do_sample=True, top_k=1, top_p=.01, temperature=.01, repetition_penalty=9., min_new_tokens=12, eos_token_id=7, max_length=4,
                           no_repeat_ngram_size=1, suppress_tokens=[1, 2], begin_suppress_tokens=[5], forced_eos_token_id=9, typical_p=.1, min_p=.9)
    m.generation_config = own
    for training in (True, False):
        m.train(training)
        assert generate_responses(m, vocab, PROMPTS, 12, seed=3) == plain
        assert m.generation_config is own and m.training is training


def test_pure_sampling_follows_the_models_row():
    vocab = Ids()
    counts = torch.tensor(generate_responses(M, vocab, [[5, 6, 7]] * 4000, 1, batch_size=1000, seed=0))[:, 0].bincount(minlength=40)
    with torch.no_grad(): p = M.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1, :30].softmax(-1)
    assert counts[30:].sum() == 0 and float(((counts[:30] - 4000*p)**2 / (4000*p)).sum()) < 62   # .9995 quantile, 29 degrees


def test_seeds():
    vocab, state = Ids(), torch.get_rng_state()
    a = generate_responses(M, vocab, PROMPTS, 16, seed=1)
    assert torch.equal(state, torch.get_rng_state()) and a == generate_responses(M, vocab, PROMPTS, 16, seed=1) != generate_responses(M, vocab, PROMPTS, 16, seed=2)
    torch.manual_seed(5); b = generate_responses(M, vocab, PROMPTS, 16); torch.manual_seed(5)
    assert b == generate_responses(M, vocab, PROMPTS, 16) != generate_responses(M, vocab, PROMPTS, 16)


def test_greedy_is_the_argmax_under_left_padding():
    got = generate_responses(M, Ids(stops=()), PROMPTS, 6, temperature=0)
    for p, r in zip(PROMPTS, got):
        for i in range(6):
            with torch.no_grad(): row = M.eval()(torch.tensor([p + r[:i]])).logits[0, -1, :30]
            assert int(row.argmax()) == r[i]


def test_responses_end_with_their_stop_id_even_where_it_pads():
    "pad == eos: the filling goes, the stop stays; a response without a stop has max_new_tokens."
    vocab = Ids(stops=(3, 9))
    wrote = generate_responses(M, vocab, PROMPTS * 40, 10, seed=0)
    ends = [w[-1] in (3, 9) for w in wrote]
    assert any(ends) and not all(ends)
    for w, stopped in zip(wrote, ends): assert not {3, 9} & set(w[:-1]) and (stopped or len(w) == 10)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="prompt 1 is empty"): generate_responses(M, Ids(), [[1], []], 4)
    with pytest.raises(ValueError, match="max_new_tokens is 0"): generate_responses(M, Ids(), [[1]], 0)
    with pytest.raises(ValueError, match="temperature is -1"): generate_responses(M, Ids(), [[1]], 4, temperature=-1)
    assert generate_responses(M, Ids(), [], 4) == []
