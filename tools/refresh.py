"""Run notebooks in a fresh kernel and store clean outputs.

    python tools/refresh.py                        every notebook in nbs/
    python tools/refresh.py nbs/03_alignment/05_byte_align.ipynb     only these
    python tools/refresh.py --all NOTEBOOK         also the cells flagged gpu, slow, notest or eval: false
    python tools/refresh.py --no-run NOTEBOOK      only clean what is stored
    python tools/refresh.py --check                run nothing, write nothing, exit 1 where a file is not clean

A clean notebook has outputs, but no execution counts, widget state, addresses or paths of one machine, and its cell ids follow
from its cells, so that running it twice changes nothing. Every SVG follows light and dark (`adaptive_svg`). Flagged cells keep the outputs that they had (also those in git, where
the notebook was written anew). Plotly figures are stored as SVG; that needs `kaleido` and a Chromium.
"""
import argparse, hashlib, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from figures import words

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
FLAGS = re.compile(r"^\s*#\s*\|\s*(gpu|slow|notest|eval:\s*false)\b", re.M)
EXPORTS = re.compile(r"^\s*(nbdev\.)?nbdev_export\(", re.M)
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
ENV = dict(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false",
           PYTHONHASHSEED="0", COLUMNS="100", PYDEVD_DISABLE_FILE_VALIDATION="1", NO_COLOR="1")


def joined(x): return x if isinstance(x, str) else "".join(x)


def as_lines(text): return text.splitlines(keepends=True)


def flagged(cell):
    "Is this a cell that is run only on request?"
    return bool(FLAGS.search(cell["source"]) or EXPORTS.search(cell["source"]))


