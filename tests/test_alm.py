"""ALM: the numbers of the specification, the twin world, and what an objective must keep."""
import math

import numpy as np
import pytest
import torch
from batches import batch, full, leaves, parts, some

from xtokd.rows.pair_batch import PairBatch
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.models.loading import load_tokenizer
from xtokd.objectives import objective
from xtokd.objectives.alm import FORMS, ChunkEnds, binary_divergence, boundary_ids, boundary_leaks, gradmag, hidden_gap, log1mexp, merge_groups, scan_boundary
from xtokd.exact.toy_models import toy_bpe, make_pair, twin_world
from xtokd.alignment.pair import Pair

KNOBS = [{}, dict(form="tvd"), dict(form="limit", debias="none"), dict(form="ce", gamma=None), dict(form="k3", debias="stop"), dict(form="rkl", tau=1., gamma=0.),
         dict(form="k2", boundary=" \t\n"), dict(tau=math.inf), dict(hidden=.5, hidden_norm="row")]
UNICODE = ("", " ", "naïve 👩‍👩‍👧 数据", "e\u0301\t\r\n  9632 ", "\U0001f916\U0001f916")
log = lambda *p: torch.tensor(p, dtype=torch.float64).log()


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


@pytest.fixture(scope="module")
def same(pair): return make_pair(pair.student, pair.student)


def value(p, q, form="kl", tau=1.): return binary_divergence(log(p), log(q), form, tau, 0.).item()


def slope(p, q, form="kl", tau=1.):
    x = log(q).requires_grad_()
    return torch.autograd.grad(binary_divergence(log(p), x, form, tau, 0.).sum(), x)[0].item()


# ---- numbers ----------------------------------------------------------------------------------------------------------------
def test_log1mexp_table():
    f32 = lambda *x: log1mexp(torch.tensor(x)).tolist()
    assert f32(-1e-8, -1e-6) == pytest.approx([-18.420681, -13.815511], abs=1e-5) and f32(-20.) == pytest.approx([-2.0611537e-9], rel=1e-4)
    x = torch.tensor([-1e-8, -1e-6, -math.log(2), -20., -200.], dtype=torch.float64, requires_grad=True)
    g = torch.autograd.grad(log1mexp(x).sum(), x)[0]
    assert g.isfinite().all() and torch.allclose(g[1:], (x.exp() / torch.expm1(x))[1:], rtol=1e-6)
    assert torch.autograd.gradcheck(log1mexp, torch.tensor([-.1, -.5, -1., -5., -20.], dtype=torch.float64, requires_grad=True))


def test_gradients_of_the_spec():
    assert slope(.5, .25) == pytest.approx(-1 / 3) and slope(1/16, 1/32, tau=100.) == pytest.approx(-.00197237, abs=1e-8)
    assert slope(1/16, 1/32, "limit") == pytest.approx(-.2)
    for tau in (1., 5.):
        P, Q = .3 ** (1 / tau), .1 ** (1 / tau)
        assert slope(.3, .1, tau=tau) == pytest.approx((Q - P) / (tau * (1 - Q)))
        assert slope(.3, .1, "ce", tau) == pytest.approx(slope(.3, .1, tau=tau))


def test_limits_of_tau():
    p, q = .3, .1
    assert 1e7 * value(p, q, tau=1e7) == pytest.approx(value(p, q, "limit"), rel=1e-4) and value(p, q, "kl", math.inf) == value(p, q, "limit")
    assert value(1/16, 1/32, "tvd", math.inf) == pytest.approx(2 * math.log(2)) and 1e7 * value(p, q, "tvd", 1e7) == pytest.approx(value(p, q, "tvd", math.inf), rel=1e-4)
    u, v = -math.log(p), -math.log(q)
    assert value(p, q, "limit") == pytest.approx(u * math.log(u / v) - u + v) and value(p, p, "limit") == 0
    lp, lq = -u, -v
    assert value(p, q, "limit") == pytest.approx((lp - lq) + lp * math.log(lq / lp))


