"""ESCD: the published toy, the groups against a loop, and what the child term does to an exact student."""
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, parts, some
from xtokd.exact.toy_models import TorchToyModel, toy_bpe, make_pair, markov
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives.divergences import divergence
from xtokd.objectives import objective
from xtokd.objectives.projection.bpm import BPM, longest_prefix_ids, project_rows
from xtokd.objectives.cover.cells import cell_graph
from xtokd.objectives.projection.escd import ESCD, child_event_cache
from xtokd.alignment.pair import Pair

STUDENT = toy_bpe("BreadskCt", [("B", "r"), ("e", "a"), ("ea", "d"), ("ead", "s"), ("ea", "k"), ("C", "a"), ("Ca", "t")])
TEACHER = toy_bpe("BreadskCt", [("e", "a"), ("ea", "d"), ("ea", "k"), ("r", "ead"), ("r", "eak"), ("B", "read"), ("Bread", "s"), ("B", "reak"), ("C", "a"), ("Ca", "t")])
ROOT, TRUTH = {"Br": .5, "Cat": .2, "a": .3}, {"Bread": .4, "Breads": .2, "Break": .3, "Cat": .1}


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def toy(after, root=ROOT, truth=TRUTH, text="Bread"):
    ids, logits = [bv.encode(text) for bv in (STUDENT, TEACHER)], []
    for i, bv, rows in zip(ids, (STUDENT, TEACHER), ((root, after), (truth,))):
        logits.append(torch.full((len(i), len(bv)), -torch.inf))
        for r, row in enumerate(rows):
            for word, p in row.items(): logits[-1][r, bv.bytes.index(word.encode())] = np.log(p)
    return PairBatch.from_logits(make_pair(STUDENT, TEACHER), [ids[0]], [ids[1]], [logits[0].requires_grad_()], [logits[1]])


# ---- oracles of 8.2, 8.3 and 8.5 --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("after, child, inner", [
    ({"ead": .2, "eads": .3, "eak": .1, "B": .4}, 1.106664, .689527),
    ({"ead": .1, "eads": .15, "eak": .05, "B": .7}, 1.730496, None),                # all shown probabilities halved
    ({"ead": .1, "eads": .5, "eak": .1, "B": .3}, .997271, .884075)])               # mass moved to the longer word
def test_bread_toy(after, child, inner):
    b = toy(after)
    root, both, only = BPM()(b).token_loss, ESCD(inner=True)(b).token_loss, ESCD()(b)
    assert abs(root[0] - .459693) < 1e-5 and (inner is None or abs(root[1] - inner) < 1e-5)
    assert abs(only.token_loss[0] - .459693 - child) < 1e-5 and only.token_loss[1] == 0 and only.num_units == 1
    assert abs(both[0] - only.token_loss[0]) < 1e-6 and abs(both[1] - root[1]) < 1e-6
    assert abs(only.stats["child_loss"] - child) < 1e-5 and abs(only.stats["child_mass"] - .9) < 1e-5


def test_totals_of_the_toy():
    b = toy({"ead": .2, "eads": .3, "eak": .1, "B": .4})
    assert abs(ESCD()(b).loss_sum - 1.566357) < 1e-5 and abs(BPM()(b).token_loss.sum() - 1.1492) < 1e-4


def test_projection_by_hand():
    "Student a, ab, b, c; teacher abc .3, ab .2, bc .1, d .15, a .25: the root of 8.2."
    s, t = toy_bpe("abc", [("a", "b")]), toy_bpe("abcd", [("a", "b"), ("ab", "c"), ("b", "c")])
    to = longest_prefix_ids(cell_graph(s, t), [b"abc", b"ab", b"bc", b"d", b"a"])
    row = project_rows(torch.tensor([[.3, .2, .1, .15, .25]]), to, len(s) + 1)[0]
    assert torch.allclose(row[[s.encode("ab")[0], s.encode("b")[0], s.encode("a")[0], -1]], torch.tensor([.5, .1, .25, .15])) and abs(row.sum() - 1) < 1e-6


def test_equal_tokenizers_have_no_child(pair):
    same = Pair(pair.teacher, pair.teacher)
    b = batch(same, parts(same))
    assert torch.allclose(ESCD()(b).token_loss, divergence(b.student.logp(), b.teacher.logp(), "fkl").detach(), atol=1e-5) and ESCD()(b).stats["child_mass"] == 0
    p = parts(same, same=True)
    ESCD()(batch(same, p)).loss_sum.backward()
    assert max(x.grad.abs().max() for x in p["student_logits"]) < 1e-6


