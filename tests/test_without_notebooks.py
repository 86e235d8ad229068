"On a cluster xtokd is installed without JupyterLab, widgets and plotly: everything but notebooks and widgets works."
import configparser, json, os, re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTEBOOK_PACKAGES = ("jupyterlab", "ipywidgets", "anywidget", "plotly")
BLOCKED = (*NOTEBOOK_PACKAGES, "IPython", "ipykernel", "jupyter_client", "traitlets", "nbdev", "nbclient", "nbformat", "fastcore", "execnb", "kaleido", "comm", "tqdm.notebook")
SCRIPT = f"""
import sys
for name in {BLOCKED!r}: sys.modules[name] = None
import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from xtokd import *
from xtokd import DistillConfig, Distiller, Pair, Run
try: from xtokd import Bench
except ImportError as e: assert "pip install jupyterlab ipywidgets anywidget plotly" in str(e), e
else: raise AssertionError("a widget without its package")
from xtokd.cli.commands import main
from xtokd.serving.server import Server
from xtokd.viz.alignment_svg import alignment_svg
small = ["--max-steps", "1", "--batch-size", "2", "--max-new-tokens", "4", "--eval-size", "2", "--save-steps", "0"]
codes = {{"distill": main(["distill", *small, "--output-dir", "a"]), "resume": main(["distill", "--resume", "a", "--max-steps", "2"]), "doctor": main(["doctor"]),
         "align": main(["align", "Certainly: 894772.", "--svg", "a.svg"]), "compare": main(["compare", "a"]), "generate": main(["generate", "a", "What is 1 + 1?", "--max-new-tokens", "4"]), "methods": main(["methods"])}}
run = Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(max_steps=1, batch_size=2, max_new_tokens=4, eval_size=0, output_dir="b")).fit()
for words in (["doctor", "--html", "doctor.html"], ["align", "abc", "--html", "a.html"]):
    with redirect_stderr(StringIO()) as told: assert main(words) == 1
    assert "pip install jupyterlab ipywidgets anywidget plotly" in told.getvalue(), told.getvalue()
assert run.finished and "<svg" in alignment_svg(Pair("tiny").align("seventy-two"))
Path("codes.json").write_text(json.dumps(codes))
assert not [name for name in {BLOCKED!r} if sys.modules.get(name)]
"""


def requirements():
    "Requirements of the package, by name."
    found = configparser.ConfigParser()
    found.read(ROOT / "settings.ini")
    return {re.match(r"[\w-]+", word)[0]: word for word in found["DEFAULT"]["requirements"].split()}


def test_it_trains_where_no_notebook_package_can_be_imported(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads((tmp_path / "codes.json").read_text())
    assert set(codes.values()) == {0}, codes


def test_the_list_for_clusters_is_the_package_without_its_notebook_packages():
    listed = [line.strip() for line in (ROOT / "requirements-cluster.txt").read_text().splitlines() if line.strip() and not line.startswith("#")]
    wanted = requirements()
    assert listed == [word for name, word in wanted.items() if name not in NOTEBOOK_PACKAGES] and set(NOTEBOOK_PACKAGES) < set(wanted)
    readme = (ROOT / "README.md").read_text()
    assert "pip install -r requirements-cluster.txt" in readme and "pip install --no-deps ." in readme