def test_cross_entropy_is_not_zero_at_the_optimum():
    x = torch.tensor([-1., -5., -69.3], dtype=torch.float64)
    assert binary_divergence(x, x, "ce", 100.).tolist() == pytest.approx([.05578, .19488, .69315], abs=2e-5)
    assert binary_divergence(x, x, "kl", 100.).abs().max() < 1e-12


def test_the_coin_is_a_lower_bound():
    p, q = log(.5, .3, .2), log(.4, .4, .2)
    assert float((p.exp() * (p - q)).sum()) == pytest.approx(.025267, abs=1e-6)
    assert binary_divergence(p, q, "kl", 1., 0.).tolist() == pytest.approx([.020411, .021601, 0], abs=1e-6)
    g = torch.Generator().manual_seed(0)
    for v in (2, 3, 7):
        p, q = torch.randn(2, 50, v, generator=g, dtype=torch.float64).log_softmax(-1)
        full, coins = (p.exp() * (p - q)).sum(-1, keepdim=True), binary_divergence(p, q, "kl", 1., 0.)
        assert (coins <= full + 1e-12).all()
        if v == 2: assert torch.allclose(coins, full.expand(-1, 2))


def test_ratio_forms():
    r = (math.log(.3) - math.log(.1)) / 5
    assert value(.3, .1, "k2", 5.) == pytest.approx(r * r / 2) and value(.3, .1, "k3", 5.) == pytest.approx(math.exp(r) - 1 - r)
    assert value(.3, .1, "rkl", 5.) == pytest.approx(value(.1, .3, "kl", 5.))


def test_groups():
    groups = lambda p, fresh=(0,): merge_groups(np.array(p) > .1, np.isin(np.arange(len(p)), fresh)).tolist()
    assert groups([.05, .3, .02, .9]) == [0, 0, 1, 1] and groups([.05, .3, .02]) == [0, 0, 1] and groups([]) == []
    assert groups([.05, .05, .05, .9], (0, 2)) == [0, 0, 1, 1]          # never over the end of a sample


# ---- the twin world ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def worlds(): return twin_world(12)


def told(worlds, text, ids=False, **knobs):
    codes = [list(w.codes[text]) for w in worlds]
    rows = [torch.tensor(w.rows(i)).log() for w, i in zip(worlds, codes)]
    b = PairBatch.from_logits(make_pair(*(w.vocab for w in worlds)), [codes[0]], [codes[1]], [rows[0].requires_grad_()], [rows[1]])
    return objective("alm", boundary="", **knobs)(b)


def test_twin_world(worlds):
    first = lambda **k: float(told(worlds, "abab", **k).token_loss[:3].sum())
    naive = dict(debias="none", gamma=None)
    assert first(**naive, tau=1.) == pytest.approx(.0125812, abs=1e-6) and first(**naive, tau=5.) == pytest.approx(.0110967, abs=1e-6)
    assert first(**naive, tau=1., form="tvd") == pytest.approx(.0625, abs=1e-6) and first(**naive, form="tvd", tau=math.inf) == pytest.approx(1.386294, abs=1e-5)
    for form in ("kl", "rkl", "tvd", "limit", "k2", "k3"):
        assert abs(first(form=form, gamma=None)) < 1e-6 < first(form=form, **naive)          # C = ln 1/16 and ln 1/32; with the stop both ln 1/64
    out = told(worlds, "abab", gamma=.5)
    assert out.num_units == 1 and abs(out.loss_sum) < 1e-6 and out.stats["merged_share"] == .5 and out.stats["longest_group"] == 4


def test_merged_to_the_end_every_text_of_the_twin_world_is_zero(worlds):
    for n in range(1, 6):
        for k in range(2 ** n): assert abs(told(worlds, "".join("ab"[k >> i & 1] for i in range(n)), gamma=.99).loss) < 1e-6


def test_the_boundary_mass_is_the_row_after_the_chunk(worlds):
    out = told(worlds, "abab", gamma=None, form="k2", tau=1.)
    assert out.token_loss[3] == pytest.approx(math.log(2) ** 2 / 2, abs=1e-5)               # the stop's own chunk: 1/4 against 1/2, biased at its start
    assert out.stats["boundary"] == pytest.approx((1/4 + 1) / 2)