# ---- properties -------------------------------------------------------------------------------------------------------------
def naive_child(b, i, c=b""):
    "The child loss of the student row i after bytes c of its teacher token, from the definition."
    s, t, k = b.pair.student, b.pair.teacher, b.alignment.student_chunk[i]
    a = s.bytes[b.student.ids[i]]
    j = int(np.searchsorted(b.alignment.teacher_starts, b.alignment.student_starts[i], side="right")) - 1
    q, p = b.teacher.logp(j, j + 1)[0].exp().double(), b.student.logp(i + 1, i + 2)[0].exp().double()
    words = {w: t.bytes[w][len(c):] for w in range(len(t)) if t.bytes[w].startswith(c) and len(t.bytes[w]) > len(c)}
    total = sum(q[w].item() for w in range(len(t)) if t.bytes[w].startswith(c)) if c else 1.
    own = {x for x in s.bytes if x}
    left = {w: x for w, x in words.items() if x not in own}
    out = 0.
    for y in sorted(set(left.values())):
        if len(a) == 0 or len(y) <= len(a) or not y.startswith(a): continue
        if any(y != z and y.startswith(z) for z in left.values()): continue      # only the shortest of each group
        mass = sum(q[w].item() for w, x in left.items() if x.startswith(y)) / total
        known = [u for u in range(len(s)) if s.bytes[u].startswith(y[len(a):])]
        if known: out -= mass * np.log(p[known].sum().item())
    return out


@pytest.mark.parametrize("inner", [False, True])
def test_child_by_a_loop(pair, inner):
    for text in ("12 and 128.", "7 altogether."):
        b = batch(pair, parts(pair, (text,)))
        diff = (ESCD(inner=inner, min_mass=0.)(b).token_loss - ESCD(child=0., inner=inner)(b).token_loss).numpy()
        starts, t_starts = b.alignment.student_starts, b.alignment.teacher_starts
        for i in range(len(b.student) - 1):
            c = starts[i] - t_starts[np.searchsorted(t_starts, starts[i], side="right") - 1]
            if c and not inner: assert diff[i] == 0; continue
            assert abs(diff[i] - naive_child(b, i, b.alignment.text[starts[i] - c: starts[i]])) < 1e-4, (text, i)
        assert diff[-1] == 0 and diff.max() > 0


def test_groups_are_prefix_components(pair):
    graph = cell_graph(pair.student, pair.teacher)
    g = child_event_cache(graph).groups_at(0)
    words = [pair.teacher.bytes[i] for i in g.order]
    assert not set(words) & set(pair.student.bytes) and len(words) == sum(1 for x in pair.teacher.bytes if x and x not in set(pair.student.bytes))
    of = np.repeat(np.arange(len(g.rest)), np.diff(g.first))
    assert all(w.startswith(g.rest[k]) for w, k in zip(words, of))
    assert not any(x.startswith(y) for x, y in zip(g.rest[1:], g.rest))             # sorted: neighbours are enough


def test_light_groups_are_counted(pair):
    b = batch(pair, parts(pair))
    full, cut = ESCD(min_mass=0.)(b), ESCD(min_mass=1e-3)(b)
    assert full.stats["child_mass_left_out"] == 0 < cut.stats["child_mass_left_out"] <= cut.stats["child_mass"] and cut.loss_sum < full.loss_sum
    assert abs(ESCD()(b).loss_sum - full.loss_sum) < 1e-2


def test_gradient_by_differences():
    b = toy({"ead": .2, "eads": .3, "eak": .1, "B": .4})
    grad = torch.autograd.grad(ESCD()(b).loss_sum, b.student.logits)[0]
    for r, w in ((0, "Br"), (0, "Cat"), (1, "ead"), (1, "eak"), (1, "B")):
        def at(h):
            c = toy({"ead": .2, "eads": .3, "eak": .1, "B": .4})
            with torch.no_grad(): c.student.logits[0][r, STUDENT.bytes.index(w.encode())] += h
            return ESCD()(c).loss_sum.item()
        assert abs((at(1e-2) - at(-1e-2)) / 2e-2 - grad[r, STUDENT.bytes.index(w.encode())]) < 1e-3


