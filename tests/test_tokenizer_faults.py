"""Faults of tokenizers and templates that public reports describe, each with the right value. The tokenizers are trained here, on a few sentences."""
import copy, json, math, pickle

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xtokd.alignment.pair import Pair
from xtokd.cli.commands import main
from xtokd.data.chat import raw_prompt_ids, render_prompt
from xtokd.data.prompts import load_prompts
from xtokd.experiments.tokenizer_transfer import Ensemble, with_tokenizer
from xtokd.hub import ModelNotFound
from xtokd.models.forward import response_logits, retokenize
from xtokd.models.loading import load_tokenizer, remote_code
from xtokd.models.sampling import banned_ids, generate_responses, sampling_config
from xtokd.models.side import Side, check_fit, load_side
from xtokd.objectives import OBJECTIVES, objective
from xtokd.objectives.chunks import token_logps_merged_stops
from xtokd.rows.dense import LogitRows
from xtokd.rows.pair_batch import HiddenStates, PairBatch
from xtokd.rows.random_batches import random_heads, random_samples
from xtokd.serving.client import RemoteTeacher, _generated_ids
from xtokd.serving.http import RemoteError, match_entries
from xtokd.serving.server import Handler, Server
from xtokd.train.config import DistillConfig
from xtokd.train.samples import apply_windows, generate_samples
from xtokd.train.step import generation_counts
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


# ---- control ids beyond the model's rows --------------------------------------------------------------------------------------
IMAGE = "<image_soft_token>"


def with_image_token(**kwargs):
    "A tokenizer whose last id is a control token that no text holds, as Gemma 3 has."
    hf = bpe(**kwargs)
    hf.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return hf


def narrow_pair():
    "A pair whose two vocabularies have one control id more than their models have rows."
    return Pair(ByteVocab(with_image_token(), stops=[1]), ByteVocab(with_image_token(size=300), stops=[1]))


def test_control_ids_beyond_the_rows_are_accepted_everywhere(tmp_path):
    "n + 1 ids, the last one a control token, and n rows: doctor, Side, generate, serve and transfer agree."
    hf = with_image_token(chat_template=PLAIN)
    vocab = ByteVocab(hf)
    model = little(len(vocab) - 1)
    assert check_fit(Side("student", model, vocab)).vocab is vocab
    assert load_side((model, hf), "student").vocab == vocab
    model.save_pretrained(tmp_path), hf.save_pretrained(tmp_path)
    report = Pair(str(tmp_path), str(tmp_path)).doctor()
    assert report.heads["student"]["response_ids_beyond_head"] == 0 and report.heads["student"]["head"] == len(vocab) - 1 and not any("its head" in finding.what for finding in report.findings)
    prompt = render_prompt(vocab, "Hi there!")
    response = generate_responses(model, vocab, [prompt], 8, seed=0)[0]
    assert len(response) and max(response) < len(vocab) - 1
    with Server(model, hf, "little") as server: assert RemoteTeacher(server.url, hf).generate([prompt], 4, seed=0)[0]
    made, report = with_tokenizer(model, hf, hf)
    assert made.get_input_embeddings().weight.shape[0] == len(vocab) and report["fallback"] == 1
    assert torch.equal(made.get_input_embeddings().weight[:-1], model.get_input_embeddings().weight)
    made, report = with_tokenizer(model, hf, with_image_token(size=300))
    assert report["fallback"] == 1 and made.get_input_embeddings().weight.isfinite().all()
    both = Ensemble([model, little(len(vocab) + 7)], hf)
    assert both.rows([prompt], [response])[0].shape == (len(response), len(vocab) - 1) and max(generate_responses(both, vocab, [prompt], 8, seed=0)[0]) < len(vocab) - 1


@pytest.mark.parametrize("special", [False, True])
def test_text_and_stop_ids_beyond_the_rows_are_refused_everywhere(tmp_path, special):
    "Such a tokenizer belongs to another model; doctor, Side, serve and transfer agree."
    hf = bpe()
    hf.add_tokens([AddedToken("<end>", special=special, normalized=False)], special_tokens=special)
    hf.eos_token = "<end>"
    model, n = little(len(hf) - 1), len(hf) - 1
    for refused in (lambda: check_fit(Side("student", model, ByteVocab(hf))), lambda: Server(model, hf), lambda: with_tokenizer(model, hf, bpe())):
        with pytest.raises(ValueError, match=f"the model has {n} embedding rows.*text or stop ids up to {n}: they do not belong together"): refused()
    with pytest.raises(ValueError, match=f"text or stop ids up to {n}"): Ensemble([model], hf)
    model.save_pretrained(tmp_path), hf.save_pretrained(tmp_path)
    assert Pair(str(tmp_path), bpe()).doctor().verdict == "unfit"


