"""What holds for every registered objective: the invariants I1-I9, with the exceptions that each class names (`known_exceptions`), and the bugs of others. A method that joins is tested by being there."""
import json
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import Tokenizer

from batches import TEXTS, batch, full, heads, ids_of, leaves, parts, some
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.rows.pair_batch import HiddenStates, PairBatch
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.objectives.base import REQUIREMENTS
from xtokd.objectives import OBJECTIVES, objective
from xtokd.objectives.divergences import divergence
from xtokd.alignment.reasons import Reason
from xtokd.alignment.pair import Pair

NAMES = tuple(OBJECTIVES)
few = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(alphabet="ab1 7.é中😀\n\t\u0301", min_size=0, max_size=12)


def exceptions(name): return OBJECTIVES[name].known_exceptions
def spared(invariant): return [n for n in NAMES if invariant not in exceptions(n)]
def needs(name): return objective(name).requires
def text_source(name): return OBJECTIVES[name].text_source
def reads_teacher(name): return bool(needs(name) - {"student_logits", "gold"})
def fit(name, texts): return [*texts, *texts[-1:]] if "preferences" in needs(name) and len(texts) % 2 else list(texts)


@lru_cache
def pairs():
    two = Pair("tiny", "tiny")
    return two, Pair(two.teacher, two.teacher)


@pytest.fixture
def pair(name): return pairs()[OBJECTIVES[name].cls.equal_vocabularies]


@pytest.fixture
def same(): return pairs()[1]


@pytest.fixture(scope="module")
def ready():
    "Each objective once for a pair: parameters and bridges of a method are made at its first batch."
    made = {}
    def get(name, p):
        if (name, id(p)) not in made:
            torch.manual_seed(0)
            made[name, id(p)] = obj = objective(name)
            obj(full(p, TEXTS, text_source(name))[0])
        return made[name, id(p)]
    return get


def gradients(obj, b, tensors):
    for x in tensors: x.grad = None
    out = obj(b)
    if out.loss_sum.requires_grad: out.loss_sum.backward()
    return out, [torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in tensors]


def near(a, b, rtol=1e-3, atol=1e-5): return torch.allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_filled_in(name):
    entry = OBJECTIVES[name]
    assert all((entry.summary, entry.source, entry.alignment, entry.vocab_map, entry.divergence_label, entry.cls.__doc__))
    assert objective(name).requires <= set(REQUIREMENTS) and entry.text_source in entry.text_sources
    assert all(isinstance(k, str) and v for k, v in exceptions(name).items())


@pytest.mark.parametrize("name", NAMES)
def test_splitting_changes_nothing(pair, ready, name):                            # I8, D13
    p, obj = parts(pair), ready(name, pair)
    whole, grads = gradients(obj, batch(pair, p, text_source(name)), leaves(p))
    for cut in ([2, 2],) if whole.unit == "pair" else ([1, 3], [1, 1, 1, 1]):
        total, count, at = 0., 0., 0
        for x in leaves(p): x.grad = None
        for n in cut:
            out = obj(batch(pair, some(p, range(at, at + n)), text_source(name)))
            if out.loss_sum.requires_grad: out.loss_sum.backward()
            total, count, at = total + out.loss_sum.detach(), count + out.num_units, at + n
        if "I8" in exceptions(name): continue
        assert near(whole.loss_sum.detach(), torch.as_tensor(total)) and abs(whole.num_units - count) < 1e-3
        assert all(near(g, torch.zeros_like(x) if x.grad is None else x.grad) for g, x in zip(grads, leaves(p)))


@pytest.mark.parametrize("name", spared("I8"))
def test_the_order_of_samples_changes_nothing(pair, ready, name):
    p, obj = parts(pair), ready(name, pair)
    order = [2, 3, 0, 1]                                                          # pairs of answers stay side by side
    a, b = (obj(batch(pair, some(p, at), text_source(name))) for at in (range(4), order))
    assert near(a.loss_sum.detach(), b.loss_sum.detach()) and abs(a.num_units - b.num_units) < 1e-3


