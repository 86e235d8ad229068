"""What a reader sees who opens a notebook and runs nothing."""
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CELLS = ["""
from xtokd.alignment.pair import Pair
pair = Pair("tiny")
al = pair.align("17 + 25 = 42")
al""", "print('bands', len(al.chunks))"]
PICTURE = ".jp-OutputArea-output[data-mime-type='image/svg+xml'] img"
DRAWN = "e => e.complete && e.naturalWidth > 100"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_alignment_draws_itself(lab, theme):
    page = lab.notebook(CELLS, theme=theme)
    assert lab.said(page, 1).startswith("bands ")
    assert page.locator(PICTURE).first.evaluate(DRAWN)
    assert lab.ask(page, "6 * 7") == "42"
    assert lab.external(page) == []


def test_pictures_are_there_before_anything_runs(lab):
    path = ROOT / "nbs/03_alignment/05_byte_align.ipynb"
    stored = sum("image/svg+xml" in o.get("data", {}) for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", []))
    page = lab.open(path)
    pictures = page.locator(PICTURE)
    assert stored and pictures.count() == stored
    for k in range(stored): assert pictures.nth(k).evaluate(DRAWN)
    assert lab.external(page) == []


def test_a_notebook_from_elsewhere_shows_the_text_twin(lab):
    page = lab.open(ROOT / "nbs/03_alignment/04_alignment.ipynb", trust=False)     # JupyterLab shows no SVG of a notebook that nobody has trusted; trust goes by content, so it is one that no other test opens
    assert page.locator(PICTURE).count() == 0
    assert page.locator(".jp-OutputArea-output").count()
    assert lab.external(page) == []