def test_control_ids_beyond_the_rows_are_refused_in_prompts():
    "A template that writes such a token: in generation, in scoring and by the server, with the id."
    hf = with_image_token(chat_template=IMAGE + PLAIN)
    vocab = ByteVocab(hf)
    model, prompt = little(len(vocab) - 1), render_prompt(ByteVocab(hf), "Hi")
    assert prompt[0] == len(vocab) - 1
    with pytest.raises(ValueError, match=f"prompt 0 has id {len(vocab) - 1}, and the model has {len(vocab) - 1} embedding rows"): generate_responses(model, vocab, [prompt], 4)
    with pytest.raises(ValueError, match=f"sample 0 has id {len(vocab) - 1}, and the model has"): response_logits(model, [prompt], [vocab.encode("Hi")])
    with Server(model, hf, "little") as server, pytest.raises(RemoteError, match=f"ids must be from 0 to {len(vocab) - 2}"): RemoteTeacher(server.url, hf, retries=0).generate([prompt], 4)


def test_ids_that_the_embeddings_lack_are_not_generated():
    "A head that is wider than the embeddings: the model could not read such an id."
    vocab = ByteVocab(with_image_token())
    n, model = len(vocab), little(len(vocab))
    assert banned_ids(model, vocab) == []
    model.lm_head = torch.nn.Linear(16, n + 9, bias=False)
    model.model.embed_tokens = torch.nn.Embedding(n - 1, 16)
    assert banned_ids(model, vocab) == [*range(n - 1, n + 9)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_reads_rows_that_end_before_the_last_control_id(name):
    """The loss is that of rows in which the control id has probability 0.

    Not so where other numbers change with the width: the heads of the hidden states, and the share of columns in gold's weight."""
    pair, losses = narrow_pair(), []
    if OBJECTIVES[name].cls.equal_vocabularies: pair = Pair(pair.teacher, pair.teacher)
    for narrow in (False, True):
        samples = random_samples(pair, ("It is 4.", "Hi there!"))
        heads = random_heads(pair)
        for key in ("student_logits", "teacher_logits"):     # the last column has no probability
            rows = [x.detach() for x in samples[key]]
            for x in rows: x[:, -1] = -1e4
            samples[key] = [x[:, :-1].clone() if narrow else x for x in rows]
        for x in samples["student_logits"]: x.requires_grad_()
        states = samples.pop("student_hidden"), samples.pop("teacher_hidden")
        hidden = HiddenStates(*states, *(x[:-1] if narrow else x for x in heads))
        batch = PairBatch.from_logits(pair, **samples, hidden=hidden, preferences=[1, -1])
        torch.manual_seed(0)
        out = objective(name)(batch)
        out.loss_sum.backward()
        losses.append(float(out.loss_sum) / out.num_units)
        assert all(x.grad is None or x.grad.isfinite().all() for x in samples["student_logits"])
    assert all(map(math.isfinite, losses))
    if name != "gold" and "hidden" not in objective(name).requires: assert losses[1] == pytest.approx(losses[0], rel=1e-5)


# ---- missing entries of a served teacher ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("read", [[1, 2, 3, 4], None])
def test_missing_entries_of_a_served_teacher_are_an_error(read):
    "The server has read four tokens; entries for two are not a text of two tokens."
    with pytest.raises(RemoteError, match="has read 4 tokens and gives entries for 2"): match_entries([1, 2, 3, 4], [None, {2: -.1}], read)
    assert match_entries([1, 2, 3, 4], [None, {2: -.1}], [1, 2]) == [None, {2: -.1}]      # here the text is cut, and the server says so
    with pytest.raises(RemoteError, match="has read 3 tokens and gives entries for 2"): match_entries([1, 2, 3, 4], [None, {2: -.1}], [1, 2, 3])


@pytest.mark.parametrize("form", ["vllm", "echo"])
def test_a_server_that_leaves_entries_out_ends_the_scoring(form):
    "14 of 25 entries: nothing is scored, instead of 4 of 15 response tokens and the rest masked by length."
    class LeavesOut(Handler):
        def send(self, status, found, headers=()):
            for choice in found.get("choices", []):
                if choice["prompt_logprobs"]: choice["prompt_logprobs"] = choice["prompt_logprobs"][:14]
                elif choice["logprobs"]: choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:14]
            super().send(status, found, headers)
    vocab = ByteVocab(bpe())
    ids = vocab.encode(LONG)[:25]
    with Server(little(len(vocab)), vocab, "little", handler=LeavesOut) as server:
        teacher = RemoteTeacher(server.url, vocab, form=form, verify=False)
        with pytest.raises(RemoteError, match=f"{server.url}: the server has read 25 tokens and gives entries for 14"): teacher.score_responses([ids[:10]], [ids[10:]])


