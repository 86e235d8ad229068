"""DPCA: the seed paper's tables, its rules for chunks, ends and denominators, and its released aligner against ours."""
from types import SimpleNamespace
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from batches import TEXTS, batch, full, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.alignment.byte_align import align
from xtokd.alignment.reasons import Reason
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import objective
from xtokd.objectives.chunks import ChunkLogps
from xtokd.objectives.policy.dpca import end_chunks
from xtokd.objectives.released_aligners import decode_walk
from xtokd.objectives.policy.sampled import CREDITS, chunk_advantage, surrogate_loss
from xtokd.alignment.pair import Pair

UNICODE = ("", "日本 é\u0301 😊!", "\ta  b\r\n ", "12 apples")


@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def toy(pieces):
    "These byte strings as a vocabulary, and its lossless decoder."
    own = [p.encode() if isinstance(p, str) else p for p in pieces]
    bv = SimpleNamespace(name="toy", bytes=own, lengths=np.array([len(p) for p in own], np.int32), special=np.zeros(len(own), bool), stop_ids=())
    return bv, lambda ids: b"".join(own[i] for i in ids).decode(errors="replace")


def both(student, teacher, threshold=6, granularity="char"):
    (s, ds), (t, dt) = toy(student), toy(teacher)
    return decode_walk(range(len(student)), range(len(teacher)), ds, dt, threshold), align(range(len(student)), range(len(teacher)), s, t, granularity=granularity)


def chunks(x): return [tuple(c) for c in x.chunks.tolist()]


# ---------------------------------------------------------------- the tables of 1.10

@pytest.mark.parametrize("logp, teacher, want", [((-.2, -1.8), -3, (-.1, -.9)), ((-.2, -1.8), -1, (.1, .9)), ((-.7,), -2.5, (-1.8,)),
                                                 ((-.5, -.5, -1.), -.3 - .9, (.2, .2, .4)), ((0., 0.), -3, (-1.5, -1.5))])
def test_credit(logp, teacher, want):
    got = chunk_advantage(torch.tensor(logp), torch.zeros(len(logp), dtype=torch.long), torch.tensor([float(teacher)]), "semantic_prior")
    assert torch.allclose(got, torch.tensor(want), atol=1e-6) and abs(got.sum() - (teacher - sum(logp))) < 1e-5


def test_a_certain_token_is_clamped():                                            # 1.9, trap 9
    got = chunk_advantage(torch.tensor([-1e-4]), torch.zeros(1, dtype=torch.long), torch.tensor([-12.]), "semantic_prior")
    assert abs(got + 11.9999) < 1e-5


@pytest.mark.parametrize("new, old, adv, want", [(-1, -1, 2, -2), (-.5, -1, 2, -2.56), (-1.5, -1, -2, 1.6), (-1, -1, -2, 2), (0, -4, -2, 20)])
def test_surrogate(new, old, adv, want):
    assert abs(surrogate_loss(*(torch.tensor([float(x)]) for x in (new, old, adv))).item() - want) < 1e-5


@pytest.mark.parametrize("student, teacher, want", [(["12", " apples"], ["1", "2", " apples"], [(0, 1, 0, 2), (1, 2, 2, 3)]), (["x", "100"], ["x", "1", "0", "0"], [(0, 1, 0, 1), (1, 2, 1, 4)]),
                                                    ([b"\xf0", b"\x9f", b"\x98", b"\x8a", "!"], ["\U0001f60a", "!"], [(0, 4, 0, 1), (4, 5, 1, 2)])])
def test_alignment(student, teacher, want):
    walk, al = both(student, teacher)
    assert chunks(walk) == chunks(al) == want and not walk.lost and not walk.silent.any()
    assert chunks(both(student, teacher, granularity="byte")[1]) == want


def test_large_chunks():
    for k in (6, 7):
        walk, al = both(["a"] * k, ["a" * k])
        assert chunks(walk) == chunks(al) == [(0, k, 0, 1)] and walk.silent.all() == (k == 7)
        assert not both(["a"] * k, ["a" * k], threshold=None)[0].silent.any()
    letters, whole = toy_bpe("a"), toy_bpe("a", [("a", "a"), ("aa", "aa"), ("aaaa", "aa"), ("aaaaaa", "a")])
    p = make_pair(letters, whole)
    for k, why in ((6, 0), (7, 108)):
        s, t = letters.encode("a" * k), whole.encode("a" * k)
        out = objective("dpca")(PairBatch.from_logits(p, [s], [t], [torch.randn(len(s), len(letters))], [torch.randn(len(t), len(whole))]))
        assert len(t) == 1 and (out.ledger["reason"] == why).all() and out.num_units == (k if why == 0 else 0)