# ---- boundaries -------------------------------------------------------------------------------------------------------------
def test_clean_boundaries(pair):
    unclean = toy_bpe(";\n ", [(";", "\n")])
    assert boundary_leaks(unclean, " \n") == "\n" and "\n" not in scan_boundary(unclean, unclean)
    chain = toy_bpe(" \n;", [(";", "\n"), ("\n", " ")])                                          # newline is unclean, so what follows a newline is unclean too
    assert scan_boundary(chain, chain) == "\t\r"
    for bv in (pair.student, pair.teacher):
        b = scan_boundary(pair.student, pair.teacher)
        assert " " in b and not boundary_leaks(bv, b)
        ids = boundary_ids(bv, b)
        assert set(bv.stop_ids) <= set(ids) and all(bv.special[i] or bv.bytes[i][:1] in [c.encode() for c in b] for i in ids)


# ---- the objective ----------------------------------------------------------------------------------------------------------
def result(knobs, b, inputs):
    out = objective("alm", **knobs)
    torch.manual_seed(0)
    if knobs.get("hidden"): out.make_projection(6, 8)
    out = out(b)
    return out, torch.autograd.grad(out.loss_sum, inputs, allow_unused=True)


def close(a, b): return all((x is None and y is None) or torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b))


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
class TestInvariants:
    def test_parts_and_order(self, pair, knobs):
        p = parts(pair)
        whole, grads = result(knobs, batch(pair, p), leaves(p))
        assert whole.num_units > 0 and np.isfinite(whole.loss_sum.item()) and whole.unit == "chunk"
        split = [result(knobs, batch(pair, q), leaves(q)) for q in (some(p, [0, 1]), some(p, [2, 3]))]
        assert sum(o.num_units for o, _ in split) == pytest.approx(whole.num_units) and sum(o.loss_sum for o, _ in split).item() == pytest.approx(whole.loss_sum.item(), rel=1e-5)
        n = len(p["student_ids"])
        order = [2, 0, 3, 1]
        moved, _ = result(knobs, batch(pair, some(p, order)), leaves(p))
        assert moved.loss_sum.item() == pytest.approx(whole.loss_sum.item(), rel=1e-5)
        joined = [g for k in range(2) for g in split[k][1][:2]] + [g for k in range(2) for g in split[k][1][2:]]
        assert n == 4 and close(joined, grads)

    def test_padding(self, pair, knobs):
        p = parts(pair)
        want, _ = result(knobs, batch(pair, p), leaves(p))
        wide = p | {k: [torch.cat([x.detach(), 9 * torch.ones(len(x), 5)], 1).requires_grad_(k[0] == "s") for x in p[k]] for k in ("student_logits", "teacher_logits")}
        out, grads = result(knobs, batch(pair, wide), wide["student_logits"])
        assert out.loss_sum.item() == pytest.approx(want.loss_sum.item(), rel=1e-6) and all((g[:, -5:] == 0).all() for g in grads)

    def test_depends_on_the_teacher(self, pair, knobs):
        p = parts(pair)
        a, b = (result(knobs, batch(pair, p | {"teacher_logits": [x * k for x in p["teacher_logits"]]}), leaves(p)) for k in (1, 3))
        assert not close(a[1], b[1]) and not any(x.requires_grad for x in p["teacher_logits"])

    def test_zero_gradient_at_the_teacher(self, same, knobs):
        if knobs.get("hidden"): return
        p = parts(same, same=True)
        out, grads = result(knobs, batch(same, p), p["student_logits"])
        assert all(g.abs().max() < 1e-6 for g in grads)
        if knobs.get("form") != "ce": assert abs(out.loss_sum.item()) < 1e-5

    def test_unicode_and_nothing(self, pair, knobs):
        for texts in (UNICODE, ("",)):
            for stop in (True, False):
                b, inputs = full(pair, texts, stop=stop)
                out, grads = result(knobs, b, inputs) if b.alignment.chunks.size else (objective("alm", **knobs)(b), [])
                assert np.isfinite(out.loss_sum.item()) and all(g is None or g.isfinite().all() for g in grads)


