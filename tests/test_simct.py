"""SimCT: the published toy and walks, what the mean of log-probs sees, and what it cannot see."""
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, ids_of, leaves, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import OBJECTIVES, objective
from xtokd.objectives.divergences import divergence
from xtokd.objectives.matching.simct import SimCT, released_segments, scorable_units, unit_scores
from xtokd.alignment.pair import Pair

BOTH = ("paper", "released")
student = toy_bpe("BreadskCt", [("B", "r"), ("e", "a"), ("ea", "d"), ("ead", "s"), ("ea", "k"), ("C", "a"), ("Ca", "t")])
teacher = toy_bpe("BreadskCt", [("e", "a"), ("ea", "d"), ("ea", "k"), ("r", "ead"), ("r", "eak"), ("B", "read"), ("Bread", "s"), ("B", "reak"), ("C", "a"), ("Ca", "t")])
ROOT, AFTER, TRUTH = {"Br": .5, "Cat": .2, "eads": .3}, {"ead": .2, "eads": .3, "eak": .1, "B": .4}, {"Bread": .4, "Breads": .2, "Break": .3, "Cat": .1}


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def rows_of(bv, n, rows):
    x = torch.full((n, len(bv)), -torch.inf)
    x[:, bv.stop_ids[0]] = 0.
    for r, row in rows.items():
        x[r, bv.stop_ids[0]] = -torch.inf
        for word, p in row.items(): x[r, bv.bytes.index(word.encode())] = np.log(p)
    return x


def toy(s_rows, t_rows, text="BreadBreadsBreakCat"):
    s, t = student.encode(text), teacher.encode(text)
    return PairBatch.from_logits(make_pair(student, teacher), [s], [t], [rows_of(student, len(s), s_rows).requires_grad_()], [rows_of(teacher, len(t), t_rows)])


def from_ids(bv_s, bv_t, s, t):
    "Random rows, one per id."
    g = torch.Generator().manual_seed(0)
    return PairBatch.from_logits(make_pair(bv_s, bv_t), [s], [t], [torch.randn(len(s), len(bv_s), generator=g).requires_grad_()], [torch.randn(len(t), len(bv_t), generator=g)])


# ---- oracles of 2.4, 2.5 and 8.5 --------------------------------------------------------------------------------------------
def test_bread_toy():
    w = torch.tensor([.5 * .2, .5 * .3, .5 * .1, .2 ** 2]).sqrt()
    assert abs(w.sum() - 1.127133) < 1e-6 and torch.allclose(w / w.sum(), torch.tensor([.280559, .343614, .198385, .177441]), atol=1e-6)
    b = toy({0: ROOT, 1: AFTER}, {0: TRUTH})
    assert abs(SimCT()(b).token_loss[:2].sum() - .106166) < 1e-6


def test_halved_probabilities_are_not_seen():
    half = lambda row, shown, rest: {k: p / 2 if k in shown else p for k, p in row.items()} | {rest: row[rest] + sum(p / 2 for k, p in row.items() if k in shown)}
    b = toy({0: half(ROOT, {"Br", "Cat"}, "eads"), 1: half(AFTER, {"ead", "eads", "eak"}, "B")}, {0: TRUTH})
    assert abs(SimCT()(b).token_loss[:2].sum() - .106166) < 1e-6
    kept = SimCT(min_mass=.5)(b)                    # the later version asks about the teacher's mass only, and does not see it either
    assert abs(kept.token_loss[:2].sum() - .106166) < 1e-6


def test_raw_logits_and_log_probs():
    z = torch.tensor([[2., 0, 1], [5, 4, 3]])
    b = from_ids(*[toy_bpe("ab", ())] * 2, [0, 1], [0, 1])
    b.student.logits[0] = z
    mean = lambda raw: unit_scores(b.student, np.array([0]), np.array([2]), np.array([1]), raw).item()
    assert mean(True) == 3. and abs(mean(False) + .9076) < 1e-4


WALK = toy_bpe(" aeplsx012", [(" ", "a"), ("p", "p"), ("l", "e"), (" a", "pp"), (" app", "le"), (" apple", "s"), ("1", "2"), ("1", "0"), ("10", "0")])