@pytest.mark.parametrize("rule, cosine, norm, drift", [("full", 1., 1., 0.), ("shift", 1., .5, 0.), ("semantic_prior", .9876, .585, 0.), ("average", .1406, .819, .0588)])
def test_each_credit_against_the_exact_gradient(rule, cosine, norm, drift):       # 1.4: a chunk of two tokens whose four strings are enumerated
    zero = torch.zeros(2, dtype=torch.long)
    credit = (lambda lp, lt: lt / 2 - lp) if rule == "average" else lambda lp, lt: chunk_advantage(lp, zero, lt[None], rule)
    w = torch.tensor([.3, -.2, .5, -.1, -.4, .2], requires_grad=True)
    def updates(q=None):
        root, child = torch.log_softmax(w[:2], 0), torch.log_softmax(w[2:].view(2, 2), 1)
        joint = root[:, None] + child
        q = joint.exp().detach() if q is None else q
        exact = torch.autograd.grad(-(joint.exp() * (joint - q.log())).sum(), w, retain_graph=True)[0]
        paths = [(i, j, torch.stack([root[i], child[i, j]])) for i in range(2) for j in range(2)]
        return exact, torch.autograd.grad(sum(joint[i, j].exp().detach() * (credit(lp.detach(), q[i, j].log()) * lp).sum() for i, j, lp in paths), w)[0]
    exact, told = updates(torch.tensor([[.45, .15], [.1, .3]]))
    assert abs(torch.cosine_similarity(exact, told, 0) - cosine) < 1e-3 and abs(told.norm() / exact.norm() - norm) < 1e-3
    assert abs(updates()[1].abs().max() - drift) < 1e-4


# ---------------------------------------------------------------- the released walk

@st.composite
def cuts(draw):
    text = draw(st.text("ab \n1é中😊", min_size=1, max_size=14)).encode()
    def one():
        at = sorted(draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=14)))
        return [p for p in (text[x:y] for x, y in zip([0, *at], [*at, len(text)])) if p]
    return one(), one()


@given(cuts())
@settings(max_examples=300, deadline=None)
def test_the_released_walk_is_the_char_aligner(sides):                            # 1.3 and 1.10, on valid text
    walk, al = both(*sides, threshold=None)
    assert chunks(walk) == chunks(al) and not walk.lost and not walk.silent.any()


def test_the_byte_aligner_is_finer_inside_characters():
    rng, finer, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        text = "".join(rng.choice(list("ab \n1é中😊"), rng.integers(1, 12))).encode()
        cut = lambda at: [text[a:b] for a, b in zip([0, *at], [*at, len(text)])]
        s, t = (cut((np.flatnonzero(rng.random(len(text) - 1) < .6) + 1).tolist()) for _ in range(2))
        walk, al = both(s, t, None, "byte")
        assert {(c[0], c[2]) for c in chunks(walk)} <= {(c[0], c[2]) for c in chunks(al)}
        finer += len(al.chunks) > len(walk.chunks)
    assert .3 < finer / n < .9


def test_walk_trap_1_a_decoder_that_drops_spaces():
    s, t = ["Hi", " there", " you"], ["Hi", " th", "ere", " you"]
    drops = lambda ids: toy(s)[1](ids).removeprefix(" ")
    walk = decode_walk(range(3), range(4), drops, toy(t)[1])
    assert chunks(walk) == [(0, 1, 0, 1)] and walk.silent.tolist() == [False, True, True] and walk.lost
    assert chunks(both(s, t)[1]) == [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]


def test_walk_trap_2_half_a_character():
    walk, al = both(["a", b"\xf0\x9f", "!"], ["a", b"\xef", b"\xbf", b"\xbd", "!"])
    assert chunks(walk) == [(0, 1, 0, 1), (1, 3, 1, 5)]
    assert chunks(al) == [(0, 1, 0, 1), (2, 3, 4, 5)] and al.student_reason[1] == Reason.INVALID_UTF8      # exactly the damage is left out


