"""Where a normaliser changes a text: every chunk has equal bytes and stands at the right place.

Equal bytes do not say that the place is right. The place is right if the normaliser of one side, applied
to the other side's text before the chunk, gives that side's own text before it."""
import itertools, random, unicodedata
from functools import lru_cache, partial
from types import SimpleNamespace
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from xtokd.alignment.byte_align import align, align_batch
from xtokd.alignment.reasons import Reason
from xtokd.alignment.text_match import equal_stretches
from xtokd.vocab.bytevocab import ByteVocab

UNICODE = {name: partial(unicodedata.normalize, name) for name in ("NFC", "NFD", "NFKC", "NFKD")}
FORMS = UNICODE | {"lower": str.lower, "casefold": str.casefold, "NFKC, casefold": lambda text: unicodedata.normalize("NFKC", text).casefold(),
                   "left strip": str.lstrip, "replace, longer": lambda text: text.replace("o", "Noo"), "replace, shorter": lambda text: text.replace("No", "N"),
                   "drop": lambda text: text.replace("N", ""), "drop accents": lambda text: "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))}


def characters(text, normalized=None):
    "A vocabulary of the characters of one text."
    tokens = list(text)
    own = [c.encode() for c in tokens]
    return SimpleNamespace(name="characters", bytes=own, lengths=np.array([len(b) for b in own], np.int32), special=np.zeros(len(own), bool), stop_ids=(),
                           **({"normalized": normalized} if normalized else {}))


def of_characters(student, teacher, student_form=None, teacher_form=None):
    "Align two texts, a character a token."
    return align(range(len(student)), range(len(teacher)), characters(student, student_form), characters(teacher, teacher_form))


def pairs_of(al):
    "Places (i, j) of the tokens of the chunks."
    return [(i, j) for s0, s1, t0, t1 in al.chunks.tolist() for i, j in zip(range(s0, s1), range(t0, t1))]


def check_ledger(al):
    "Equal bytes in every chunk, and a chunk or a reason for every token."
    for s0, s1, t0, t1 in al.chunks.tolist():
        assert al.text[al.student_starts[s0]:al.student_starts[s1]] == al.teacher_text[al.teacher_starts[t0]:al.teacher_starts[t1]]
    for chunk, reason in ((al.student_chunk, al.student_reason), (al.teacher_chunk, al.teacher_reason)): assert ((chunk >= 0) == (reason == 0)).all()


# ---------------------------------------------------------------- B22

def test_the_letters_of_an_expansion_are_not_paired():
    "NFKC writes U+2116 as `No`: the student's `NoNo` is the teacher's second and third `No`."
    student, teacher = "№NoNo x", "NoNoNo x"
    assert equal_stretches(student.encode(), teacher.encode()).stretches == [(3, 2, 6)]
    al = of_characters(student, teacher)
    assert pairs_of(al) == [(i, i + 1) for i in range(1, 7)]
    assert al.reason(0) == al.reason(0, "teacher") == al.reason(1, "teacher") == Reason.TEXT_DIFFERS
    assert equal_stretches(teacher.encode(), student.encode()).stretches == [(2, 3, 6)]


@pytest.mark.parametrize("student, teacher, kept", [
    ("½1⁄2 a", "1⁄21⁄2 a", "1⁄2 a"), ("℃°C a", "°C°C a", "°C a"), ("ﬁfi a", "fifi a", "fi a"), ("…... a", "...... a", "... a"), ("ＡA a", "AA a", "A a"), ("²2 a", "22 a", "2 a")])
def test_expansions_by_name(student, teacher, kept):
    for a, b in ((student, teacher), (teacher, student)):
        found = equal_stretches(a.encode(), b.encode()).stretches
        assert [a.encode()[x:x + n].decode() for x, _, n in found] == [kept] and found[0][0] == len(a.encode()) - len(kept.encode())
        assert found[0][1] == len(b.encode()) - len(kept.encode())


def test_a_place_that_cannot_be_known_is_masked_and_known_with_the_normaliser():
    al = of_characters("x ab ab y", "x ab y")
    assert pairs_of(al) == [(0, 0)] and set(al.student_reason[1:].tolist()) == {Reason.TEXT_DIFFERS}
    al = of_characters("x ab ab y", "x ab y", teacher_form=lambda text: text.replace("x ab", "x"))
    assert pairs_of(al) == [(i, i - 3) for i in range(4, 9)]         # `x ab` was replaced as a whole, `x` with it


# ---------------------------------------------------------------- brute force

def right(form, student, teacher, i, j): return form(student[:i]) == teacher[:j]


def is_cut(form, student, teacher, i, j):
    "Is the place right, and does the form treat what stands behind it as a text of its own?"
    return right(form, student, teacher, i, j) and form(student[i:]) == teacher[j:]


def all_pairings(student, teacher, form, i=0, j=0):
    "Every monotone pairing of equal characters that begin and end at right places."
    yield ()
    for x, y in itertools.product(range(i, len(student)), range(j, len(teacher))):
        if student[x] != teacher[y] or not right(form, student, teacher, x, y) or not right(form, student, teacher, x + 1, y + 1): continue
        for rest in all_pairings(student, teacher, form, x + 1, y + 1): yield ((x, y), *rest)


def brute_force(form, texts, known, whole):
    "Compare with all pairings on both sides; how many texts were compared and how many of them the form changes."
    compared = changed = 0
    for student in texts:
        teacher = form(student)
        if teacher == student: continue
        pairings = set(all_pairings(student, teacher, form))
        al = of_characters(student, teacher, teacher_form=form if known else None)
        other = of_characters(teacher, student, student_form=form if known else None)
        check_ledger(al)
        assert (al.swap().chunks == other.chunks).all()
        found = tuple(pairs_of(al))
        assert found in pairings, (student, teacher, found)
        longest = max((p for p in pairings if all(is_cut(form, student, teacher, i, j) and is_cut(form, student, teacher, i + 1, j + 1) for i, j in p)), key=len)
        if whole: assert len(found) >= len(longest), (student, teacher, found, longest)
        compared += 1
        changed += len(found) > 0
    return compared, changed


SHORT = ["".join(c) for size in (1, 2, 3) for c in itertools.product("aNo№ﬁé\u0301e\u0327 1½2Å\u1100\u1161가…", repeat=size)]


def some_texts(seed):
    "Of all short texts some, and some a little longer."
    rng = random.Random(seed)
    return rng.sample(SHORT, 700) + ["".join(rng.choices(letters, k=6)) for letters in ("aNo№ﬁe\u0301\u0327 1½…", "No ") for _ in range(60)]


@pytest.mark.parametrize("name", FORMS)
def test_brute_force_over_all_pairings(name):
    "With the normaliser known, on either side: at the right places, and as long as any pairing of parts that are not replaced as a whole."
    compared, some = brute_force(FORMS[name], some_texts(name), True, True)
    assert compared > 30 and some > 20, (compared, some)


@pytest.mark.parametrize("name", ["NFC", "NFD", "NFKC", "NFKD", "lower", "casefold", "NFKC, casefold"])
def test_brute_force_without_a_known_normaliser(name):
    "The fold is enough for these; it may mask more, where changes of case and reordered marks meet."
    compared, some = brute_force(FORMS[name], some_texts(name), False, name in UNICODE)
    assert compared > 30 and some > 20, (compared, some)


# ---------------------------------------------------------------- tokenizers

def byte_level(normalizer=None, words=("No", "1⁄2", "fi", "the", " a", "..", "صل")):
    "Byte-level BPE with a few words."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = {}
    for word in words:
        letters = spell.pre_tokenize_str(word)[0][0]
        merges |= {letters[:k] + letters[k]: (letters[:k], letters[k]) for k in range(1, len(letters))}
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate([*alphabet, *merges])}, list(merges.values())))
    tok.pre_tokenizer, tok.decoder = spell, decoders.ByteLevel()
    if normalizer: tok.normalizer = normalizer
    tok.add_special_tokens([AddedToken("<eos>", special=True, normalized=False)])
    return tok


