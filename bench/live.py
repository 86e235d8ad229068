"""How fast the bench and the race answer: the tiny pair, a short sentence, headless Chromium for the race's page.

    python bench/live.py               a table as markdown, and bench/results/live.json
    python bench/live.py --rounds 5

Bars: a new sentence or setting of the bench in 0.3 s, a step in 1 s, a move of the race's slider in 0.1 s. The bench is Python: its
CPU time of one thread is given, since the machine may be busy, with the wall clock beside it; new sentences are different ones
each round, so that nothing is remembered but the prompt. The race is the page: from the event to the second frame after it.
"""
import argparse, shutil, time

import torch
from playwright.sync_api import sync_playwright

from common import show, spread, store
from explorer import HOST, state
from xtokd.viz.live.bench import bench_data
from xtokd.viz.live.bench_state import BenchState
from xtokd.viz.live.race import Race

MOVE = """async share => { const range = document.querySelector('.xr-range'), t = performance.now(); range.value = 1000 * share;
 range.dispatchEvent(new Event('input')); await frames2(); return performance.now() - t; }"""


def timed(act):
    "CPU and wall seconds of a call."
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.process_time() - cpu, time.perf_counter() - wall


def bench_rows(rounds):
    "Times of the bench: a new sentence, a setting, a step."
    bench = BenchState("tiny")
    def draw(**changes):
        bench.show(**changes)
        bench_data(bench)
    acts = {"new sentence": lambda k: draw(text=f"Certainly: {417_319 + 7_103 * k}"),
            "setting of a method": lambda k: draw(tau=1. + k, methods=("sampled", "strict", "bpm", "cover", "alm")),
            "divergence": lambda k: draw(divergence=("fkl", "rkl", "jsd")[k % 3]),
            "one step, with answers": lambda k: bench.step()}
    rows = []
    for name, act in acts.items():
        act(0)
        cpu, wall = zip(*(timed(lambda: act(k)) for k in range(1, rounds + 1)))
        rows.append({"what": name, "cpu s": spread(cpu), "wall s": spread(wall)})
    return rows


def race_row(rounds):
    "Time of a move of the race's slider."
    race = Race()
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page(viewport={"width": 1000, "height": 800})
        page.set_content(f"<!doctype html><html lang=en><title>race</title><style>{race._css}</style><main></main>")
        page.evaluate(HOST)
        page.evaluate("([s, t]) => open_(s, t)", [race._esm, state(race)])
        times = [page.evaluate(MOVE, k / rounds) / 1e3 for k in range(rounds + 1)][1:]
    return {"what": "move of the race", "wall s": spread(times)}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--rounds", type=int, default=12)
    rounds = p.parse_args().rounds
    torch.set_num_threads(1)
    rows = bench_rows(rounds) + [race_row(rounds)]
    print("| what | CPU s | wall s |\n| --- | --- | --- |")
    for row in rows: print(f"| {row['what']} | {show(row['cpu s']) if 'cpu s' in row else ''} | {show(row['wall s'])} |")
    store("live", rows)


if __name__ == "__main__": main()