# ---- ids that are no tokens, from a generation engine -------------------------------------------------------------------------------
def test_a_response_of_an_engine_ends_before_an_id_that_is_no_token_and_is_counted():
    "A head of 151,936 columns over 151,669 ids can generate id 151,779; here 400 columns over fewer ids."
    class Generates(Handler):
        def send(self, status, found, headers=()):
            for choice in found.get("choices", []):
                if choice["prompt_token_ids"] != other: choice["token_ids"] = [*choice["token_ids"][:3], 399, 5]
            super().send(status, found, headers)
    hf = bpe(chat_template=PLAIN)
    vocab = ByteVocab(hf)
    items = [{"prompt": "Hi there!"}, {"prompt": "It is 4."}, {"prompt": "In the year"}]
    other = render_prompt(vocab, items[1])
    model = little(400)
    with Server(model, vocab, "little", handler=Generates) as server:
        teacher = RemoteTeacher(server.url, vocab, verify=False)
        found = teacher.generate([render_prompt(vocab, item) for item in items], 6, seed=0)
        assert teacher.cut_responses == [0, 2] and [len(x) for x in found] == [3, 6, 3] and max(map(max, found)) < len(vocab)
        side, config = Side("student", model, vocab, engine=teacher), DistillConfig(max_new_tokens=6)
        samples = generate_samples(items, side, side, config, seed=0)
        assert [s.cut for s in samples] == [True, False, True] and samples[0].student_ids == found[0]
        assert generation_counts(samples, Pair(vocab, vocab), "student")["cut"] == 2
        assert teacher.generate([other], 6) and teacher.cut_responses == []


def test_a_hole_of_the_vocabulary_is_no_token_for_an_engine():
    "In-process generation forbids the same ids."
    vocab = ByteVocab(bpe())
    vocab.lengths = vocab.lengths.copy()
    vocab.lengths[7] = 0
    assert banned_ids(little(len(vocab)), vocab) == [7]
    assert _generated_ids({"choices": [{"token_ids": [5, 6, 7, 8]}]}, "url", vocab) == ([5, 6], True)
    assert _generated_ids({"choices": [{"token_ids": [5, 6, 0, 1]}]}, "url", vocab) == ([5, 6, 0, 1], False)


# ---- tools, documents and template arguments of a prompt ------------------------------------------------------------------------------
TOOLS = [{"type": "function", "function": {"name": "read", "description": "d", "parameters": {}}}]
WITH_TOOLS = ("{% if tools %}TOOLS {{ tools[0].function.name }}: {{ tools | tojson }}\n{% endif %}{% for d in documents or [] %}DOC {{ d.text }}\n{% endfor %}{% if short %}Be short.{% endif %}"
              "{% for m in messages %}{% if m.tool_calls %}CALL {{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}{% endfor %}{{ 'A:' if add_generation_prompt }}")
CALL = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "read", "arguments": {}}}]}, {"role": "tool", "content": "4"}]


