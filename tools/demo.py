"""The first five minutes: a pair is looked at, one sentence is aligned, a student learns, and what came of it.

    python tools/demo.py            the tiny pair, minutes on two cores
    python tools/demo.py --steps 5  only to see that it runs
"""
import shlex, sys, time

from xtokd.cli import main

STEPS = 100


def run(title, *argv):
    "Say what comes, show the command as one would type it, and run it."
    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}")
    print("$ xtokd " + shlex.join(argv), flush=True)
    code = main(list(argv))
    if code: sys.exit(code)


steps = sys.argv[2] if sys.argv[1:2] == ["--steps"] else str(STEPS)
out = f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}"
began = time.time()
run("1. Is this pair fit to distil? The student cuts numbers into digits, the teacher takes up to three at once.", "doctor")
run("2. How the two cut one sentence:", "align", "Certainly: the number is 894772 altogether.")
run("3. The student writes, the teacher scores, the student learns:", "distill", "--steps", steps, "--out", out)
print(f"\nDone in {time.time() - began:.0f} s. Next: make lab, and open nbs/index.ipynb; or xtokd --help.")
