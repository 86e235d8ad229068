"Edit distances, warping paths and nearest tokens against plain loops and the published examples."
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, parts
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.objectives.projection.dtw import EditTable, NearestToken, cheapest_paths, edit_distances, path_groups, spelling_tables, warp
from xtokd.alignment.pair import Pair


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def slow_edits(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1): row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


def random_words(n, seed=0, letters=4, longest=12):
    rng = np.random.default_rng(seed)
    return [bytes(rng.integers(97, 97 + letters, k).astype(np.uint8)) for k in rng.integers(0, longest, n)]


def test_edit_distances_equal_the_plain_loop():
    a, b = random_words(400, 1), random_words(400, 2)
    a[:3], b[:3] = [b"", b"", b"x" * 300], [b"", b"abc", b"x" * 299 + b"y" * 5]
    assert edit_distances(a, b).tolist() == [slow_edits(x, y) for x, y in zip(a, b)]
    assert edit_distances([], []).tolist() == []


def test_the_table_computes_each_pair_once_and_forgets(monkeypatch):
    words = random_words(30)
    table = EditTable(words, words)
    whole = table(np.arange(30)[:, None], np.arange(30))
    assert (whole == whole.T).all() and (np.diag(whole) == 0).all() and len(table.keys) == 900
    monkeypatch.setattr("xtokd.objectives.projection.dtw.edit_distances", None)
    assert (table(np.arange(10), np.arange(10, 20)) == whole[np.arange(10), np.arange(10, 20)]).all()     # nothing is computed again
    monkeypatch.undo()
    table.limit = 100
    small = EditTable(words, words)
    small.limit = 100
    for k in range(30): assert (small(k, np.arange(30)) == whole[k]).all() and len(small.keys) <= 100


def path_of(teacher, student):
    "Cost, and the teacher strings of each student string; `_` marks a word's begin and is taken off, as the method does."
    t, s = ([w.encode() for w in x.replace("_", "").split(" ")] for x in (teacher, student))
    (path,), (total,) = cheapest_paths([EditTable(s, t)(np.arange(len(s))[:, None], np.arange(len(t)))])
    return int(total), [(s[i].decode(), [t[j].decode() for j in path[path[:, 0] == i, 1]]) for i in range(len(s))]


def test_wrong_by_design():                                                       # regression-locked: these paths are the method's
    assert path_of("_of _c ats _was", "_of _cats _was") == (3, [("of", ["of", "c"]), ("cats", ["ats"]), ("was", ["was"])])
    assert path_of("_COVID _ _1 _9", "_CO VID _19") == (8, [("CO", ["COVID"]), ("VID", [""]), ("19", ["1", "9"])])
    assert path_of("_the _flag _car rier _during", "_the _flag _carrier _during") == (6, [("the", ["the"]), ("flag", ["flag", "car"]), ("carrier", ["rier"]), ("during", ["during"])])
    assert path_of("_a b _c", "_a b _c") == (0, [("a", ["a"]), ("b", ["b"]), ("c", ["c"])])


def plain_path(c):
    n, m = c.shape
    d = np.full((n + 1, m + 1), np.inf)
    d[0, 0] = 0
    for i in range(n):
        for j in range(m): d[i + 1, j + 1] = c[i, j] + min(d[i, j], d[i, j + 1], d[i + 1, j])
    d[0, 0], i, j, path = np.inf, n - 1, m - 1, [[n - 1, m - 1]]
    while i or j:
        step = int(np.argmin([d[i, j], d[i, j + 1], d[i + 1, j]]))                # ties: diagonal, up, left
        i, j = i - (step != 2), j - (step != 1)
        path.insert(0, [i, j])
    return path, d[n, m]


def test_paths_equal_the_plain_recursion_with_its_ties():
    rng = np.random.default_rng(0)
    costs = [rng.integers(0, 3, rng.integers(1, 10, 2)) for _ in range(300)] + [np.zeros((0, 3), int), np.zeros((2, 0), int)]
    paths, total = cheapest_paths(costs)
    for c, p, t in zip(costs[:300], paths, total): assert (p.tolist(), t) == plain_path(c)
    assert [len(p) for p in paths[300:]] == [0, 0] and cheapest_paths([])[0] == []
    real = [rng.random((7, 5))]
    assert cheapest_paths(real)[0][0].tolist() == plain_path(real[0])[0] and abs(cheapest_paths(real)[1][0] - plain_path(real[0])[1]) < 1e-12


