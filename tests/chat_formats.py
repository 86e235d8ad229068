"""Small tokenizers with chat templates of seven families, written for the tests: what such a template puts around a response.

`FORMATS` maps a family to a function that makes its ByteVocab. The tokenizers spell bytes (or, for the
SentencePiece families, characters behind a prefix space); the templates have the turns and the control
tokens of their family and nothing else."""
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xtokd.vocab.bytevocab import ByteVocab

WORDS = [("Ġ", "t"), ("h", "i"), ("Ġ", "a"), (".", "Ċ"), ("a", "n"), ("an", "s"), ("H", "i")]


def byte_level(control, added=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(a + b for a, b in WORDS)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(WORDS)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


def sentence_piece(control):
    "Characters and bytes behind a prefix space; ▁ is a blank."
    pieces = ["<unk>", *control, *(f"<0x{i:02X}>" for i in range(256)), *map(chr, range(33, 127)), "▁",
              "▁H", "▁Hi", "▁t", "th", "▁th", "▁the", "re", "▁there"]
    merges = [("▁", "H"), ("▁H", "i"), ("▁", "t"), ("t", "h"), ("▁t", "h"), ("▁th", "e"), ("r", "e"), ("▁the", "re")]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", *control)])
    return tokenizer


def side(name, tokenizer, template, eos):
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
    hf.chat_template = template
    return ByteVocab(hf, name=name)


LLAMA3 = ("{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
          "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
QWEN3 = ("{% for m in messages %}<|im_start|>{{ m.role }}\n"
         "{% if m.role == 'assistant' and loop.last %}<think>\n{{ (m.reasoning_content or '') | trim }}\n</think>\n\n{% endif %}"
         "{{ m.content }}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
GEMMA3 = ("{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
          "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")
MISTRAL = ("{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}")
HARMONY = ("{% for m in messages %}<|start|>{{ m.role }}"
           "{% if m.role == 'assistant' %}{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
           "<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
           "{% else %}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
           "{% if add_generation_prompt %}<|start|>assistant{% endif %}")
R1 = ("{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}")
PHI3 = ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}")
CONTROL_THINK = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

FORMATS = {
    "llama3": lambda: side("llama3", byte_level(["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]), LLAMA3, "<|eot_id|>"),
    "qwen3": lambda: side("qwen3", byte_level(["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]), QWEN3, "<|im_end|>"),
    "gemma3": lambda: side("gemma3", byte_level(["<start_of_turn>", "<end_of_turn>"]), GEMMA3, "<end_of_turn>"),
    "mistral": lambda: side("mistral", sentence_piece(["[INST]", "[/INST]", "</s>"]), MISTRAL, "</s>"),
    "harmony": lambda: side("harmony", byte_level(["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]), HARMONY, "<|return|>"),
    "r1": lambda: side("r1", byte_level(["<|User|>", "<|Assistant|>", "<|end|>"], ["<think>", "</think>"]), R1, "<|end|>"),
    "phi3": lambda: side("phi3", sentence_piece(["<|user|>", "<|assistant|>", "<|end|>"]), PHI3, "<|end|>"),
    "bracket": lambda: side("bracket", byte_level(["<|im_start|>", "<|im_end|>", "[THINK]", "[/THINK]"]), CONTROL_THINK, "<|im_end|>"),
}
