"""Every lesson in real JupyterLab: run from top to bottom, its live elements used by keyboard and mouse, its puzzle answered wrong and right; then looked at in light and dark, wide and narrow.

`make test-ui` does the fourth lesson, `make test-ui-all` the ten; with XTOKD_SHOTS=FOLDER each look is stored as a picture."""
import json
import os
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.ui
COURSE = Path(__file__).resolve().parent.parent.parent / "nbs/00_course"
LESSONS = sorted(f.stem for f in COURSE.glob("[0-9]*.ipynb"))
LOOKS = [("light", 1440), ("light", 900), ("dark", 1440), ("dark", 900)]
PATIENT = 600_000      # milliseconds: a lesson trains
# JupyterLab shows an SVG output as an image without alternative text, and what is wider than the page in a region that scrolls by mouse only; the handle of ipywidgets' slider has no name
NOT_OURS = "^image-alt|^scrollable-region-focusable.*jp-Rendered|^aria-input-field-name.*noUi-handle"
FAULTS = """() => [...window.jupyterapp.shell.currentWidget.content.widgets].flatMap((cell, k) =>
    (cell.model.type === 'code' ? cell.model.sharedModel.getOutputs() : [])
        .filter(output => output.output_type === 'error').map(output => `cell ${k}: ${output.ename}: ${output.evalue}`))"""
WIDE = """() => [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-child')]
    .filter(output => output.scrollWidth > output.clientWidth + 1).map(output => output.innerText.slice(0, 80))"""
LOOK = """async theme => {
    await window.jupyterapp.commands.execute('apputils:change-theme', {theme: `JupyterLab ${theme === 'dark' ? 'Dark' : 'Light'}`});
    document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer').forEach(panel => panel.scrollTo(0, 0));
}"""


