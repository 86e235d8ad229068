"""The steps of the live algorithms: the code that is shown is the code that ran, and its result is that of the library."""
import ast
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from xtokd.alignment.pair import Pair
from xtokd.exact.prefix_probability import byte_prefix, merge_list, merge_recursion
from xtokd.objectives.cover.cells import components
from xtokd.objectives.policy.sampled import CREDITS, chunk_advantage
from xtokd.viz.live import step_lists
from xtokd.viz.live.scored_steps import share_credit
from xtokd.viz.live.stepper import Step, StepList, Stepper, run_traced

TEXTS = ["The number 120", "naïve 1234\n", "unbelievable 2024", "<script>x</script>", "👩‍👧"]


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


@pytest.mark.parametrize("name, function", [("alignment_steps", "two_pointer_chunks"), ("component_steps", "edge_components"),
                                            ("credit_steps", "share_credit"), ("cover_steps", "naive_cover")])
def test_the_code_that_is_shown_runs_and_gives_the_result(pair, name, function):
    found = getattr(step_lists, name)(pair)
    (shown,) = ast.parse("\n".join(found.code)).body
    assert shown.name == function and len(found.steps) > 4
    assert all(1 <= s.lines[0] <= s.lines[1] <= len(found.code) for s in found.steps)
    assert all(s.sentence and s.formula.startswith("<math") for s in found.steps)
    for s in found.steps: ElementTree.fromstring(f"<g>{s.picture}{s.formula}</g>")      # well formed


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.lists(st.integers(1, 5), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_two_pointers_find_every_common_boundary(student, teacher):
    short = sum(student) - sum(teacher)
    if short > 0: teacher = [*teacher, short]
    if short < 0: student = [*student, -short]
    chunks = step_lists.two_pointer_chunks(student, teacher)
    common = set(np.cumsum(student)) & set(np.cumsum(teacher))
    assert [int(sum(student[:s1])) for _, s1, _, _ in chunks] == sorted(common)


@pytest.mark.parametrize("text", TEXTS)
def test_alignment_and_components_are_those_of_the_library(pair, text):
    al = pair.align(text)
    assert step_lists.alignment_steps(pair, text).result == [tuple(c) for c in al.chunks.tolist()]
    found = step_lists.component_steps(pair, text)
    edges = np.array(step_lists.overlap_edges(step_lists.rulers_of(pair, text)))
    assert found.result == components(len(found.result), *edges.T).tolist()
    assert len(set(zip(found.result, np.r_[al.student_chunk, al.teacher_chunk]))) == len(al.chunks)
    assert "<script" not in "".join(s.picture + s.formula for s in found.steps)


@pytest.mark.parametrize("credit", CREDITS)
def test_credit_is_that_of_dpca(credit):
    rng = np.random.default_rng(1)
    for size in (1, 3, 6):
        logps, total = -rng.exponential(size=size), -rng.exponential()
        fast = chunk_advantage(torch.tensor(logps), torch.zeros(size, dtype=torch.long), torch.tensor([total]), credit)
        assert np.allclose(share_credit(logps.tolist(), total, credit), fast)


def test_the_merge_tree_is_the_merge_recursion():
    pair, row = step_lists.small_world()
    rules = merge_list(pair.student)
    def leaf(ids): return byte_prefix(row, pair.teacher, pair.student.decode(ids)).value
    for text in ("b", "aba", "bbb", "abab"):
        ids = tuple(pair.student.encode(text))
        found = step_lists.merge_tree_steps(text=text)
        assert found.result == merge_recursion(leaf, rules, ids)[0]
        assert str(found.result) in found.steps[-1].sentence


def test_a_bad_text_leaves_a_message_and_the_last_steps(pair):
    live = Stepper(step_lists.alignment_steps(pair), make=lambda text: step_lists.alignment_steps(pair, text))
    live.text, before = "seventy-two", live.data
    assert live.data != before and not live.error
    before = live.data
    for text in ("", "number " * 40):
        live.text = text
        assert live.data == before and live.error
    live.text = "a\ud800"
    assert not live.error and live.data != before


def test_the_trace_follows_recursion_and_is_taken_down():
    def factorial(n):
        if n < 2:
            return 1
        return n * factorial(n - 1)
    result, lines = run_traced(factorial, 3)
    assert result == 6 and [x.result for x in lines if x.kind == "return"] == [1, 2, 6]
    assert [(x.call, x.parent) for x in lines if x.kind == "call"] == [(0, -1), (1, 0), (2, 1)]
    assert StepList("one", ["x"], [Step("", (1, 1), "", "x")], 1, 1).key_steps == (0,)
