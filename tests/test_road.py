"""The road from a prompt to aligned tokens: what may not happen at its borders."""
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from xtokd.alignment.byte_align import align
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.alignment.pair import Pair
from xtokd.models.forward import teacher_ids


def test_response_tokens_never_straddle_the_prompts_end():                        # D22
    "Texts cut at every place: encoded in one piece, tokens straddle the cut; encoded alone on both sides, response tokens tile the response exactly."
    pair, texts, straddles = Pair("tiny"), ("Certainly: the number is 894772 altogether.", "The number is 9632."), 0
    for text in texts:
        for cut in range(1, len(text)):
            answer = text[cut:]
            s = [*pair.student.encode(answer), pair.student.stop_ids[0]]
            t = teacher_ids(pair, s)
            al = align(s, t, pair.student, pair.teacher)
            assert al.ok and al.chunks[0].tolist()[::2] == [0, 0] and al.text == answer.encode()
            assert pair.teacher.decode(t[:-1]) == answer.encode() and t[-1] in pair.teacher.stop_ids
            straddles += cut not in pair.teacher.starts(pair.teacher.encode(text))
    assert straddles > 10


def test_ignored_merges_do_not_matter_to_bytes():                                 # D6
    "A whole word that is in the vocabulary is one token whatever the merges say (Llama-3): offsets of such tokenizers have lied, byte lengths cannot."
    words = ["Sample", "Ġinput", "S", "a", "m", "p", "l", "e", "Ġ", "i", "n", "u", "t", "Ġi"]
    tok = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [("Ġ", "i")], ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r" ?\w+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken("<stop>", special=True)])
    bv = ByteVocab(tok, stops=[len(words)])
    ids = bv.encode("Sample input")
    assert [bv.bytes[i] for i in ids] == [b"Sample", b" input"] and bv.starts(ids).tolist() == [0, 6, 12]
    letters = [words.index(c) for c in "Sample"] + [words.index(c) for c in ("Ġi", "n", "p", "u", "t")]
    assert np.array_equal(align(letters, ids, bv, bv).chunks, [[0, 6, 0, 1], [6, 11, 1, 2]])
