"""Maps of two vocabularies: classes, categories, samples and match rates against brute force; ribbons and the matrix of pairs; hostile tokens."""
import unicodedata
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from xtokd.viz.svg_charts import DARK_RULE
from xtokd.alignment.pair import Pair
from xtokd.vocab.trie import ByteTrie
from xtokd.viz import ribbon, svg_charts as charts, vocab_map as maps
from xtokd.viz.doctor_page import doctor_page
from xtokd.viz.pair_matrix import pair_matrix

quick = settings(max_examples=60, deadline=None)
piece = st.one_of(st.binary(min_size=1, max_size=6), st.text(min_size=1, max_size=4).filter(lambda t: not any(0xD800 <= ord(c) < 0xE000 for c in t)).map(str.encode),
                  st.sampled_from([b" ", b"\n\n", b"12", b" 1", b" the", b"The", b"the", "ﬁ".encode(), b"fi", "½".encode(), b"<script>", b"a" * 300, "\u202e".encode(), b"\xff"]))
words = st.lists(piece, max_size=14, unique=True)
HOSTILE = [b"<script>alert(1)</script>", b"</title></svg>", b'"><img src=x onerror=alert(1)>', "\u202egnirts".encode(), "\u200d\u200b\ufeff".encode(), b"\x00\x07\x1b[31m", b"\xff\xfe\xe6\x95", b"a" * 10_000, b"&amp;&#0;", "👩‍👩‍👧".encode()]


def vocab(name, pieces, stops=()):
    "As much of a ByteVocab as a map reads."
    lengths = np.array([len(p) for p in pieces], np.int32)
    return SimpleNamespace(name=name, bytes=list(pieces), lengths=lengths, special=lengths == 0, stop_ids=tuple(stops), fingerprint=f"{name} {pieces!r}", tokenizer=SimpleNamespace(id_to_token=lambda i: None))


def definition(a, other):
    "The class of a token, read off the definition."
    if a in other: return 0
    if any(maps.normal_form(a) == maps.normal_form(b) for b in other): return 1
    return 2 if any((a.startswith(b) or b.startswith(a)) and 2 * min(len(a), len(b)) >= max(len(a), len(b)) for b in other) else 3


@quick
@given(words, words)
def test_classes_are_the_definition(a, b): assert maps.match_classes(a, b).tolist() == [definition(x, b) for x in a]


@quick
@given(words)
def test_every_token_has_the_category_of_its_characters(a):
    for p, k in zip(a, maps.token_categories(a)):
        name = maps.CATEGORIES[k]
        try: text = p.decode()
        except UnicodeDecodeError: assert name == "bytes and controls"; continue
        if text.isspace(): assert name == "white space"
        elif text.strip().isdecimal(): assert name == "digits"
        elif text.strip().isascii() and text.strip().isalpha(): assert name == "Latin letters"
        elif name == "code and punctuation": assert not any(unicodedata.category(c)[0] in "LN" for c in text)


def test_scripts():
    want = {"ж": 1, "字": 2, "ひ": 2, "한": 2, "α": 3, "ש": 3, "ع": 3, "á": 0, "Ａ": 0, "٣": 4, "\u3000": 5, "€": 6, "\x7f": 7}
    assert maps.token_categories([c.encode() for c in want]).tolist() == list(want.values())


@quick
@given(words, words)
def test_counts_sum_to_the_vocabulary(a, b):
    s, t = vocab("s", [b"", *a, b"stop"], [len(a) + 1]), vocab("t", [*b, b""])
    own, other = a, b
    for ids, mine, theirs, bv in ((range(1, len(a) + 1), own, other, s), (range(len(b)), other, own, t)):
        half = maps.VocabSide(bv.name, np.array(ids, np.int64), maps.match_classes(mine, theirs), maps.token_categories(mine), np.array([len(p) for p in mine], np.int64), len(bv.bytes))
        assert sum(half.counts) == len(bv.bytes) and len(half.counts) == len(maps.CLASSES)
        rate, count = maps.match_rate(half)
        assert count.sum() == len(mine) and np.isclose(np.nansum(rate * count), half.counts[0])


