"CDM: weights, row maps, groups; and each defect of the published scripts, absent."
import numpy as np
import pytest
import torch

from batches import TEXTS, batch, full, parts
from warped import check_hard_cases, check_parts, check_relabelling, same_gradient
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives.divergences import divergence
from xtokd.objectives import objective
from xtokd.objectives.projection.cdm import CDM, RowMap, entropy_weights, group_coordinates, group_logits, row_entropies
from xtokd.objectives.projection.dtw import edit_distances, warp
from xtokd.alignment.pair import Pair


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def words(*names): return toy_bpe("abcstxyz", [(w[:k], w[k]) for w in names for k in range(1, len(w))])


def test_entropy_weights():
    assert entropy_weights(np.array([0., 1, 2, 4]), [0, 4]).tolist() == [3, 3, 4, 5]
    assert entropy_weights(np.array([0., 1, 2, 4, 0, 1, 2, 4]), [0, 4, 4, 8]).tolist() == [3, 3, 4, 5] * 2          # per sample
    assert entropy_weights(np.full(3, 7.), [0, 3]).tolist() == [4, 4, 4] and entropy_weights(np.array([np.nan]), [0, 1]).tolist() == [4]      # was NaN


def test_entropies(pair):
    b, _ = full(pair)
    p = b.student.logp()
    assert np.allclose(row_entropies(b.student), -(p.exp() * p).sum(1).detach().numpy(), atol=1e-5)


def test_threshold_of_the_map():
    p = make_pair(words("cats", "abc"), words("cat", "xyz"))
    at = lambda bv, *names: np.array([[bv.bytes.index(x.encode()) for x in names]])
    s, t = at(p.student, "cats", "abc"), at(p.teacher, "cat", "xyz")
    to_t, to_s = RowMap(p)(s, t)
    assert to_t.tolist() == [[t[0, 0], -1]] and to_s.tolist() == [[s[0, 0], -1]]                                     # 1/7 < .3, 3/6 is not
    assert RowMap(p, limit=1 / 7)(s, t)[0].tolist() == [[-1, -1]] and RowMap(p, limit=.51)(s, t)[0].tolist() == [[t[0, 0], t[0, 0]]]     # equally near: the teacher's favourite


def plain_map(pair, s, t, limit=.3):
    "The map of one row from student ids to teacher ids, by its definition."
    out = []
    for i in s:
        x, stop = pair.student.bytes[i], i in pair.student.stop_ids
        if stop: out.append(next((j for j in t if j in pair.teacher.stop_ids), -1)); continue
        if not x or pair.student.special[i]: out.append(-1); continue
        same = [j for j in t if pair.overlap.student_to_teacher[i] == j]
        y = [(edit_distances([x], [pair.teacher.bytes[j]])[0] / (len(x) + len(pair.teacher.bytes[j])), k, j) for k, j in enumerate(t) if pair.teacher.bytes[j] and not pair.teacher.special[j]]
        out.append(same[0] if same else min(y)[2] if min(y)[0] < limit else -1)
    return out


def test_row_maps_equal_their_definition(pair):
    rng = np.random.default_rng(0)
    s, t = np.array([rng.permutation(len(pair.student))[:40] for _ in range(6)]), np.array([rng.permutation(len(pair.teacher))[:60] for _ in range(6)])
    to_t, to_s = RowMap(pair)(s, t)
    for k in range(6): assert to_t[k].tolist() == plain_map(pair, s[k], t[k])
    assert (to_t >= 0).sum() > 20 and to_s.shape == t.shape and all(set(x[x >= 0]) <= set(y) for x, y in zip(to_s, s))


