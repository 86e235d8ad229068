"""The bars that notebooks and modules are held to; tests/test_hygiene.py applies them, and so can you while you write:

    python tests/bars.py nbs/03_alignment xtokd/alignment

A file may stand in tests/exemptions.json with the bars that it does not meet yet. The list only gets shorter: a bar that
a file meets must not stand there.
"""
import ast, collections, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("errors", "hub", "distributed", "vocab", "data", "alignment", "rows", "objectives", "models", "serving", "train",
            "exact", "viz", "experiments", "course", "cli")          # a package imports only from its left
MAY_BE_SHORT = re.compile(r"xtokd/(errors|_display|hub|cli/__main__|alignment/reasons|.*__init__)\.py|xtokd/objectives/.*")
ONE_LETTER = set("ijkBKDVnm_")                                       # indices and sizes
ALGORITHMS = ("flat", "text_match", "byte_align", "overlap", "merges", "adjacency", "trie", "chunked_loss", "topk", "chunks",
              "dpca", "dtw", "mined", "cdm", "simct", "gold", "uld", "multilevel_ot", "bpm", "escd", "xtoken", "sedi", "pkl",
              "strict", "alm", "dskdv2", "cover", "cells", "prefix_probability", "canonical_prefixes", "scorer")
EXPORT = re.compile(r"^#\s*\|\s*exports?\b", re.M)


# ---- reading ----------------------------------------------------------------------------------------------------------------
def joined(x): return x if isinstance(x, str) else "".join(x)


def cells_of(path):
    cells = json.loads(Path(path).read_text(encoding="utf8"))["cells"]
    return [{**c, "source": joined(c["source"])} for c in cells]


def python(source):
    "Source of a cell that `ast` can read: directives and magics are blank lines."
    return re.sub(r"^[ \t]*(#\s*\||[%!]).*$", "", source, flags=re.M)


def tree_of(source):
    try: return ast.parse(python(source))
    except SyntaxError: return ast.Module([], [])


def has_figure(cells):
    return any({"image/svg+xml", "image/png"} & set(o.get("data", {})) for c in cells for o in c.get("outputs", []))


def module_name(cells):
    found = [m[1] for c in cells if (m := re.search(r"^#\|\s*default_exp (\S+)", c["source"], re.M))]
    return found[0] if found else None


# ---- one notebook -----------------------------------------------------------------------------------------------------------
def several_statements(tree):
    "Lines that hold more than one simple statement."
    simple = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and not hasattr(n, "body")]
    count = collections.Counter(n.lineno for n in simple)
    return [line for line, k in count.items() if k > 1]


def multiplied_lists(tree):
    "Lists that are there or not by multiplication with a condition."
    condition = (ast.Compare, ast.BoolOp)
    def is_condition(n):
        named = isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in ("bool", "any", "all")
        return isinstance(n, condition) or named or isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not)
    products = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult)]
    return [n.lineno for n in products for a, b in ((n.left, n.right), (n.right, n.left)) if isinstance(a, ast.List) and is_condition(b)]


def calls_in(tree):
    return {n.func.id if isinstance(n.func, ast.Name) else n.func.attr for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, (ast.Name, ast.Attribute))}


def public_names(cells):
    "Functions and classes that the export cells of a notebook define under a public name."
    nodes = [n for c in cells if c["cell_type"] == "code" and EXPORT.search(c["source"]) for n in tree_of(c["source"]).body]
    return [n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]


def notebook_faults(path):
    "{bar: what does not meet it} of one notebook."
    path, faults = Path(path), {}
    cells = cells_of(path)
    code = [c for c in cells if c["cell_type"] == "code"]
    lines = [l for c in code for l in c["source"].split("\n") if l.strip()]
    long = [l for l in lines if len(l) > 110]
    if long: faults["line length"] = f"{len(long)} lines above 110 characters (longest {max(map(len, long))})"
    elif sum(len(l) > 100 for l in lines) > max(2, .02 * len(lines)): faults["line length"] = "more than 2 % of the lines above 100"
    trees = [tree_of(c["source"]) for c in code]
    if bad := sum(len(several_statements(t)) for t in trees): faults["one statement a line"] = f"{bad} lines with several statements"
    if bad := sum(len(multiplied_lists(t)) for t in trees): faults["multiplied lists"] = f"{bad} lists multiplied with a condition"
    sizes = [sum(1 for l in c["source"].split("\n") if l.strip()) for c in code]
    if max(sizes, default=0) > 80: faults["cell length"] = f"a cell of {max(sizes)} lines; 80 at most"
    module = module_name(cells)
    public = public_names(cells)
    if module and public and not module.startswith("cli.__main__"):
        shown = [k for k, (c, t) in enumerate(zip(code, trees)) if not EXPORT.search(c["source"]) and calls_in(t) & set(public)]
        if not shown or shown[0] > .4 * len(code): faults["called early"] = "no public function is called in the first 40 % of the code cells"
    stem = re.sub(r"^\d+_", "", path.stem)
    if stem in ALGORITHMS and not any("def naive" in c["source"] for c in code): faults["naive version"] = "no function `naive...`"
    elif stem in ALGORITHMS and not any(re.search(r"\bassert\b[^\n]*naive", c["source"]) or ("naive" in c["source"] and "assert" in c["source"]) for c in code):
        faults["naive version"] = "the naive version is not asserted equal to the fast one"
    if (path.stem == "index" or "20_lessons" in path.parts) and not has_figure(cells): faults["figure"] = "no figure"
    return faults


