"What the tests of the baselines share: a relabelled tokenizer, and the checks that every one of them passes."
import json

import torch
from tokenizers import Tokenizer

from batches import TEXTS, batch, leaves, parts, some
from xtokd.rows.pair_batch import PairBatch
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.exact.toy_models import make_pair

UNICODE = ("", " naïve café\r\n", "😀 ok\t12", "  中文 e\u0301 ")


def relabelled(bv, order):
    "The same tokenizer with id i renamed order[i]."
    spec = json.loads(bv.tokenizer.to_str())
    spec["model"]["vocab"] = {k: int(order[i]) for k, i in spec["model"]["vocab"].items()}
    for t in spec["added_tokens"]: t["id"] = spec["model"]["vocab"][t["content"]] = int(order[t["id"]])
    spec["post_processor"] = None
    return ByteVocab(Tokenizer.from_str(json.dumps(spec)), stops=[int(order[i]) for i in bv.stop_ids], name="relabelled")


def check_parts(pair, obj, texts=TEXTS, **how):
    "The sum and the count of a batch are those of its parts, in any order; the teacher matters; padding does not."
    p = parts(pair, texts)
    whole = obj(batch(pair, p, **how))
    cut = [obj(batch(pair, some(p, at), **how)) for at in ([3, 0], [2], [1])]
    assert torch.allclose(whole.loss_sum, sum(x.loss_sum for x in cut), rtol=1e-4) and abs(whole.num_units - sum(x.num_units for x in cut)) < 1e-4 and whole.num_units > 0
    grads = torch.autograd.grad(whole.loss_sum, p["student_logits"])
    wide = lambda x, v: torch.cat([x.detach(), torch.full((len(x), 5), v)], 1)
    q = {**p, "student_logits": [wide(x, 9.).requires_grad_() for x in p["student_logits"]], "teacher_logits": [wide(x, 9.) for x in p["teacher_logits"]]}
    out = obj(batch(pair, q, **how))
    padded = torch.autograd.grad(out.loss_sum, q["student_logits"])
    for a, b in zip(grads, padded): assert torch.allclose(a, b[:, :-5], atol=1e-6) and not b[:, -5:].any() and torch.isfinite(a).all()
    other = obj(batch(pair, {**p, "teacher_logits": [-x for x in p["teacher_logits"]]}, **how))
    assert torch.allclose(out.loss_sum, whole.loss_sum, rtol=1e-5) and abs(other.loss_sum - whole.loss_sum) > 1e-3


def check_hard_cases(pair, obj, **how):
    "Unicode, empty answers, teachers that rule tokens out, and half-precision rows."
    p = parts(pair, UNICODE)
    for texts in (p, some(p, [0])): assert torch.isfinite(obj(batch(pair, texts, **how)).loss_sum)
    assert obj(batch(pair, parts(pair, ("",), stop=False), **how)).loss == 0
    assert obj(PairBatch.from_logits(pair, [], [], [], [], **({"text_source": how["text_source"]} if "text_source" in how else {}))).loss == 0
    p = parts(pair, TEXTS[:2])
    for k, x in enumerate(p["teacher_logits"]): x[:, 1::3] = -torch.inf
    out = obj(batch(pair, p, **how))
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(g).all() for g in torch.autograd.grad(out.loss_sum, p["student_logits"]))
    p["teacher_logits"][0][2] = torch.nan
    out = obj(batch(pair, p, **how))
    assert torch.isfinite(out.loss_sum) and all(torch.isfinite(g).all() for g in torch.autograd.grad(out.loss_sum, p["student_logits"]))
    for kind in (torch.float64, torch.bfloat16):
        q = {**p, "student_logits": [x.detach().to(kind).requires_grad_() for x in p["student_logits"]]}
        assert torch.isfinite(obj(batch(pair, q, **how)).loss_sum)


def check_relabelling(pair, obj, **how):
    "Renaming the teacher's ids changes nothing."
    order = torch.randperm(len(pair.teacher), generator=torch.Generator().manual_seed(3))
    other = make_pair(pair.student, relabelled(pair.teacher, order))
    p = parts(pair)
    q = {**p, "teacher_ids": [[int(order[i]) for i in x] for x in p["teacher_ids"]], "teacher_logits": [torch.empty_like(x).index_copy(1, order, x) for x in p["teacher_logits"]]}
    a, b = (obj(batch(w, x, **how)) for w, x in ((pair, p), (other, q)))
    assert torch.allclose(a.loss_sum, b.loss_sum, rtol=1e-4) and abs(a.num_units - b.num_units) < 1e-4


def same_gradient(pair, obj, texts=TEXTS, **how):
    "Largest gradient where the teacher is the student."
    one = make_pair(pair.teacher, pair.teacher)
    p = parts(one, texts, same=True)
    return max(g.abs().max().item() for g in torch.autograd.grad(obj(batch(one, p, **how)).loss_sum, p["student_logits"]))
