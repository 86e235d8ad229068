"""Proper merges, beginnings, and the exact teacher in the student's tokens, held against counted worlds and against texts that the real teacher writes."""
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from test_bytevocab import PIECES, deepseek, mistral, qwen, tekken, unigram, wordpiece
from tokenizers import models
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.hub import data_dir
from xtokd.exact.canonical_prefixes import (
    PrefixTokenizations, CanonicalContinuations, possible_tokenizations,
)
from xtokd.exact.prefix_probability import student_row
from xtokd.vocab.merges import MergeTable, pretoken_boundaries, listed_merges, proper_merges, run_bpe
from xtokd.exact.scorer import Scorer, canonical_mass, exact_rows, sampled_rows
from xtokd.exact.toy_models import (
    ToyModel, toy_bpe, digit_groups, doubling_world, apply_merge, random_bpe, random_texts, twin_world,
)
from xtokd.alignment.pair import Pair
from xtokd.vocab.spelling import UnsupportedTokenizer

PROBES = [p.read_bytes().decode() for p in sorted((data_dir() / "probes").glob("*.txt"))]
text = st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)), max_size=12).map("".join)


# ---------------------------------------------------------------- merges
def built(merges, vocab, ignore_merges=False):
    "A ByteVocab of merges over a, b, c, for lists that no trainer writes."
    from tokenizers import Tokenizer, pre_tokenizers
    tok = Tokenizer(models.BPE({p: i for i, p in enumerate(vocab)}, merges, ignore_merges=ignore_merges))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return ByteVocab(tok, stops=[], name="built")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    from transformers import AutoTokenizer
    pair = Pair("tiny")
    cut = AutoTokenizer.from_pretrained(tekken(tmp_path_factory.mktemp("tekken")))
    tokenizers = dict(student=pair.student, teacher=pair.teacher, mistral=mistral(), tekken=cut)
    return {n: proper_merges(ByteVocab(t, name=n)) for n, t in tokenizers.items()}


def test_two_ways_to_make_a_token():
    m = proper_merges(built([("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")], ["a", "b", "c", "bc", "ab", "abc"]))
    assert [(m.vocab.bytes[l], m.vocab.bytes[r]) for l, r, _ in m.as_tuples] == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")] and m.num_listed == 4 and not len(m.unreachable)


def test_unreachable_tokens_are_listed():
    vocab, merges = ["a", "b", "c", "bc", "ab", "abc"], [("b", "c"), ("a", "b"), ("ab", "c")]
    m = proper_merges(built(merges, vocab))
    assert m.unreachable.tolist() == [5] and not len(m.whole_only)
    m = proper_merges(built(merges, vocab, ignore_merges=True))
    assert m.whole_only.tolist() == [5] and not len(m.unreachable) and m.encode("abc") == [5]


def test_late_merges_are_listed():
    m = proper_merges(built([("a", "bc"), ("b", "c")], ["a", "b", "c", "bc", "abc"]))
    assert m.out_of_order.tolist() == [4] and m.encode("abc") == m.vocab.encode("abc") == [4]


@pytest.mark.parametrize("make", [unigram, wordpiece])
def test_no_merges_no_list(make):
    with pytest.raises(UnsupportedTokenizer, match="not made by merges"): proper_merges(make())