def test_walk_trap_3_normal_forms():
    walk, al = both(["e", b"\xcc", b"\x81"], [b"\xc3", b"\xa9"])
    assert chunks(walk) == [(0, 3, 0, 2)] and chunks(al) == [] and (al.student_reason > 0).all()
    assert unicodedata.normalize("NFC", "e\u0301") == "é"


def test_a_teacher_that_runs_out_loses_the_text():
    walk, al = both(["a", "b", "c"], ["a"])
    assert chunks(walk) == chunks(al) == [(0, 1, 0, 1)] and walk.lost and walk.silent.tolist() == [False, True, True]
    assert decode_walk([], [], str, str).chunks.shape == (0, 4) and not decode_walk([], [], str, str).lost


@given(cuts())
@settings(max_examples=60, deadline=None)
def test_swapping_transposes_and_joining_joins(sides):                            # 1.10, invariants of the alignment
    s, t = sides
    there, back = both(s, t)[1], both(t, s)[1]
    assert [(c, d, a, b) for a, b, c, d in chunks(there)] == chunks(back)
    twice = both(s + s, t + t)[1]
    assert chunks(twice) == chunks(there) + [(a + len(s), b + len(s), c + len(t), d + len(t)) for a, b, c, d in chunks(there)]


# ---------------------------------------------------------------- the objective

@pytest.mark.parametrize("credit", ["semantic_prior", "shift"])
def test_chunks_conserve_the_log_ratio(pair, credit):                             # 1.10, and 7.6
    p = parts(pair)
    p.pop("behaviour_logp")
    b = batch(pair, p)
    out, x = objective("dpca", credit=credit, clamp=None, large_chunk=None)(b), ChunkLogps(b)
    assert np.allclose(np.bincount(out.ledger["chunk"], out.ledger["signal"], x.k), (x.teacher_sum - x.student_sum).detach(), atol=1e-3)
    assert abs(x.teacher_sum.sum() - b.teacher.token_logp().sum()) < 1e-3           # all chunks together are the text
    assert objective("dpca")(b).stats["clamped_share"] > 0                        # and the clamp takes from it


def test_coarser_chunks_keep_the_total():                                         # 7.6
    logp, teacher = torch.tensor([-.3, -1.2, -.5, -2.]), torch.tensor([-.9, -1., -.4])
    fine, coarse = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 0, 0])
    for credit in ("semantic_prior", "shift"):
        assert torch.allclose(chunk_advantage(logp, fine, teacher, credit).sum(), chunk_advantage(logp, coarse, teacher.sum()[None], credit).sum())


@pytest.mark.parametrize("credit", CREDITS)
def test_equal_tokenizers_are_sampled_distillation(pair, credit):                 # 1.10 and 7.1
    same = Pair(pair.teacher, pair.teacher)
    p = parts(same)
    p.pop("behaviour_logp")
    b = batch(same, p)
    out = objective("dpca", credit=credit, clamp=None)(b)
    assert np.allclose(out.ledger["signal"], (b.teacher.token_logp() - b.student.token_logp()).detach(), atol=1e-4)
    assert np.allclose(out.ledger["signal"], objective("opd")(b).ledger["signal"], atol=1e-4)


def test_behaviour_gives_the_credit_and_the_ratio(pair):
    p = parts(pair, TEXTS[:1])
    b = batch(pair, p)
    out, x = objective("dpca")(b), ChunkLogps(b)
    chunk = torch.tensor(b.alignment.student_chunk).long()
    adv = chunk_advantage(b.behaviour_logp, chunk, x.teacher_sum, "semantic_prior").clamp(-10, 10)
    assert np.allclose(out.ledger["signal"], adv, atol=1e-4)
    assert torch.allclose(out.token_loss, surrogate_loss(x.student.detach(), b.behaviour_logp, adv), atol=1e-3)


def with_ends(pair, s_end, t_end, text="12 altogether."):
    g = torch.Generator().manual_seed(0)
    s, t = [*pair.student.encode(text), *s_end], [*pair.teacher.encode(text), *t_end]
    return PairBatch.from_logits(pair, [s], [t], [torch.randn(len(s), len(pair.student), generator=g).requires_grad_()], [torch.randn(len(t), len(pair.teacher), generator=g)])


