"""The first five minutes: a pair is looked at, one sentence is aligned, a student learns, and what came of it.

    python tools/demo.py            the tiny pair, minutes on two cores
    python tools/demo.py --max-steps 5  only to see that it runs
"""
import os, shlex, sys, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")    # models this small gain nothing from a second thread, and lose much where it has to wait for a core

from xtokd.cli.commands import main
from xtokd.cli.tables import print_table

STEPS, GOAL = 400, .9
FLAGS = "--learning-rate 1.5e-3 --max-grad-norm 0.3 --lr-scheduler-type cosine --batch-size 32 --micro-batch-size 32 --max-new-tokens 16 --eval-size 256 --eval-steps 100 --save-steps 200"


def say(title): print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}", flush=True)


def run(title, *argv):
    "Say what comes, show the command as one would type it, and run it."
    say(title)
    print("$ xtokd " + shlex.join(argv), flush=True)
    code = main(list(argv))
    if code: sys.exit(code)


def teacher_accuracy(config):
    "How often the teacher is right on the prompts that the student was asked, sampled and greedy."
    from xtokd import Pair
    from xtokd.train.evaluate import evaluate
    from xtokd.data.prompts import load_prompts
    from xtokd.models.side import load_side
    from xtokd.data.tasks.number_words import check_number
    side = load_side("tiny", "teacher", "cpu")
    found, _ = evaluate(side.model.eval(), None, Pair(side.vocab, side.vocab), load_prompts("tiny:heldout", config["eval_size"]), check_number, config["max_new_tokens"], seed=config["seed"])
    return found


def command():
    "How to call `xtokd` from here: its path in this environment, where that is not the active one."
    if os.environ.get("VIRTUAL_ENV") == sys.prefix: return "xtokd"
    script, here = Path(sys.executable).parent / "xtokd", Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def outcome(folder):
    "The student's accuracy before and after beside the teacher's, and whether it came near."
    from xtokd.train.runlog import Run
    log = Run(Path(folder))
    before, after, teacher = log.evals[0], log.evals[-1], teacher_accuracy(log.config)
    ways = {"sampled answers": "accuracy_sampled", "likeliest answers": "accuracy"}
    print_table([{"accuracy": way, "before": before[k], "after": after[k], "teacher": teacher[k], "of the teacher's": f"{after[k] / teacher[k]:.0%}"} for way, k in ways.items()],
         f"{after['n']} prompts that were not trained on, after {after['step']} steps")
    share = min(after[k] / teacher[k] for k in ways.values())
    said = "reached" if share >= GOAL else f"not reached: {log.config['max_steps']} steps were asked for, {STEPS} are enough" if log.config["max_steps"] < STEPS else "not reached"
    print(f"{GOAL:.0%} of the teacher's accuracy, on text that only the student wrote: {said}.")


if __name__ == "__main__":
    steps = sys.argv[2] if sys.argv[1:2] == ["--max-steps"] else str(STEPS)
    out = f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}"
    began = time.time()
    run("1. Is this pair fit to distil? The student cuts numbers into digits, the teacher takes up to three at once.", "doctor")
    run("2. How the two cut one sentence:", "align", "Certainly: the number is 894772 altogether.")
    run("3. The student writes, the teacher scores, the student learns:", "distill", "--max-steps", steps, *FLAGS.split(), "--output-dir", out)
    say("4. What came of it:")
    outcome(out)
    print(f"\nDone in {time.time() - began:.0f} s. Next: make lab, and open nbs/20_lessons/01_the_road.ipynb; or {command()} --help.")
