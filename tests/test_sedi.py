"""SeDi: the paper's numbers, the traps of its groups and of its re-encoding, and what a batch may look like."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from batches import batch, full, parts, some
from xtokd.objectives.released_aligners import groups_as_sets as as_sets, span_groups
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.alignment.byte_align import align
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives.divergences import kl_divergence
from xtokd.objectives import objective
from xtokd.objectives.projection.reencoding import CandidateEncoder, assign_candidates, combine_assignments, encode_pieces
from xtokd.objectives.projection.sedi import SeDi, logp_entropy, pseudo_logits
from xtokd.alignment.pair import Pair


PAPER, RELEASED = (SeDi.presets[name].options for name in ("paper", "released"))


def chain(*words):
    "Merges that build words from the left."
    words = [w.encode() if isinstance(w, str) else w for w in words]
    return [(w[:i], w[i: i + 1]) for w in words for i in range(1, len(w))]


def join(*pairs): return [tuple(x.encode() if isinstance(x, str) else x for x in p) for p in pairs]


EVERY = bytes(range(256))
# they cut the texts of the paper's figure as GPT-2 and Llama-2 do (both real tokenizers are out of reach here)
GPT = toy_bpe(EVERY, chain(" cats", " cows", " cat", " cute", " cater", " carrier", " carbon", " carpet", " the", " cl", " CO", " Cov", " is", " of", " a", " 201", "VID", "id", "na", "af", "ïve", "é", b" \xf0\x9f\x98", " 中", " 19")
          + join(("d", "e"), ("de", "r"), ("o", "w"), ("ow", "der"), ("ow", "n"), (" cl", "own")))
LLAMA = toy_bpe(EVERY, chain("low", "ats", "atz", "ows", "ute", "ater", " car", "rier", "bon", "pet", " COVID19", " COVID", " Covid", " the", " is", " of", " a", "der", "ns", "na", "ï", "ve", "afé", " c", " 中"))


def show(bv, text): return [bv.bytes[i] for i in bv.encode(text)]


def test_the_built_tokenizers_cut_like_the_real_ones():
    assert show(GPT, " cats") == [b" cats"] and show(GPT, " clowder") == [b" cl", b"owder"] and show(GPT, " clowns") == [b" clown", b"s"] and show(GPT, " catz") == [b" cat", b"z"]
    assert show(GPT, " COVID 19") == [b" CO", b"VID", b" 19"] and show(GPT, " Covid") == [b" Cov", b"id"] and show(GPT, " 201") == [b" 201"]
    assert show(LLAMA, " cats") == [b" c", b"ats"] and show(LLAMA, " clowder") == [b" c", b"low", b"der"] and show(LLAMA, " 201") == [b" ", b"2", b"0", b"1"]


# ---- groups -----------------------------------------------------------------------------------------------------------------
def test_groups_of_intervals():                                                   # O1
    assert as_sets(span_groups([(0, 2), (2, 5), (5, 9)], [(0, 1), (1, 5), (5, 7), (7, 9)])) == [({0, 1}, {0, 1}), ({2}, {2, 3})]
    assert as_sets(span_groups([(0, 3), (3, 6)], [(0, 6)])) == [({0, 1}, {0})]
    assert as_sets(span_groups([(0, 4), (4, 6)], [(0, 2), (2, 6)])) == [({0, 1}, {0, 1})]
    assert as_sets(span_groups([], [])) == [] and as_sets(span_groups([(0, 2)], [])) == [({0}, set())]
    assert as_sets(span_groups([(0, 0), (0, 2)], [(0, 2)])) == [({0}, set()), ({1}, {0})]         # a BOS at (0, 0) has no edge


def union_find(s, t):
    spans, up = [*s, *t], list(range(len(s) + len(t)))
    def root(i): return i if up[i] == i else root(up[i])
    for i, (a, b) in enumerate(spans):
        for j, (c, d) in enumerate(spans[:i]):
            if not (b <= c or d <= a): up[root(i)] = root(j)
    return {frozenset(i for i in range(len(spans)) if root(i) == r) for r in map(root, range(len(spans)))}


span = st.tuples(st.integers(0, 9), st.integers(0, 3)).map(lambda x: (x[0], x[0] + x[1]))


@settings(max_examples=120, deadline=None)
@given(st.lists(span, max_size=7), st.lists(span, max_size=7))
def test_the_sweep_is_union_find(s, t):                                           # gaps, doubles, overlaps within a side, zero width
    g = np.concatenate(span_groups(s, t))
    assert {frozenset(np.flatnonzero(g == k).tolist()) for k in set(g.tolist())} == union_find(s, t)


def char_spans(bv, text):
    where = [k for k, c in enumerate(text) for _ in c.encode()]
    ends = bv.starts(bv.encode(text))
    return [(where[a], where[b - 1] + 1) for a, b in zip(ends, ends[1:])]


FIGURE = {" of cats is a clowder.": [([b" cats"], [b" c", b"ats"]), ([b" cl", b"owder"], [b" c", b"low", b"der"])],
          " the carrier COVID 19.": [([b" carrier"], [b" car", b"rier"]), ([b" CO", b"VID"], [b" COVID"]), ([b" 19"], [b" ", b"1", b"9"])],
          "x = 201": [([b" 201"], [b" ", b"2", b"0", b"1"])],
          "naïve": [(["ïve".encode()], ["ï".encode(), b"ve"])],
          "café 😀 中": [([b"af", "é".encode()], ["afé".encode()]), ([b" \xf0\x9f\x98", b"\x80"], [b" ", b"\xf0", b"\x9f", b"\x98", b"\x80"])]}


@pytest.mark.parametrize("text", FIGURE)
def test_groups_of_the_papers_texts(text):                                        # O2, by characters as published
    s, t = show(GPT, text), show(LLAMA, text)
    groups = [([s[i] for i in sorted(a)], [t[j] for j in sorted(b)]) for a, b in as_sets(span_groups(char_spans(GPT, text), char_spans(LLAMA, text)))]
    assert [g for g in groups if len(g[0]) * len(g[1]) > 1] == FIGURE[text]
    al = align(GPT.encode(text), LLAMA.encode(text), GPT, LLAMA, granularity="char")
    assert [(s[a: b], t[c: d]) for a, b, c, d in al.chunks.tolist()] == groups


# ---- re-encoding ------------------------------------------------------------------------------------------------------------
def places(before, guesses, realised, consistent, how="max"):
    "{place: {bytes: logit}} of the paper's examples."
    pair = make_pair(GPT, LLAMA)
    ids = np.array([[LLAMA.bytes.index(g.encode()) for g in guesses]])
    own = np.array([[GPT.bytes.index(r.encode()) for r in realised]])
    found = assign_candidates(CandidateEncoder(pair), [before.encode()], ids, np.array([list(guesses.values())], float), own, np.array([len(realised)]), consistent)
    row, to, value = combine_assignments(*(torch.as_tensor(x) for x in (found.place, found.ids, found.logits)), len(GPT), how)
    out = {}
    for r, i, v in zip(row.tolist(), to.tolist(), value.tolist()): out.setdefault(r, {})[GPT.bytes[i].decode()] = v
    return out


def test_one_row():                                                               # O3
    assert places(" c", {"ats": 28.12, "ows": 13.5, "atz": 13.25, "ute": 11.31, "ater": 3.69}, [" cats"], False) == {0: {" cats": 28.12, " cows": 13.5, " cat": 13.25, " cute": 11.31, " cater": 3.69}}
    assert places(" car", {"rier": 9, "bon": 4, "pet": 2}, [" carrier"], False) == {0: {" carrier": 9, " carbon": 4, " carpet": 2}}


def test_two_rows():                                                              # O4 and trap 2
    guesses = {" COVID": 8, " the": 5, " Covid": 3, " COVID19": 1}
    assert places("", guesses, [" CO", "VID"], False) == {0: {" CO": 8, " the": 5, " Cov": 3}, 1: {"VID": 8, "id": 3}}
    assert places("", guesses, [" CO", "VID"], True)[1] == {"VID": 8}
    assert abs(places("", guesses, [" CO", "VID"], True, "logsumexp")[0][" CO"] - np.logaddexp(8, 1)) < 1e-6
    guesses = {"der": 7, "ns": 2, "d": 1}
    assert places(" clow", guesses, [" cl", "owder"], False) == {0: {" cl": 7, " clown": 2}, 1: {"owder": 7, "s": 2, "ow": 1}}
    assert places(" clow", guesses, [" cl", "owder"], True)[1] == {"owder": 7, "ow": 1}


def test_candidates_are_bytes():                                                  # trap 1: the leading space stays
    assert [[GPT.bytes[i] for i in ids] for ids in encode_pieces(GPT, [b" cats", b"cats", b" \xf0\x9f\x98", b"\x80", b""])] == [[b" cats"], [b"c", b"a", b"t", b"s"], [b" \xf0\x9f\x98"], [b"\x80"], []]


def test_recut_remembers():                                                       # trap 11
    pair, calls = make_pair(GPT, LLAMA), []
    encoder = CandidateEncoder(pair)
    new, encoder._encode_new = encoder._encode_new, lambda wanted: (calls.append(len(wanted)), new(wanted))
    for _ in range(2): encoder([b"", b" c"], np.array([0, 1, 1, 0]), np.array([3, 3, 3, 3]), 2)
    assert calls == [2, 0]


def test_stops_by_role_and_other_control_tokens():
    pair = Pair("tiny")
    control = [i for i in np.flatnonzero(pair.teacher.special) if i not in pair.teacher.stop_ids]
    out = CandidateEncoder(pair)([b"", b" a"], np.array([0, 1] + [0] * len(control)), np.array([pair.teacher.stop_ids[0]] * 2 + control), 4)
    assert out[0].tolist() == [pair.student.stop_ids[0], -1, -1, -1] and out[1, 1] == pair.student.stop_ids[0] and (out[2:] == -1).all()


# ---- the target -------------------------------------------------------------------------------------------------------------
def test_adapter_background_and_entropy():                                        # O5
    z, at = torch.tensor([[1, .5, 0, 2, -1.]]), (torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([3., 1.]))
    told = {(-1e4, 0.): (.36533, [.8808, 0, .1192, 0, 0]), (-1e4, .5): (.26854, [.92414, 0, .07586, 0, 0]), (-1e4, 1.): (.19086, [.95257, 0, .04743, 0, 0]),
            (0., 0.): (.81, [.77839, .03875, .10534, .03875, .03875]), (0., .5): (.69912, None), (0., 1.): (.65830, None)}
    for (background, a), (h, p) in told.items():
        logp = pseudo_logits(*at, z, torch.full((5,), a), background).log_softmax(-1)
        assert abs(logp_entropy(logp).item() - h) < 6e-5 and (p is None or torch.allclose(logp.exp(), torch.tensor([p]), atol=6e-5))
    teacher = logp_entropy(torch.tensor([3., 1, 0, -1]).log_softmax(-1)).item()
    assert abs(teacher - .59509) < 1e-5 and abs((.36533 - teacher) ** 2 - .052788) < 3e-6


def test_collisions():                                                            # O6
    at = torch.tensor([0, 0, 0]), torch.tensor([4, 4, 7]), torch.tensor([3, 2.5, 1])
    lse, top = (combine_assignments(*at, 9, how) for how in ("logsumexp", "max"))
    assert torch.allclose(lse[2].softmax(0), torch.tensor([.9223, .0777]), atol=5e-5) and torch.allclose(top[2].softmax(0), torch.tensor([.8808, .1192]), atol=5e-5)
    assert abs(lse[2][0].item() - 3.4741) < 5e-5 and lse[1].tolist() == [4, 7]


# ---- the method -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pair(): return Pair("tiny")


def same_pair(): t = Pair("tiny").teacher; return make_pair(t, t)


def test_identity_is_forward_kl():
    p = parts(same_pair(), same=False)
    b = batch(same_pair(), p)
    out = SeDi(k=None)(b)
    assert torch.allclose(out.loss_sum, kl_divergence(b.teacher.logp(), b.student.logp()).sum(), rtol=1e-5) and out.stats["entropy_gap"] < 1e-9 and abs(out.stats["kept_mass"] - 1) < 1e-5
    assert SeDi(k=5)(b).stats["entropy_gap"] > 1e-3                               # trap 8
    assert SeDi(k=5, truncated_entropy=True)(b).stats["entropy_gap"] < 1e-9


def test_no_gradient_where_the_teacher_is_the_student():
    b, leaves = full(same_pair(), same=True)
    SeDi(k=None)(b).loss_sum.backward()
    assert all(x.grad is None or x.grad.abs().max() < 1e-6 for x in leaves)


def test_parts_padding_and_order(pair):
    p = parts(pair)
    whole = SeDi()(batch(pair, p))
    halves = [SeDi()(batch(pair, some(p, at))) for at in ([0, 1], [2, 3])]
    assert torch.allclose(whole.loss_sum, sum(h.loss_sum for h in halves), rtol=1e-5) and whole.num_units == sum(h.num_units for h in halves)
    assert torch.allclose(whole.loss_sum, SeDi()(batch(pair, some(p, [3, 1, 0, 2]))).loss_sum, rtol=1e-5)
    wide = {**p, "student_logits": [torch.cat([x.detach(), torch.full((len(x), 3), 50.)], 1).requires_grad_() for x in p["student_logits"]],
            "teacher_logits": [torch.cat([x, torch.full((len(x), 3), 50.)], 1) for x in p["teacher_logits"]]}
    out = SeDi()(batch(pair, wide))
    out.loss_sum.backward()
    assert torch.allclose(out.loss_sum, whole.loss_sum, rtol=1e-5) and all((x.grad[:, -3:] == 0).all() for x in wide["student_logits"])


def test_relabelled_teacher_ids_change_nothing():
    a, b = (toy_bpe("abc .", [("a", "b"), ("c", "a")]), toy_bpe(".c ba", [("a", "b"), ("c", "a")]))
    s, texts = toy_bpe("abc .", [("b", "c")]), ("ab ca.", "cab")
    g, out = torch.Generator().manual_seed(1), []
    s_ids = [[*s.encode(x), s.stop_ids[0]] for x in texts]
    rows = [torch.randn(len(i), len(s), generator=g) for i in s_ids]
    t_rows = [torch.randn(len(a.encode(x)) + 1, len(a), generator=g) for x in texts]
    moved = [b.bytes.index(x) if x else b.stop_ids[0] for x in a.bytes]
    for t, change in ((a, list(range(len(a)))), (b, moved)):
        logits = [torch.empty_like(x).index_copy(1, torch.tensor(change), x) for x in t_rows]
        out.append(SeDi()(PairBatch.from_logits(make_pair(s, t), s_ids, [[*t.encode(x), t.stop_ids[0]] for x in texts], rows, logits)).loss_sum)
    assert torch.allclose(*out, rtol=1e-5)


def test_the_adapter_learns_from_the_entropy_alone_when_the_target_is_detached(pair):   # trap 9
    for detach in (True, False):
        b, leaves = full(pair)
        sedi = SeDi(detach_target=detach, k=20)
        sedi.prepare(pair)
        with torch.no_grad(): sedi.adapter.fill_(.3)
        sedi(b).loss_sum.backward()
        got, grads = sedi.adapter.grad.clone(), [x.grad.clone() for x in leaves[:4]]
        free = SeDi(detach_target=detach, k=20, entropy_weight=0.)
        free.prepare(pair)
        with torch.no_grad(): free.adapter.fill_(.3)
        b, leaves = full(pair)
        free(b).loss_sum.backward()
        same = all(torch.allclose(x.grad, g, atol=1e-6) for x, g in zip(leaves, grads))
        assert same == detach and (free.adapter.grad is None or bool((free.adapter.grad == 0).all())) == detach and got.abs().sum() > 0


def test_the_teacher_reaches_the_gradient(pair):
    grads = []
    for scale in (1., 2.):
        b, leaves = full(pair, scale=scale)
        SeDi()(b).loss_sum.backward()
        grads.append(torch.cat([x.grad for x in leaves[:4]]))
    assert not torch.allclose(*grads, atol=1e-3)


def test_first_response_token_has_a_row(pair):                                    # trap 10
    out = SeDi(lone="keep")(full(pair)[0])
    first = out.ledger["position"] == 0
    assert (out.ledger["weight"][first] == 1).all()


def digits():
    "The student writes one digit at a time, the teacher three; and the other way round."
    from xtokd.exact.toy_models import digit_groups
    return digit_groups(1, "x"), digit_groups(3, "x")


def test_a_lone_candidate_on_own_text_is_masked():
    s, t = digits()
    ids = s.encode("x201"), t.encode("x201")
    logits = torch.full((2, len(t)), -9.)
    logits[1, t.bytes.index(b"201")], logits[1, t.bytes.index(b"35")] = 5., 4.
    make = lambda **extra: PairBatch.from_logits(make_pair(s, t), [ids[0]], [ids[1]], [torch.zeros(4, len(s))], [logits], **extra)
    own, gold = SeDi(k=2)(make()), SeDi(k=2)(make(text_source="teacher"))
    assert own.ledger["weight"].tolist() == [1, 1, 0, 0] and own.ledger["reason"].tolist() == [0, 0, 100, 100] and gold.ledger["weight"].tolist() == [1] * 4
    assert SeDi(k=2, lone="keep")(make()).num_units == 4 and SeDi(k=2, lone="mask")(make(text_source="teacher")).num_units == 2
    assert abs(own.stats["kept_mass"] - gold.stats["kept_mass"]) < 1e-6


def test_a_digit_teacher_gives_its_marginal():
    s, t = digits()
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(t), generator=g)
    b = PairBatch.from_logits(make_pair(s, t), [s.encode("x201")], [t.encode("x201")], [torch.zeros(4, len(s))], [logits])
    got = SeDi(k=None)(b)
    q = logits[1].softmax(0)
    first = torch.zeros(len(s)).index_add(0, torch.tensor([s.encode(x.decode())[0] if x else s.stop_ids[0] for x in t.bytes]), q)
    assert abs(got.token_loss[1].item() - (kl_divergence(first.log(), torch.zeros(len(s)).log_softmax(0)) + (logp_entropy(first.log()) - logp_entropy(q.log())) ** 2).item()) < 1e-4


def test_switches_of_the_released_code(pair):                                     # table 1.6, a to i
    gold, _ = full(pair, text_source="reference")
    out = {name: SeDi(**how)(gold) for name, how in dict(paper=PAPER, released=RELEASED, ours={}, sample=dict(entropy="sample"), twice=dict(entropy_weight=2.), normal=dict(normalised_entropy=True),
           hot=dict(overwrite=True), static=dict(static_map=True), warm=dict(temperature=2.), max=dict(collision="max"), flat=dict(background=0.), few=dict(k=3), all=dict(k=None)).items()}
    assert all(torch.isfinite(o.loss_sum) and o.loss_sum >= 0 for o in out.values()) and len({round(o.loss_sum.item(), 3) for o in out.values()}) >= 11
    # the one-hot is never written over the row of the stop
    assert 1 - len(gold) / out["hot"].num_units <= out["hot"].stats["top1"] <= 1 and out["static"].num_units >= out["ours"].num_units
    n = torch.tensor(np.diff(gold.student.offsets))
    rows = SeDi(entropy_weight=0.)(gold).loss_sum
    assert (out["sample"].loss_sum - rows) < (out["ours"].loss_sum - rows) / n.min() + 1e-4  # f: one mean per sample weighs 1 / tokens


def test_learning_the_text_is_refused_on_own_text(pair):
    b = full(pair)[0]
    for how in (dict(ce=.5), dict(overwrite=True), RELEASED):
        with pytest.raises(ValueError, match="learning its errors"): SeDi(**how)(b)
    for how in (dict(collision="first"), dict(entropy="word"), dict(lone="x"), dict(k=0), dict(ce=2)):
        with pytest.raises(ValueError): objective("sedi", **how)


@pytest.mark.parametrize("text", ["👩‍👧 ❤️", "e\u0301", "数据 です", "\ta\tb", "  lead trail  ", "a\r\nb", ""])
def test_unicode_and_nothing(text):
    out = SeDi(k=20)(full(make_pair(GPT, LLAMA), (text, " the"))[0])
    assert torch.isfinite(out.loss_sum) and out.num_units > 0
    assert SeDi()(full(make_pair(GPT, LLAMA), (text,), stop=False)[0]).loss_sum >= 0


def test_hard_rows(pair):
    p = parts(pair)
    for k, x in enumerate(p["teacher_logits"]): x[:, 5:] = -torch.inf if k % 2 else x[:, 5:]
    p["teacher_logits"][0] = p["teacher_logits"][0][:2]                           # truncated
    p = {k: p[k] for k in ("student_ids", "teacher_ids", "student_logits", "teacher_logits")}
    p["student_logits"] = [x.detach().to(torch.bfloat16).requires_grad_() for x in p["student_logits"]]
    for how in ({}, dict(background=-np.inf), dict(detach_target=False)):
        sedi = SeDi(**how)
        out = sedi(PairBatch.from_logits(pair, **p))
        out.loss_sum.backward()
        assert torch.isfinite(out.loss_sum) and all(torch.isfinite(x.grad).all() for x in p["student_logits"]) and torch.isfinite(sedi.adapter.grad).all()


def test_prepare_is_idempotent_and_saves(pair):
    sedi = objective("sedi")
    sedi.prepare(pair)
    a, memo = sedi.adapter, sedi.encoder
    sedi.prepare(pair)
    assert sedi.adapter is a and sedi.encoder is memo and (a == 0).all() and set(sedi.state_dict()) == {"adapter"} and not list(SeDi(adapter=False).parameters())