# ---- one module -------------------------------------------------------------------------------------------------------------
def one_letter_locals(function):
    names = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and len(n.id) == 1}
    return names - ONE_LETTER


def annotated(tree):
    "(annotated, all) arguments of public functions and methods."
    done, total = 0, 0
    scopes = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    for scope in scopes:
        for f in scope.body:
            if not isinstance(f, ast.FunctionDef) or f.name.startswith("_") and f.name not in ("__init__", "__call__"): continue
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            if scope is not tree and arguments and not any(getattr(d, "id", "") == "staticmethod" for d in f.decorator_list): arguments = arguments[1:]
            done += sum(a.annotation is not None for a in arguments)
            total += len(arguments)
    return done, total


def imports_of(path):
    "Modules below xtokd that a module imports, late imports included."
    path = Path(path).resolve()
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[:-1]
    found = []
    for n in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(n, ast.Import): found += [a.name for a in n.names if a.name.startswith("xtokd.")]
        if not isinstance(n, ast.ImportFrom): continue
        base = package[:len(package) - n.level + 1] if n.level else ()
        full = ".".join([*base, *((n.module or "").split(".") if n.module else [])])
        if full == "xtokd": found += [f"xtokd.{a.name}" for a in n.names]
        elif full.startswith("xtokd."): found.append(full)
    return found


def order_faults(path):
    "Imports from a package to the right of one's own."
    here = Path(path).resolve().relative_to(ROOT).with_suffix("").parts[1]
    if here not in PACKAGES: return []
    there = [(m, m.split(".")[1]) for m in imports_of(path)]
    return sorted({m for m, p in there if p in PACKAGES and PACKAGES.index(p) > PACKAGES.index(here)})


def module_faults(path):
    "{bar: what does not meet it} of one exported module."
    path, faults = Path(path), {}
    text = path.read_text(encoding="utf8")
    name = str(path.resolve().relative_to(ROOT))
    tree = ast.parse(text)
    size = sum(1 for l in text.split("\n") if l.strip())
    if size > 400 or size < 60 and size and not MAY_BE_SHORT.fullmatch(name): faults["module length"] = f"{size} lines; 60 to 400"
    attached = [n for n in tree.body if isinstance(n, ast.Assign) for t in n.targets for e in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(e, ast.Attribute)]
    if attached: faults["attached methods"] = f"{len(attached)} assignments to attributes of a class or module"
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    if bad := [f.name for f in functions if len(one_letter_locals(f)) > 4]: faults["one-letter names"] = ", ".join(bad[:6])
    done, total = annotated(tree)
    if done < .9 * total: faults["annotations"] = f"{done} of {total} arguments of public functions are annotated"
    if bad := order_faults(path): faults["import order"] = ", ".join(bad)
    return faults


def notebooks(): return sorted(f for f in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
def modules(): return sorted(f for f in (ROOT / "xtokd").rglob("*.py") if f.name != "_modidx.py")


def duplicate_names():
    "Public names that more than one module defines."
    homes = collections.defaultdict(set)
    for f in modules():
        for n in ast.parse(f.read_text(encoding="utf8")).body:
            if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__" and isinstance(n.value, ast.List):
                for name in ast.literal_eval(n.value): homes[name].add(str(f.relative_to(ROOT)))
    return {name: sorted(files) for name, files in homes.items() if len(files) > 1}


def all_faults():
    found = {str(f.relative_to(ROOT)): notebook_faults(f) for f in notebooks()}
    found |= {str(f.relative_to(ROOT)): module_faults(f) for f in modules()}
    return {name: faults for name, faults in found.items() if faults}


def main(argv):
    if argv == ["--exempt"]:
        found = {name: sorted(faults) for name, faults in all_faults().items()} | {"public names": sorted(duplicate_names())}
        (ROOT / "tests/exemptions.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf8")
        return
    wanted = [Path(a).resolve() for a in argv] or [ROOT]
    for name, faults in all_faults().items():
        if any((ROOT / name).is_relative_to(w) for w in wanted):
            for bar, what in faults.items(): print(f"{name}: {bar}: {what}")
    for name, files in duplicate_names().items():
        if any((ROOT / f).is_relative_to(w) for f in files for w in wanted): print(f"{name}: a public name of {', '.join(files)}")


if __name__ == "__main__": main(sys.argv[1:])
