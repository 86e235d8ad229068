"""What the benches share: alternating runs, medians and ratios with their spread, the machine, and results as JSON.

    times = alternate({"ours": f, "theirs": g}, rounds=20)     # seconds of each run, taken in turns
    row = {"tokens": 4096, **{k: spread(v) for k, v in times.items()}, "ratio": ratio(times["theirs"], times["ours"])}
    store("align", [row], note="ids given")                    # bench/results/align.json, with the machine and the versions

`spread` and `ratio` are dicts with median, low and high (the quartiles) and runs. A ratio is the median of the ratios of neighbouring runs, so that a machine
that is slow for a while is slow for both.
"""
import json, os, platform, statistics, sys, time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PROMPTS = ("Tell me about the sea.", "What is 1234 plus 567? Explain.", "Write a Python function that adds two numbers.", "Who was Marie Curie?", "List three fruits and their colours.",
           "Why is the sky blue?", "Translate 'good morning' into French and German.", "Describe a winter day in the mountains.")


def alternate(runs, rounds=20, warm=2, clock=time.process_time, budget=None):
    "Seconds of each run of each callable, {name: [seconds]}; they take turns, and who begins changes every round. `budget`: stop after so many seconds of wall clock, but not before 3 rounds."
    times, end = {name: [] for name in runs}, time.perf_counter() + (budget or float("inf"))
    for k in range(-warm, rounds):
        if k >= 3 and time.perf_counter() > end: break
        for name in (list(runs) if k % 2 else list(runs)[::-1]):
            tic = clock(); result = runs[name](); took = clock() - tic
            del result                                    # freeing what came back is not the run
            if k >= 0: times[name].append(took)
    return times


def spread(values):
    "Median and quartiles of some figures."
    low, mid, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return {"median": mid, "low": low, "high": high, "runs": len(values)}


def ratio(slow, fast): "How many times longer `slow` takes, round by round."; return spread([a / b for a, b in zip(slow, fast)])


def exponent(x, y):
    "Slope of a straight line through log x and log y: 1 is linear."
    import numpy as np
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def show(s, scale=1, digits=2):
    "A spread as text: median (low-high)."
    return f"{s['median'] * scale:.{digits}f} ({s['low'] * scale:.{digits}f}-{s['high'] * scale:.{digits}f})"


def machine(*packages):
    "What ran this: processor, cores, memory, GPU if torch is loaded and sees one, versions."
    names = dict.fromkeys(("numpy", "tokenizers", "transformers", "torch", "trl", *packages))
    cpu = next((l.split(":")[1].strip() for l in _lines("/proc/cpuinfo") if l.startswith("model name")), platform.processor())
    memory = next((int(l.split()[1]) // 2**20 for l in _lines("/proc/meminfo") if l.startswith("MemTotal")), None)
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    return {"cpu": f"{cpu} ({platform.machine()})", "cores": os.cpu_count(), "memory GiB": memory, "gpu": gpu, "threads": torch.get_num_threads() if torch else None,
            "load at start": round(_LOAD, 2), "Python": platform.python_version(), **{n: _version(n) for n in names}}


def _lines(path): return Path(path).read_text().splitlines() if Path(path).exists() else []
def _version(name):
    try: return version(name)
    except PackageNotFoundError: return None
_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.


def store(name, rows, **about):
    "Write bench/results/NAME.json: rows, the command, the machine and whatever else is said about them; returns the path."
    RESULTS.mkdir(exist_ok=True)
    path, command = RESULTS / f"{name}.json", " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    path.write_text(json.dumps({"bench": name, "command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine(), **about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return path


def load(name): "What `store` wrote."; return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def head(): "The machine in one line."; m = machine(); return ", ".join(f"{k} {v}" for k, v in m.items() if v is not None)
