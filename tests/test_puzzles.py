"""SPOILERS. Every puzzle solved, every tempting mistake refused with a picture, and judges that nothing upsets."""
import json
import xml.etree.ElementTree as ET
from fractions import Fraction
from math import inf, log, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from xtokd.course import puzzles as puzzles
from xtokd.objectives.policy.sampled import chunk_advantage
from xtokd.course.puzzles import CREDIT, PUZZLES, board, puzzle
from xtokd.course.drawing import Puzzle
from xtokd.course.drawing import (
    MARK_GLYPHS, SOLVED, Band, Box, Picture, Row, Verdict, picture_svg, picture_text,
)

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs/00_course/puzzles.ipynb"


def prior(student, teacher):
    "The semantic prior, as the library has it."
    own = torch.tensor(student, dtype=torch.float64)
    return chunk_advantage(own, torch.zeros(len(own), dtype=torch.long), torch.tensor([sum(teacher)], dtype=torch.float64), "semantic_prior")


def role(student, teacher, student_stops, teacher_stops):
    return log(sum(teacher[x] for x in teacher_stops)) - log(sum(student[x] for x in student_stops))


def same(f): return lambda *a: f(*a)


SOLUTIONS = {
    "cut": [["t", "he", " ", "ot", "her"], (b"t", "he", b" ", b"ot", "her")],
    "chunks": [[(0, 1, 0, 1), (1, 3, 1, 2), (3, 5, 2, 4), (5, 6, 4, 5)], np.array([[0, 1, 0, 1], [1, 3, 1, 2], [3, 5, 2, 4], [5, 6, 4, 5]])],
    "kinds": [["1-1", "1-1", "1-n", "n-m", "n-1"], ("1-1", "1-1", "1-n", "n-m", "n-1")],
    "emoji": [{3, 7, 9, 10}, [0, 3, 7, 9, 10], np.array([10, 9, 7, 3])],
    "mispair": [{0, 1}, [1, 0]],
    "silent": [{0: "special", 2: "differs", 3: "differs", 4: "differs", 6: "invalid", 9: "beyond", 10: "beyond", 11: "stop"}],
    "credit": [prior, lambda s, t: [(sum(t) / sum(s) - 1) * p if sum(s) else sum(t) / len(s) for p in s]],
    "stop": [role],
    "project": [{"ab": .5, "b": .1, "a": .25, "none": .15}, {"ab": Fraction(1, 2), "b": Fraction(1, 10), "a": Fraction(1, 4), "c": 0, "none": Fraction(3, 20)}],
    "bias": [{"1", "12", "21"}, ["21", "1", "12"]],
}
WRONG = {
    "cut": [["the", " ", "ot", "her"], ["the other"], ["t", "he", " ", "ot"], ["t", "he", " ", "ot", "her", "s"], list("the other"), []],
    "chunks": [[(0, 1, 0, 1), (1, 2, 1, 2)], [(0, 6, 0, 5)], [(0, 1, 0, 1)] * 2, [], [(3, 4, 2, 3), (4, 5, 3, 4)]],
    "kinds": [["1-1"] * 5, ["1-1"] * 9, ["1-1", "1-1", "n-1", "n-m", "1-n"], []],
    "emoji": [{9, 10}, {1, 5, 9, 10}, range(1, 11), []],
    "mispair": [set(), {0}, {0, 1, 2}, {2, 3}],
    "silent": [{}, {0: "special"}, {1: "differs"}, {**SOLUTIONS["silent"][0], 11: "special"}, {k: v for k, v in SOLUTIONS["silent"][0].items() if k != 2}],
    "credit": [lambda s, t: [sum(t) / len(s) - p for p in s], lambda s, t: [sum(t) - sum(s) for _ in s], lambda s, t: [(sum(t) - sum(s)) / len(s) for _ in s],
               lambda s, t: [(sum(t) / sum(s) - 1) * p for p in s], lambda s, t: [0. for _ in s], lambda s, t: [nan for _ in s], lambda s, t: [inf for _ in s]],
    "stop": [lambda s, t, a, b: log(t[b[0]]) - log(s[a[0]]), lambda s, t, a, b: sum(t[x] for x in b) - sum(s[x] for x in a), lambda *_: nan, lambda s, t, a, b: -role(s, t, a, b)],
    "project": [{}, {"a": .75, "b": .1, "none": .15}, {"ab": .2, "a": .25}, {"ab": .2 / .45, "a": .25 / .45}, {"ab": .5, "b": .1, "a": .25}, {"ab": nan}, {"a": inf}],
    "bias": [set(), {"1", "12"}, {"1", "2", "12", "21"}, set(puzzles.PREFIXES)],
}
each = pytest.mark.parametrize("name", list(PUZZLES))


