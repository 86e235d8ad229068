"""The aligner that the authors of arXiv 2606.09456 released, to compare xtokd's with. It decodes growing slices of both
token sequences, normalises them, and compares strings; the shorter side takes one token more."""
import unicodedata
from dataclasses import dataclass

import numpy as np


@dataclass
class ReleasedAlignment:
    "What the released aligner finds."
    chunks: np.ndarray     # int[K, 4]: (s0, s1, t0, t1)
    silent: np.ndarray     # bool[n]: student tokens without a signal
    lost: bool             # it gave up, or the teacher's tokens ran out; the release then drops the whole text


def _grow(a, b, more_s, more_t):
    "Which sides take one more token, from the decoded slices and whether each side has one."
    if len(a) != len(b): first = len(a) < len(b)
    else:
        broken_s, broken_t = a.endswith("\ufffd"), b.endswith("\ufffd")
        if broken_s == broken_t: return more_s, more_t
        first = broken_s
    if first: return more_s, more_t and not more_s
    return more_s and not more_t, more_t


def decode_walk(student_ids, teacher_ids, decode_s, decode_t, threshold=6):
    """The released aligner: compares decoded, NFC-normalised slices. decode_s and decode_t turn ids into text; chunks of
    more than `threshold` tokens on a side are silent (None: no limit)."""
    n, m, s, t = len(student_ids), len(teacher_ids), 0, 0
    chunks, silent = [], np.ones(n, bool)
    text = lambda decode, ids: unicodedata.normalize("NFC", decode(list(ids)))
    while s < n and t < m:
        s_end, t_end = s + 1, t + 1
        while True:
            a, b = text(decode_s, student_ids[s:s_end]), text(decode_t, teacher_ids[t:t_end])
            if a == b and not a.endswith("\ufffd"): break
            more = _grow(a, b, s_end < n, t_end < m)
            if not any(more): return ReleasedAlignment(np.array(chunks, int).reshape(-1, 4), silent, True)
            s_end, t_end = s_end + more[0], t_end + more[1]
        chunks.append((s, s_end, t, t_end))
        silent[s:s_end] = threshold is not None and max(s_end - s, t_end - t) > threshold
        s, t = s_end, t_end
    return ReleasedAlignment(np.array(chunks, int).reshape(-1, 4), silent, s < n)