def test_other_dtypes(pair):
    p = parts(pair)
    want = objective("alm")(batch(pair, p)).loss_sum.item()
    for dtype, rel in ((torch.float64, 1e-5), (torch.bfloat16, .2)):
        q = p | {k: [x.detach().to(dtype).requires_grad_(k[0] == "s") for x in p[k]] for k in ("student_logits", "teacher_logits")}
        out = objective("alm")(batch(pair, q))
        out.loss_sum.backward()
        assert out.loss_sum.item() == pytest.approx(want, rel=rel) and all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in q["student_logits"])


def test_relabelled_teacher_and_equal_log_probs(pair, same):
    import json
    from tokenizers import Tokenizer
    state = json.loads(pair.teacher.tokenizer.to_str())
    n, shift = len(pair.teacher), np.random.default_rng(0).permutation(len(state["model"]["vocab"]))
    state["model"]["vocab"] = {t: int(shift[i]) for t, i in state["model"]["vocab"].items()}
    other = ByteVocab(Tokenizer.from_str(json.dumps(state)), stops=pair.teacher.stop_ids)
    to = np.r_[shift, np.arange(len(shift), n)]
    p, moved = parts(pair), Pair(pair.student, other)
    back = torch.as_tensor(np.argsort(to))
    q = p | {"teacher_ids": [to[x].tolist() for x in p["teacher_ids"]], "teacher_logits": [x[:, back] for x in p["teacher_logits"]]}
    assert objective("alm")(batch(moved, q)).loss_sum.item() == pytest.approx(objective("alm")(batch(pair, p)).loss_sum.item(), rel=1e-6)
    p = parts(same)                                                                        # one tokenizer: a chunk is a token, bit for bit
    b = batch(same, p)
    out = objective("alm", debias="none", gamma=None, tau=1.)(b)
    s, t = (r.token_logp().detach() for r in (b.student, b.teacher))
    assert torch.equal(out.token_loss, binary_divergence(t, s, "kl", 1.)) and out.num_units == len(s)


def test_sums_of_chunks_are_the_text(pair):
    p = parts(pair)
    b = batch(pair, p)
    out = objective("alm", form="k2", tau=1., debias="none", gamma=.999999)(b)              # no teacher row is that sure: one group a text
    whole = torch.stack([(t.log_softmax(-1).gather(1, torch.tensor(j)[:, None]).sum() - s.detach().log_softmax(-1).gather(1, torch.tensor(i)[:, None]).sum()) ** 2 / 2
                         for s, t, i, j in zip(p["student_logits"], p["teacher_logits"], p["student_ids"], p["teacher_ids"])])
    assert out.num_units == pytest.approx(4) and out.loss_sum.item() == pytest.approx(whole.sum().item(), rel=1e-4)


def test_an_impossible_text_has_no_signal(pair):
    p = parts(pair)
    p["teacher_logits"][1][3] = torch.full_like(p["teacher_logits"][1][3], -torch.inf)
    p["teacher_logits"][1][3, 0] = 0.
    out = objective("alm", gamma=None)(batch(pair, p))
    assert 109 in out.ledger["reason"] and np.isfinite(out.loss_sum.item())
    out.loss_sum.backward()
    assert all(x.grad.isfinite().all() for x in p["student_logits"])


def test_a_truncated_teacher(pair):
    p = parts(pair)
    p = {k: v for k, v in p.items() if k not in ("weak_logp", "plus_logp", "minus_logp")} | {"teacher_logits": [x[:-2] for x in p["teacher_logits"]]}
    out = objective("alm")(batch(pair, p))
    assert np.isfinite(out.loss_sum.item()) and 0 < out.num_units