def opened(lab, name, slow=False):
    "A lesson, opened and run; cells marked slow are left out unless they are asked for."
    notebook = json.loads((COURSE / f"{name}.ipynb").read_text(encoding="utf8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if slow or not "".join(cell["source"]).startswith("#| slow")]
    page = lab.open(notebook, width=1440)
    page.set_default_timeout(PATIENT)
    lab.run(page)
    assert page.evaluate(FAULTS) == []
    return page


def outputs(page): return page.locator(".jp-NotebookPanel .jp-OutputArea-output")


def boxes(page): return outputs(page).filter(has=page.get_by_role("button", name="Check", exact=True))


def solve(page, wrong, right, hint):
    "Answer the lesson's puzzle: first wrong, which gives a hint, then right. Answers are lists of labels, or a text."
    box = boxes(page).last
    box.scroll_into_view_if_needed()
    for answer, expected in ((wrong, hint), (right, "solved!")):
        if isinstance(answer, str):
            box.locator("input[type=text]").fill(answer)
            page.keyboard.press("Enter")
        else:
            for button in box.locator("button.widget-toggle-button").all():
                chosen = "mod-active" in button.get_attribute("class")
                if chosen != (button.inner_text() in answer): button.click()
            box.get_by_role("button", name="Check", exact=True).focus()
            page.keyboard.press("Enter")
        box.locator("svg", has_text=expected).wait_for()


def step_through(page, k=0, sentence=""):
    "Move the `k`-th stepper by keys and by its buttons."
    live = page.locator(".xt-st").nth(k)
    live.scroll_into_view_if_needed()
    place = lambda: [int(x) for x in live.locator(".place").inner_text().split(" / ")]
    count = place()[1]
    live.locator(".picture").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert place() == [3, count] and live.locator(".codeline.lit").count() >= 1
    assert re.search(sentence, live.locator(".sentence").inner_text()), live.locator(".sentence").inner_text()
    live.get_by_role("button", name="Step back").click()
    assert place() == [2, count]
    live.locator("input[type=range]").focus()
    page.keyboard.press("End")
    assert place() == [count, count] and live.get_by_role("button", name="Step forward").is_disabled()
    live.get_by_role("button", name="First step").click()
    assert place() == [1, count]


def live_picture(page, control): return outputs(page).filter(has=page.locator(control)).filter(has=page.locator("svg")).first


def title_of(picture): return picture.locator("svg").first.text_content()


def slide(page, picture, k, keys):
    "Move the `k`-th slider of a live picture by keys; returns the text of the picture before and after."
    before = title_of(picture)
    handle = picture.locator(".noUi-handle").nth(k)
    handle.scroll_into_view_if_needed()
    handle.focus()
    for key in keys: page.keyboard.press(key)
    page.wait_for_function("([node, text]) => node.querySelector('svg').textContent !== text", arg=[picture.element_handle(), before])
    return before, title_of(picture)


def known(lab, page, expression):
    "The value of a Python expression in the lesson's kernel."
    return json.loads(lab.ask(page, f"import json; print(json.dumps({expression}))"))


def use_01(lab, page):
    picture = live_picture(page, ".widget-text input")
    picture.locator("input").fill("Zürich 9")
    picture.locator("svg", has_text="8 characters, 9 bytes").wait_for()
    picture.locator("input").fill("")
    picture.get_by_role("alert").filter(has_text="type at least one character").wait_for()
    assert "8 characters" in title_of(picture), "the last picture stays"
    right, every = known(lab, page, "sorted(inside)"), known(lab, page, "list(labels)")
    solve(page, [label for label in every if label not in right][:1], right, "is valid UTF-8")


def use_02(lab, page):
    step_through(page, 0, "reads its token 0, 'The', of 3 bytes")
    step_through(page, 1)
    lab.ask(page, "from xtokd.course.puzzles import _EQUAL_PAIRS, _REPEATS_PAIR; bands = [_REPEATS_PAIR.band(i, i + 1, j, j + 1) for i, j in _EQUAL_PAIRS]")
    bands = known(lab, page, "[band.a == band.c for band in bands]")
    labels = boxes(page).last.locator("button.widget-toggle-button").all_inner_texts()
    solve(page, [label for label, same in zip(labels, bands) if same][:1], [label for label, same in zip(labels, bands) if not same], "vertical band")


def use_03(lab, page):
    picture = live_picture(page, ".noUi-handle")
    _, after = slide(page, picture, 0, ["ArrowRight"])
    assert "The student writes 'ly'" in after and "ly 1.000" not in after, "the second token"
    _, cold = slide(page, picture, 1, ["Home"])
    assert "ly 1.000" in cold, "at a temperature of .1 the row is nearly certain"
    solve(page, ["row 3"], ["row 4", "row 5", "row 6"], "in the prompt")


def use_04(lab, page):
    step_through(page, 0)
    solve(page, "[1, 1, 1]", "[.2, .2, .4]", "L_S is -2")


def use_05(lab, page):
    picture = live_picture(page, ".noUi-handle")
    slide(page, picture, 1, ["ArrowRight"])
    slide(page, picture, 0, ["End"])
    solve(page, ["forward KL drops an answer"], ["forward KL invents", "reverse KL drops an answer"], "infinite log")


def use_06(lab, page):
    picture = live_picture(page, ".widget-text input")
    box = picture.locator("input").first
    box.fill("Certainly: 7")
    page.keyboard.press("Enter")
    picture.locator("svg", has_text="Certainly: 7 for").wait_for()
    box.fill("é")
    page.keyboard.press("Enter")
    picture.get_by_role("alert").filter(has_text="plain ASCII").wait_for()
    right = known(lab, page, "sorted(right)")
    assert len(right) == 2
    solve(page, ["963→2"], right, "the target says")


def use_07(lab, page):
    step_through(page, 0)
    solve(page, "[.18, .63]", "[.2222, .7778]", "Divide by what agrees")


def use_08(lab, page):
    solve(page, ["a batch of 8 instead of 32"], ["sample all texts before step 1", "sample at temperature 0.5", "let the teacher write"], "the present student")


def use_09(lab, page):
    picture = live_picture(page, ".noUi-handle")
    _, after = slide(page, picture, 0, ["ArrowRight"])
    assert "Step 20" in after
    labels = boxes(page).last.locator("button.widget-toggle-button").all_inner_texts()
    solve(page, labels[:1], labels[2:], "the interval holds 0")


def use_10(lab, page):
    live = page.locator(".xt-x").first
    live.scroll_into_view_if_needed()
    live.locator("textarea").first.fill("It is 12 now.")
    page.wait_for_function("document.querySelector('.xt-x').textContent.includes('It')")
    live.locator(".list").focus()
    for key in ("Home", "n", "Enter"): page.keyboard.press(key)
    live.locator(".seg.pin").first.wait_for()
    labels, others = (known(lab, page, f"[label for k, label in enumerate(labels) if k {where} alone]") for where in ("not in", "in"))
    solve(page, others[:1], labels, "a chunk of its own")


USES = {"01": use_01, "02": use_02, "03": use_03, "04": use_04, "05": use_05, "06": use_06, "07": use_07, "08": use_08, "09": use_09, "10": use_10}


def look(lab, page, name):
    "Each theme and width: nothing is wider than the page, and axe finds nothing serious in the outputs."
    for theme, width in LOOKS:
        page.set_viewport_size(dict(width=width, height=1000))
        page.evaluate(LOOK, theme)
        page.wait_for_selector(f"body[data-jp-theme-light='{'true' if theme == 'light' else 'false'}']", state="attached")
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        assert page.evaluate(WIDE) == [], (theme, width)
        faults = [fault for fault in lab.axe(page, ".jp-NotebookPanel .jp-OutputArea") if not re.search(NOT_OURS, fault)]
        assert faults == [], (theme, width)
        if shots := os.environ.get("XTOKD_SHOTS"): shoot(page, Path(shots), f"{name}-{theme}-{width}")


def shoot(page, folder, name):
    "The whole notebook as one tall picture."
    folder.mkdir(parents=True, exist_ok=True)
    size = page.viewport_size
    height = page.evaluate("() => document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-viewport').scrollHeight + 150")
    page.set_viewport_size(dict(width=size["width"], height=min(height, 16_000)))
    page.screenshot(path=folder / f"{name}.png")
    page.set_viewport_size(size)


@pytest.mark.parametrize("name", [name if name.startswith("04") else pytest.param(name, marks=pytest.mark.matrix) for name in LESSONS])
def test_a_lesson_is_run_used_and_looked_at(lab, name):
    page = opened(lab, name)
    USES[name[:2]](lab, page)
    look(lab, page, name)
    assert not lab.external(page)


@pytest.mark.matrix
@pytest.mark.parametrize("name", [name for name in LESSONS if "#| slow" in (COURSE / f"{name}.ipynb").read_text(encoding="utf8")])
def test_slow_cells(lab, name):
    page = opened(lab, name, slow=True)
    assert not lab.external(page)