@quick
@given(st.lists(st.integers(0, 8), max_size=400), st.integers(9, 120))
def test_a_sample_is_stratified(category, points):
    category = np.array(category, int)
    at = charts.stratified_sample(category, points, least=5)
    assert len(set(at.tolist())) == len(at) == min(points, len(category))
    have, all_of = (np.bincount(x, minlength=9) for x in (category[at], category))
    assert (have >= np.minimum(all_of, min(5, points // 9))).all()
    assert np.array_equal(at, charts.stratified_sample(category, points, least=5))


def test_shared_tokens_of_a_pair_have_the_same_bytes():
    pair = Pair("tiny")
    o = maps.vocab_overlap(pair)
    text = o.category < 8
    assert all(pair.student.bytes[s] == pair.teacher.bytes[t] for s, t in o.shared[text])
    assert {tuple(x) for x in o.shared[~text].tolist()} == {(s, t) for s in pair.student.stop_ids for t in pair.teacher.stop_ids}
    assert sum(o.student.counts) == len(pair.student) and sum(o.teacher.counts) == len(pair.teacher) and maps.vocab_overlap(Pair("tiny")) is o
    ET.fromstring(o.svg())


def test_selection_reaches_python():
    live = maps.OverlapExplorer(Pair("tiny"))
    points = SimpleNamespace(point_inds=[0, 2])
    for k in range(len(live.traces)): live._arrived(k, points.point_inds if k == 0 else [])      # as plotly calls it, trace after trace
    assert live.selected == [tuple(map(int, live.traces[0].customdata[i])) for i in (0, 2)]
    assert [r["student"] for r in live.tokens] == [s for s, _ in live.selected] and "2 tokens selected" in live.table.value
    live._arrived(0, [1])
    assert len(live.selected) == 2                       # not before the last trace has spoken
    bundle = live._repr_mimebundle_()
    assert {"image/svg+xml", "text/plain"} <= set(bundle)


def test_hostile_tokens_stay_text():
    assert maps.match_classes(HOSTILE, HOSTILE).tolist() == [0] * len(HOSTILE) and len(maps.token_categories(HOSTILE)) == len(HOSTILE)
    bv = vocab("<b>evil</b>", HOSTILE)
    r = ribbon.ribbon_from_links(bv, bv, range(len(HOSTILE)), range(len(HOSTILE)), title="<i>")
    half = maps.VocabSide(bv.name, np.arange(len(HOSTILE)), maps.match_classes(HOSTILE, HOSTILE), maps.token_categories(HOSTILE), bv.lengths, len(HOSTILE))
    o = maps.Overlap(bv, bv, half, half, np.stack([np.arange(len(HOSTILE))] * 2, 1), maps.token_categories(HOSTILE))
    rows = [(i, i) for i in range(len(HOSTILE))]
    for page in (r.svg(), o.svg(), f"<div>{maps.selection_html(o, rows)}</div>"):
        page = page.replace(DARK_RULE, "")            # the one style that is ours
        assert "<script" not in page and "<img" not in page and len(page) < 200_000
        assert {e.tag.rpartition("}")[2] for e in ET.fromstring(page).iter()} <= {"svg", "title", "desc", "rect", "text", "path", "g", "pattern", "div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script>" not in str(r.sankey().data[0].node.label)


@quick
@given(st.lists(piece, min_size=1, max_size=12, unique=True), st.lists(piece, min_size=1, max_size=12, unique=True), st.integers(0, 11), st.booleans())
def test_a_neighbourhood_is_the_definition(a, b, k, swap):
    s, t = vocab("s", a), vocab("t", b)
    side, own, other = ("teacher", b, a) if swap else ("student", a, b)
    i = k % len(own)
    r = ribbon.token_ribbon(SimpleNamespace(student=s, teacher=t), i, side, 10**6, 10**6)
    found = {(r.student[x], r.teacher[y]) for x, y, *_ in r.links}
    token = own[i]
    want = {(i, j) for j, p in enumerate(other) if p.startswith(token) or token.startswith(p)}
    assert {(x[::-1] if swap else x) for x in found if x[swap] == i} == want
    for x, y in found: assert a[x].startswith(b[y]) or b[y].startswith(a[x])
    assert [a[x] for x in r.student] == sorted(a[x] for x in r.student) and [b[y] for y in r.teacher] == sorted(b[y] for y in r.teacher)
    ET.fromstring(r.svg())


def test_a_ribbon_says_what_it_leaves_out():
    s, t = vocab("s", [b"1"]), vocab("t", [b"%d" % k for k in range(1000)])
    r = ribbon.token_ribbon(SimpleNamespace(student=s, teacher=t), "1", max_tokens=10)
    assert len(r.teacher) == 10 and r.left_out["teacher tokens"] == 101 and "101 teacher tokens" in r.svg() and "101 teacher tokens" in repr(r)
    assert t.bytes[1] in [t.bytes[i] for i in r.teacher] and len(r.sankey().data[0].link.source) == 10
    with pytest.raises(ValueError, match="one student id"): ribbon.ribbon_from_links(s, t, [0], [1, 2])
    with pytest.raises(ValueError, match="no text"): ribbon.token_ribbon(SimpleNamespace(student=s, teacher=t), 99)
    with pytest.raises(ValueError, match="not one token"): ribbon.token_ribbon(SimpleNamespace(student=s, teacher=t), "zz")


def test_the_matrix_is_what_the_doctor_measures():
    pair = Pair("tiny")
    m = pair_matrix({"s": pair.student, "t": pair.teacher})
    for i, teacher in enumerate((pair.student, pair.teacher)):
        for j, student in enumerate((pair.student, pair.teacher)):
            total = Pair(student, teacher).doctor().total
            assert np.allclose([m.coverage[i, j], m.one_to_one[i, j], m.teacher_tokens_per_student_token[i, j]], [total["shared_bytes"], total["1-1"], total["teacher_tokens_per_student_token"]], atol=1e-4)
    ET.fromstring(m.svg())
    assert m.figure().data[0].y == ("s", "t") and set(m._repr_mimebundle_()) == {"image/svg+xml", "text/plain"}


def test_a_page_needs_nothing_else(tmp_path):
    page = doctor_page(Pair("tiny"))
    text = page.save(tmp_path / "page.html").read_text()
    assert "<script" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "") and page.report.verdict in text
    assert set(page._repr_mimebundle_()) == {"text/html", "image/svg+xml", "text/plain"}
    ET.fromstring(page.svg())


def test_ink_can_be_read():
    def light(c): return sum(k * (((int(c[i:i + 2], 16) / 255) + .055) / 1.055) ** 2.4 if int(c[i:i + 2], 16) > 10 else 0 for k, i in ((.2126, 1), (.7152, 3), (.0722, 5)))
    for v in np.linspace(0, 1, 21):
        for colour in ("#0072B2", "#D55E00"):
            paint = charts.colour_ramp(v, colour)
            a, b = sorted((light(paint), light({"#fff": "#ffffff", "#111": "#111111"}[charts.text_colour(paint)])))
            assert (b + .05) / (a + .05) >= 4
