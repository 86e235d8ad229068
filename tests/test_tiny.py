"The tiny task, the two tokenizers and the two models in data/tiny."
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from xtokd.data.tasks.number_words import (
    _FORMS, check_number, make_number_item, number_items, split_of_number, to_words,
)
from xtokd.experiments.tiny_pair import TINY_TASKS, build_tokenizers, encode_prompts, encode_references
from xtokd.train.runlog import wilson

TINY = Path(__file__).parent.parent / "data" / "tiny"
ROLES = ("student", "teacher")


def lines(name): return [json.loads(line) for line in (TINY / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def toks():
    from transformers import AutoTokenizer
    return {role: AutoTokenizer.from_pretrained(TINY / role) for role in ROLES}


@pytest.fixture(scope="module")
def models():
    from transformers import AutoModelForCausalLM
    return {role: AutoModelForCausalLM.from_pretrained(TINY / role).eval() for role in ROLES}


def widths(tok, ids):
    "Bytes of each token: one byte-level character is one byte."
    return [0 if i in tok.all_special_ids else len(tok.convert_ids_to_tokens(i)) for i in ids]


def cuts(tok, ids):
    ends, at = [], 0
    for w in widths(tok, ids):
        at += w
        ends.append(at)
    return ends


def kinds(a, b):
    "Chunk kinds between the common byte cuts of two lists of token ends (stop tokens left out)."
    common, found, last = sorted(set(a) & set(b)), [], 0
    for end in common:
        n, m = (sum(last < e <= end for e in ends) for ends in (a, b))
        found.append("1-1" if n == m == 1 else "1-n" if n == 1 else "n-1" if m == 1 else "n-m")
        last = end
    return found


# ---- the task -------------------------------------------------------------------------------------------------------

def read_words(text):
    "The number that English words say: the inverse of to_words, written another way."
    from xtokd.data.tasks.number_words import _ONES, _TENS
    total = group = 0
    for word in text.replace("-", " ").split():
        if word == "thousand": total, group = total + group * 1000, 0
        elif word == "hundred": group *= 100
        else: group += _ONES.index(word) if word in _ONES else 10 * _TENS.index(word)
    return total + group


@given(st.integers(0, 999_999))
def test_words_can_be_read_back(n): assert read_words(to_words(n)) == n


@pytest.mark.parametrize("n", [-1, 1_000_000])
def test_numbers_outside_the_task_are_refused(n):
    with pytest.raises(ValueError, match="outside 0..999999"): to_words(n)


@given(st.integers(0, 2 ** 32), st.sampled_from(["train", "heldout"]))
def test_items_are_consistent(seed, split):
    item = make_number_item(random.Random(seed), split)
    assert split_of_number(int(item["answer"])) == split
    assert 1 <= len(item["answer"]) <= 6 and str(int(item["answer"])) == item["answer"]
    assert to_words(int(item["answer"])) in item["prompt"]
    assert check_number(item, item["reference"]) == 1.0


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train' or 'heldout'"): make_number_item(random.Random(0), "test")


def test_items_are_reproducible_and_distinct():
    assert number_items(50, 3) == number_items(50, 3) != number_items(50, 4)
    assert len({i["prompt"] for i in number_items(500, 3)}) == 500


def test_all_forms_and_lengths_occur():
    got = number_items(600, 5)
    assert {len(i["answer"]) for i in got} == set(range(1, 7))
    endings = [say.format(digits="").split()[0] for _, say in _FORMS]
    assert all(any(e in i["reference"] for i in got) for e in endings)


@given(st.integers(0, 999_999), st.integers(0, 999_999))
def test_check_asks_for_exactly_the_answer(n, m):
    item = {"answer": str(n)}
    assert check_number(item, f"The number is {m}.") == float(n == m)
    assert check_number(item, f"{m}, no: {n} altogether.") == 1.0


@settings(max_examples=50)
@given(st.text())
def test_check_takes_any_text(text): assert check_number({"answer": "12"}, text) in (0.0, 1.0)


def test_check_sees_shortened_and_lengthened_numbers():
    item = {"answer": "9632"}
    assert [check_number(item, t) for t in ("963", "96322", "09632", "9,632", "-", "", "9632\n", "= 9632!")] == [0, 0, 0, 0, 0, 0, 1, 1]


# ---- the files ------------------------------------------------------------------------------------------------------

def test_files_hold_what_the_generators_make():
    assert lines("train.jsonl") == number_items(4096, 0) and lines("heldout.jsonl") == number_items(512, 1, "heldout")


def test_heldout_numbers_are_in_no_training_item():
    assert not {i["answer"] for i in lines("train.jsonl")} & {i["answer"] for i in lines("heldout.jsonl")}


def test_pair_is_small():
    size = lambda files: sum(p.stat().st_size for p in files if p.is_file())
    assert size(p for p in TINY.rglob("*") if "weak" not in p.parts) < 6e6 and size((TINY / "weak").iterdir()) < 4e6


def test_import_is_light():
    code = "import sys, xtokd.data.tasks.number_words; assert not {'torch', 'transformers', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TINY.parent.parent)


# ---- the tokenizers -------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_any_text_can_be_written(toks, text):
    for tok in toks.values():
        ids = tok.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if not any(s in text for s in tok.all_special_tokens): assert tok.backend_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_folders_hold_what_the_code_builds(toks):
    for role, built in zip(ROLES, build_tokenizers(0)):
        assert json.loads(built.backend_tokenizer.to_str()) == json.loads(toks[role].backend_tokenizer.to_str()), role
        assert built.chat_template == toks[role].chat_template


def test_digits_are_cut_in_threes_and_in_ones(toks):
    cut = {role: lambda t, tok=tok: tok.tokenize(t) for role, tok in toks.items()}
    assert cut["teacher"]("9632") == ["963", "2"] and cut["student"]("9632") == list("9632")
    for text in (f"{n:0{k}}" for k in (1, 2, 3) for n in range(10 ** k)):
        assert cut["teacher"](text) == [text]
    assert all(len(t) == 1 for t in toks["student"].get_vocab() if t.isdigit())


def test_specials_differ_and_do_not_come_in_unasked(toks):
    s, t = toks["student"], toks["teacher"]
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(s, name) != getattr(t, name) and getattr(s, name + "_id") != getattr(t, name + "_id")
        assert getattr(s, name) not in t.get_vocab() and getattr(t, name) not in s.get_vocab()
    assert s("nine")["input_ids"][0] == s.bos_token_id and t("nine")["input_ids"][0] != t.bos_token_id


def test_templates(toks):
    chat = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "six"}]
    render = lambda role: toks[role].apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert render("teacher") == "<|open|>Question:\ntwo\nAnswer:\n2<|done|>\nQuestion:\nsix\nAnswer:\n"
    assert render("student") == "<s><user>two<reply>2</reply><user>six<reply>"
    for tok in toks.values():
        whole = tok.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
        assert encode_prompts(tok, [{"prompt": "two"}])[0] == whole