@pytest.mark.parametrize("name", [n for n in NAMES if reads_teacher(n)])
def test_the_teacher_reaches_the_gradient(pair, ready, name):                     # D9
    a, b = (parts(pair, scale=x) for x in (.3, .6))
    if not needs(name) & {"teacher_logits"}: return
    for k in ("teacher_hidden", "plus_logp", "weak_logp"): b[k] = [2 * x for x in b[k]]
    one, two = (gradients(ready(name, pair), batch(pair, x, text_source(name)), leaves(x))[1] for x in (a, b))
    assert not all(near(x, y, atol=1e-7) for x, y in zip(one, two))


@pytest.mark.parametrize("name", [n for n in NAMES if "teacher_logits" in needs(n)])
def test_shifted_teacher_rows_change_the_result(pair, ready, name):               # D10
    p = parts(pair)
    q = {**p, "teacher_logits": [x.roll(1, 0) for x in p["teacher_logits"]], "teacher_hidden": [x.roll(1, 0) for x in p["teacher_hidden"]]}
    a, b = (ready(name, pair)(batch(pair, x, text_source(name))) for x in (p, q))
    assert abs(float(a.loss_sum.detach() - b.loss_sum.detach())) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_padded_heads_change_nothing(pair, ready, name):                          # I7, D17
    p, obj = parts(pair), ready(name, pair)
    wide = lambda x: torch.cat([x.detach(), torch.full((len(x), 37), 9.)], 1)
    q = {**p, "student_logits": [wide(x).requires_grad_() for x in p["student_logits"]], "teacher_logits": [wide(x) for x in p["teacher_logits"]]}
    a, b = (gradients(obj, batch(pair, x, text_source(name)), x["student_logits"]) for x in (p, q))
    assert near(a[0].loss_sum.detach(), b[0].loss_sum.detach()) and all(near(x, y[:, : x.shape[1]]) and not y[:, x.shape[1]:].any() for x, y in zip(a[1], b[1]))


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_reaches_the_teacher(pair, ready, name):                      # I7
    p = parts(pair)
    p["teacher_logits"], p["teacher_hidden"] = [x.requires_grad_() for x in p["teacher_logits"]], [x.requires_grad_() for x in p["teacher_hidden"]]
    head = [x.clone().requires_grad_() for x in heads(pair)]
    b = batch(pair, p, text_source(name))
    b.hidden = HiddenStates(p["student_hidden"], p["teacher_hidden"], *head)
    out = ready(name, pair)(b)
    if out.loss_sum.requires_grad: out.loss_sum.backward()
    assert all(x.grad is None or not x.grad.any() for x in (*p["teacher_logits"], *p["teacher_hidden"], *head))


@pytest.mark.parametrize("name", NAMES)
def test_empty_responses(pair, ready, name):                                      # D14
    p, obj = parts(pair, fit(name, ("", "7 altogether."))), ready(name, pair)
    out, grads = gradients(obj, batch(pair, p, text_source(name)), leaves(p))
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(g).all() for g in grads)
    none = obj(batch(pair, parts(pair, fit(name, ("", "")), stop=False), text_source(name)))
    assert float(none.loss_sum.detach()) == 0 and none.num_units in (0, 1)                          # a pair of empty answers is a pair


