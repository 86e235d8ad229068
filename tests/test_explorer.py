"""The explorer without a browser: columns, traits, hostile tokens."""
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from xtokd.alignment.byte_align import align
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.alignment.pair import Pair
from xtokd.viz.explorer import Explorer, PairExplorer

HOSTILE = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "\u202egnp.exe", "a\u200db", "x" * 10_000, "\x00\x1b[31m", "</title>]]>&amp;", "e" + "\u0301" * 40, "\u2028", "\u0645\u0631\u062d\u0628\u0627"]


def bpe(size, stop="<end>", extra=()):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator(["the sum of 120 and 34 is 154, naïve", "def f(x):\n        return x**2\n"] * 3,
                            trainers.BpeTrainer(vocab_size=size, special_tokens=[stop], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.add_tokens(list(extra))
    return ByteVocab(tok, stops=0, name=f"bpe-{size}")


PAIR = Pair(bpe(280, "<a>"), bpe(330, "<b>"))
BAD = bpe(280, "<c>", HOSTILE)
columns = lambda w: json.loads(w.data)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_columns_hold_every_token_once(text):
    al = PAIR.align(text)
    d = columns(Explorer(al))
    t = d["toks"]
    assert sorted(zip(t["side"], t["i"])) == [(0, i) for i in range(len(al.student_ids))] + [(1, j) for j in range(len(al.teacher_ids))]
    assert [c for c in d["segs"]["chunk"] if c >= 0] == list(range(len(al.chunks))) and d["segs"]["first"][-1] == len(t["i"])
    assert all(a <= b for a, b in zip(t["b0"], t["b1"])) and all(b > a for a, b in zip(t["x0"], t["x1"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(BAD) - 1), max_size=12), st.lists(st.integers(0, len(PAIR.student) - 1), max_size=12))
def test_any_ids_on_either_side(a, b):
    w = Explorer(align(a, b, BAD, PAIR.student))
    labels = "".join(columns(w)["toks"]["label"])
    assert not set(labels) & set("\x00\x1b\u202e\u200d\u2028\n\t ")
    assert "image/svg+xml" in w._repr_mimebundle_()


def test_a_hostile_vocabulary_stays_text_and_small():
    ids = [i for i, raw in enumerate(BAD.bytes) if raw.decode("utf8", "replace") in HOSTILE]
    assert len(ids) == len(HOSTILE)
    w = Explorer(align(ids, PAIR.student.encode("x"), BAD, PAIR.student))
    svg = w._repr_mimebundle_()["image/svg+xml"]
    assert "<script" not in svg and "<img" not in svg and len(w.data) < 20_000


def test_selection_and_segments():
    w = PAIR.align("the sum of 120").explore(theme="dark")
    w.selected = [4, 7]
    assert w.selected_text == b"sum" and len(w.selected_chunks) and w.segment(0)["bytes"][0] == 0
    with pytest.raises(Exception): w.theme = "pink"


def test_two_objectives_side_by_side():
    al = PAIR.align("the sum")
    n = len(al.student_ids)
    w = al.explore({"a": {"signal": np.arange(n) + 1., "reason": [None] * n}, "b": {"signal": np.full(n, np.nan), "reason": ["no row"] * n}})
    d = columns(w)
    assert d["differs"] == [1] * n and "no row" in d["reasons"] and [s["title"] for s in d["tracks"]] == ["a signal", "b signal"]
    with pytest.raises(ValueError, match="one per student token"): al.explore({"a": [1.] * (n + 1)})
    with pytest.raises(ValueError, match="one per student token"): al.explore(kl=[1.] * (n + 1))


def test_worst_first_ranks_by_what_is_given():
    al = PAIR.align("the sum")
    d = columns(al.explore(kl=np.arange(len(al.student_ids)) * 1.))
    best = d["score"]["v"]
    assert d["score"]["name"] == "KL" and d["order"] == sorted(d["order"], key=lambda k: -best[k])


def test_typing_aligns_anew_and_errors_are_said():
    w = PAIR.explore("the sum", others={"bad": BAD, "gone": "no/such/tokenizer"})
    assert isinstance(w, PairExplorer) and w.choices == ["bpe-280", "bpe-330", "bad", "gone"]
    w.text = "naïve"
    assert w.alignment.text == "naïve".encode() and not w.error
    w.teacher_name = "bad"
    assert w.alignment.teacher is BAD and columns(w)["segs"]["b1"][-1] == len("naïve".encode())
