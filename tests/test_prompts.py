"Prompts: every format, and errors that name file, line, cause and cure."
import json

import pytest
from hypothesis import given, strategies as st

from xtokd.data.prompts import load_prompts


@given(st.lists(st.fixed_dictionaries({"prompt": st.text(min_size=1)}, optional={"answer": st.text(), "reference": st.text()}), min_size=1, max_size=5))
def test_json_lines_round_trip(tmp_path_factory, items):
    f = tmp_path_factory.mktemp("p")/"a.jsonl"
    f.write_text("\r\n".join(json.dumps(x) for x in items) + "\n\n", encoding="utf-8")
    assert load_prompts(f) == items
    (f := f.with_suffix(".json")).write_text(json.dumps(items), encoding="utf-8")
    assert load_prompts(str(f)) == items


def test_other_sources(tmp_path):
    (tmp_path/"a.txt").write_bytes("\ufeffone\r\n\r\n  two \u2028 still two\n".encode())
    assert load_prompts(tmp_path/"a.txt") == [{"prompt": "one"}, {"prompt": "  two \u2028 still two"}]
    chat = [{"role": "user", "content": "hi"}]
    assert load_prompts([{"prompt": chat}])[0]["messages"] == chat and load_prompts(["a", "b", "c"], limit=2) == [{"prompt": "a"}, {"prompt": "b"}]


def test_tiny():
    train, held = load_prompts("tiny"), load_prompts("tiny:heldout")
    assert len(train) > 100 and {"prompt", "answer"} <= set(train[0]) and not {x["prompt"] for x in train} & {x["prompt"] for x in held}
    assert load_prompts("tiny", 3) == train[:3]


@pytest.mark.parametrize("text, says", [
    ('{"prompt": "a"}\n{"prompt": ', "line 2: not JSON"), ('{"question": "a"}', "rename one of them"), ('["a"]', "line 1: an item is a JSON object"), ('{"prompt": ""}', "the prompt is empty"),
    ('{"messages": [{"content": "a"}]}', "every message is an object"), ('{"messages": [{"role": "assistant", "content": "a"}]}', "nothing is left to answer"), ("\n\n", "is empty")])
def test_broken_files(tmp_path, text, says):
    (tmp_path/"bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=says) as e: load_prompts(tmp_path/"bad.jsonl")
    assert "bad.jsonl" in str(e.value)


def test_unreadable(tmp_path):
    (tmp_path/"latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8 .byte 3."): load_prompts(tmp_path/"latin.txt")
    (tmp_path/"a.json").write_text('{"prompt": "a"}')
    with pytest.raises(ValueError, match="one list"): load_prompts(tmp_path/"a.json")
    for name in ("nowhere.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="no prompt file"): load_prompts(name)
