"What can happen to a run: every test with `@fault` is a row of the table in nbs/21_studies/04_faults.ipynb, which reads these lines from the tests' own source."
import ast
from pathlib import Path

HERE = Path(__file__).resolve().parent


def fault(name, how, outcome):
    "Marks the test of a fault: what goes wrong, how the test brings it about, what becomes of the run."
    return lambda test: test


def rows():
    "The table, in the order of the files and of the tests in them."
    found = []
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf8"))):
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "fault":
                    told = dict(zip(("name", "how", "outcome"), (a.value for a in mark.args))) | {k.arg: k.value.value for k in mark.keywords}
                    found.append({"fault": told["name"], "injected": told["how"], "outcome": told["outcome"], "test": f"{file.name}::{node.name}"})
    return found
