"""Everything that only a GPU can show, in one command: correctness, speed by parts, losses and their bandwidth, the lesson.

    python tools/gpu.py                             on the GPU that torch sees: at most 8 minutes on one card
    python tools/gpu.py --size small --device cpu   the same parts, smaller, without a GPU
    python tools/gpu.py --parts correct step        only these
    python tools/gpu.py --prepare FOLDER            copy two real tokenizers into a folder, for a machine without packages and network
    python tools/gpu.py --tokenizers FOLDER         take them from there

Every part runs in a process of its own with a share of the time, so that one that fails or takes too long leaves the others alone. Results: `bench/results/gpu.json`, or `--output`. The exit status is 1 where
a part failed or an objective differs from the CPU.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
SHARES = {"correct": .25, "step": .4, "losses": .15, "lesson": .2}       # of the time; what a part leaves is there for the next


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where torch sees one")
    p.add_argument("--size", choices=("full", "small", "smallest"), help="default: full on a GPU, small on a CPU")
    p.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    p.add_argument("--tokenizers", type=Path, help="a folder that --prepare made")
    p.add_argument("--prepare", type=Path, metavar="FOLDER")
    p.add_argument("--seconds", type=float, default=480., help="for all parts together")
    p.add_argument("--output", type=Path, default=ROOT / "bench/results/gpu.json")
    p.add_argument("--one", choices=SHARES, help=argparse.SUPPRESS)
    return p


def prepare(folder):
    "Copy the tokenizers of Qwen and DeepSeek from their packages."
    from bridges import source
    folder.mkdir(parents=True, exist_ok=True)
    for role, name in (("student", "qwen"), ("teacher", "deepseek")): source(name)().save(str(folder / f"{role}.json"))
    print(f"{folder}: student.json (Qwen), teacher.json (DeepSeek)")


def run_part(args):
    "One part, in this process; its rows go to the file that --output names."
    from gpu_parts import PARTS, SIZES, Setting, Skipped
    try: found = {"rows": PARTS[args.one](Setting(args.device, SIZES[args.size], args.tokenizers))}
    except Skipped as skipped: found = {"skipped": str(skipped)}
    args.output.write_text(json.dumps(found))


def part_in_a_process(name, args, seconds):
    "What a part found, or why it found nothing."
    tic = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        command = [sys.executable, __file__, "--one", name, "--device", args.device, "--size", args.size, "--output", str(path)]
        if args.tokenizers: command += ["--tokenizers", str(args.tokenizers)]
        try: done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired: found = {"failed": f"not done after {seconds:.0f} seconds"}
        else: found = json.loads(path.read_text()) if path.exists() else {"failed": done.stderr.strip()[-2000:] or f"exit status {done.returncode}"}
    return found | {"seconds": time.perf_counter() - tic}


def summary(name, found):
    "What a part found, in a few lines."
    if "rows" not in found: return [f"{name}: " + (f"skipped, {found['skipped']}" if "skipped" in found else f"FAILED, {found['failed'].splitlines()[-1]}")]
    lines = [f"{name}: {len(found['rows'])} rows in {found['seconds']:.0f} s"]
    for row in found["rows"]:
        if row.get("agrees") is False: lines.append(f"  {row['objective']} {row['rows']} {row['dtype']}: " + row.get("error", f"loss off by {row.get('loss gap', 0):.1e}, gradient by {row.get('gradient gap', 0):.1e}"))
        if "cross-tokenizer share" in row: lines.append(f"  {row['pair']}, {row['objective']}: {row['seconds']['median']:.3f} s a step, {row['cross-tokenizer share']['median']:.0%} of it for two tokenizers")
        if "tokens a second" in row: lines.append(f"  {row['pair']}: writes {row['tokens a second']:,.0f} tokens a second")
        if "bandwidth share" in row: lines.append(f"  {row['loss']}: {row['seconds']['median'] * 1e3:.1f} ms, {row['bandwidth share']:.0%} of the bandwidth of a copy")
    return lines


def succeeded(found): return "failed" not in found and all(row.get("agrees", True) for row in found.get("rows", ()))


def main(argv=None):
    args = parser().parse_args(argv)
    if args.prepare: return prepare(args.prepare)
    import torch
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.size = args.size or ("full" if args.device == "cuda" else "small")
    if args.one: return run_part(args)
    from common import head, machine
    print(head(), flush=True)
    parts, left = {}, args.seconds
    for k, name in enumerate(args.parts):
        share = SHARES[name] / sum(SHARES[other] for other in args.parts[k:])
        parts[name] = part_in_a_process(name, args, share * left)
        left -= parts[name]["seconds"]
        print("\n".join(summary(name, parts[name])), flush=True)
    args.output.write_text(json.dumps({"bench": "gpu", "device": args.device, "size": args.size, "date": time.strftime("%Y-%m-%d"), "machine": machine(), "parts": parts}, indent=1) + "\n")
    print(args.output)
    return int(not all(map(succeeded, parts.values())))


if __name__ == "__main__": sys.exit(main())