def items(v): return [i for r in v.rows for i in r.items]
def bundle(v): return v._repr_mimebundle_()


@pytest.fixture(autouse=True)
def clean():
    SOLVED.clear()
    yield
    SOLVED.clear()


@each
def test_can_be_solved(name):
    for k, answer in enumerate(SOLUTIONS[name]):
        v = puzzle(name).check(answer)
        assert v and v.solved is True, (k, v.notes)
        assert {i.mark for i in items(v)} <= {"given", "right"} and "right" in {i.mark for i in items(v)}
        assert v.notes == [puzzle(name).moral] and name in SOLVED
        assert ET.fromstring(bundle(v)["image/svg+xml"]).get("role") == "img" and "solved!" in bundle(v)["text/plain"]


@each
def test_wrong_answers_are_refused_with_a_picture(name):
    for k, answer in enumerate(WRONG[name]):
        v = puzzle(name).check(answer)
        assert not v and v.solved is False and name not in SOLVED, k
        bad = [i for i in items(v) if i.mark in ("wrong", "open")]
        assert bad, f"try {k} is refused and nothing is marked"
        svg, text = bundle(v)["image/svg+xml"], bundle(v)["text/plain"]
        tree = ET.fromstring(svg)
        drawn = tree.findall(".//{*}rect[@class='wrong']") + tree.findall(".//{*}polygon[@class='wrong']") + tree.findall(".//{*}rect[@class='open']")
        assert len(drawn) >= len(bad) and any(MARK_GLYPHS[i.mark] in text for i in bad)
        assert v.notes[0].startswith("Hint: ") and len(v.notes[0]) < 220


@each
def test_a_stub_is_met_kindly(name):
    stubs = [..., None] + [lambda *_: None, lambda *_: ...] * (name in ("credit", "stop"))
    for stub in stubs:
        v = puzzle(name).check(stub)
        assert v.solved is None and not v and "not tried yet" in v.title and "No hurry" in v.notes[0]


@each
def test_hints_and_questions_keep_the_secret(name):
    p = puzzle(name)
    words = " ".join([p.question, p.form, p.facts] + [n for a in WRONG[name] for n in p.check(a).notes])
    for answer in SOLUTIONS[name]:
        if not callable(answer): assert str(answer) not in words and str(list(answer))[1:-1] not in words
    assert not any(i.mark != "given" for r in p.given for i in r.items) and ET.fromstring(picture_svg(p.show())) is not None


def test_known_numbers():
    got = [np.round(np.asarray(prior(s, t)), 9).tolist() for s, t in CREDIT]
    assert got == [[-.1, -.9], [0., 0.], [.2, .2, .4], [-1.8], [-1.5, -1.5]]
    assert abs(role(*puzzles.STOP[0], *puzzles.STOPS) + .012452) < 1e-6
    assert puzzles.stop_rows(WRONG["stop"][0])[0][2].items[0].text == "-8.9872"
    assert puzzles.tokens("212") == ("2", "12") and puzzles.tokens("213") == ("2", "1", "3")


def test_marks_say_where_it_is_wrong():
    marks = lambda name, answer, row: {i.text: i.mark for r in puzzle(name).check(answer).rows if r.name == row for i in r.items}
    assert marks("cut", ["the", " ", "ot", "her"], "your cut") == {"the": "wrong", "·": "right", "ot": "right", "her": "right"}
    assert marks("chunks", [(0, 1, 0, 1), (1, 2, 1, 2)], "your chunks") == {"0": "right", "1": "wrong"}
    assert marks("emoji", {5, 9}, "your offsets") == {"5": "wrong", "9": "right"}
    assert marks("mispair", {0, 2}, "accused") == {"#0": "right", "#2": "wrong"}
    assert marks("project", {"a": .25, "ab": .75}, "yours") == {"a 0.25": "right", "ab 0.75": "wrong", "b 0": "wrong", "c 0": "right", "none 0": "wrong", "sum 1": "right"}
    leans = [b for b in items(puzzle("chunks").check([(1, 2, 1, 2)])) if isinstance(b, Band)]
    assert (leans[0].a, leans[0].b) != (leans[0].c, leans[0].d)


