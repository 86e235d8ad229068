"""Each lesson is run from top to bottom in JupyterLab, and its live elements are used by mouse and keys.

One theme and width a lesson in `make test-ui`; all of them (marker `matrix`) in `make test-ui-all`."""
import itertools
from pathlib import Path

import pytest

import browser

pytestmark = pytest.mark.ui
COURSE = Path(__file__).resolve().parent.parent.parent / "nbs/00_course"
LESSONS = sorted(path.stem for path in COURSE.glob("[0-9]*.ipynb"))
LOOKS = list(itertools.product(("light", "dark"), (1440, 900)))
ERRORS = ".jp-NotebookPanel [data-mime-type='application/vnd.jupyter.error']"


def typed(page, text, which=0):
    box = page.locator(".jp-CodeCell .widget-text input").nth(which)
    box.fill(text)
    box.press("Enter")


def clicked(page, *labels):
    for label in labels: page.get_by_role("button", name=label, exact=True).click()


def pressed(page, label):
    "By keys alone: the answer by space, the check by Enter."
    page.get_by_role("button", name=label, exact=True).focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Check", exact=True).focus()
    page.keyboard.press("Enter")


def says(page, text): page.get_by_text(text).first.wait_for()


def moved(page, presses):
    "The first slider by keys."
    page.locator(".jp-CodeCell .noUi-handle").first.focus()
    for _ in range(presses): page.keyboard.press("ArrowRight")


def stepped(lab, page):
    "The first stepper: three steps by keys, the last and back by the mouse; returns the sentences that were shown."
    live = page.locator(".xt-st").first
    place, seen = live.locator(".place"), []
    count = int(place.inner_text().split(" / ")[1])
    live.locator(".picture").focus()
    for k in (2, 3, 4):
        page.keyboard.press("ArrowRight")
        assert place.inner_text() == f"{k} / {count}" and live.locator(".codeline.lit").count() >= 1
        seen.append(live.locator(".sentence").inner_text())
    live.get_by_role("button", name="Last step").click()
    assert place.inner_text() == f"{count} / {count}"
    live.get_by_role("button", name="Step back").click()
    assert place.inner_text() == f"{count - 1} / {count}"
    return seen


def bytes_of_a_text(lab, page):
    typed(page, "é")
    says(page, "1 characters, 2 bytes")
    typed(page, "")
    page.get_by_role("alert").filter(has_text="The text is empty").wait_for()
    clicked(page, "2: c3", "6: f0", "7: 9f", "Check")
    says(page, "there are more")
    pressed(page, "8: 91")
    says(page, "inside: solved!")


def two_rulers(lab, page):
    assert len(set(stepped(lab, page))) >= 2
    clicked(page, "#3", "Check")
    says(page, "mispair: not yet")


def rows(lab, page):
    moved(page, 5)
    says(page, "the teacher's row begins before")
    clicked(page, "row 4", "row 5")
    pressed(page, "row 6")
    says(page, "shift: solved!")


def credit(lab, page):
    assert len(set(stepped(lab, page))) >= 2
    typed(page, "[.2, .2, .3]", -1)
    says(page, "semantic: not yet (2 of 3 right)")
    typed(page, "[.2, .2, .4]", -1)
    says(page, "semantic: solved!")


USES = {"01_bytes": bytes_of_a_text, "02_two_rulers": two_rulers, "03_rows": rows, "04_credit": credit}


def combinations():
    "Every lesson in every look; all but one of a lesson's, another one each time, are marked `matrix`."
    for k, name in enumerate(LESSONS):
        for look in LOOKS:
            marks = [] if look == LOOKS[-1 - k % len(LOOKS)] else [pytest.mark.matrix]
            yield pytest.param(name, *look, marks=marks, id=f"{name}-{look[0]}-{look[1]}")


@pytest.mark.parametrize("name, theme, width", combinations())
def test_a_lesson_is_run_and_used(lab, name, theme, width):
    page = lab.open(COURSE / f"{name}.ipynb", theme=theme, width=width)
    page.set_default_timeout(4 * browser.PATIENCE)              # a lesson trains and measures
    lab.run(page)
    page.set_default_timeout(browser.PATIENCE)
    assert page.locator(ERRORS).count() == 0
    USES[name](lab, page)
    wide = page.locator(".jp-CodeCell .jp-OutputArea-output").evaluate_all("all => all.filter(x => x.scrollWidth > x.clientWidth + 1).map(x => x.innerText.slice(0, 80))")
    assert wide == [], "an output is wider than its cell"
    assert lab.external(page) == [] and lab.axe(page, ".jp-CodeCell .widget-vbox") == []
