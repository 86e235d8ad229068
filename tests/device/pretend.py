"""Builds the pretend accelerator (needs g++ and ninja) and registers it as torch.device("pretend"), in this process for good.

With ACCELERATE_TORCH_DEVICE=pretend accelerate takes it. Import it in a process of its own: torch knows one such device."""
import os
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("MAX_JOBS", "1")
import torch
from torch.utils.cpp_extension import load

SOURCE = Path(__file__).with_name("pretend.cpp")


def build():
    "The extension; compiled once for a version of torch and of the source, then read from the cache of torch."
    return load("xtokd_pretend", [str(SOURCE)], extra_cflags=["-O0", "-w"])


def register(extension):
    "Make torch.device('pretend') known, with the functions that torch and accelerate call."
    torch.utils.rename_privateuse1_backend("pretend")
    torch.utils.generate_methods_for_privateuse1_backend()
    def nothing(*args, **kwargs): return None
    module = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, set_device=nothing, synchronize=nothing,
        empty_cache=nothing, _is_in_bad_fork=lambda: False, manual_seed=nothing, manual_seed_all=nothing,
        get_rng_state=lambda device=None: torch.get_rng_state(), set_rng_state=nothing,
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16])
    torch._register_device_module("pretend", module)
    return extension


extension = register(build())


def counted(act, by_name=False):
    "(what `act()` returns, counts of operations, items, sizes, to_host and to_device meanwhile)."
    extension.reset(by_name)
    found = act()
    keys = ("operations", "items", "sizes", "to_host", "to_device")
    return found, {key: extension.counts().get(key, 0) for key in keys}
