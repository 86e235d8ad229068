"One of two processes: RANK, the folder, and what happens to process 1 (or 0) of this run."
import os, signal, sys, time

import torch

import xtokd.train.distiller as module
from test_distill import Wrapped, distiller
from xtokd.distributed import end_together

how, out = sys.argv[1], sys.argv[2]
rank = int(os.environ["RANK"])
torch.set_num_threads(1)


def change(call, out):
    if call == 2 and how == "raises" and rank: raise ValueError("the second process has had enough")
    if call == 2 and how == "main" and not rank: raise ValueError("the main process has had enough")
    if call == 2 and how == "killed" and rank: os.kill(os.getpid(), signal.SIGKILL)
    if call == 2 and how == "stuck":
        if rank: raise ValueError("the second process has had enough")
        time.sleep(600)      # as an exchange of NCCL whose other side has gone
    return out


if how == "stuck": module.end_together = lambda accelerator: end_together(accelerator, seconds=1.)
try: distiller(out, Wrapped(change), max_steps=4, batch_size=4, max_new_tokens=4, micro_batch_size=2).fit(resume=how == "resume")
except BaseException as e:
    print(f"{type(e).__name__}: {e}", flush=True)
    if how != "killed" and "enough" in str(e) and type(e) is ValueError: time.sleep(600)   # a process that fails need not end
    raise SystemExit(1)
print("finished", flush=True)