@pytest.mark.parametrize("name", NAMES)
def test_impossible_teacher_tokens_leave_the_gradient_finite(pair, ready, name):  # D14
    p = parts(pair)
    for x in p["teacher_logits"]: x[:, ::3] = -torch.inf
    out, grads = gradients(ready(name, pair), batch(pair, p, text_source(name)), leaves(p))
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", NAMES)
def test_every_token_has_a_signal_or_a_reason(pair, ready, name):                 # D25
    out = ready(name, pair)(full(pair, text_source=text_source(name))[0])
    silent = out.ledger["weight"] == 0
    assert (out.ledger["reason"][silent] > 0).all() and (out.ledger["reason"][~silent] == 0).all()
    assert all(Reason(w).text for w in np.unique(out.ledger["reason"][silent])) and abs(out.stats["coverage"] - (~silent).mean()) < 1e-6
    assert out.num_units > 0 and abs(out.num_units - out.ledger["weight"].sum()) < 1e-3 * out.num_units


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_truncated_teachers(pair, ready, name):                # D23
    p = parts(pair)
    p["student_logits"] = [x.detach().bfloat16().requires_grad_() for x in p["student_logits"]]
    cut = {k: [x[:4] for x in p[k]] for k in ("teacher_logits", "teacher_hidden", "weak_logp", "plus_logp", "minus_logp")}
    out, grads = gradients(ready(name, pair), batch(pair, {**p, **cut}, text_source(name)), leaves(p))
    assert out.loss_sum.dtype == torch.float32 and torch.isfinite(out.loss_sum) and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", spared("I3"))
