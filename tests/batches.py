"""Batches that hold everything an objective may ask for: a pair's own ids, random rows, random hidden states."""
import torch

from xtokd.rows.pair_batch import HiddenStates, PairBatch

TEXTS = ("The number is 9632.", "Certainly: 12", "894772 altogether.", "7 altogether.")


def ids_of(vocab, text, stop=True): return [*vocab.encode(text), *([vocab.stop_ids[0]] if stop else [])]


def parts(pair, texts=TEXTS, seed=0, stop=True, dim=(6, 8), scale=1., same=False):
    """Per-sample lists: ids of both sides, student logits (leaves with gradient), teacher logits, and the extras. A text's numbers depend on the text (and the seed) only, so that parts
    of a batch can be compared with the whole. With `same` (one tokenizer on both sides) the teacher is the student."""
    out = dict(student_ids=[], teacher_ids=[], student_logits=[], teacher_logits=[], behaviour_logp=[], reference_logp=[], weak_logp=[], plus_logp=[], minus_logp=[], hs=[], ht=[])
    for x in texts:
        g = torch.Generator().manual_seed(seed + len(x) * 1000 + sum(map(ord, x)))
        s, t = ids_of(pair.student, x, stop), ids_of(pair.teacher, x, stop)
        rand = lambda *shape: torch.randn(*shape, generator=g)
        logits = rand(len(s), len(pair.student))
        values = dict(student_ids=s, teacher_ids=t, student_logits=logits.clone().requires_grad_(), teacher_logits=logits.clone() if same else scale * rand(len(t), len(pair.teacher)),
                      behaviour_logp=torch.log_softmax(logits, -1).gather(1, torch.tensor(s, dtype=torch.long)[:, None])[:, 0] if s else torch.zeros(0), reference_logp=-rand(len(s)).abs(), weak_logp=-rand(len(t)).abs(), plus_logp=-rand(len(t)).abs(), minus_logp=-rand(len(t)).abs(),
                      hs=rand(len(s), dim[0]).requires_grad_(), ht=rand(len(t), dim[1]))
        for k, v in values.items(): out[k].append(v)
    return out


def heads(pair, dim=(6, 8), seed=7):
    "Heads [Vs, Ds] and [Vt, Dt], the same for every batch of a pair."
    g = torch.Generator().manual_seed(seed)
    return torch.randn(len(pair.student), dim[0], generator=g), torch.randn(len(pair.teacher), dim[1], generator=g)


def batch(pair, p, text_source=None, **extra):
    "A PairBatch from `parts`; answers come in pairs, the first of each is the chosen one."
    p = dict(p)
    hidden = HiddenStates(p.pop("hs"), p.pop("ht"), *heads(pair))
    more = {} if text_source is None else {"text_source": text_source}
    return PairBatch.from_logits(pair, **p, hidden=hidden, preferences=[1 - 2 * (k % 2) for k in range(len(p["student_ids"]))], **more, **extra)


def some(p, at): return {k: [v[i] for i in at] for k, v in p.items()}


def leaves(p): return [*p["student_logits"], *p["hs"]]


def full(pair, texts=TEXTS, text_source=None, **how):
    "A whole batch and the tensors that get a gradient."
    p = parts(pair, texts, **how)
    return batch(pair, p, text_source), leaves(p)
