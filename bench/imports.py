"""What `import xtokd` adds to a bare interpreter, and what the first name costs.

    python bench/imports.py          writes bench/results/imports.json

Each figure is a process of its own; the kinds take turns. Seconds from start to end of the process, and the difference to the bare one round by round.
"""
import subprocess, sys, time
from common import head, show, spread, store

KINDS = {"bare": "pass", "numpy": "import numpy", "xtokd": "import xtokd", "align, ByteVocab": "from xtokd import ByteVocab, align", "Pair": "from xtokd import Pair"}
ROUNDS = 9


def seconds(code):
    tic = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - tic


def loaded(code):
    "How many modules a line loads, and which heavy ones are among them."
    names = subprocess.run([sys.executable, "-c", code + "; import sys; print(*sys.modules)"], check=True, capture_output=True, text=True).stdout.split()
    return len(names), [n for n in ("numpy", "tokenizers", "transformers", "torch", "plotly", "ipywidgets") if n in names]


def main():
    print(head() + "\n")
    times = {k: [] for k in KINDS}
    for r in range(-1, ROUNDS):
        for k, code in (list(KINDS.items())[::1 if r % 2 else -1]):
            took = seconds(code)
            if r >= 0: times[k].append(took)
    rows = []
    print("| | seconds | above bare | modules | heavy ones |\n| --- | ---: | ---: | ---: | --- |")
    for k, code in KINDS.items():
        count, heavy = loaded(code)
        rows.append(r := {"line": code, "seconds": spread(times[k]), "above bare": spread([a - b for a, b in zip(times[k], times["bare"])]), "modules": count, "heavy": heavy})
        print(f"| `{code}` | {show(r['seconds'], digits=3)} | {show(r['above bare'], digits=3)} | {count} | {', '.join(heavy) or 'none'} |")
    print(store("imports", rows))


if __name__ == "__main__": main()
