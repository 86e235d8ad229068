"SeDi's groups of intersecting spans, as published; on the bytes of a text they are the chunks of `align`."
import numpy as np


def span_groups(student_spans, teacher_spans):
    """Group of each span, int64[n] and int64[m]: connected components of intersecting half-open spans of both sides,
    numbered in text order. A span without width joins what it lies strictly inside of."""
    spans = [np.asarray(s, np.int64).reshape(-1, 2) for s in (student_spans, teacher_spans)]
    both = np.concatenate(spans)
    order = np.lexsort((both[:, 1], both[:, 0]))
    end = np.maximum.accumulate(both[order, 1])
    group = np.empty(len(both), np.int64)
    group[order] = np.cumsum(np.r_[True, both[order[1:], 0] >= end[:-1]]) - 1 if len(both) else 0
    return group[: len(spans[0])], group[len(spans[0]):]


def as_sets(groups):
    "Groups as pairs of sets of span numbers."
    count = max((int(g.max(initial=-1)) for g in groups), default=-1) + 1
    return [tuple(set(np.flatnonzero(g == k).tolist()) for g in groups) for k in range(count)]
