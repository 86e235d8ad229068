"""Saved pages from the file system, in a browser: they work, load nothing, and their buttons save what is shown."""
import xml.etree.ElementTree as ET

import pytest

from xtokd import Pair
from xtokd.viz.dashboard import Dashboard
from xtokd.viz.ribbon import token_ribbon

pytestmark = pytest.mark.ui
SENTENCE = "The sum of 120 and 34 is 154.\n"


def opened(lab, path, theme="light", width=900):
    page = lab.page(path.as_uri(), theme=theme, width=width)
    page.faults = []
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    return page


@pytest.mark.parametrize("theme, width", [("light", 900), ("dark", 1440)])
def test_an_explorer_works_from_a_file(lab, tmp_path, theme, width):
    page = opened(lab, Pair("tiny").align(SENTENCE).explore().save(tmp_path / "x.html"), theme, width)
    page.wait_for_selector(".xt-x .seg")
    page.locator(".xt-x .list").focus()
    page.keyboard.press("Home"); page.keyboard.press("n"); page.keyboard.press("Enter")
    page.wait_for_selector(".xt-x .seg.pin.k2")
    assert "n→1" in page.inner_text(".xt-x .cards") and page.locator(".xt-x textarea").count() == 0
    page.click("text=edges")
    page.wait_for_selector(".xt-x .edge")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 18)"
    assert dark == (theme == "dark")
    page.click(".xtokd-theme")
    assert page.evaluate("document.body.dataset.jpThemeLight") == str(dark).lower()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert lab.axe(page) == [] and lab.external(page) == [] and page.faults == []


def test_buttons_save_svg_and_png(lab, tmp_path):
    page = opened(lab, Pair("tiny").align(SENTENCE * 30).explore().save(tmp_path / "x.html"), "dark")
    page.wait_for_selector(".xt-x .seg")
    with page.expect_download() as got: page.click("[data-save=svg]")
    got.value.save_as(tmp_path / "a.svg")
    drawn = ET.parse(tmp_path / "a.svg").getroot()
    boxes = [e for e in drawn.iter("{http://www.w3.org/2000/svg}text") if (e.text or "").strip() == "154"]
    assert len(boxes) == 30, "lines that are not on the screen are in the picture too"
    assert "var(" not in (tmp_path / "a.svg").read_text(encoding="utf8")
    with page.expect_download() as got: page.click("[data-save=png]")
    got.value.save_as(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "a.png").stat().st_size > 20_000
    assert page.faults == []


def test_a_run_is_read_step_by_step(lab, tmp_path):
    dashboard = Dashboard.replay("data/runs/tiny-watched.jsonl", speed=None)
    page = opened(lab, dashboard.save(tmp_path / "run.html"))
    page.wait_for_selector(".xd-plot svg")
    assert page.inner_text(".xd-where") == "newest" and page.locator(".xd-bar button").all_inner_texts() == ["▶ Play"]
    page.locator(".xd-range").focus()
    page.keyboard.press("Home")
    assert page.inner_text(".xd-where") == "step 0"
    page.click(".xd-bar button")
    page.wait_for_selector(".xd-where:text-is('step 120')")      # the policy of the page forbids Playwright's own eval
    assert page.locator(".xd-bar button").all_inner_texts() == ["▶ Play"]
    assert lab.axe(page) == [] and page.faults == []


def test_a_ribbon_keeps_its_tooltips(lab, tmp_path):
    page = opened(lab, token_ribbon(Pair("tiny"), "th").save(tmp_path / "r.html"))
    page.wait_for_selector(".xt-pic svg")
    assert page.locator(".xt-pic svg title").count() > 10
    with page.expect_download() as got: page.click("[data-save=svg]")
    assert got.value.suggested_filename.startswith("tokens-of-tiny-teacher")
    assert lab.axe(page) == [] and page.faults == []


def test_the_html_button_in_jupyterlab(lab):
    page = lab.notebook([f"from xtokd import Pair\nex = Pair('tiny').explore({SENTENCE!r})\nex"])
    page.wait_for_selector(".xt-x .seg")
    with page.expect_download() as got: page.click(".xt-x [data-save=html]")
    text = got.value.path().read_text(encoding="utf8")
    assert got.value.suggested_filename == "alignment.html" and "154" in text and not lab.external(page)