def test_every_chunk_kind_occurs_in_real_responses(toks):
    count, rows = Counter(), lines("heldout.jsonl")
    for item, a, b in zip(rows, *(encode_references(toks[r], rows) for r in ROLES)):
        assert (a[-1], b[-1]) == (toks["student"].eos_token_id, toks["teacher"].eos_token_id)
        a, b = cuts(toks["student"], a[:-1]), cuts(toks["teacher"], b[:-1])
        assert a[-1] == b[-1] == len(item["reference"])
        count.update(kinds(a, b))
    assert set(count) == {"1-1", "1-n", "n-1", "n-m"}
    assert all(n >= 0.04 * sum(count.values()) for n in count.values()), count


def test_responses_are_short(toks):
    ids = encode_references(toks["student"], lines("heldout.jsonl"))
    assert max(map(len, ids)) <= 12 and sum(map(len, ids)) / len(ids) < 10


# ---- the models -----------------------------------------------------------------------------------------------------

def test_models_fit_their_tokenizers(models, toks):
    s, t = (models[r].config.vocab_size for r in ROLES)
    assert s == len(toks["student"]) and t > len(toks["teacher"]) and t % 64 == 0
    for role in ROLES:
        config = models[role].generation_config
        assert config.eos_token_id == toks[role].eos_token_id and config.pad_token_id == toks[role].pad_token_id
    assert models["teacher"].num_parameters() > models["student"].num_parameters()


def test_teacher_knows_the_task_and_student_a_third_of_it(models, toks):
    share = {role: TINY_TASKS["number_words"].heldout_accuracy(models[role], toks[role], n=300) for role in ROLES}
    assert share["teacher"]["sampled"] >= 0.95 and share["teacher"]["greedy"] >= 0.95
    assert 0.2 <= share["student"]["sampled"] <= 0.5


def test_student_writes_sentences_and_gets_digits_wrong(models, toks):
    from xtokd.experiments.tiny_pair import generate_answers
    rows = lines("heldout.jsonl")[:200]
    texts = generate_answers(models["student"], toks["student"], rows)
    frame = lambda text: "".join(c for c in text if not c.isdigit())
    assert sum(frame(t) == frame(i["reference"]) for t, i in zip(texts, rows)) / len(rows) > 0.9


def test_record_tells_of_this_pair(models):
    record = json.loads((TINY / "training.json").read_text())
    for role in ROLES:
        assert record[role]["parameters"] == models[role].num_parameters()
    assert record["teacher"]["heldout"]["sampled"] >= 0.95 and 0.2 <= record["student"]["heldout"]["sampled"] <= 0.5
    assert max(row["accuracy"] for row in record["continued"] if row["step"] <= 300) >= 0.9


def test_interval_covers_the_share():
    low, high = wilson(0.33, 200)
    assert 0.26 < low < 0.33 < high < 0.40 and wilson(1.0, 200)[1] == 1.0
