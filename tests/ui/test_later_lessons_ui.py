"""Lessons 5 to 7 run from top to bottom in JupyterLab; answers are clicked and typed, controls are moved by keys."""
import pytest

from test_lessons_ui import check, lesson

pytestmark = pytest.mark.ui


def test_loss_by_keys(lab):
    page = lesson(lab, "05_on_policy_loss", theme="dark", width=900)
    before = page.locator(".jp-CodeCell .widget-vbox svg").first.inner_html()
    handle = page.locator(".jp-CodeCell .noUi-handle").first
    handle.focus()
    for _ in range(10): page.keyboard.press("ArrowRight")                # temperature 3
    page.wait_for_function("text => document.querySelector('.jp-CodeCell .widget-vbox svg').innerHTML != text", arg=before)
    page.get_by_role("button", name="forward KL invents").click()
    check(page)
    page.get_by_text("there are more").wait_for()
    page.get_by_role("button", name="reverse KL drops an answer").focus()
    page.keyboard.press("Space")
    check(page)
    page.get_by_text("seek: solved!").first.wait_for()
    assert not lab.external(page)


def test_projection_of_a_typed_text(lab):
    page = lesson(lab, "06_projection", width=1440)
    box = page.locator(".jp-CodeCell .widget-text input").first
    box.fill("Certainly: 963")
    box.press("Enter")
    page.get_by_text("Certainly:·963 for:").first.wait_for()
    box.fill("")
    box.press("Enter")
    page.get_by_role("alert").filter(has_text="plain ASCII").wait_for()
    for label in ("9→6", "963→2"): page.get_by_role("button", name=label, exact=True).click()
    check(page)
    page.get_by_text("digit trap: not yet").first.wait_for()
    for label in ("963→2", "96→3"): page.get_by_role("button", name=label, exact=True).click()
    check(page)
    page.get_by_text("digit trap: solved!").first.wait_for()
    assert not lab.external(page)


def test_cover_stepped_and_typed(lab):
    page = lesson(lab, "07_cover_by_hand", theme="dark", width=900)
    box = page.locator(".jp-CodeCell .widget-text input").last
    box.fill("[.18, .63]")
    box.press("Enter")
    page.get_by_text("by hand: not yet").first.wait_for()
    box.fill("[.222, .778]")
    box.press("Enter")
    page.get_by_text("by hand: solved!").first.wait_for()
    assert not lab.external(page) and not lab.axe(page, ".jp-CodeCell .widget-vbox")