@pytest.mark.parametrize("s, t, units, released", [
    (("12", " apples"), ("1", "2", " apples"), [[0, 1, 0, 2], [1, 2, 2, 3]], [[0, 2, 0, 3]]),
    (("x", "100"), ("x", "1", "0", "0"), [[0, 1, 0, 1], [1, 2, 1, 4]], [[0, 1, 0, 1]])])
def test_walks(s, t, units, released):
    s, t = ([WALK.bytes.index(p.encode()) for p in x] for x in (s, t))
    b = from_ids(WALK, WALK, s, t)
    assert b.alignment.chunks.tolist() == units and released_segments(b.alignment).ranges.tolist() == released
    dropped = SimCT("released")(b).ledger["weight"][released[-1][1]:]
    assert (dropped == 0).all() and np.isclose(SimCT()(b).ledger["weight"].sum(), len(units))


def test_parts_of_a_character_are_not_equal():
    "Three and one bytes against one and three: decoded, both begin with U+FFFD, and a walk over strings takes them for the same token."
    a = "\U0001F60A".encode()
    bv = toy_bpe(a, [(a[:1], a[1:2]), (a[:2], a[2:3]), (a[1:2], a[2:3]), (a[1:3], a[3:])])
    s, t = [bv.bytes.index(x) for x in (a[:3], a[3:])], [bv.bytes.index(x) for x in (a[:1], a[1:])]
    assert bv.bytes[s[0]].decode(errors="replace")[0] == bv.bytes[t[0]].decode(errors="replace")[0] == "\ufffd"
    b = from_ids(bv, bv, s, t)
    assert b.alignment.chunks.tolist() == [[0, 2, 0, 2]] and len(released_segments(b.alignment).ranges) == 0
    assert SimCT("released")(b).num_units == 0 and torch.isfinite(SimCT()(b).loss_sum)


