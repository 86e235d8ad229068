"""Faults of tokenizers and templates that public reports describe, each with the right value. The tokenizers are trained here, on a few sentences."""
import copy, json

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xtokd.data.chat import plain_prompt, prefix_ids, raw_prompt_ids, render_prompt, render_response
from xtokd.data.prompts import load_prompts
from xtokd.serving.client import RemoteTeacher
from xtokd.serving.http import RemoteError
from xtokd.serving.server import Server
from xtokd.vocab.bytevocab import ByteVocab

TEXT = ["In the year 2023 and 2024 we counted 12345 birds; analysis final assistant. It is 4. Hi there!"] * 4
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'A:' if add_generation_prompt }}"
LONG = "It is 4. " * 40


def bpe(special=("<s>", "</s>"), size=330, **kwargs):
    "A byte-level tokenizer of transformers, trained on TEXT; the first special tokens are bos and eos."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(special), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[1], clean_up_tokenization_spaces=False, **kwargs)


def little(rows):
    "A Llama with `rows` embedding rows and random weights."
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(config).eval()


# ---- state of a caller's tokenizer ----------------------------------------------------------------------------------------
def truncated(hf): hf([LONG], truncation=True, max_length=8)
def padded(hf): hf(["Hi", LONG], padding="max_length", max_length=32)
def specials_as_text(hf): hf.backend_tokenizer.encode_special_tokens = True


@pytest.mark.parametrize("text, n", [("It is 4.", 7), (LONG, 164)])
@pytest.mark.parametrize("use", [truncated, padded, specials_as_text])
@pytest.mark.parametrize("before", [True, False])
def test_state_of_a_callers_tokenizer_does_not_reach_prompts(use, text, n, before):
    "A data pipeline truncates or pads with the tokenizer, before or after its ByteVocab is made; the ids are those of apply_chat_template."
    hf = bpe(chat_template="{{ bos_token }}" + PLAIN)
    right = hf.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)
    assert len(right) == n
    if before: use(hf)
    vocab = ByteVocab(hf)
    if not before: use(hf)
    assert render_prompt(vocab, text) == right
    assert raw_prompt_ids(vocab, text) == vocab.encode(text)
    assert vocab.tokenizer.truncation is None and vocab.tokenizer.padding is None
    assert vocab == ByteVocab(bpe()) and vocab.fingerprint == ByteVocab(bpe()).fingerprint


@pytest.mark.parametrize("state", [dict(truncation=dict(direction="Right", max_length=8, strategy="LongestFirst", stride=0)),
                                   dict(padding=dict(strategy=dict(Fixed=32), direction="Left", pad_to_multiple_of=None, pad_id=1, pad_type_id=0, pad_token="</s>"))])
def test_truncation_and_padding_of_a_folder_do_not_reach_prompts(tmp_path, state):
    "Some published folders carry them in tokenizer.json."
    hf = bpe(chat_template=PLAIN)
    hf.save_pretrained(tmp_path)
    right = [render_prompt(ByteVocab(tmp_path), text) for text in ("Hi there!", LONG)]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | state))
    for source in (tmp_path, AutoTokenizer.from_pretrained(tmp_path)): assert [render_prompt(ByteVocab(source), text) for text in ("Hi there!", LONG)] == right
    for source in (file, Tokenizer.from_file(str(file))): assert [raw_prompt_ids(ByteVocab(source), text) for text in ("Hi there!", LONG)] == [ByteVocab(hf).encode(text) for text in ("Hi there!", LONG)]


def test_the_callers_tokenizer_keeps_its_state():
    "What is read for this package changes nothing for the caller."
    hf = bpe(chat_template=PLAIN)
    truncated(hf)
    state = copy.deepcopy(hf.backend_tokenizer.truncation)
    render_prompt(ByteVocab(hf), LONG)
    assert hf.backend_tokenizer.truncation == state and state["max_length"] == 8


def test_the_server_and_its_client_compare_whole_texts():
    "Truncation of either side's tokenizer: /tokenize and the client's check see the whole text."
    here, there = bpe(), bpe()
    truncated(here), truncated(there)
    with Server(little(len(here)), there, "little") as server:
        teacher = RemoteTeacher(server.url, here)
        assert teacher.api.tokenize(LONG) == teacher.vocab.encode(LONG)


# ---- lone surrogates --------------------------------------------------------------------------------------------------------
CUT = "caf\ud83d now"


@pytest.mark.parametrize("row", [dict(prompt=CUT), dict(prompt=[dict(role="user", content=CUT)]), dict(messages=[dict(role="user", content=[dict(type="text", text=CUT)])]), dict(prompt="Hi", reference=CUT),
                                 dict(prompt="Hi", tools=[dict(type="function", function=dict(name="read", parameters=dict(properties={CUT: {}})))])])
def test_a_lone_surrogate_is_refused_when_prompts_are_loaded(tmp_path, row):
    "It is no character, so no tokenizer can read it: file, line and place are named."
    (tmp_path / "a.jsonl").write_text('{"prompt": "caf\\ud83d\\ude00"}\n' + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: the character after 'caf' is a lone surrogate \(U\+D83D\)"): load_prompts(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="a.json, item 1: the character"): load_prompts(tmp_path / "a.json")
    with pytest.raises(ValueError, match="item 2: the character"): load_prompts(["Hi", row])
    assert load_prompts(tmp_path / "a.jsonl", limit=1) == [{"prompt": "caf\U0001f600"}]


def test_a_lone_surrogate_is_refused_where_a_text_becomes_ids():
    "Messages made by a function, a prompt of the command line, and requests to the server: no traceback."
    chat, base = ByteVocab(bpe(chat_template=PLAIN)), ByteVocab(bpe())
    for vocab in (chat, base):
        for item in (CUT, [dict(role="user", content=CUT)]):
            with pytest.raises(ValueError, match="lone surrogate"): render_prompt(vocab, item)
    with pytest.raises(ValueError, match="lone surrogate"): raw_prompt_ids(base, CUT)
    with Server(little(len(base)), base, "little") as server:
        http = RemoteTeacher(server.url, base).api.http
        for path in ("/tokenize", "/v1/completions"):
            with pytest.raises(RemoteError, match="status 400.*lone surrogate"): http.request(path, dict(prompt=CUT))
