"What the tests of many processes run: `alone` in the test itself, the rest in each of two processes."
import json, sys
from functools import cache
from pathlib import Path

import torch

from xtokd.train.callbacks import Callback
from xtokd.train.distiller import Distiller
from xtokd.train.config import DistillConfig
from xtokd.data.prompts import builtin_check, load_prompts
from xtokd.models.loading import load_model
from xtokd.distributed import full_state_dict, local_parameter_count
from xtokd.models.side import Side, load_side

FSDP_CONFIG = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
num_processes: 2
machine_rank: 0
mixed_precision: 'no'
use_cpu: true
fsdp_config:
  fsdp_version: 2
  fsdp_cpu_ram_efficient_loading: false
"""
BASE = dict(max_steps=3, batch_size=5, micro_batch_size=2, max_new_tokens=12, eval_size=2, eval_steps=0, eval_on_start=False, progress=False, warmup_steps=1, save_steps=0)
SAMPLED = dict(max_steps=4, batch_size=3, eval_size=0, save_steps=2)


class Some(Distiller):
    "The responses to every second prompt of a step are empty: those of the second process."
    empty = False
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.heard, generate = [], self.generator.samples
        def samples(items, text_source, seed):
            found, n, first = generate(items, text_source, seed), self.accelerator.num_processes, self.accelerator.process_index
            for i, s in enumerate(found):
                if self.empty and (first + i * n) % 2: s.student_ids, s.teacher_ids = [], []
            self.heard.append([(s.item["prompt"], s.student_ids) for s in found])
            return found
        self.generator.samples = samples


@cache
def vocabulary(role): return load_side("tiny", role).vocab


def distiller(out, obj="strict", callbacks=(), prompts="tiny", **kw):
    sides = [Side(role, load_model("tiny", role), vocabulary(role)) for role in ("student", "teacher")]
    return Some(*sides, prompts, obj, DistillConfig(**BASE | {"output_dir": out} | kw), callbacks=callbacks, check=builtin_check("tiny"))


def plain(d):
    "SGD, because Adam magnifies rounding where a gradient is near zero."
    d.state.optimizer = torch.optim.SGD(d.state.parameters, lr=.1)
    d.state.scheduler = torch.optim.lr_scheduler.LambdaLR(d.state.optimizer, lambda s: 1.)
    return d


def keep(d, file):
    weights = {k: v.detach().clone() for k, v in full_state_dict(d.student.model.state_dict()).items()}
    if d.accelerator.is_main_process: torch.save(weights, file)


CASES = {"texts": dict(max_grad_norm=.05), "silent": dict(eval_size=0), "few": dict(eval_size=0, batch_size=1), "hidden": dict(eval_size=0, max_grad_norm=.05),
         "stored": dict(eval_size=0, on_policy_fraction=0, store_text=True, min_score=1), "frozen": dict(eval_size=0, on_policy_fraction=0, off_policy_source="frozen_student")}


def steps(out, name, case, **kw):
    "Three steps of one case, with greedy texts."
    few = {"prompts": load_prompts("tiny", limit=7)} if case in ("stored", "frozen") else {}       # several epochs
    d = plain(distiller(out/f"{name}-{case}", "dskd" if case == "hidden" else "strict", temperature=0, **few, **CASES[case] | kw))
    d.empty = case == "silent"
    d.fit()
    keep(d, out/f"{name}-{case}.pt")
    return d


def texts(out, name, **kw):
    "What one step's processes write together, in the order of the prompts."
    from accelerate.utils import gather_object
    d = distiller(out/name, max_steps=1, eval_size=0, batch_size=4, **kw); d.fit()
    every, n = gather_object([d.heard[0]]), d.accelerator.num_processes
    mixed = [every[i % n][i // n] for i in range(4)]
    if d.accelerator.is_main_process: (out/f"{name}-ids.json").write_text(json.dumps([[p for p, _ in mixed], [x for _, x in mixed]]))


def alone(out):
    for case in CASES: steps(out, "one", case)
    texts(out, "one-greedy", temperature=0); texts(out, "one-sampled")


class Stop(Callback):
    def on_step(self, d, record): record["step"] == 2 and d.control.stop()


def describe(d, file):
    held = {}
    for side in ("student", "teacher"):
        model = getattr(d, side).model
        held[side] = dict(zip(("held", "all"), local_parameter_count(model)), types=sorted({type(p.data).__name__ for p in model.parameters()}))
    local = lambda t: t.to_local() if hasattr(t, "to_local") else t
    file.write_text(json.dumps(held | {"moments": sum(local(s["exp_avg"]).numel() for s in d.state.optimizer.state.values())}))


def both(out):
    for how in ("no", "student", "both"):
        for case in {"no": ("texts", "silent", "few", "stored", "frozen"), "student": ("texts",), "both": CASES}[how]: steps(out, f"two-{how}", case, fsdp=how)
        d = distiller(out/f"two-{how}-whole", fsdp=how, **SAMPLED | ({"max_steps": 1} if how == "student" else {})); d.fit()
        keep(d, out/f"two-{how}-whole.pt"); describe(d, out/f"{how}-{d.accelerator.process_index}.json")
        if how == "student": continue
        distiller(out/f"two-{how}-stopped", fsdp=how, callbacks=[Stop()], **SAMPLED).fit()
        d = distiller(out/f"two-{how}-stopped", fsdp=how, **SAMPLED); d.fit(resume=True)
        keep(d, out/f"two-{how}-stopped.pt")
    texts(out, "two-greedy", temperature=0); texts(out, "two-sampled"); texts(out, "two-again", fsdp="both")


if __name__ == "__main__":
    import faulthandler, os
    os.environ["ACCELERATE_USE_CPU"] = "true"
    faulthandler.dump_traceback_later(200, exit=True)      # a process that waits for the other says where
    torch.set_num_threads(1)
    both(Path(sys.argv[1]))
