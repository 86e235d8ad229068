"What is computed once for a vocabulary or a pair stays in memory while it is used: one student against nine teachers, and a student between many strangers."
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from xtokd.alignment import flat
from xtokd.alignment.byte_align import align
from xtokd.vocab import bytevocab, overlap
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.vocab.overlap import VocabOverlap


def tokenizer(n):
    "A byte-level tokenizer with `n` further words."
    tok = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.add_tokens([AddedToken(f"<{n}-{k}>", special=False) for k in range(n)])
    return tok


def counted(monkeypatch, module, name):
    calls, real = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(name), real(*a, **k))[1])
    return calls


@pytest.fixture
def empty(monkeypatch):
    "Nothing is in memory, as in a new process."
    for module, name in ((flat, "_POOLS"), (bytevocab, "_TABLE_CACHE"), (overlap, "_CACHE")): monkeypatch.setattr(module, name, type(getattr(module, name))())


def test_one_student_against_nine_teachers(monkeypatch, empty):
    "The first round builds, the others only look up. With a pool of eight, first in first out, every round built all ten again."
    pools, tables = counted(monkeypatch, flat, "build_pool"), counted(monkeypatch, bytevocab, "_build_table")
    vocabs = [ByteVocab(tokenizer(n)) for n in range(10)]
    overlaps, real = [], VocabOverlap._compute.__func__
    monkeypatch.setattr(VocabOverlap, "_compute", classmethod(lambda cls, *a: (overlaps.append(1), real(cls, *a))[1]))
    student, *teachers = vocabs
    ids = {id(v): v.encode("one student") for v in vocabs}
    for _ in range(3):
        for teacher in teachers:
            assert len(align(ids[id(student)], ids[id(teacher)], student=student, teacher=teacher).chunks) and VocabOverlap.of(student, teacher).shared_student_ids is not None
    assert len(pools) == 10 and len(overlaps) == 9 and len(tables) == 10
    for n in range(10): assert ByteVocab(tokenizer(n)).bytes is vocabs[n].bytes
    assert len(tables) == 10


@pytest.mark.parametrize("what", ["pool", "table", "overlap"])
def test_what_is_used_again_and_again_outlives_what_is_used_once(monkeypatch, empty, what):
    "Least recently used, not first in, first out: the student's is built once between any number of others. The memory is bounded."
    strangers = 2 * max(flat._MAX_POOLS, bytevocab._MAX_TABLES, overlap._MAX_CACHED)
    student = ByteVocab(tokenizer(0))
    if what == "pool":
        calls = counted(monkeypatch, flat, "build_pool")
        first = flat.pool_of(student)
        for n in range(strangers): flat.pool_of(SimpleNamespace(bytes=[bytes([n])])); assert flat.pool_of(student) is first
        assert len(calls) == strangers + 1 and len(flat._POOLS) == flat._MAX_POOLS
    if what == "table":
        for n in range(1, strangers): ByteVocab(tokenizer(n)); assert ByteVocab(tokenizer(0)).bytes is student.bytes
        assert len(bytevocab._TABLE_CACHE) == bytevocab._MAX_TABLES
    if what == "overlap":
        first = VocabOverlap.of(student, student)
        for n in range(1, strangers): VocabOverlap.of(student, ByteVocab(tokenizer(n))); assert VocabOverlap.of(student, student) is first
        assert len(overlap._CACHE) == overlap._MAX_CACHED


def test_a_pool_is_that_of_its_vocabulary():
    "Vocabularies that come and go get the numbers of their own bytes, also where an address is used again."
    for n in range(3 * flat._MAX_POOLS):
        vocab = SimpleNamespace(bytes=[b"x" * (n % 7), b"y"])
        assert np.array_equal(flat.pool_of(vocab).lengths, [n % 7, 1])
