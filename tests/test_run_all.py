"""What a reader gets from "Run all": every widget is shown by some cell, and a cell without its model says so instead of failing."""
import ast, importlib, json, os, pkgutil, re, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import bars
import refresh

NOTEBOOKS = sorted(f for f in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
MADE_BY = {"explore": {"Explorer", "PairExplorer"}, "atlas": {"Atlas"}}       # methods of data objects that return a widget
NEEDS = re.compile(r"^%%needs\b", re.M)


# ---- widgets ----------------------------------------------------------------------------------------------------------------
def widget_classes():
    "{name: class} of the public widgets of the package that are no base of another one."
    import ipywidgets, xtokd
    found = set()
    for package in ("xtokd.viz", "xtokd.viz.live", "xtokd.course"):
        folder = importlib.import_module(package)
        for info in pkgutil.iter_modules(folder.__path__, package + "."):
            if not info.ispkg: found |= {c for c in vars(importlib.import_module(info.name)).values() if isinstance(c, type) and c.__module__ == info.name}
    found = {c for c in found if issubclass(c, ipywidgets.Widget) and not c.__name__.startswith("_")}
    return {c.__name__: c for c in found if not any(d is not c and issubclass(d, c) for d in found) or "show" in vars(c)}


def roots(node):
    "Names of the functions and methods along a chain such as `Atlas(pair).show('7')`."
    while isinstance(node, (ast.Call, ast.Attribute)):
        if isinstance(node, ast.Attribute): yield node.attr
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Name): yield node.id


def functions_of(classes, trees):
    "{function: widgets it may return} by the calls in its return statements, over the package."
    made = {name: {name} for name in classes} | {k: set(v) for k, v in MADE_BY.items()}
    for _ in range(2):
        for tree in trees:
            for f in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
                if f.name in made: continue
                returned = {r for n in ast.walk(f) if isinstance(n, ast.Return) and isinstance(n.value, ast.Call) for r in roots(n.value)}
                if kinds := set().union(*(made[r] for r in returned if r in made)): made[f.name] = kinds
    return made


def shown(path, made):
    "(widget class, name or '', cell number) of each cell of a notebook whose last expression is a widget."
    of, result = {}, []
    for k, cell in enumerate(refresh.load(path.read_text(encoding="utf8"))["cells"]):
        if cell["cell_type"] != "code" or refresh.flagged(cell): continue
        body = bars.tree_of(cell["source"]).body
        for n in body:
            if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name):
                kinds = [made[r] for r in roots(n.value) if r in made] if isinstance(n.value, ast.Call) else []
                of[n.targets[0].id] = set().union(*kinds)
        if not body or not isinstance(body[-1], ast.Expr): continue
        last = body[-1].value
        name = last.id if isinstance(last, ast.Name) else ""
        kinds = of.get(name, set()) if name else set().union(*(made[r] for r in roots(last) if r in made)) if isinstance(last, ast.Call) else set()
        result += [(kind, name, k) for kind in kinds]
    return result


@pytest.fixture(scope="module")
def made():
    trees = [ast.parse(f.read_text(encoding="utf8")) for folder in ("viz", "course", "alignment") for f in (ROOT / "xtokd" / folder).rglob("*.py")]
    return functions_of(widget_classes(), trees)


def test_each_widget_is_shown_by_some_cell(made):
    seen = {kind for path in NOTEBOOKS for kind, *_ in shown(path, made)}
    assert not set(widget_classes()) - seen, "end a cell with it, so that Run all shows it"


def test_no_later_cell_changes_a_shown_widget(made):
    "What a reader looks at after Run all is what its cell wrote: tests work on another instance."
    changed = []
    for path in NOTEBOOKS:
        cells = refresh.load(path.read_text(encoding="utf8"))["cells"]
        for kind, name, k in shown(path, made):
            if not name: continue
            for j, cell in enumerate(cells[k + 1:], k + 1):
                body = bars.tree_of(cell["source"]).body if cell["cell_type"] == "code" else []
                if any(isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == name for n in body): break      # another object of this name
                targets = [t for n in body if isinstance(n, (ast.Assign, ast.AugAssign)) for t in (n.targets if isinstance(n, ast.Assign) else [n.target])]
                flat = [x for t in targets for x in (t.elts if isinstance(t, ast.Tuple) else [t])]
                if any(isinstance(t, ast.Attribute) and list(roots(t))[-1] == name for t in flat): changed.append(f"{path.relative_to(ROOT)}: cell {j} changes the {kind} {name!r} that cell {k} shows")
    assert not changed