def metaspace(normalizer=None, words=("▁a", "No", "fi", "th")):
    "SentencePiece-like BPE: spaces are written as U+2581, unknown characters as bytes."
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzNA.12⁄"]
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *words]
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(pieces)}, [(w[0], w[1]) for w in words], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    if normalizer: tok.normalizer = normalizer
    return tok


KINDS = {"none": lambda: None, "NFC": normalizers.NFC, "NFD": normalizers.NFD, "NFKC": normalizers.NFKC, "NFKD": normalizers.NFKD, "lower": normalizers.Lowercase,
         "strip": normalizers.Strip, "accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
         "longer": lambda: normalizers.Replace("o", "Noo"), "shorter": lambda: normalizers.Replace("No", "N"), "drop": lambda: normalizers.Replace("N", ""),
         "spaces": lambda: normalizers.Replace(Regex(" +"), " "), "NFKC, lower": lambda: normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])}


@lru_cache(None)
def side(kind, spaced=False): return ByteVocab((metaspace if spaced else byte_level)(KINDS[kind]()), name=f"{kind} {spaced}")


def whole_characters(before, other):
    "Both texts before a place, without the bytes of a character that the place is inside of; those must be equal."
    for cut in range(4):
        tail = before[len(before) - cut:]
        try: return before[:len(before) - cut].decode(), other[:len(other) - cut].decode() if other.endswith(tail) else None
        except UnicodeDecodeError: pass
    return None, None