@pytest.mark.parametrize("as_json", [False, True])
def test_tools_of_a_prompt_reach_the_templates_of_both_sides(tmp_path, as_json):
    "{messages, tools} is the form of OpenAI and trl; data sets hold the tools as JSON too. The ids are those of apply_chat_template."
    more = dict(tools=TOOLS, documents=[dict(text="It is 4.")], chat_template_kwargs=dict(short=True))
    row = dict(messages=CALL) | {key: json.dumps(x) if as_json else x for key, x in more.items()}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    item = load_prompts(tmp_path / "a.jsonl")[0]
    student, teacher = ByteVocab(bpe(chat_template=WITH_TOOLS)), ByteVocab(bpe(size=300, chat_template="Sir. " + WITH_TOOLS))
    for vocab in (student, teacher):
        right = vocab.hf.apply_chat_template(CALL, tools=TOOLS, documents=more["documents"], short=True, add_generation_prompt=True, return_dict=False)
        assert render_prompt(vocab, item) == right and b"TOOLS read" in vocab.decode(right) and b"DOC It is 4." in vocab.decode(right) and b"Be short." in vocab.decode(right) and b"CALL read" in vocab.decode(right)
        assert len(render_prompt(vocab, dict(messages=CALL))) < len(right)
        assert b"Be short." not in vocab.decode(render_prompt(vocab, item, short=False))
    config, side = DistillConfig(max_new_tokens=2), Side("little", little(len(student)), student)
    sample = generate_samples([item], side, side, config, seed=0)[0]
    apply_windows([sample], student, student, teacher_context=lambda item, text: CALL)
    assert sample.teacher_prompt_ids == sample.student_prompt_ids == render_prompt(student, item)


def test_text_of_tools_that_looks_like_a_control_token_stays_text():
    vocab = ByteVocab(bpe(chat_template="{{ bos_token }}" + WITH_TOOLS))
    tools = [{"type": "function", "function": {"name": "read", "description": "ends at </s>", "parameters": {}}}]
    ids = render_prompt(vocab, dict(prompt="Hi", tools=tools))
    assert int(vocab.special[ids].sum()) == 1 and b"ends at </s>" in vocab.decode(ids)


def test_tools_that_no_template_reads_are_refused():
    "Without a template, or with one that does not name them, they would be lost on that side."
    for vocab in (ByteVocab(bpe()), ByteVocab(bpe(chat_template=PLAIN))):
        for item, name in ((dict(prompt="Hi", tools=TOOLS), "tools"), (dict(prompt="Hi", documents=[dict(text="a")]), "documents"), (dict(messages=CALL), "tool_calls")):
            with pytest.raises(ValueError, match=f"the prompt has {name}, and .* has no chat template that reads them"): render_prompt(vocab, item)
        assert render_prompt(vocab, dict(prompt="Hi", tools=[])) == render_prompt(vocab, "Hi")


@pytest.mark.parametrize("more, says", [
    (dict(functions=TOOLS), "nothing reads 'functions'.*rename it to \"tools\""), (dict(system="Be brief."), "nothing reads 'system'.*first message"), (dict(images=["a.png"]), "nothing reads 'images'"),
    (dict(tool_choice="auto"), "nothing reads 'tool_choice'"), (dict(enable_thinking=False), "nothing reads 'enable_thinking'.*chat_template_kwargs"),
    (dict(tools=["read"]), "'tools' is a list of objects"), (dict(tools="read"), "'tools' is a list of objects"), (dict(documents={}), "'documents' is a list"), (dict(chat_template_kwargs=[1]), "'chat_template_kwargs' is an object"),
    (dict(chat_template_kwargs=dict(student=dict(short=True))), "are those of both sides")])
def test_parts_of_a_request_that_nothing_reads_are_refused_with_the_row(tmp_path, more, says):
    "They would be left out in silence, and the models asked something else. What only a check needs stays."
    (tmp_path / "a.jsonl").write_text('{"prompt": "Hi", "answer": "4", "level": 3, "images": null}\n' + json.dumps(dict(prompt="Hi") | more))
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{says}"): load_prompts(tmp_path / "a.jsonl")
    assert load_prompts(tmp_path / "a.jsonl", limit=1)[0]["level"] == 3


def test_turns_with_calls_and_no_content_are_read_or_refused_with_the_right_cure():
    "An assistant's turn with tool_calls needs no content; other turns do; a template that needs it is named with the cure."
    assert load_prompts([dict(messages=CALL)])[0]["messages"] == CALL and load_prompts([dict(messages=[CALL[0], CALL[1] | dict(content=None), CALL[2]])])
    for message in (dict(role="user"), dict(role="user", content=None), dict(role="assistant", tool_calls=None), dict(role="assistant", tool_calls=[])):
        with pytest.raises(ValueError, match='item 1: every message is an object with "role" and "content".*"tool_calls" instead'): load_prompts([dict(messages=[message, CALL[0]])])
    with pytest.raises(ValueError, match='only the assistant has "tool_calls"'): load_prompts([dict(messages=[dict(role="user", tool_calls=CALL[1]["tool_calls"])])])
    strict = ByteVocab(bpe(chat_template="{% for m in messages %}{{ m.role + m.content }}{{ m.tool_calls }}{% endfor %}"))
    with pytest.raises(ValueError, match='Change the messages: give turns that have tool_calls and no content a "content": ""'): render_prompt(strict, CALL)


