"""Journeys in real JupyterLab in a real headless Chromium. `make test-ui` runs them; the default run leaves them out.

Fixture `lab`: `lab.notebook(cells, theme="light")` opens and runs a notebook of these code cells and returns Playwright's page;
`lab.said(page, n)`, `lab.ask(page, source)`, `lab.output(page, n)`, `lab.external(page)` (must be empty) and `lab.axe(page, selector)`
(must be empty): see tools/browser.py. One server and one browser serve all tests; every test's kernels end with it.
"""
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(1, str(ROOT / "tests"))
import browser

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items):
    why = browser.missing()
    for item in items:
        if HERE not in Path(item.fspath).parents: continue
        item.add_marker(pytest.mark.ui)
        if why: item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def jupyter():
    if why := browser.missing(): pytest.skip(why)
    with browser.Lab() as lab: yield lab


@pytest.fixture
def lab(jupyter):
    yield jupyter
    jupyter.close()
