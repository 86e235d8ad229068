"X-Token's own aligner: token strings by dynamic programming, then two repairs (arXiv 2605.21699). xtokd aligns by bytes; this is to compare."
import numpy as np


def dp_table(student, teacher, exact=3., mismatch=-3., gap=-1.5, bonus=1.5, longest=4):
    "Score and pairs (s0, s1, t0, t1) of the best alignment of two lists of strings."
    n, m = len(student), len(teacher)
    score, back = np.full((n + 1, m + 1), -np.inf), {}
    score[:, 0], score[0] = gap * np.arange(n + 1), gap * np.arange(m + 1)
    join = lambda pieces: pieces[0][:0].join(pieces)                             # strings or byte strings
    for i in range(n + 1):
        for j in range(m + 1):
            if not i or not j:
                back[i, j] = (min(i, 1), min(j, 1))
                continue
            equal = student[i - 1] == teacher[j - 1]
            moves = [(score[i - 1, j - 1] + (exact if equal else mismatch), (1, 1)),
                     (score[i - 1, j] + gap, (1, 0)), (score[i, j - 1] + gap, (0, 1))]
            moves += [(score[i - 1, j - k] + bonus * k, (1, k)) for k in range(2, min(longest, j) + 1)
                      if student[i - 1] == join(teacher[j - k: j])]
            moves += [(score[i - k, j - 1] + bonus * k, (k, 1)) for k in range(2, min(longest, i) + 1)
                      if teacher[j - 1] == join(student[i - k: i])]
            score[i, j], back[i, j] = max(moves, key=lambda move: move[0])       # of equals the first
    pairs, (i, j) = [], (n, m)
    while i or j:
        a, b = back[i, j]
        pairs.append((i - a, i, j - b, j))
        i, j = i - a, j - b
    return float(score[n, m]), pairs[::-1]


def dp_align(student, teacher, window=10, tail=.2, **scores):
    """Score and pairs ((s0, s1, t0, t1), equal?) after the repairs: a run of wrong pairs whose joined strings agree becomes
    one (not in the last `tail`), then up to `window` pairs from a wrong one whose joined strings agree."""
    score, pairs = dp_table(student, teacher, **scores)

    def text(pieces, lo, hi): return pieces[0][:0].join(pieces[lo:hi]) if pieces else ""
    def equal(p): return p[1] > p[0] and p[3] > p[2] and text(student, *p[:2]) == text(teacher, *p[2:])
    def joined(run): return run[0][0], run[-1][1], run[0][2], run[-1][3]

    out, k = [], 0
    while k < len(pairs):
        end = k
        while end < len(pairs) and not equal(pairs[end]): end += 1
        if end - k >= 2 and k < (1 - tail) * len(pairs) and equal(joined(pairs[k:end])):
            out.append(joined(pairs[k:end]))
            k = end
            continue
        stops = range(k + 2, min(k + window, len(pairs)) + 1) if end > k else ()
        best = next((stop for stop in stops if equal(joined(pairs[k:stop]))), None)
        out.append(joined(pairs[k:best]) if best else pairs[k])
        k = best or k + 1
    return score, [(pair, equal(pair)) for pair in out]