def test_one_merge_per_token(real):
    for name, m in real.items():
        made = np.flatnonzero(m.rank >= 0)
        assert all(m.vocab.bytes[i] == m.vocab.bytes[m.left[i]] + m.vocab.bytes[m.right[i]] for i in made[:: max(1, len(made) // 2000)]), name
        assert len(made) == len(m.rules) == len(set(m.rules.made.tolist())) <= m.num_listed
    assert len(real["mistral"].rules) < real["mistral"].num_listed          # converted from a ranked list: several splits per token


@pytest.mark.slow
@pytest.mark.parametrize("make", [qwen, deepseek])
def test_large_vocabularies(make):
    m = proper_merges(ByteVocab(make(), name=make.__name__))
    assert all(m.encode(t) == m.vocab.encode(t) for t in PROBES + PIECES) and not len(m.out_of_order)


def test_replay_is_the_tokenizer_on_probes(real):
    for name, m in real.items(): assert [m.encode(t) for t in PROBES] == [m.vocab.encode(t) for t in PROBES], name


@given(t=text)
@settings(max_examples=100, deadline=None)
def test_replay_is_the_tokenizer_on_random_texts(real, t):
    for name, m in real.items(): assert m.encode(t) == m.vocab.encode(t), name


@given(t=text)
@settings(max_examples=60, deadline=None)
def test_borders_tile_the_text_and_are_cuts(real, t):
    for name, m in real.items():
        b = pretoken_boundaries(m.vocab, t)
        assert b[0] == 0 and b[-1] == len(m.vocab.decode(m.vocab.encode(t))) and set(b.tolist()) <= set(m.vocab.starts(m.vocab.encode(t)).tolist()), name


@given(seed=st.integers(0, 10 ** 6), pieces=st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_many_pieces_are_played_as_each_alone(seed, pieces):
    bv = random_bpe(np.random.default_rng(seed), "ab", 5)
    start = np.cumsum([0, *map(len, pieces)])
    out, last = run_bpe(["ab".index(c) for p in pieces for c in p], start, listed_merges(bv))
    assert [x.tolist() for x in out] == bv.encode_batch(pieces)


# ---------------------------------------------------------------- beginnings
SPLITS = [None, r" ?[a-zé]+|[0-9]{1,2}| ?[^\sa-zé0-9]+|\s+(?!\S)|\s+", r"'a|[^\r\na-z0-9]?[a-zé]+|[0-9]| ?[^\sa-z0-9]+|\s+(?!\S)|\s+",
          r"[0-9]{1,2}(?=(?:[0-9]{2})*(?:[^0-9]|$))| ?[^0-9 ]+| +"]          # white space, contractions, numbers grouped from the right
ALPHABETS = ["ab", "abc", "a b", "a1 ", "a'1", "aé ", "é1è", "a1,"]


def any_bpe(rng, alphabet):
    "A random BPE with any of the pre-tokenizers; merges may join half characters."
    data = "".join(alphabet[i] for i in rng.integers(0, len(alphabet), 60)).encode()
    seq, merges = [bytes([b]) for b in data], []
    for _ in range(rng.integers(0, 6)):
        i = rng.integers(len(seq) - 1)
        merges.append((seq[i], seq[i + 1]))
        seq = apply_merge(seq, *merges[-1], seq[i] + seq[i + 1])
    return toy_bpe(alphabet, merges, SPLITS[rng.integers(len(SPLITS))], bool(rng.integers(2)))


@example(seed=406889)        # white space before a suffix that is left open
@given(seed=st.integers(0, 10 ** 9))
@settings(max_examples=150, deadline=None)
def test_every_text_begins_with_a_cover_and_every_next_token_may_follow(seed):
    rng = np.random.default_rng(seed)
    alphabet = ALPHABETS[rng.integers(len(ALPHABETS))]
    bv = any_bpe(rng, alphabet)
    read, write = PrefixTokenizations(bv, wide=int(rng.integers(1, 10))), CanonicalContinuations(bv)
    for _ in range(5):
        x = "".join(alphabet[i] for i in rng.integers(0, len(alphabet), 8))
        data, ids = x.encode(), tuple(bv.encode(x))
        for k in range(len(data)): assert any(ids[:len(c)] == c for c in read.possible([data[:k]])[0]), (x, k)
        context = ()
        for v in ids:
            assert write.allowed(context, [v])[0], (x, v)
            context = write.context((*context, v))


def test_unigram_is_refused():
    with pytest.raises(UnsupportedTokenizer, match="depend on all of it"): PrefixTokenizations(ByteVocab(unigram()))


def test_a_space_belongs_to_the_word_that_may_come():
    bv = toy_bpe("a b", [(" ", " ")], SPLITS[1])
    assert possible_tokenizations(bv, "a  ") == {tuple(bv.encode("a  ")), tuple(bv.encode("a") + bv.encode(" ") * 2)}


# ---------------------------------------------------------------- the scorer against counting
def check_rows(S, T, ids, floor=0.):
    "Exact without a floor; bounds that hold with one."
    rows, want = exact_rows(Scorer(T.row, T.vocab), S.vocab, ids, floor=floor), S.rows(ids)
    if floor:
        assert (rows.low <= want + 1e-12).all() and (rows.high >= want - 1e-12).all()
        return rows
    assert abs(rows.low - want).max() < 1e-9 and abs(rows.high - want).max() < 1e-9 and rows.lost.max() == rows.aside.max() == 0
    assert np.allclose(np.exp(rows.log_mass), [float(S.mass(ids[:k])) for k in range(len(ids) + 1)], atol=1e-12)
    return rows


def bytes_of(text): return bytes(sorted(set(text.encode())))


@pytest.mark.parametrize("student, teacher, counts", [
    (([], "😀"), ([(b"\xf0", b"\x9f")], "😀"), (5, 6)),      # P(stop) was certified as [1, 1]
    (([], "é"), ([], "é"), (8, 9)),                          # was NaN
    (([], "你"), ([], "你"), (5, 6)),                          # was NaN
    (([], "你"), ([(b"\xe4", b"\xbd")], "你"), (6, 7)),        # was a UnicodeDecodeError
    (([(b"\xbd", b"\xa0")], "你"), ([(b"\xa0", b"\xe4")], "你"), (9, 20)),
])
def test_long_pretokens_of_characters_of_several_bytes(student, teacher, counts):
    "What is left of a long context begins with a character."
    half = Fraction(1, 2)
    sides = [toy_bpe(bytes_of(characters), merges) for merges, characters in (student, teacher)]
    texts = {student[1] * n: half for n in counts}
    S, T = (ToyModel(texts, vocab) for vocab in sides)
    for text in texts: check_rows(S, T, list(S.codes[text]))


def test_twin_world_table():
    "The rows of the worked example: after the student's b an a would have been merged; the teacher knows nothing of it."
    S, T = twin_world(10)
    b, ba, a = (S.vocab.bytes.index(x) for x in (b"b", b"ba", b"a"))
    rows = check_rows(S, T, [b, b, S.vocab.stop_ids[0]])
    assert np.allclose(rows.low[0][[a, b, ba]], [.5, .25, .25]) and rows.low[1][a] == 0 and np.allclose(rows.low[1][[b, ba, S.vocab.stop_ids[0]]], [.25, .25, .5])


@pytest.mark.parametrize("swap", [False, True])
def test_small_worlds(swap):
    d = doubling_world(7)
    numbers = {f"{i}": p for i, p in zip(range(1, 130), list(random_texts(np.random.default_rng(1), "ab", 6).values()))}
    total = sum(numbers.values())
    numbers = {x: p / total for x, p in numbers.items()}
    for S, T in (twin_world(7), (d, ToyModel(d.texts, toy_bpe("AB"))), (ToyModel(numbers, digit_groups(1)), ToyModel(numbers, digit_groups(3))), (ToyModel(numbers, digit_groups(2)), ToyModel(numbers, digit_groups(3)))):
        S, T = (T, S) if swap else (S, T)
        for ids in list(S.codes.values())[::7]: check_rows(S, T, ids)


def random_case(rng):
    alphabet = ALPHABETS[rng.integers(len(ALPHABETS))]
    texts = random_texts(rng, alphabet, 5 if len(alphabet) == 2 else 4)
    S, T = (ToyModel(texts, any_bpe(rng, alphabet)) for _ in range(2))
    codes = list(S.codes.values())
    return S, T, [codes[i] for i in rng.permutation(len(codes))[:4]]


@given(seed=st.integers(0, 10 ** 9))
@settings(max_examples=40, deadline=None)
def test_random_worlds_are_counted_right(seed):
    S, T, codes = random_case(np.random.default_rng(seed))
    for ids in codes: check_rows(S, T, ids)


@given(seed=st.integers(0, 10 ** 9), floor=st.sampled_from([.3, .1, .03, .01]))
@settings(max_examples=40, deadline=None)
def test_bounds_hold(seed, floor):
    S, T, codes = random_case(np.random.default_rng(seed))
    for ids in codes: check_rows(S, T, ids, floor)


@pytest.mark.slow
def test_ten_thousand_prefixes():
    rng, seen = np.random.default_rng(7), 0
    while seen < 10_000:
        S, T, codes = random_case(rng)
        for ids in codes: seen += len(check_rows(S, T, ids).low)
        for ids in codes[:2]: check_rows(S, T, ids, .02)


@given(seed=st.integers(0, 10 ** 9))
@settings(max_examples=15, deadline=None)
def test_the_merge_recursion_agrees(seed):
    rng = np.random.default_rng(seed)
    texts = random_texts(rng, "ab", 4)
    S, T = (ToyModel(texts, random_bpe(rng, "ab", 4)) for _ in range(2))
    ids = max(S.codes.values(), key=len)
    rows = check_rows(S, T, ids)
    for k in range(len(ids)): assert np.allclose(rows.low[k], np.array(student_row(T.row, T.vocab, S.vocab, ids[:k])[0], float), atol=1e-9)


def test_equal_tokenizers_give_the_teachers_own_rows():
    S, _ = twin_world(7)
    for ids in list(S.codes.values())[::9]: assert np.allclose(check_rows(S, S, ids).low, S.rows(ids))


def test_rows_of_positions_and_of_truncated_responses():
    S, T = twin_world(8)
    ids = max(S.codes.values(), key=len)
    whole = exact_rows(Scorer(T.row, T.vocab), S.vocab, ids, floor=0)
    part = exact_rows(Scorer(T.row, T.vocab), S.vocab, ids, floor=0, pos=[2, 4])
    assert np.allclose(part.low, whole.low[[2, 4]]) and part.forwards < whole.forwards
    cut = exact_rows(Scorer(T.row, T.vocab), S.vocab, ids[:3], floor=0)
    assert np.allclose(cut.low, whole.low[:3]) and np.allclose(cut.log_mass, whole.log_mass[:4])


def test_a_limit_widens_the_bounds_and_does_not_break_them():
    S, T = twin_world(8)
    ids = max(S.codes.values(), key=len)
    rows = exact_rows(Scorer(T.row, T.vocab), S.vocab, ids, floor=0, limit=0)
    assert (rows.low <= S.rows(ids) + 1e-12).all() and (rows.high >= S.rows(ids) - 1e-12).all() and rows.lost.max() > 0


def test_what_no_teacher_text_begins_with_is_nan():
    S, T = twin_world(6)
    a, b = S.vocab.bytes.index(b"a"), S.vocab.bytes.index(b"b")
    rows = exact_rows(Scorer(T.row, T.vocab), S.vocab, [b, a, a], floor=0)          # b|a would have been ba
    assert np.isfinite(rows.low[:2]).all() and np.isnan(rows.low[2]).all() and rows.low[1][a] == 0


def test_errors_say_what_is_wrong():
    S, T = twin_world(4)
    with pytest.raises(ValueError, match="no rows"): exact_rows(Scorer(T.row, T.vocab), S.vocab, [])
    with pytest.raises(ValueError, match="in the middle"): exact_rows(Scorer(T.row, T.vocab), S.vocab, [S.vocab.stop_ids[0], 0])


# ---------------------------------------------------------------- the real teacher
@pytest.fixture(scope="module")
def tiny():
    import torch
    from xtokd.data.chat import render_prompt
    from xtokd.models.loading import load_model
    from xtokd.data.prompts import load_prompts
    torch.set_num_threads(1)
    pair, items = Pair("tiny"), load_prompts("tiny")[:30]
    side = {role: (load_model("tiny", role), [render_prompt(getattr(pair, role), x) for x in items]) for role in ("student", "teacher")}
    return pair, side


def responses(tiny, n):
    from xtokd.models.sampling import generate_responses
    pair, side = tiny
    return generate_responses(side["student"][0], pair.student, side["student"][1][:n], 32, seed=0)


def test_scorer_rows_are_the_models_rows(tiny):
    import torch
    pair, side = tiny
    model, prompts = side["teacher"]
    ids = tuple(pair.teacher.encode("Certainly: 96 and 7"))
    rows = Scorer(model, pair.teacher, prompts[0]).rows([ids[:k] for k in range(len(ids))] + [ids[:2] + ids[:1]])
    with torch.no_grad(): want = model(torch.tensor([[*prompts[0], *ids]])).logits[0, len(prompts[0]) - 1:-1, : len(pair.teacher)].double().softmax(-1).numpy()
    assert np.allclose(rows[:-1], want, atol=1e-5) and np.allclose(rows.sum(1), 1)
    with pytest.raises(ValueError, match="prompt is empty"): Scorer(model, pair.teacher)


def test_rows_of_a_student_response_are_quick_and_narrow(tiny):
    import time
    pair, side = tiny
    model, prompts = side["teacher"]
    for k, ids in enumerate(responses(tiny, 4)):
        t = time.perf_counter()
        rows = exact_rows(Scorer(model, pair.teacher, prompts[k]), pair.student, ids)
        assert time.perf_counter() - t < 10 and rows.low.shape == (len(ids), len(pair.student))
        fine = np.isfinite(rows.low[:, 0])
        assert fine[0] and (rows.high - rows.low)[fine].max() < 1e-2 and np.allclose(rows.value[fine].sum(1), 1)


def cover_gap(tiny, n, floor):
    "Largest gap between cover's cell masses and the truth summed over cells, over rows with mass, and the largest share of set-aside mass."
    import torch
    from xtokd.rows.pair_batch import PairBatch
    from xtokd.objectives.cover.cover import cover_targets
    from xtokd.models.forward import response_logits, teacher_ids
    pair, side = tiny
    model, prompts = side["teacher"]
    ids = responses(tiny, n)
    rows = [exact_rows(Scorer(model, pair.teacher, p), pair.student, r, floor=floor) for p, r in zip(prompts, ids)]
    truth = [torch.tensor(np.nan_to_num(r.value, nan=1.)).clamp_min(1e-30).log() for r in rows]      # the batch's student is the truth: its cell masses are it
    t_ids = [teacher_ids(pair, r) for r in ids]
    b = PairBatch.from_logits(pair, ids, t_ids, truth, response_logits(model, prompts[: n], t_ids))
    good, gaps = ~np.isnan(np.concatenate([r.low[:, 0] for r in rows])), []
    targets = cover_targets(b, min_mass=1e-12)
    at = slice(0, len(targets.rows))
    known, own = targets.known_masses(at, b.student.device)[0], targets.student_masses(b.student.take(targets.rows), at).double()
    gap = (own / own.sum(1, keepdim=True) - known).numpy()
    for k, r in enumerate(targets.rows):
        if targets.unknown[k] < 1 and good[r]: gaps.append(max(-gap[k].min(), gap[k].clip(0).sum() - targets.unknown[k]))
    return max(gaps), len(gaps)


def test_cover_tells_the_truth_on_the_tiny_pair(tiny):
    gap, rows = cover_gap(tiny, 6, 1e-7)
    assert rows > 40 and gap < 1e-4


@pytest.mark.slow
def test_cover_tells_the_truth_on_thirty_rollouts(tiny):
    gap, rows = cover_gap(tiny, 30, 1e-9)
    assert rows > 250 and gap < 1e-4


def sampling_p(tiny, prompts, n, temperature):
    "Smallest p-value of the likeliest token's count, over all rows of the commonest text of each prompt."
    import math
    from xtokd.models.sampling import generate_responses
    pair, side = tiny
    model, worst = side["teacher"][0], []
    for i in prompts:
        prompt = side["teacher"][1][i]
        ids = generate_responses(model, pair.teacher, [prompt] * n, 24, temperature=temperature, batch_size=256, seed=i)
        told, stopped = [pair.teacher.decode(x) for x in ids], [x[-1] in pair.teacher.stop_ids for x in ids]
        response = [*pair.student.encode(max(set(told), key=told.count).decode()), pair.student.stop_ids[0]]
        counts = sampled_rows(told, pair.student, response, stopped)
        p = exact_rows(Scorer(model, pair.teacher, prompt, temperature), pair.student, response).value
        total, top, at = counts.sum(1), p.argmax(1), np.arange(len(p))
        z = abs(counts[at, top] - total * p[at, top]) / np.sqrt(np.maximum(total * p[at, top] * (1 - p[at, top]), 1))
        worst += [math.erfc(x / math.sqrt(2)) for x in z]
    return min(worst), len(worst)


def test_frequencies_of_written_texts(tiny):
    p, rows = sampling_p(tiny, [1], 256, 1.5)
    assert p > 1e-6


@pytest.mark.slow
def test_frequencies_of_many_written_texts(tiny):
    p, rows = sampling_p(tiny, range(6), 4000, 1.5)
    assert p > 1e-4 / rows


def test_canonical_mass(tiny):
    pair, side = tiny
    model, prompts = side["teacher"]
    m = canonical_mass(model, pair.teacher, prompts[:5], n=2, max_new_tokens=16)
    assert m.texts == 10 and 0 <= m.low <= m.sampled <= m.high <= 1 and m.path < .05 and m.unasked < 1e-3
    hot = canonical_mass(model, pair.teacher, prompts[:5], n=2, max_new_tokens=12, temperature=4., light=1e-4)
    assert hot.path > m.path and hot.sampled > .3          # a teacher that writes at random leaves the canon, and it is seen
