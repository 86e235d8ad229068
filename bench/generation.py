"""Generation on this machine: ways of transformers, and what reading a repeated prompt once saves.

    python bench/generation.py --compile  also torch.compile, which takes minutes
    python bench/generation.py            prints, and writes results/generation.json

A Llama of random weights (2 layers of width 256, 8,000 ids), 8 prompts of 96 ids with 4 responses of 24 tokens each, greedy, no stop id. The ways take turns in one process; the first call of each is not counted,
so a compiled graph is ready. Continuous batching is named with its error where this machine has none.
"""
import sys, time

import torch
from common import show, spread, store
from transformers import LlamaConfig, LlamaForCausalLM

import numpy as np
from xtokd.models import sampling
from xtokd.models.sampling import generate_responses

ROUNDS, NEW = 3, 24
torch.set_num_threads(1)


class Ids:
    "Stands in for a ByteVocab of 8,000 ids without a stop id."
    lengths, special, stop_ids, end_ids = np.ones(8000, np.int32), np.zeros(8000, bool), (), ()
    def __len__(self): return 8000


def main():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=8000, hidden_size=256, intermediate_size=688, num_hidden_layers=2, num_attention_heads=8, max_position_embeddings=512)
    model, vocab = LlamaForCausalLM(config).eval(), Ids()
    prompts = [[(31 * k + 7 * i) % 8000 for i in range(96)] for k in range(8)]
    repeated = [p for p in prompts for _ in range(4)]
    ids, plain = torch.tensor(repeated), dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
    pays = sampling.repeats_pay

    def read_once(): return generate_responses(model, vocab, repeated, NEW, 0.)
    def read_each():
        sampling.repeats_pay = lambda *a: False
        try: return generate_responses(model, vocab, repeated, NEW, 0.)
        finally: sampling.repeats_pay = pays
    def way(**options): return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **plain, **options)
    ways = {"prompts read once (default)": read_once, "every prompt read": read_each, "static cache, no compilation": way(cache_implementation="static", disable_compile=True)}
    if "--compile" in sys.argv: ways["static cache, torch.compile"] = way(cache_implementation="static", compile_config=_compile_config())
    if hasattr(model, "generate_batch"): ways["continuous batching"] = lambda: model.generate_batch(repeated, generation_config=None, max_new_tokens=NEW)
    found, failed, first = {}, {}, {}
    for name, run in list(ways.items()):
        began = time.perf_counter()
        try: run()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            del ways[name]
        first[name] = time.perf_counter() - began
        print(f"{name}: first call {first[name]:.2f} s", flush=True)
    for _ in range(ROUNDS):
        for name, run in ways.items():
            began = time.process_time()
            run()
            found.setdefault(name, []).append(time.process_time() - began)
    for name, times in found.items(): print(f"{name:32} {show(spread(times))} s of CPU; the first call {first[name]:.2f} s")
    for name, error in failed.items(): print(f"{name:32} {error}")
    rows = [{"way": name, "CPU seconds": spread(times), "first call": first[name]} for name, times in found.items()]
    store("generation", rows, tokens=len(repeated) * NEW, failed=failed)


def _compile_config():
    from transformers import CompileConfig
    config = CompileConfig()
    config._compile_all_devices = True          # transformers compiles on a GPU only, unless it is told
    return config


if __name__ == "__main__": main()
