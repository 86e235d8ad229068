"""The first lessons run from top to bottom in JupyterLab; answers are clicked and typed, controls are moved by keys."""
from pathlib import Path

import pytest

pytestmark = pytest.mark.ui
COURSE = Path(__file__).resolve().parent.parent.parent / "nbs/00_course"


def lesson(lab, name, **page):
    page = lab.open(COURSE / f"{name}.ipynb", run=True, **page)
    assert not page.locator(".jp-NotebookPanel .jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count()
    return page


def check(page): page.get_by_role("button", name="Check", exact=True).click()


def test_bytes_typed_and_clicked(lab):
    page = lesson(lab, "01_bytes", theme="dark", width=900)
    box = page.locator(".jp-CodeCell .widget-text input").first
    box.fill("é")
    box.press("Enter")
    page.wait_for_function("document.querySelector('.jp-NotebookPanel').innerText.includes('1 characters, 2 bytes')")
    box.fill("")
    box.press("Enter")
    page.get_by_role("alert").filter(has_text="The text is empty").wait_for()
    for label in ("2: c3", "6: f0", "7: 9f"): page.get_by_role("button", name=label).click()
    check(page)
    page.get_by_text("there are more").wait_for()
    page.get_by_role("button", name="8: 91").focus()
    page.keyboard.press("Space")
    check(page)
    page.get_by_text("inside: solved!").first.wait_for()
    assert not lab.external(page)


def test_rulers_played_and_clicked(lab):
    page = lesson(lab, "02_two_rulers", width=1440)
    page.get_by_role("button", name="#3").click()
    check(page)
    page.get_by_text("mispair: not yet").first.wait_for()
    assert not lab.external(page)


def test_rows_by_keys(lab):
    page = lesson(lab, "03_rows", width=900)
    handle = page.locator(".jp-CodeCell .noUi-handle").first
    handle.focus()
    for _ in range(5): page.keyboard.press("ArrowRight")
    page.get_by_text("the teacher's row begins before").first.wait_for()
    for row in "456": page.get_by_role("button", name=f"row {row}").click()
    check(page)
    page.get_by_text("shift: solved!").first.wait_for()
    assert not lab.external(page)


def test_credit_typed(lab):
    page = lesson(lab, "04_credit", theme="dark", width=1440)
    box = page.locator(".jp-CodeCell .widget-text input").last
    box.fill("[.2, .2, .3]")
    box.press("Enter")
    page.get_by_text("semantic: not yet (2 of 3 right)").first.wait_for()
    box.fill("[.2, .2, .4]")
    box.press("Enter")
    page.get_by_text("semantic: solved!").first.wait_for()
    assert not lab.external(page) and not lab.axe(page, ".jp-CodeCell .widget-vbox")