def test_groups_are_means_of_logits(pair):
    b, _ = full(pair, TEXTS[:1])
    warping = warp(b)
    g, groups = warping.groups_of_tokens(len(b.student), len(b.teacher)), warping.group
    found = group_coordinates(b, *g, groups[-1] + 1, 100, RowMap(pair))
    ids_s, ids_t, value = found.student_ids, found.teacher_ids, found.teacher_logp
    k = int(np.flatnonzero(np.bincount(g[0]) > 1)[0])
    mean = b.teacher.logp()[g[1] == k].mean(0)
    live = ids_t[k] >= 0
    assert torch.allclose(value[k][live], torch.log_softmax(mean, 0)[ids_t[k][live]], atol=1e-4)
    assert torch.allclose(group_logits(b, g[0], ids_s)[k][live], b.student.logits[0][g[0] == k].mean(0)[ids_s[k][live]], atol=1e-5)


def plain_loss(b, temperature, top_k=100):
    "The loss of each student token by the definition, with whole rows."
    warping = warp(b, [entropy_weights(row_entropies(r), r.offsets) for r in (b.student, b.teacher)])
    pairs, groups = warping.pairs, warping.group
    out = torch.zeros(len(b.student))
    for g in range(groups[-1] + 1):
        s_at, t_at = (np.unique(pairs[groups == g, side]) for side in (0, 1))
        s, t = b.student.logp()[s_at].mean(0), b.teacher.logp()[t_at].mean(0)
        (s_top,), (t_top,) = ([x.topk(min(top_k, len(x))).indices.tolist()] for x in (s, t))
        of_s, of_t = RowMap(b.pair)(np.array([s_top]), np.array([t_top]))
        both = [(i, j) for i, j in [*zip(s_top, of_s[0]), *zip(of_t[0], t_top)] if i >= 0 and j >= 0]
        s, t = (torch.log_softmax(x[[int(c[k]) for c in both]] / temperature, 0) for k, x in enumerate((s, t)))
        out[s_at] = divergence(s, t, "fkl") * temperature ** 2
    return out


@pytest.mark.parametrize("temperature", [1., .8])
def test_the_loss_is_its_definition(pair, temperature):
    b, grads = full(pair)
    out = objective("cdm", temperature=temperature)(b)
    assert torch.allclose(out.token_loss, plain_loss(b, temperature).detach(), atol=1e-5)
    p = parts(pair)
    mine = torch.autograd.grad(out.loss_sum, b.student.logits)
    want = torch.autograd.grad(plain_loss(b, temperature).sum(), b.student.logits)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(mine, want)) and p


def test_equal_tokenizers_are_the_kl_of_renormalised_top_ids(pair):
    one = make_pair(pair.teacher, pair.teacher)
    ids = pair.teacher.encode(TEXTS[0])
    g = torch.Generator().manual_seed(0)
    common = torch.randn(len(ids), len(pair.teacher), generator=g) + 20 * (torch.arange(len(pair.teacher)) % 16 == 0)
    top = np.flatnonzero(np.arange(len(pair.teacher)) % 16 == 0)
    s, t = (common + .3 * torch.randn(common.shape, generator=g) for _ in range(2))
    want = divergence(*(torch.log_softmax(x[:, top], 1) for x in (s, t)), "fkl").mean()
    b = PairBatch.from_logits(one, [ids], [ids], [s], [t])
    assert torch.allclose(objective("cdm", temperature=1., top_k=len(top))(b).loss, want, rtol=1e-4)
    whole = objective("cdm", temperature=1., top_k=5000)(b).loss                     # all ids: ordinary distillation
    assert torch.allclose(whole, divergence(*(torch.log_softmax(x, 1) for x in (s, t)), "fkl").mean(), rtol=1e-4)


def test_equal_entropies_are_no_nan(pair):                                            # defect 1
    p = parts(pair, TEXTS[:2])
    for side in ("student_logits", "teacher_logits"): p[side] = [x.detach()[:1].expand(len(x), -1).clone().requires_grad_(side[0] == "s") for x in p[side]]
    out = objective("cdm")(batch(pair, p))
    assert torch.isfinite(out.loss_sum) and out.num_units > 0


def test_id_zero_is_an_id():                                                          # defect 2
    p = make_pair(words("cats"), words("cat"))
    assert p.student.bytes[0] == p.teacher.bytes[0] == b"a"
    to_t, to_s = RowMap(p)(np.array([[0, 1]]), np.array([[0, 4]]))
    assert to_t.tolist() == [[0, -1]] and to_s.tolist() == [[0, -1]]