def test_the_check_finds_both_faults(tmp_path, made):
    cell = lambda source: {"cell_type": "code", "source": source, "outputs": []}
    book = tmp_path / "a.ipynb"
    book.write_text(json.dumps({"cells": [cell("live = Atlas(pair).show('7')\nlive.table"), cell("Explorer(al)"), cell("x = pair.explore('a')\nx"), cell("#| slow\nAtlas(pair)")]}))
    assert {(kind, k) for kind, _, k in shown(book, made)} == {("Explorer", 1), ("Explorer", 2), ("PairExplorer", 2)}


# ---- cells that need a model --------------------------------------------------------------------------------------------------
def marked():
    "Notebooks with cells that are run on request only."
    return [f for f in NOTEBOOKS if any(c["cell_type"] == "code" and refresh.FLAGS.search(c["source"]) for c in refresh.load(f.read_text(encoding="utf8"))["cells"])]


def stripped(tree):
    "Names that a cell reads."
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


@pytest.mark.parametrize("path", marked(), ids=[f.stem for f in marked()])
def test_cells_with_a_model_of_the_catalogue_say_what_they_need(path):
    "A cell on request that names a model, or uses what such a cell defines, begins with %%needs."
    from xtokd.hub import CATALOGUE
    guarded, wrong = set(), []
    for k, cell in enumerate(refresh.load(path.read_text(encoding="utf8"))["cells"]):
        if cell["cell_type"] != "code": continue
        tree = bars.tree_of(cell["source"])
        texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assigned = {t.id for n in ast.walk(tree) for t in getattr(n, "targets", []) if isinstance(t, ast.Name)} | {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        if NEEDS.search(cell["source"]): guarded |= assigned
        elif refresh.flagged(cell) and (texts & set(CATALOGUE) or stripped(tree) & guarded): wrong.append(k)
        elif not refresh.flagged(cell): guarded -= assigned
    assert not wrong, "begin these cells with `%%needs NAME ...` (xtokd.needs)"


BARE = {"XTOKD_HOME": "home", "HF_HOME": "hf", "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "CUDA_VISIBLE_DEVICES": ""}
RUN = """import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import refresh
refresh.prepare()
path, home = Path(sys.argv[2]), Path(sys.argv[3])
nb = refresh.load(path.read_text(encoding="utf8"))
if len(sys.argv) > 4:                       # only what is needed to get to the cells with %%needs
    last = max(k for k, c in enumerate(nb["cells"]) if c["cell_type"] == "code" and c["source"].startswith("%%needs"))
    keep = lambda c: c["cell_type"] != "code" or c["source"].startswith("%%needs") or "load_ext" in c["source"]
    nb["cells"] = [c for c in nb["cells"][:last + 1] if keep(c)]
done = refresh.execute(nb, path, everything=True, timeout=1200)
print(json.dumps([[o.get("name"), refresh.joined(o.get("text", ""))[:200], sorted(o.get("data", {}))] for c in done["cells"] if c["cell_type"] == "code" and c["source"].startswith("%%needs") for o in c["outputs"]]))
"""


def run_all(path, home, *only):
    "Run every cell of a notebook, marked ones too, where no model is; what its guarded cells put out. Fails at the first error."
    env = os.environ | {k: v if v in ("", "1") else str(home / v) for k, v in BARE.items()}
    done = subprocess.run([sys.executable, "-c", RUN, str(ROOT / "tools"), str(path), str(home), *only], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def guarded_notebooks(): return [f for f in NOTEBOOKS if any(c["cell_type"] == "code" and NEEDS.match(c["source"]) for c in refresh.load(f.read_text(encoding="utf8"))["cells"])]


def test_guarded_cells_show_what_is_stored_where_no_model_is(tmp_path):
    "All cells with %%needs of one notebook, in a fresh kernel with an empty XTOKD_HOME; the whole notebooks are run below."
    path = ROOT / "nbs/20_lessons/06_real_pair.ipynb"
    said = run_all(path, tmp_path, "guarded")
    lines = [text for name, text, _ in said if name == "stdout" and text.startswith("Not run here: ")]
    count = sum(c["source"].startswith("%%needs") for c in refresh.load(path.read_text(encoding="utf8"))["cells"] if c["cell_type"] == "code")
    assert len(lines) == count and all("xtokd models get" in line for line in lines)
    assert any("image/svg+xml" in data for *_, data in said) and any("text/html" in data for *_, data in said)


@pytest.mark.slow
@pytest.mark.parametrize("path", marked(), ids=[f.stem for f in marked()])
def test_run_all_on_a_fresh_machine(path, tmp_path): run_all(path, tmp_path)
