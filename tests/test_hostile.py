"""One hostile suite over every objective and every published setting: a loss that is finite, with finite gradients and a reason for each token
without a weight, or a refusal (ValueError) that names the objective or the cause. Rows that are not finite, at each place, are in test_method_faults.py."""
from functools import lru_cache

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from batches import batch, leaves, parts
from xtokd.alignment.pair import Pair
from xtokd.alignment.reasons import Reason
from xtokd.exact.toy_models import make_pair, toy_bpe
from xtokd.objectives import OBJECTIVES, objective
from xtokd.vocab.bytevocab import ByteVocab

ALL = [(name, preset) for name, spec in OBJECTIVES.items() for preset in (None, *spec.presets)]
LONG = "The number is 9632, certainly. " * 6


@lru_cache
def tiny(): return Pair("tiny", "tiny")


def pieces(*tokens, stops=1, width=None):
    "A vocabulary of these tokens and one to three stops; texts are cut into pieces of `width` letters."
    ends = [f"<end{k}>" for k in range(stops)]
    tokenizer = Tokenizer(models.WordLevel({x: k for k, x in enumerate([*tokens, *ends])}, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("." * (width or len(tokens[0]))), "isolated")
    tokenizer.add_special_tokens(ends)
    return ByteVocab(tokenizer, stops=list(range(len(tokens), len(tokens) + stops)), name="".join(tokens))


def several_stops(pair):
    "Three ids stop the student, two the teacher; each writes its last one."
    own = [pair.student.encode(x)[0] for x in ("9", "8")]
    student = ByteVocab(pair.student.hf or pair.student.tokenizer, stops=[*own, *pair.student.stop_ids])
    teacher = ByteVocab(pair.teacher.hf or pair.teacher.tokenizer, stops=[pair.teacher.encode("9")[0], *pair.teacher.stop_ids])
    return Pair(student, teacher)


def last_stops(pair, samples):
    for side in ("student", "teacher"):
        for ids in samples[f"{side}_ids"]: ids[-1] = getattr(pair, side).stop_ids[-1]
    return samples


def all_but_the_sampled(samples, value):
    "Rows that are `value` but at the sampled token."
    for side in ("student", "teacher"):
        for ids, rows in zip(samples[f"{side}_ids"], samples[f"{side}_logits"]):
            with torch.no_grad():
                rows.fill_(value)
                rows[torch.arange(len(ids)), ids] = 0.
    return samples


def cut_teacher(samples):
    "A teacher that saw the first two tokens."
    samples["teacher_logits"] = [x[:2] for x in samples["teacher_logits"]]
    samples["teacher_hidden"] = [x[:2] for x in samples["teacher_hidden"]]
    return samples


def of(make_pair_, texts, change=lambda pair, samples: samples, **options):
    def case(same):
        pair = make_pair_()
        if same: pair = Pair(pair.teacher, pair.teacher)
        texts_ = [*texts, texts[-1]] if len(texts) % 2 else list(texts)                       # preferences come in pairs
        return pair, change(pair, parts(pair, texts_, **options))
    return case


def letters(): return make_pair(toy_bpe("ab", [("a", "b")]), toy_bpe("ab", [("b", "a")]))


CASES = {
    "empty response": of(tiny, ("", ""), stop=False),
    "immediate stop": of(tiny, ("", "")),
    "empty among others": of(tiny, ("", "It is 12.", "", "7")),
    "no shared token": of(lambda: make_pair(pieces("a", "b"), pieces("ab", "ba", "aa", "bb")), ("abba", "ab")),
    "no shared token and no stop": of(lambda: make_pair(pieces("a", "b"), pieces("ab", "ba", "aa", "bb")), ("abba", "ab"), stop=False),
    "one shared token": of(lambda: make_pair(pieces("a", "b"), toy_bpe("ab", [("a", "b")])), ("abba", "aab")),
    "one text token and a stop": of(lambda: make_pair(toy_bpe("a", []), toy_bpe("a", [("a", "a")])), ("aaa", "a")),
    "one vocabulary of two ids": of(lambda: make_pair(toy_bpe("a", []), toy_bpe("a", [])), ("aa", "a")),
    "several stop ids": of(lambda: several_stops(tiny()), ("It is 12.", "7"), last_stops),
    "unequal lengths": of(tiny, ("7", LONG)),
    "crossing tokens": of(letters, ("abababab", "bababa")),
    "certain rows": of(tiny, ("It is 12.", "7"), lambda pair, samples: all_but_the_sampled(samples, -1e4)),
    "impossible alternatives": of(tiny, ("It is 12.", "7"), lambda pair, samples: all_but_the_sampled(samples, -torch.inf)),
    "several stops that are impossible": of(lambda: several_stops(tiny()), ("It is 12.", "7"), lambda pair, samples: all_but_the_sampled(samples, -torch.inf), stop=False),
    "a teacher that was cut": of(tiny, ("The number is 9632.", "It is 12."), lambda pair, samples: cut_teacher(samples)),
    "one long word": of(tiny, ("9" * 60, "1")),
    "white space": of(tiny, ("  \n\t ", "\n\n\n")),
    "characters cut in half": of(tiny, ("👩‍👧 é", "中")),
}


def refusal_names_the_cause(error, name):
    text = str(error)
    return len(text) > 25 and (name in text or any(word in text for word in ("vocabular", "token", "stop", "shared", "text", "pair", "rows")))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name, preset", ALL, ids=lambda x: str(x))
def test_a_hostile_batch_has_a_finite_loss_or_a_refusal(name, preset, case):
    torch.manual_seed(0)
    obj = objective(name, preset=preset)
    pair, samples = CASES[case](OBJECTIVES[name].cls.equal_vocabularies)
    b = batch(pair, samples, obj.text_source)
    try: out = obj(b)
    except ValueError as error:
        assert refusal_names_the_cause(error, name), error
        return
    assert torch.isfinite(out.loss_sum) and torch.isfinite(out.token_loss).all() and np.isfinite(out.num_units) and out.num_units >= 0
    assert all(np.isfinite(value) for value in out.stats.values()), out.stats
    weight, reason = out.ledger["weight"], out.ledger["reason"]
    assert len(weight) == len(b.student) and (weight >= 0).all() and np.isfinite(weight).all()
    assert (reason[weight == 0] > 0).all() and all(Reason(int(r)) for r in np.unique(reason[weight == 0]))
    if out.loss_sum.requires_grad:
        out.loss_sum.backward()
        assert all(x.grad is None or torch.isfinite(x.grad).all() for x in leaves(samples))
    if not out.num_units: assert float(out.loss_sum.detach()) == 0


@pytest.mark.parametrize("name, preset", ALL, ids=lambda x: str(x))
def test_a_batch_of_one_is_its_share_of_a_batch(name, preset):
    "One answer (a pair of answers for ctpd): a loss, and what it has beside another one where a batch is a sum of its parts."
    torch.manual_seed(0)
    obj = objective(name, preset=preset)
    pair = Pair(tiny().teacher, tiny().teacher) if OBJECTIVES[name].cls.equal_vocabularies else tiny()
    size = 2 if "preferences" in obj.requires else 1
    texts = ("It is 12.", "7 altogether.", "Certainly: 89", "No.")[:2 * size]
    alone = [obj(batch(pair, parts(pair, some), obj.text_source)) for some in (texts[:size], texts[size:])]
    assert all(torch.isfinite(out.loss_sum) for out in alone)
    if "I8" in OBJECTIVES[name].known_exceptions or getattr(obj, "whiten", False) or getattr(obj, "balance", "") == "gradmag": return
    both = obj(batch(pair, parts(pair, texts), obj.text_source))
    assert float(both.loss_sum.detach()) == pytest.approx(sum(float(out.loss_sum.detach()) for out in alone), rel=1e-3, abs=1e-4)
    assert both.num_units == pytest.approx(sum(out.num_units for out in alone), abs=1e-3)