def test_ends(pair):                                                              # 1.5
    s, t = pair.student.stop_ids[0], pair.teacher.stop_ids[0]
    other = [i for i in np.flatnonzero(pair.student.special) if i not in pair.student.stop_ids][:1]
    n = len(pair.student.encode("12 altogether."))
    for s_end in ([s], [s, s], *([[int(other[0]), s]] if other else [])):
        b = with_ends(pair, s_end, [t])
        out = objective("dpca", clamp=None, stop="id")(b)
        assert abs(out.ledger["signal"][n] - (b.teacher.token_logp()[-1] - b.student.token_logp()[n]).item()) < 1e-4
        assert (out.ledger["weight"][n + 1:] == 0).all() and (out.ledger["reason"][n + 1:] > 0).all() and out.ledger["weight"][n] == 1
    for s_end, t_end in (([], [t]), ([s], [])):                                   # truncated: nothing is added
        b = with_ends(pair, s_end, t_end)
        assert end_chunks(b)[1].size == 0 and (objective("dpca")(b).ledger["weight"][n:] == 0).all()
    plain = with_ends(pair, [s], [t])
    assert (end_chunks(plain)[0][:-1] == plain.alignment.student_chunk[:-1]).all()
    assert objective("dpca")(plain).loss_sum.item() == pytest.approx(objective("sampled", credit="semantic_prior", surrogate=True, large_chunk=6)(plain).loss_sum.item(), rel=1e-5)


def test_ends_by_class_or_by_id():                                                # 8.6 beside the release
    s, t = toy_bpe("ab"), toy_bpe("ab")
    s.stop_ids = t.stop_ids = (1, 2)
    p = make_pair(s, t)
    masses = lambda a, b: torch.tensor([[1 - a - b, a, b]], dtype=torch.float64).log()
    b = PairBatch.from_logits(p, [[1]], [[1]], [masses(.8, 1e-11).requires_grad_()], [masses(1e-4, .79)])
    by_id, by_class = (objective("dpca", stop=k)(b).ledger["signal"][0] for k in ("id", "class"))
    assert abs(by_id - -8.987197) < 1e-4 and abs(by_class - -.012452) < 1e-4


def test_denominators(pair):
    b, _ = full(pair)
    few, all_ = (objective("dpca", large_chunk=1, denominator=d)(b) for d in ("signal", "response"))
    n = len(b.student)
    assert few.loss_sum == all_.loss_sum and few.num_units == (few.ledger["weight"] > 0).sum() < n == all_.num_units
    assert few.stats["silent_share"] == all_.stats["silent_share"] == pytest.approx(1 - few.num_units / n)
    assert (all_.ledger["reason"][all_.ledger["weight"] == 0] == 108).all()


def test_invalid_text_is_left_out(pair):
    s = pair.student
    broken = [*s.encode("a"), s.bytes.index(b"\xf0"), s.bytes.index(b"\x9f"), *s.encode("! 12"), s.stop_ids[0]]
    t = [*pair.teacher.encode(s.decode(broken[:-1]).decode(errors="replace")), pair.teacher.stop_ids[0]]
    out = objective("dpca")(PairBatch.from_logits(pair, [broken], [t], [torch.randn(len(broken), len(s))], [torch.randn(len(t), len(pair.teacher))]))
    assert (out.ledger["reason"][1:3] == Reason.INVALID_UTF8).all() and (out.ledger["weight"][3:] > 0).all() and out.ledger["weight"][0] == 1


@pytest.mark.parametrize("name, knobs", [("dpca", {}), ("sampled", {}), ("opd", {}), ("minillm", dict(gamma=.9)), ("compass", {})])
def test_relabelled_teacher_ids_change_nothing(name, knobs):
    "The teacher's ids in another order, with their rows: the same tokens under other numbers."
    s, t, t2 = toy_bpe("ab 1", [("a", "b")]), toy_bpe("ab 1", [("b", "a"), ("1", "1")]), toy_bpe("1 ba", [("b", "a"), ("1", "1")])
    g = torch.Generator().manual_seed(0)
    ids, ids_t = [*s.encode("abba 11 ab"), s.stop_ids[0]], [*t.encode("abba 11 ab"), t.stop_ids[0]]
    new = [t2.bytes.index(x) if x else t2.stop_ids[0] for x in t.bytes]
    rows, rows_t = torch.randn(len(ids), len(s), generator=g), torch.randn(len(ids_t), len(t), generator=g)
    extra = dict(weak_logp=[-torch.rand(len(ids_t), generator=g)], reference_logp=[-torch.rand(len(ids), generator=g)])
    rows_2 = torch.empty_like(rows_t)
    rows_2[:, new] = rows_t
    a = objective(name, **knobs)(PairBatch.from_logits(make_pair(s, t), [ids], [ids_t], [rows], [rows_t], **extra))
    b = objective(name, **knobs)(PairBatch.from_logits(make_pair(s, t2), [ids], [[new[i] for i in ids_t]], [rows], [rows_2], **extra))
    assert new != list(range(len(t))) and torch.allclose(a.loss_sum, b.loss_sum, rtol=1e-5) and a.num_units == b.num_units > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_types(pair, dtype):
    for name in ("dpca", "sampled", "opd", "minillm", "compass"):
        p = parts(pair, TEXTS[:1])
        p["student_logits"] = [x.detach().to(dtype).requires_grad_() for x in p["student_logits"]]
        out = objective(name)(batch(pair, p))
        out.loss_sum.backward()
        assert torch.isfinite(out.loss_sum) and p["student_logits"][0].grad.dtype == dtype