def test_groups_partition_both_sides():
    rng = np.random.default_rng(1)
    for c in (rng.integers(0, 3, (9, 6)), np.ones((1, 5), int), np.ones((4, 1), int)):
        path = cheapest_paths([c])[0][0]
        g = path_groups(path)
        assert (np.diff(g) >= 0).all() and g[0] == 0
        for side in (0, 1): assert all(len(set(g[path[:, side] == k])) == 1 for k in range(c.shape[side]))


def test_a_thousand_tokens_a_side():
    words = random_words(600, letters=20)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 600, (2, 1000))
    table = EditTable(words, words)
    (path,), _ = cheapest_paths([table(np.arange(600)[:, None], np.arange(600))[a][:, b]])
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [999, 999] and (np.diff(path, axis=0).max(1) == 1).all()


def test_nearest_tokens(pair):
    near = NearestToken(pair.teacher, pair.student)
    assert (near.known == -2).sum() > 900                                        # nothing is searched before it is asked for
    ids = np.flatnonzero(near.known == -2)[::60]
    words = [pair.student.bytes[i] for i in range(len(pair.student)) if pair.student.lengths[i] and not pair.student.special[i]]
    for i, j in zip(ids, near(ids)):
        far = [(slow_edits(pair.teacher.bytes[i], w), len(w), w) for w in words]
        assert pair.student.bytes[j] == min(far)[2]                              # of equally near ones the shortest, then byte order
    assert (near.known == -2).sum() > 800
    v = pair.overlap
    assert (near(v.shared_teacher_ids) == v.shared_student_ids).all() and near(v.teacher_stop_ids).tolist() == [pair.student.stop_ids[0]]
    assert (near(np.flatnonzero(pair.teacher.special)[:-1]) == -1).all()         # none is -1, not the real id 0


def test_warp_covers_shared_text_and_pairs_the_stops(pair):
    b = batch(pair, parts(pair, TEXTS))
    warping = warp(b)
    pairs, groups, cost = warping.pairs, warping.group, warping.cost
    assert set(pairs[:, 0]) == set(range(len(b.student))) and set(pairs[:, 1]) == set(range(len(b.teacher))) and len(cost) == len(TEXTS)
    for k in range(len(TEXTS)): assert [b.alignment.student_offsets[k + 1] - 1, b.alignment.teacher_offsets[k + 1] - 1] in pairs.tolist()
    assert (np.diff(groups) >= 0).all() and (np.diff(groups) <= 1).all()
    sample = np.searchsorted(b.alignment.student_offsets, pairs[:, 0], side="right"), np.searchsorted(b.alignment.teacher_offsets, pairs[:, 1], side="right")
    assert (sample[0] == sample[1]).all()


def test_weights_choose_among_paths():
    p = make_pair(toy_bpe("ab ", [("a", "b")]), toy_bpe("ab ", []))
    b = batch(p, parts(p, ("ab ab", "a b")))
    ones = [np.ones(len(r), np.int64) for r in (b.student, b.teacher)]
    assert (warp(b, ones).pairs == warp(b).pairs).all() and (warp(b, [2 * ones[0], 3 * ones[1]]).cost == 6 * warp(b).cost).all()


def test_equal_tokenizers_cost_nothing(pair):
    one = make_pair(pair.teacher, pair.teacher)
    warping = warp(batch(one, parts(one, same=True)))
    pairs, groups, cost = warping.pairs, warping.group, warping.cost
    assert (cost == 0).all() and (pairs[:, 0] == pairs[:, 1]).all() and (np.diff(groups) == 1).all()


def test_truncated_teacher_is_not_stretched(pair):
    p = parts(pair, TEXTS[:1])
    p["teacher_logits"][0] = p["teacher_logits"][0][:4]
    b = batch(pair, {k: v for k, v in p.items() if k != "weak_logp" and not k.startswith(("plus", "minus"))})
    pairs = warp(b).pairs
    assert (b.alignment.student_chunk[pairs[:, 0]] >= 0).all() and pairs[:, 1].max() < 4 and torch.isfinite(b.teacher.logp()).all()


def test_a_pair_is_prepared_once(pair): assert spelling_tables(pair.student, pair.teacher) is spelling_tables(pair.student, pair.teacher)