def reads(vocab, before, other):
    """Does a vocabulary read the text before a place as the other text? One that strips strips nothing off its end,
    because the text goes on there: the letter x stands for what follows."""
    return vocab.normalized(before) == other or vocab.name.startswith("strip") and vocab.normalized(before + "x") == other + "x"


def wrong_places(al, raw):
    """How many chunks stand at a wrong place, and how many there are. Right: one side reads the other's text before
    the chunk as its own; or both read one beginning of the raw text so."""
    wrong = 0
    for s0, _, t0, _ in al.chunks.tolist():
        own, other = whole_characters(al.text[:al.student_starts[s0]], al.teacher_text[:al.teacher_starts[t0]])
        good = own is not None and other is not None
        good = good and (reads(al.teacher, own, other) or reads(al.student, other, own) or al.same_text
                         or any(reads(al.student, raw[:k], own) and reads(al.teacher, raw[:k], other) for k in range(len(raw) + 1)))
        wrong += not good
    return wrong, len(al.chunks)


LONGER = [c for c in map(chr, range(0xA0, 0x30000)) if len(unicodedata.normalize("NFKC", c)) > 1 and unicodedata.category(c)[0] != "C"]
DENSE = ["№", "½", "…", "ﬁ", "℃", "ﷺ", "Ａ", "ﬃ", "²", "é", "e\u0301", "\u0327", "No", "1⁄2", "fi", "...", "°C", "A", "صلى", " ", "o", "N"]


def dense_text(rng): return "".join(rng.choice(DENSE) if rng.random() < .8 else rng.choice(LONGER) for _ in range(rng.randint(3, 14)))


WORDS = "the teacher reads a text and writes numbers like 12 or 1⁄2 of No one, naïve café, find fish … in 3 °C".split(" ")


def ordinary_text(rng):
    words = rng.choices(WORDS, k=rng.randint(4, 12))
    for _ in range(rng.randint(0, 3)): words.insert(rng.randrange(len(words)), rng.choice(["№", "½", "ﬁsh", "℃", "Ａ1", "oﬃce", rng.choice(LONGER)]))
    return " ".join(words)


def measure(make, count, seed, kinds=None):
    "Align `count` texts over random pairs of tokenizers, in both directions; {what: how many}."
    rng, sums = random.Random(seed), {"alignments": 0, "of changed texts": 0, "chunks": 0, "wrong places": 0, "student bytes": 0, "in chunks": 0}
    for _ in range(count):
        text = make(rng)
        a, b = (side(rng.choice(kinds or sorted(KINDS)), rng.random() < .2) for _ in range(2))
        own = a.encode(text)
        other = b.encode(rng.choice([text, a.decode(own).decode("utf-8", "replace")]))       # the raw text, or what the student wrote
        al = align(own, other, a, b)
        if rng.random() < .5: al = align(other, own, b, a)
        check_ledger(al)
        wrong, chunks = wrong_places(al, text)
        sizes = np.diff(al.student_starts)
        for name, value in zip(sums, (1, not al.same_text, chunks, wrong, sizes.sum(), sizes[al.student_chunk >= 0].sum())): sums[name] += int(value)
    return sums