def test_the_exact_student_is_pushed():
    "Twin world: after the student's a the true row has b 1/2 less what the child wants; documented as an exception to I3."
    twin = markov({"a": .5, "b": .5}, {"a": {"a": .25, "b": .5}, "b": {"a": .5, "b": .25}}, {"a": .25, "b": .25}, 12)
    S, T = TorchToyModel(twin, toy_bpe("ab", [("b", "a")])), TorchToyModel(twin, toy_bpe("ab", [("a", "b")]))
    rows = [w.rows(w.codes["ab"]).log().float() for w in (S, T)]
    b = PairBatch.from_logits(make_pair(S.vocab, T.vocab), [S.codes["ab"]], [T.codes["ab"]], [rows[0].requires_grad_()], [rows[1]])
    assert torch.autograd.grad(ESCD()(b).loss_sum, rows[0])[0][1, S.vocab.encode("b")[0]] < -.05 and "I3" in ESCD.known_exceptions


@pytest.mark.parametrize("how", [{}, {"inner": True}, {"mask_whitespace": True}])
def test_batches_samples_and_padding(pair, how):
    obj, p = ESCD(**how), parts(pair)
    whole = obj(batch(pair, p))
    for cut in ((0, 1), (2, 3)), ((3, 1), (2, 0)):
        got = [obj(batch(pair, some(p, at))) for at in cut]
        assert torch.allclose(whole.loss_sum, sum(x.loss_sum for x in got), rtol=1e-5) and whole.num_units == sum(x.num_units for x in got)
    wide = {k: [torch.cat([x.detach(), torch.full((len(x), 3), 9.)], 1).requires_grad_(k[0] == "s") for x in v] if k.endswith("_logits") else v for k, v in p.items()}
    out = obj(batch(pair, wide))
    out.loss_sum.backward()
    assert torch.allclose(whole.loss_sum, out.loss_sum, rtol=1e-5) and all((x.grad[:, -3:] == 0).all() and torch.isfinite(x.grad).all() for x in wide["student_logits"])
    pieces = ESCD(**how)
    pieces.rows_at_once = 5
    assert torch.allclose(whole.token_loss, pieces(batch(pair, p)).token_loss, atol=1e-5)


def test_masked_rows_have_no_child(pair):
    b = batch(pair, parts(pair, ("a 7  7", "   12")))
    out = ESCD(mask_whitespace=True)(b)
    assert (out.token_loss[out.ledger["reason"] == 105] == 0).all() and (out.ledger["reason"] == 105).any()


def test_teacher_reaches_the_gradient_and_may_be_strange(pair):
    def grad(change):
        p = parts(pair)
        p["teacher_logits"] = [change(x) for x in p["teacher_logits"]]
        objective("escd", inner=True)(PairBatch.from_logits(pair, *(p[k] for k in ("student_ids", "teacher_ids", "student_logits", "teacher_logits")))).loss_sum.backward()
        return torch.cat([torch.zeros_like(x) if x.grad is None else x.grad for x in p["student_logits"]])
    base = grad(lambda x: x)
    def holes(x): x = x.clone(); x[:, ::3] = -torch.inf; return x
    assert not torch.allclose(base, grad(lambda x: 2 * x), atol=1e-3) and torch.isfinite(grad(holes)).all()
    assert torch.isfinite(grad(lambda x: x[:4])).all() and torch.allclose(base, grad(lambda x: x.double()), atol=1e-4)


def test_narrow_heads(pair):
    p = parts(pair, ("7 altogether.",))
    most = [max(max(x) for x in p[f"{side}_ids"]) + 1 for side in ("student", "teacher")]
    b = PairBatch.from_logits(pair, p["student_ids"], p["teacher_ids"], [x[:, : most[0]] for x in p["student_logits"]], [x[:, : most[1]] for x in p["teacher_logits"]])
    if most[0] < len(pair.student) or most[1] < len(pair.teacher): 
        assert child_event_cache(cell_graph(pair.student, pair.teacher)).events_after(0, 0) is not None
    assert torch.isfinite(ESCD()(b).loss_sum)


def test_strange_texts(pair):
    p = parts(pair, ("", "\u00e9\U0001F60A\u4e2d", "\r\n\t x ", "a\u0301 7"))
    out = ESCD(inner=True)(batch(pair, p))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(x.grad).all() for x in p["student_logits"])
    p = parts(pair, ("12",), stop=False)
    assert ESCD()(batch(pair, p)).num_units > 0
    empty = PairBatch.from_logits(pair, [[]], [[]], [torch.zeros(0, len(pair.student))], [torch.zeros(0, len(pair.teacher))])
    assert ESCD()(empty).num_units == 0


def test_wrong_knobs_are_named():
    with pytest.raises(ValueError, match="0 .the root alone. or more"): objective("escd", child=-1.)