@pytest.mark.parametrize("knobs", [{}, dict(denominator="response", stop="id")])
def test_splitting_permuting_and_padding(pair, knobs):
    p = parts(pair)
    run = lambda at: objective("dpca", **knobs)(batch(pair, some(p, at)))
    whole = run(range(4))
    for cut in ((1, 3), (2, 2), (1, 1, 1, 1)):
        at, found = 0, []
        for n in cut: found.append(run(range(at, at + n))); at += n
        assert torch.allclose(whole.loss_sum, sum(f.loss_sum for f in found), rtol=1e-4) and whole.num_units == sum(f.num_units for f in found)
    assert torch.allclose(whole.loss_sum, run([3, 1, 0, 2]).loss_sum, rtol=1e-4)
    pad = lambda x: torch.cat([x.detach(), torch.full((len(x), 4), 9.)], 1)
    wide = {**p, "student_logits": [pad(x).requires_grad_() for x in p["student_logits"]], "teacher_logits": [pad(x) for x in p["teacher_logits"]]}
    out = objective("dpca", **knobs)(batch(pair, wide))
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, whole.loss_sum, rtol=1e-5) and not any(x.grad[:, len(pair.student):].any() for x in wide["student_logits"])


def test_the_teacher_reaches_the_gradient_and_the_students_own_rows_move_nothing(pair):
    same = Pair(pair.teacher, pair.teacher)
    def grad(where, scale=1., own=False, **knobs):
        p = parts(where, TEXTS[:2], scale=scale, same=own)
        p.pop("behaviour_logp")
        objective("dpca", **knobs)(batch(where, p)).loss_sum.backward()
        return torch.cat([l.grad for l in p["student_logits"]])
    assert not torch.allclose(grad(pair, clamp=None), grad(pair, 2., clamp=None), atol=1e-3)
    for credit in CREDITS: assert grad(same, own=True, credit=credit).abs().max() < 1e-5


@pytest.mark.parametrize("stop", [True, False])
def test_odd_texts_and_impossible_teacher_tokens(pair, stop):
    p = parts(pair, UNICODE, stop=stop)
    for x in p["teacher_logits"]: x[:, ::3] = -torch.inf
    for knobs in ({}, dict(stop="id", denominator="response", credit="full")):
        out = objective("dpca", **knobs)(batch(pair, p))
        out.loss_sum.backward()
        assert torch.isfinite(out.loss_sum) and all(torch.isfinite(l.grad).all() for l in p["student_logits"] if l.grad is not None)
        silent = out.ledger["weight"] == 0
        assert (out.ledger["reason"][silent] > 0).all() and (out.ledger["reason"][~silent] == 0).all()
    empty = PairBatch.from_logits(pair, [[]], [[]], [torch.zeros(0, len(pair.student))], [torch.zeros(0, len(pair.teacher))])
    assert objective("dpca")(empty).num_units == 0 and objective("dpca")(empty).loss == 0


def test_refusals(pair):
    for knobs, text in ((dict(credit="average"), "pushes a student"), (dict(stop="name"), "Choose class, id"), (dict(denominator="all"), "Choose signal, response")):
        with pytest.raises(ValueError, match=text): objective("dpca", **knobs)
    with pytest.raises(ValueError, match="no sense on text of the reference"): objective("dpca")(full(pair, TEXTS[:1], text_source="reference")[0])