def find_chromium(): return next((p for n in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome") if (p := shutil.which(n))), None)


def plotly_ready():
    "Can plotly draw SVG here?"
    try: import kaleido, plotly    # noqa: F401
    except ImportError: return False
    return bool(os.environ.get("BROWSER_PATH") or find_chromium())


# ---- cleaning ---------------------------------------------------------------------------------------------------------------
def scrub(text):
    "Take addresses, and paths of this machine, out of a text."
    text = re.sub(r" at 0x[0-9a-fA-F]{6,}", "", text)
    for real, name in ((str(NBS) + "/", ""), (str(ROOT) + "/", ""), (str(ROOT), "."), (str(Path.home()) + "/", "~/")):
        if len(real) > 3: text = text.replace(real, name)
    tmp = re.escape(tempfile.gettempdir())
    text = re.sub(rf"{tmp}/(ipykernel_\d+/\d+\.py)", "cell.py", text)
    text = re.sub(rf"{tmp}/tmp[\w]{{6,}}", "/tmp/...", text)
    return re.sub(r"(?:/[\w.+-]+)+/site-packages/", "site-packages/", text)


def stable_svg(svg):
    "Plotly draws a random number for its ids; take one from the picture, so that two in a page differ."
    found = re.findall(r'id="(?:top)?defs-([0-9a-f]{6})"|id="p[0-9a-f]{6}-(?:legend-)?([0-9a-f]{6})"', svg)
    names = list(dict.fromkeys(a or b for a, b in found))
    if not names: return svg
    for k, name in enumerate(names): svg = svg.replace(name, f"@id{k}@")
    mark = hashlib.sha1(svg.encode()).hexdigest()[:4]
    for k in range(len(names)): svg = svg.replace(f"@id{k}@", f"{mark}{k:02x}")
    return svg


def clean_bundle(data):
    "One face per output: the picture where there is one, never a widget's state or a plot's JSON."
    if str(ROOT) not in sys.path: sys.path.insert(1, str(ROOT))
    from xtokd.viz.svg_charts import DARK_RULE, adaptive_svg    # here: tools/export.py imports this file before there is an xtokd
    data = {k: (v if k.endswith("json") else joined(v)) for k, v in data.items()}
    widget, plot = data.pop(WIDGET, None), data.pop(PLOTLY, None)
    if "image/svg+xml" in data:
        svg = data["image/svg+xml"]
        if "main-svg" in svg[:400]:    # of plotly: the names in it follow from the picture as plotly drew it
            svg = stable_svg(svg.replace(DARK_RULE, "", 1).replace('class="xt-auto main-svg', 'class="main-svg', 1))
        data["image/svg+xml"] = adaptive_svg(svg)
        for k in ("image/png", "text/html"): data.pop(k, None)
        if plot is not None: data.pop("text/plain", None)
        data.setdefault("text/plain", words(data["image/svg+xml"]) or "figure")    # JupyterLab shows it where a notebook is not trusted
    elif widget is not None or plot is not None:
        if set(data) <= {"text/plain"}: return {}
    return {k: (v if k.endswith("json") else scrub(v)) for k, v in data.items()}


def carriage(text):
    "What a terminal shows after carriage returns, without its colours."
    text = re.sub("\x1b" + r"\[[0-9;]*m", "", text)
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def clean_outputs(outputs):
    res = []
    for o in outputs:
        kind = o["output_type"]
        if kind == "stream":
            if o.get("name") == "stderr": continue
            if res and res[-1]["output_type"] == "stream": res[-1]["text"] += joined(o["text"])
            else: res.append(dict(output_type="stream", name="stdout", text=joined(o["text"])))
        elif kind == "error":
            tb = [re.sub(r"\x1b\[[0-9;]*m", "", scrub(joined(t))) for t in o["traceback"]]
            res.append(dict(output_type="error", ename=o["ename"], evalue=scrub(o["evalue"]), traceback=tb))
        elif data := clean_bundle(o["data"]):
            new = dict(output_type=kind, data={k: (v if not isinstance(v, str) else as_lines(v)) for k, v in data.items()}, metadata={})
            if kind == "execute_result": new["execution_count"] = None
            res.append(new)
    for o in res:
        if o["output_type"] == "stream": o["text"] = as_lines(scrub(carriage(o["text"])))
    return [o for o in res if o.get("text", True)]


def cell_ids(cells):
    "Ids that follow from type and source, so that writing a notebook anew changes none."
    seen, ids = {}, []
    for c in cells:
        key = c["cell_type"] + "\n" + joined(c["source"])
        seen[key] = n = seen.get(key, -1) + 1
        ids.append(hashlib.sha1(f"{key}\n{n}".encode()).hexdigest()[:8])
    return ids


def clean(nb):
    "The notebook `nb` (plain dict) as it is committed."
    cells = []
    for c, id in zip(nb["cells"], cell_ids(nb["cells"])):
        tags = (c.get("metadata") or {}).get("tags")
        metadata = {"tags": tags} if tags else {}
        if c["cell_type"] == "code" and re.search(r"^#\s*\|\s*hide\b", joined(c["source"]), re.M): metadata["jupyter"] = {"source_hidden": True}
        new = dict(cell_type=c["cell_type"], id=id, metadata=metadata, source=as_lines(joined(c["source"])))
        if c["cell_type"] == "code": new |= dict(execution_count=None, outputs=clean_outputs(c.get("outputs", [])))
        if c.get("attachments"): new["attachments"] = c["attachments"]
        cells.append(new)
    return dict(cells=cells, metadata=dict(kernelspec=KERNEL), nbformat=4, nbformat_minor=5)


def dump(nb): return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def load(text):
    nb = json.loads(text)
    for c in nb["cells"]: c["source"] = joined(c["source"])
    return nb


# ---- running ----------------------------------------------------------------------------------------------------------------
def stored_outputs(path, nb):
    "Outputs by cell id, from the last commit and, before that, from the file itself."
    res = {}
    try: rel = path.resolve().relative_to(ROOT)
    except ValueError: rel = None
    if rel and (p := subprocess.run(["git", "show", f"HEAD:{rel}"], cwd=ROOT, capture_output=True)).returncode == 0:
        old = load(p.stdout.decode())
        res = {i: c["outputs"] for i, c in zip(cell_ids(old["cells"]), old["cells"]) if c.get("outputs")}
    return res | {i: c["outputs"] for i, c in zip(cell_ids(nb["cells"]), nb["cells"]) if c.get("outputs")}


def execute(nb, path, everything=False, timeout=600):
    "Run `nb` in a fresh kernel of this interpreter; returns a dict with raw outputs."
    import nbformat
    from nbclient import NotebookClient

    class Client(NotebookClient):
        async def async_execute_cell(self, cell, *args, **kw):
            if cell.cell_type == "code" and not everything and flagged(cell): return cell
            return await super().async_execute_cell(cell, *args, **kw)

    node = nbformat.from_dict(nb | {"nbformat": 4, "nbformat_minor": 5})
    for c, id in zip(node.cells, cell_ids(nb["cells"])): c["id"] = id
    client = Client(node, timeout=timeout, kernel_name="python3", store_widget_state=False, resources={"metadata": {"path": str(path.parent)}})
    client.execute(stderr=subprocess.DEVNULL)    # the kernel's own warnings; what cells write to stderr comes as outputs
    return json.loads(json.dumps(node))


def keep_figures(nb, old, path):
    "Where plotly could draw no SVG here, keep the one that is stored, or say what is missing."
    for c, id in zip(nb["cells"], cell_ids(nb["cells"])):
        bare = any(PLOTLY in o.get("data", {}) and "image/svg+xml" not in o["data"] for o in c.get("outputs", []))
        if bare and id in old: c["outputs"] = old[id]
        elif bare: raise SystemExit(f"{path}: a plotly figure has no SVG; install kaleido and Chromium, or set BROWSER_PATH, and run again")


def refresh(path, run=True, everything=False, timeout=600):
    "Run and clean one notebook; returns True where the file changed."
    before = path.read_text(encoding="utf8")
    nb = load(before)
    if run:
        old = stored_outputs(path, nb)
        for c, id in zip(nb["cells"], cell_ids(nb["cells"])):
            if c["cell_type"] == "code" and flagged(c): c["outputs"] = old.get(id, [])
        nb = execute(nb, path, everything, timeout)
        keep_figures(nb, old, path)
    after = dump(clean(nb))
    if after != before: path.write_text(after, encoding="utf8")
    return after != before


def prepare():
    "What a kernel started from here inherits."
    for k, v in ENV.items(): os.environ.setdefault(k, v)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT)] + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p])
    ready = plotly_ready()
    if ready: os.environ.setdefault("BROWSER_PATH", find_chromium() or "")
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+svg" if ready else "plotly_mimetype"


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("notebooks", nargs="*", type=Path)
    p.add_argument("--all", action="store_true", help="also run flagged cells")
    p.add_argument("--no-run", action="store_true", help="only clean what is stored")
    p.add_argument("--check", action="store_true", help="only say which files are not clean")
    p.add_argument("--timeout", type=int, default=600, help="seconds a cell may take")
    a = p.parse_args(argv)
    paths = a.notebooks or sorted(f for f in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
    if a.check:
        dirty = [f for f in paths if (t := f.read_text(encoding="utf8")) != dump(clean(load(t)))]
        for f in dirty: print(f"{f}: not clean; run tools/refresh.py --no-run")
        return bool(dirty)
    prepare()
    failed = 0
    for f in paths:
        try: print(f"{f}: {'changed' if refresh(f, not a.no_run, a.all, a.timeout) else 'as it was'}", flush=True)
        except Exception as e:
            failed += 1
            why = re.sub("\x1b" + r"\[[0-9;]*m", "", str(e))
            print(f"{f}: FAILED, file left as it was\n{why}", file=sys.stderr, flush=True)
    return bool(failed)


if __name__ == "__main__": sys.exit(main())