def test_coordinates_are_pairs_and_never_mixed(pair):                                 # defect 3
    b, _ = full(pair)
    warping = warp(b)
    g, groups = warping.groups_of_tokens(len(b.student), len(b.teacher)), warping.group
    found = group_coordinates(b, *g, groups[-1] + 1, 100, RowMap(pair))
    ids_s, ids_t = found.student_ids, found.teacher_ids
    assert ((ids_s < 0) == (ids_t < 0)).all() and ids_s.max() < len(pair.student) and ids_t.max() >= len(pair.student)
    for i, j in zip(ids_s[ids_s >= 0], ids_t[ids_t >= 0]):
        x, y = pair.student.bytes[i], pair.teacher.bytes[j]
        assert x == y == b"" or edit_distances([x], [y])[0] < .3 * (len(x) + len(y))


def test_temperature_is_on_both_sides(pair):                                          # defect 4: equal rows are zero at any temperature
    for temperature in (.5, .8, 2.): assert same_gradient(pair, objective("cdm", temperature=temperature)) < 1e-6
    one = make_pair(pair.teacher, pair.teacher)
    assert objective("cdm")(batch(one, parts(one, same=True))).loss_sum.abs() < 1e-5


def test_the_student_is_compared_and_gets_a_gradient(pair):                           # defect 5
    b, _ = full(pair)
    out = objective("cdm")(b)
    for g, x in zip(torch.autograd.grad(out.loss_sum, b.student.logits), b.student.logits): assert (g.abs().sum(1) > 0).all() and g.shape == x.shape
    back = make_pair(pair.teacher, pair.student)                                      # roles do not swap: the divergence is not symmetric
    p = parts(pair)
    other = batch(back, {**p, "student_ids": p["teacher_ids"], "teacher_ids": p["student_ids"], "student_logits": p["teacher_logits"],
                         "teacher_logits": [x.detach() for x in p["student_logits"]], **{k: [torch.zeros(len(i)) for i in p["teacher_ids"]] for k in ("behaviour_logp", "reference_logp")},
                         **{k: [torch.zeros(len(i)) for i in p["student_ids"]] for k in ("weak_logp", "plus_logp", "minus_logp")}})
    kinds = [objective("cdm", divergence=k)(x).ledger["signal"][0] for k, x in (("fkl", b), ("rkl", other), ("fkl", other))]
    assert abs(kinds[0] - kinds[1]) < 1e-4 < abs(kinds[0] - kinds[2])


def test_cross_entropy_is_a_knob_for_gold_text(pair):
    with pytest.raises(ValueError, match="gold"): objective("cdm", ce=.9)(full(pair)[0])
    b = full(pair, text_source="reference")[0]
    for text in TEXTS:                                                              # a weighted mean of both means
        b = full(pair, (text,), text_source="reference")[0]
        none, some = (objective("cdm", ce=x)(b) for x in (0., .9))
        assert torch.allclose(some.loss, .1 * none.loss - .9 * b.student.token_logp().mean(), rtol=1e-4) and some.num_units == none.num_units


def test_what_every_method_keeps(pair):
    check_parts(pair, objective("cdm"))
    check_hard_cases(pair, objective("cdm"))
    check_relabelling(pair, objective("cdm"))


def test_nothing_in_common_is_no_signal():
    p = make_pair(toy_bpe("ab", []), toy_bpe("ab", [("a", "b")]))
    b, _ = full(p, ("ab",), stop=False)
    out = CDM(top_k=1)(b)
    assert torch.isfinite(out.loss_sum) and ((out.ledger["weight"] > 0) | (out.ledger["reason"] > 0)).all()


def test_wrong_knobs_are_refused():
    for knob in (dict(divergence="tvd"), dict(ce=-1.), dict(top_k=0), dict(temperature=0.)):
        with pytest.raises(ValueError): objective("cdm", **knob)