def test_equal_models_do_not_move(same, ready, name):                             # I3
    if not reads_teacher(name): return
    p = parts(same, same=True, hidden_sizes=(8, 8))
    p["teacher_hidden"], p["weak_logp"] = [x.detach().clone() for x in p["student_hidden"]], p["weak_logp"]
    own = lambda rows, ids: torch.log_softmax(rows.detach(), -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    for k in ("behaviour_logp", "reference_logp", "weak_logp"): p[k] = [own(r, i) for r, i in zip(p["student_logits"], p["student_ids"])]
    for x, y in zip(p["plus_logp"], p["minus_logp"]): x.copy_(y)
    b = PairBatch.from_logits(same, **{k: v for k, v in p.items() if k not in ("student_hidden", "teacher_hidden")}, preferences=[1, -1] * 2, text_source=text_source(name), hidden=HiddenStates(p["student_hidden"], p["teacher_hidden"], *heads(same, (8, 8))))
    _, grads = gradients(ready(name, same), b, p["student_logits"])
    assert max(float(g.abs().max()) for g in grads) < 1e-4


@pytest.mark.parametrize("name", spared("I6"))
def test_what_comes_later_changes_nothing_before(pair, ready, name):              # I6
    if OBJECTIVES[name].cls.__dict__.get("unit") == "pair": return
    p = parts(pair, fit(name, TEXTS[:1]))
    a = ready(name, pair)(batch(pair, p, text_source(name)))
    b0 = batch(pair, p, text_source(name)).alignment
    middle = b0.chunks[len(b0.chunks) // 2]
    q = {k: [x.detach().clone() if torch.is_tensor(x) else list(x) for x in v] for k, v in p.items()}
    for k, at in (("student_logits", middle[0]), ("teacher_logits", middle[2]), ("student_hidden", middle[0]), ("teacher_hidden", middle[2])): q[k][0][at:] = torch.randn_like(q[k][0][at:])
    b = ready(name, pair)(batch(pair, q, text_source(name)))
    before = int(b0.chunks[max(len(b0.chunks) // 2 - 2, 0)][1])
    assert near(a.token_loss[:before], b.token_loss[:before], rtol=1e-2, atol=1e-3)


def relabelled(bv, order):
    "The same tokenizer with permuted ids: old id i becomes order[i]."
    d = json.loads(bv.tokenizer.to_str())
    d["model"]["vocab"] = {k: int(order[v]) for k, v in d["model"]["vocab"].items()}
    for t in d.get("added_tokens", []): t["id"] = int(order[t["id"]])
    return ByteVocab(Tokenizer.from_str(json.dumps(d)), stops=[int(order[i]) for i in bv.stop_ids])


@pytest.mark.parametrize("name", spared("I2"))
def test_names_of_teacher_ids_mean_nothing(name):                                 # I2
    if OBJECTIVES[name].cls.equal_vocabularies: return                            # the student's ids would have to change with them
    S, T = toy_bpe("ab1 ", [("a", "b"), (" ", "a")]), toy_bpe("ab1 ", [("b", "1"), ("a", "b"), (" ", "ab")])
    order = np.random.default_rng(0).permutation(len(T))
    U, back = relabelled(T, order), torch.as_tensor(np.argsort(order))
    texts = ["ab1 ab", "1a b1", "bb ab1", " a1"]
    losses = []
    for teacher, columns in ((T, torch.arange(len(T))), (U, back)):
        pair = make_pair(S, teacher)
        p = parts(make_pair(S, T), texts)
        p["teacher_ids"] = [[int(np.argsort(columns)[i]) if teacher is U else i for i in ids] for ids in p["teacher_ids"]]
        p["teacher_logits"] = [x[:, columns] for x in p["teacher_logits"]]
        h = heads(make_pair(S, T))
        torch.manual_seed(0)
        b = PairBatch.from_logits(pair, **{k: v for k, v in p.items() if k not in ("student_hidden", "teacher_hidden")}, preferences=[1, -1] * 2, text_source=text_source(name), hidden=HiddenStates(p["student_hidden"], p["teacher_hidden"], h[0], h[1][columns]))
        losses.append(objective(name)(b).token_loss)
    assert near(*losses, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(text, min_size=2, max_size=2))
@few
def test_any_text(pair, ready, name, texts):                                      # I9
    p = parts(pair, texts)
    out, grads = gradients(ready(name, pair), batch(pair, p, text_source(name)), leaves(p))
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(g).all() for g in grads) and len(out.token_loss) == sum(map(len, p["student_ids"]))


@pytest.mark.parametrize("name", NAMES)
def test_an_incomplete_character_of_the_student(pair, ready, name):               # D1
    s = pair.student
    p = parts(pair, fit(name, ("a! 12",)))
    broken = [*s.encode("a"), s.bytes.index(b"\xf0"), s.bytes.index(b"\x9f"), *s.encode("! 12"), s.stop_ids[0]]
    t = [*pair.teacher.encode(s.decode(broken[:-1]).decode(errors="replace")), pair.teacher.stop_ids[0]]
    g = torch.Generator().manual_seed(1)
    for k, ids, width in (("student", broken, len(s)), ("teacher", t, len(pair.teacher))): p[f"{k}_ids"][0], p[f"{k}_logits"][0] = ids, torch.randn(len(ids), width, generator=g)
    for k, n in (("behaviour_logp", len(broken)), ("reference_logp", len(broken)), ("weak_logp", len(t)), ("plus_logp", len(t)), ("minus_logp", len(t))): p[k][0] = -torch.rand(n, generator=g)
    p["student_hidden"][0], p["teacher_hidden"][0] = torch.randn(len(broken), 6, generator=g), torch.randn(len(t), 8, generator=g)
    assert torch.isfinite(ready(name, pair)(batch(pair, p, text_source(name))).loss_sum)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_silences_what_is_outside(pair, ready, name):
    p = parts(pair)
    window = [np.arange(len(x)) >= len(x) // 2 for x in p["student_ids"]]
    out = ready(name, pair)(batch(pair, p, text_source(name), window=window))
    outside = ~np.concatenate(window)
    assert not (out.ledger["weight"][outside] > 0).any() and (out.ledger["reason"][outside] > 0).all() and torch.isfinite(out.loss_sum)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named(pair, name):
    p = parts(pair)
    for need in needs(name) - {"student_logits", "gold"}:
        b = batch(pair, p, text_source(name))
        if need == "teacher_logits": b.teacher = None
        elif need in ("behaviour_logp", "reference_logp"): setattr(b, need, None)
        else: setattr(b, need, None)
        with pytest.raises(ValueError, match=need): objective(name)(b)
    for by in {"student", "teacher", "reference"} - set(OBJECTIVES[name].text_sources):
        with pytest.raises(ValueError, match="no sense|gold"): objective(name)(batch(pair, p, by))