def test_four_bytes_against_one_token_keep_the_rest():
    a = "\U0001F60A".encode()
    bv = toy_bpe(a + b"!", [(a[:1], a[1:2]), (a[:2], a[2:3]), (a[:3], a[3:])])
    s, t = [bv.bytes.index(x) for x in (*(a[k: k + 1] for k in range(4)), b"!")], [bv.bytes.index(x) for x in (a, b"!")]
    b = from_ids(bv, bv, s, t)
    assert b.alignment.chunks.tolist() == [[0, 4, 0, 1], [4, 5, 1, 2]] and SimCT()(b).num_units == 2
    assert released_segments(b.alignment).ranges.tolist() == [[0, 5, 0, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_merging_two_words_never_adds(seed):
    g = torch.Generator().manual_seed(seed)
    p, q = torch.softmax(2 * torch.randn(2, 7, generator=g, dtype=torch.float64), 1)
    kl = lambda x, y: (x * (x / y).log()).sum()
    for i in range(7):
        for j in range(i):
            rest = [k for k in range(7) if k not in (i, j)]
            m = [torch.cat([x[rest], x[[i, j]].sum()[None]]) for x in (p, q)]
            lost = m[0][-1] * kl(p[[i, j]] / m[0][-1], q[[i, j]] / m[1][-1])
            assert kl(*m) <= kl(p, q) + 1e-12 and abs(kl(p, q) - kl(*m) - lost) < 1e-10


@pytest.mark.parametrize("variant", BOTH)
def test_equal_tokenizers_give_the_reverse_kl(pair, variant):
    same = Pair(pair.teacher, pair.teacher)
    b = batch(same, parts(same))
    want = divergence(b.student.logp(), b.teacher.logp(), "rkl").detach()
    out = SimCT(variant)(b)
    assert torch.allclose(out.token_loss, want, atol=1e-5) and out.unit == "chunk" and out.num_units == len(want)


# ---- properties -------------------------------------------------------------------------------------------------------------
def lifted(pair, variant):
    p = parts(pair)
    q = {**p, "student_logits": [x + 5. * (torch.arange(len(x)) % 2)[:, None] for x in p["student_logits"]], "teacher_logits": [x - 3. * (torch.arange(len(x)) % 2)[:, None] for x in p["teacher_logits"]]}
    return (SimCT(variant)(batch(pair, q)).token_loss - SimCT(variant)(batch(pair, p)).token_loss).abs().max()


def test_a_constant_in_a_row_changes_nothing(pair):
    assert lifted(pair, "paper") < 1e-5 < 1e-3 < lifted(pair, "released")


def test_scores_by_a_loop(pair):
    "The vectorised search and scores against the definition, token by token."
    texts = ("12 and 12 and 128 and 7.", "the number is 9632.", "")
    b = batch(pair, parts(pair, texts))
    a, s, t = b.alignment, b.student.logp().detach(), b.teacher.logp()
    c, want = a.chunks.tolist(), {}
    ids = lambda k: (tuple(b.student.ids[c[k][0]: c[k][1]]), tuple(b.teacher.ids[c[k][2]: c[k][3]]))
    for k in range(len(c)):
        for u in range(len(c)):
            if a.kind[u] == 0 or a.chunk_sample[u] != a.chunk_sample[k] or any(ids(v) == ids(u) and a.chunk_sample[v] == a.chunk_sample[u] for v in range(u)): continue
            x, y = ids(u)
            inside = c[k][0] + len(x) <= a.student_offsets[a.chunk_sample[k] + 1] and c[k][2] + len(y) <= a.teacher_offsets[a.chunk_sample[k] + 1]
            if inside and tuple(b.student.ids[c[k][0]: c[k][0] + len(x) - 1]) == x[:-1] and tuple(b.teacher.ids[c[k][2]: c[k][2] + len(y) - 1]) == y[:-1]:
                want[k, u] = [sum(lp[r + j, i].item() for j, i in enumerate(z)) / len(z) for lp, r, z in ((s, c[k][0], x), (t, c[k][2], y))]
    found = scorable_units(b)
    row, unit = found.row, found.unit
    assert set(zip(row.tolist(), unit.tolist())) == set(want) and len(want) > 3
    sizes = np.array(c)[unit]
    for rows, x, j in ((b.student, 0, 0), (b.teacher, 2, 1)):
        got = unit_scores(rows, np.array(c)[row, x], sizes[:, x + 1] - sizes[:, x], rows.ids[sizes[:, x + 1] - 1])
        assert np.allclose(got.detach(), [want[k, u][j] for k, u in zip(row.tolist(), unit.tolist())], atol=1e-5)


def test_a_unit_that_is_a_shared_token_is_in_the_space_once(pair):
    "A sample cut otherwise than the tokenizer would: its unit is a word of every row already."
    bv = toy_bpe("abc", [("a", "b")])
    other = toy_bpe("abc", [("a", "b"), ("b", "c")])
    ab = bv.bytes.index
    b = from_ids(bv, other, [ab(b"a"), ab(b"b"), ab(b"c")], [other.bytes.index(b"ab"), other.bytes.index(b"c")])
    assert len(scorable_units(b).row) == 0 and SimCT()(b).num_units == 2


@pytest.mark.parametrize("units", ["sample", "own"])
@pytest.mark.parametrize("variant", BOTH)
def test_batches_samples_and_padding(pair, variant, units):
    obj, p = SimCT(variant, units), parts(pair)
    whole = obj(batch(pair, p))
    for cut in ((0, 1), (2, 3)), ((3, 1), (2, 0)):
        got = [obj(batch(pair, some(p, at))) for at in cut]
        assert torch.allclose(whole.loss_sum, sum(x.loss_sum for x in got), rtol=1e-5) and np.isclose(whole.num_units, sum(x.num_units for x in got))
    wide = {k: [torch.cat([x.detach(), torch.full((len(x), 3), 9.)], 1).requires_grad_(k[0] == "s") for x in v] if k.endswith("_logits") else v for k, v in p.items()}
    out = obj(batch(pair, wide))
    out.loss_sum.backward()
    assert torch.allclose(whole.loss_sum, out.loss_sum, rtol=1e-5) and all((x.grad[:, -3:] == 0).all() and torch.isfinite(x.grad).all() for x in wide["student_logits"])


@pytest.mark.parametrize("variant", BOTH)
def test_teacher_reaches_the_gradient_and_may_be_strange(pair, variant):
    def grad(change):
        p = parts(pair)
        p["teacher_logits"] = [change(x) for x in p["teacher_logits"]]
        objective("simct", variant=variant)(PairBatch.from_logits(pair, *(p[k] for k in ("student_ids", "teacher_ids", "student_logits", "teacher_logits")))).loss_sum.backward()
        return torch.cat([torch.zeros_like(x) if x.grad is None else x.grad for x in p["student_logits"]])
    base = grad(lambda x: x)
    def holes(x): x = x.clone(); x[:, ::3] = -torch.inf; return x
    assert not torch.allclose(base, grad(lambda x: 2 * x), atol=1e-3) and torch.isfinite(grad(holes)).all()
    assert torch.isfinite(grad(lambda x: torch.full_like(x, -torch.inf).index_fill(1, torch.tensor([5]), 0.))).all() and torch.isfinite(grad(lambda x: x[:4])).all()
    assert torch.allclose(base, grad(lambda x: x.double()), atol=1e-4)


@pytest.mark.parametrize("variant", BOTH)
def test_equal_models_are_at_rest(pair, variant):
    same = Pair(pair.teacher, pair.teacher)
    p = parts(same, same=True)
    SimCT(variant)(batch(same, p)).loss_sum.backward()
    assert max(x.grad.abs().max() for x in p["student_logits"]) < 1e-6


@pytest.mark.parametrize("variant", BOTH)
def test_strange_texts(pair, variant):
    texts = ("", "\u00e9\U0001F60A\u4e2d", "\r\n\t x ", "a\u0301 7")
    p = parts(pair, texts)
    out = SimCT(variant)(batch(pair, p))
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(x.grad).all() for x in p["student_logits"])
    empty = PairBatch.from_logits(pair, [[]], [[]], [torch.zeros(0, len(pair.student))], [torch.zeros(0, len(pair.teacher))])
    assert SimCT(variant)(empty).num_units == 0


@pytest.mark.parametrize("variant", BOTH)
def test_no_shared_token(variant):
    s, t = toy_bpe("ab", ()), toy_bpe("ab", [("a", "b")])
    b = from_ids(s, t, s.encode("ab"), [t.bytes.index(b"ab")])
    b.pair.overlap = type("V", (), dict(identical=False, shared_student_ids=np.zeros(0, int), shared_teacher_ids=np.zeros(0, int), student_stop_ids=np.zeros(0, int), teacher_stop_ids=np.zeros(0, int), student=s))()
    out = SimCT(variant)(b)
    assert out.loss_sum == 0 and out.num_units == 0


def test_min_mass_leaves_rows_out(pair):
    b = batch(pair, parts(pair, scale=8.))
    counts = [SimCT(v, min_mass=m)(b).num_units for v in BOTH for m in (0., .5)]
    assert counts[0] > counts[1] and counts[2] > counts[3]


def test_wrong_knobs_are_named():
    with pytest.raises(ValueError, match="paper, released"): objective("simct", variant="realeased")
    with pytest.raises(ValueError, match="sample, own"): objective("simct", units="all")
    assert OBJECTIVES["simct"].source == "arXiv 2605.07711"


def test_locality(pair):
    "With the row's own unit only, what stands later does not matter; the paper's space of the whole sample does not promise it."
    loss = lambda text, **how: SimCT(**how)(batch(pair, parts(pair, (text,))))
    b = parts(pair, ("the number is 9632.",))
    longer = parts(pair, ("the number is 9632. 12 96",))
    n, m = len(b["student_ids"][0]) - 1, len(b["teacher_ids"][0]) - 1
    if longer["student_ids"][0][:n] != b["student_ids"][0][:n]: pytest.skip("the cut before changed")
    longer["student_logits"] = [torch.cat([b["student_logits"][0][:n].detach(), longer["student_logits"][0][n:].detach()])]
    longer["teacher_logits"] = [torch.cat([b["teacher_logits"][0][:m], longer["teacher_logits"][0][m:]])]
    x, y = (SimCT(units="own")(batch(pair, p)).token_loss[: n - 1] for p in (b, longer))
    assert torch.allclose(x, y, atol=1e-6)