def test_groups_stop_at_the_window(pair):
    p = parts(pair)
    window = [np.arange(len(x)) < len(x) // 2 for x in p["student_ids"]]
    out = objective("alm", gamma=.9999)(batch(pair, p, window=window))
    assert out.num_units == pytest.approx(round(out.num_units)) and 106 in out.ledger["reason"]
    assert (out.token_loss.numpy()[~np.concatenate(window)] == 0).all()


def test_no_group_reaches_over_a_sample_or_a_gap(pair):
    b, _ = full(pair, stop=False)
    ends = ChunkEnds(b)
    starts = np.searchsorted(b.alignment.chunks[:, 0], b.alignment.student_offsets[:-1])
    assert ends.fresh[starts].all() and not ends.known[np.r_[starts[1:], len(ends.known)] - 1].any()


def test_gold_text_and_hidden_states(pair):
    p = parts(pair)
    with pytest.raises(ValueError, match="needs gold"): objective("alm", ce=1.)(batch(pair, p, "student"))
    plain, more = (objective("alm", ce=ce)(batch(pair, p, "reference")) for ce in (0., 1.))
    assert more.num_units == plain.num_units and more.loss_sum > plain.loss_sum
    obj = objective("alm", hidden=1.)
    assert "hidden" in obj.requires and "hidden" not in objective("alm").requires and not list(objective("alm").parameters())
    b = batch(pair, p)
    out = obj(b)
    assert obj.project.weight.shape == (8, 6) and out.stats["hidden"] > 0
    out.loss_sum.backward()
    assert obj.project.weight.grad.abs().sum() > 0 and all(h.grad.abs().sum() > 0 for h in p["student_hidden"])
    b.hidden = None
    with pytest.raises(ValueError, match="needs hidden"): obj(b)


def test_hidden_gap():
    h = torch.tensor([[1., 10.], [3., 10.]])
    assert hidden_gap(h, h).sum() == 0 and torch.allclose(hidden_gap(h + 1, h), torch.full((2,), .105))
    assert torch.allclose(hidden_gap(h + 1, h, "row"), 1 / h.square().mean(1))


def test_prepare_makes_the_projection_once(pair):
    from types import SimpleNamespace as N
    side = lambda width: N(model=N(config=N(get_text_config=lambda: N(hidden_size=width))))
    obj = objective("alm", hidden=.1)
    obj.prepare(pair, side(6), side(8))
    first = obj.project
    obj.prepare(pair, side(6), side(8))
    assert obj.project is first and first.weight.shape == (8, 6)
    objective("alm").prepare(pair, side(6), side(8))
    equal = objective("alm", hidden=.1)
    equal.prepare(pair, side(8), side(8))
    assert equal.project is None


def test_gradmag():
    x, y = torch.tensor([1., 2.], requires_grad=True), torch.tensor([1.], requires_grad=True)
    a, c = (x * torch.tensor([3., 4.])).sum() + y.sum(), (x * torch.tensor([0., 10.])).sum() + 2 * y.sum()
    total, w = gradmag([a, c], [x])
    assert torch.allclose(w, torch.tensor([1/5, 1/10]) / .3) and not w.requires_grad
    g, other = torch.autograd.grad(total, [x, y], retain_graph=True)
    assert torch.allclose(g, torch.tensor([.6, 1.8]) / .3) and torch.allclose(other, w[0] + 2 * w[1])
    scaled, _ = gradmag([a, 9 * c], [x])                                                   # own weights cancel, up to the common factor
    g9 = torch.autograd.grad(scaled, x, retain_graph=True)[0]
    assert torch.allclose(g9 / g9.norm(), g / g.norm(), atol=1e-6)
    assert gradmag([a * 1, 0 * c], [x])[1].tolist() == [1., 0.]


@pytest.mark.parametrize("knobs, said", [(dict(form="space_merge"), "Choose kl"), (dict(tau=0.), "above 0"), (dict(debias="space"), "Choose boundary"), (dict(gamma=1.), "gamma"),
                                         (dict(form="ce", tau=math.inf), "no limit"), (dict(hidden_norm="layer"), "Choose channel")], ids=str)
def test_wrong_knobs(knobs, said):
    with pytest.raises(ValueError, match=said): objective("alm", **knobs)


def test_two_coins_learn_each_other(pair):
    p = parts(pair)
    first = last = None
    opt = torch.optim.Adam(p["student_logits"], .1)
    for _ in range(60):
        out = objective("alm")(batch(pair, p))
        opt.zero_grad(); out.loss.backward(); opt.step()
        first, last = first or out.loss.item(), out.loss.item()
    assert last < .02 * first