def test_functions_may_fail_and_may_not_cheat():
    v = puzzle("credit").check(lambda s, t: 1 / 0)
    assert not v and "ZeroDivisionError" in picture_text(v)
    v = puzzle("stop").check(lambda *a: {}["x"])
    assert not v and "KeyError" in picture_text(v)
    def greedy(s, t):
        res = prior(list(s), list(t))
        s[:] = t[:] = [0.]
        return res
    assert puzzle("credit").check(greedy) and CREDIT[0] == ([-.2, -1.8], [-3.])
    assert "not a function" in puzzle("credit").check(3).notes[0] and "2 student tokens" in puzzle("credit").check(lambda s, t: [1.]).notes[0]


JUNK = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=6) | st.sampled_from(["1-1", "1", "a", "none", "special", 10 ** 400]),
                    lambda x: st.lists(x, max_size=6) | st.tuples(x, x, x, x) | st.dictionaries(st.integers(-2, 14) | st.text(max_size=3), x, max_size=5), max_leaves=12)


@each
@settings(max_examples=60, deadline=None)
@given(answer=JUNK)
def test_junk_upsets_nobody(name, answer):
    right = name == "mispair" and isinstance(answer, (list, tuple, set)) and all(isinstance(x, int) for x in answer) and set(answer) == {0, 1}     # False is 0: this junk is the answer
    v = puzzle(name).check((lambda *_: answer) if name in ("credit", "stop") else answer)
    assert isinstance(v, Verdict) and bool(v) == right
    ET.fromstring(bundle(v)["image/svg+xml"])


@settings(max_examples=60, deadline=None)
@given(answer=st.sets(st.integers(0, 10)), chunks=st.lists(st.tuples(*4 * [st.integers(0, 6)]), max_size=5), reasons=st.dictionaries(st.integers(0, 11), st.sampled_from(list(puzzles.REASONS))))
def test_only_the_truth_is_true(answer, chunks, reasons):
    assert bool(puzzle("emoji").check(answer)) == (answer - {0} == {3, 7, 9, 10})
    assert bool(puzzle("mispair").check({k for k in answer if k < 4})) == ({k for k in answer if k < 4} == {0, 1})
    assert bool(puzzle("chunks").check(chunks)) == (sorted(chunks) == SOLUTIONS["chunks"][0])
    assert bool(puzzle("silent").check(reasons)) == (reasons == SOLUTIONS["silent"][0])


def test_the_board_counts():
    assert "0 of 10" in board().title
    for name, answers in SOLUTIONS.items(): puzzle(name).check([(0, 1, 0, 1)] and answers[0])
    assert "10 of 10" in board().title and {i.mark for i in items(board())} == {"right"} and "All ten" in board().notes[0]
    with pytest.raises(ValueError, match="No puzzle 'chess'. There are: cut"): puzzle("chess")


def test_hostile_labels_stay_text():
    p = Picture("<script>alert(1)</script>", [Row("\u202e", [Box(0, 1, "</svg>\x00\ud800" + "x" * 10_000, "wrong", '"&\x07'), Box(1, 2, "مرحبا e\u0301 👩‍👩‍👧")]), Row("b", [Band(0, 0, 2, 2, "]]>")])], ["\u200d" * 300])
    svg = picture_svg(p)
    tree = ET.fromstring(svg)
    assert not tree.findall(".//{*}script") and "\u202e" not in svg and "\u200d" not in svg and len(svg) < 20_000
    assert not any(c < " " and c != "\n" for c in svg + picture_text(p))


def test_the_notebook_is_unsolved_and_tells_nothing():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf8"))["cells"]
    curtain = next(k for k, c in enumerate(cells) if "Behind the curtain" in "".join(c["source"]))
    for k, c in enumerate(cells):
        shown = json.dumps(c.get("outputs", []), ensure_ascii=False)
        assert "solved!" not in shown, f"cell {k} shows a solution"
        if k < curtain: assert "export" not in "".join(c["source"]).split("\n")[0]
    front = ["".join(c["source"]) for c in cells[:curtain] if c["cell_type"] == "code"]
    assert sum("..." in s and ".check(" in s for s in front) == 10
    assert sum(json.dumps(c.get("outputs", [])).count("not tried yet (") + ("not yet (" in json.dumps(c.get("outputs", []))) for c in cells[:curtain]) == 10, "a wrong try for each puzzle"
    assert all(isinstance(p, Puzzle) for p in PUZZLES.values())