NFKC_KINDS = ["NFKC", "NFKD", "NFKC, lower", "none"]


def test_a_space_that_a_tokenizer_puts_in_front():
    "Its own encoding begins with a space that nobody wrote; only that space is masked. With NFKC on the other side too."
    spaced, other = side("none", True), side("NFKC")
    for text in ("a fish No 1", "two", "№No fi"):
        ids = spaced.tokenizer.encode(text, add_special_tokens=False).ids
        assert spaced.decode(ids) == b" " + text.encode()
        al = align(ids, other.encode(text), spaced, other)
        check_ledger(al)
        starts = [(int(al.student_starts[s0]), int(al.teacher_starts[t0])) for s0, _, t0, _ in al.chunks.tolist()]
        assert starts and all(other.normalized(al.text[1:x].decode()) == al.teacher_text[:y].decode() for x, y in starts)


def test_a_long_run_of_spaces_in_a_stripped_text():
    "Nothing can be cut inside the run, in the middle of the text; the words on both sides of it are paired."
    student, teacher = "  ab" + " " * 500 + "cd", "ab" + " " * 500 + "cd"
    al = of_characters(student, teacher, teacher_form=str.strip)
    assert pairs_of(al) == [(i, i - 2) for i in range(2, len(student))]


def test_a_batch_is_a_loop_of_singles():
    rng = random.Random(5)
    a, b = side("NFC"), side("NFKC, lower")
    texts = [rng.choice([dense_text, ordinary_text])(rng) for _ in range(100)]
    rows = [a.encode(text) for text in texts], [b.encode(text) for text in texts]
    batch = align_batch(*rows, a, b)
    for k, al in enumerate(batch):
        one = align(rows[0][k], rows[1][k], a, b)
        assert np.array_equal(al.chunks, one.chunks) and np.array_equal(al.student_reason, one.student_reason)


def test_a_text_that_was_cut_off_keeps_its_places():
    "After any number of the teacher's bytes, also inside a character: the rest is beyond the end, what is before it stays in place."
    student, vocab = side("none"), side("NFKC")
    text = "№No ½1⁄2 éfi ﬁ 中"
    own, other = student.encode(text), vocab.encode(text)
    whole = align(own, other, student, vocab)
    for length in range(len(other)):
        al = align(own, other[:length], student, vocab)
        check_ledger(al)
        assert wrong_places(al, text)[0] == 0
        kept = {tuple(c) for c in whole.chunks.tolist() if c[3] <= length and vocab.decode(other[:c[3]]).decode("utf-8", "ignore").encode() == vocab.decode(other[:c[3]])}
        assert {tuple(c) for c in al.chunks.tolist()} >= kept and al.student_reason[-1] == Reason.TEXT_ENDED


@pytest.mark.parametrize("make, count, kinds", [(dense_text, 700, None), (dense_text, 900, NFKC_KINDS), (ordinary_text, 500, None), (ordinary_text, 300, NFKC_KINDS)])
def test_no_chunk_stands_at_a_wrong_place(make, count, kinds):
    sums = measure(make, count, 0, kinds)
    assert sums["wrong places"] == 0 and sums["of changed texts"] > count / 3 and sums["in chunks"] > .15 * sums["student bytes"], sums


@pytest.mark.slow
@pytest.mark.parametrize("make, count", [(dense_text, 24_000), (ordinary_text, 6_000)])
def test_no_chunk_stands_at_a_wrong_place_in_many_texts(make, count):
    sums = measure(make, count, 1)
    print(make.__name__, sums)
    assert sums["wrong places"] == 0 and sums["of changed texts"] > count / 3, sums