# ---- the end of a call is not the end of an answer --------------------------------------------------------------------------------------
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def test_the_end_of_a_call_is_not_merged_with_the_end_of_an_answer(tmp_path):
    "Llama 3.1 has three stop ids in generation_config.json; <|eom_id|> ends a call of a tool. Generation ends at all three."
    hf = bpe(special=LLAMA, chat_template=PLAIN)
    hf.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[1, 2, 3])))
    vocab = ByteVocab(tmp_path)
    for same in (vocab, ByteVocab(vocab), ByteVocab(hf, stops=[1, 2, 3]), pickle.loads(pickle.dumps(vocab))):
        assert (same.stop_ids, same.end_ids) == ((1, 3), (1, 2, 3)) and same.special[2]
    assert ByteVocab(hf, stops=[2]).stop_ids == (2,)                          # it is the only one
    assert sampling_config(vocab, 4).eos_token_id == [1, 2, 3]
    harmony = ByteVocab(bpe(special=("<|startoftext|>", "<|return|>", "<|call|>")), stops=[1, 2])
    assert (harmony.stop_ids, harmony.end_ids) == ((1,), (1, 2))


def test_the_other_side_does_not_read_the_end_of_a_call_as_the_end_of_an_answer():
    llama, other = ByteVocab(bpe(special=LLAMA), stops=[1, 2, 3]), ByteVocab(bpe(size=300), stops=[1])
    text, there = llama.encode("It is 4."), other.encode("It is 4.")
    assert retokenize(llama, other, [[*text, 2], [*text, 3]]) == [there, [*there, 1]]
    assert retokenize(llama, llama, [[*text, 2]]) == [[*text, 2]]
    pair = Pair(llama, other)
    assert pair.overlap.student_stop_ids.tolist() == [1, 3]
    rows = LogitRows([torch.log_softmax(torch.randn(len(text) + 1, len(llama), generator=torch.Generator().manual_seed(0)), -1)], [[*text, 3]], llama)
    logp = rows.logp()[-1]
    assert float(token_logps_merged_stops(rows, llama.stop_ids)[-1]) == pytest.approx(float(torch.logaddexp(logp[1], logp[3])), rel=1e-5)


def test_generation_ends_at_the_end_of_a_call():
    vocab = ByteVocab(bpe(special=LLAMA), stops=[1, 2, 3])
    model = little(len(vocab))
    with torch.no_grad(): model.lm_head.weight.zero_()
    class Call(torch.nn.Module):
        weight = model.lm_head.weight
        def forward(self, x): return torch.nn.functional.one_hot(torch.full(x.shape[:2], 2), len(vocab)).float() * 50
    model.lm_head = Call()
    assert generate_responses(model, vocab, [vocab.encode("Hi")], 6, seed=0) == [[2]]


# ---- tokenizers that bring code -----------------------------------------------------------------------------------------------------
def test_trusted_code_of_a_tokenizer_is_run_wherever_tokenizers_are_read(tmp_path, monkeypatch):
    "The tokenizer that is judged is the one that is trained: stop ids (1,), not () of the bare tokenizer.json; without the flag one refusal, and no question on the terminal."
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    bpe().backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "mine.py").write_text("from transformers import PreTrainedTokenizerFast\nclass Mine(PreTrainedTokenizerFast): pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="Mine", auto_map=dict(AutoTokenizer=[None, "mine.Mine"]), eos_token="</s>")))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    for read in (lambda: ByteVocab(folder), lambda: Pair(folder, folder), lambda: load_tokenizer(folder)):
        with pytest.raises(ModelNotFound, match="the tokenizer in .* comes with code of its own, which is not run .* --trust-remote-code"): read()
    assert main(["doctor", str(folder), str(folder)]) == 1
    with remote_code():
        assert ByteVocab(folder).stop_ids == Pair(folder, folder).student.stop_ids == ByteVocab(load_tokenizer(folder)).stop_ids == (1,)
        assert type(ByteVocab(folder).hf).__name__ == "Mine"
    assert main(["align", str(folder), str(folder), "Hi there!", "--trust-remote-code"]) == 0
