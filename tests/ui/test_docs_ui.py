"""The documentation site from the file system, in a browser."""
import re

import pytest

import docs
from test_docs import whole

START = "index.html"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "docs"
    docs.build(out=out)
    return out


def test_the_whole_site_hangs_together(site):
    assert whole(site) == []
    assert len(list(site.rglob("*.html"))) >= 40 and len(list((site / "api").glob("*.html"))) >= 30


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [START, "03_alignment/05_byte_align.html", "10_viz/05_run_charts.html", "12_cli/04_commands.html", "api/alignment.byte_align.html", "api/index.html"])
def test_pages_are_accessible_and_load_nothing(lab, site, name, theme):
    page = lab.page((site / name).as_uri(), theme=theme)
    faults = []
    page.on("pageerror", lambda e: faults.append(str(e)))
    assert lab.axe(page) == []
    assert lab.external(page) == [] and faults == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than its window"


def test_search_and_theme_by_keyboard(lab, site):
    page = lab.page((site / START).as_uri())
    page.keyboard.press("/")
    page.keyboard.type("align_batch")
    page.wait_for_selector("#found a")
    assert "found" in page.inner_text("#count") and lab.axe(page) == []
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"byte_align\.html#align_batch$"))
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    page.keyboard.press("/")
    page.keyboard.type("zzzz nothing like this")
    page.wait_for_function("document.querySelector('#count').textContent === 'nothing found'")
    page.keyboard.press("Escape")
    assert page.inner_text("#count") == "" and lab.external(page) == []


def test_figures_are_there_without_scripts(lab, site):
    page = lab.page((site / "10_viz/01_alignment_svg.html").as_uri(), javascript=False)
    shapes = page.locator(".fig svg")
    assert shapes.count() >= 3 and all(shapes.nth(k).bounding_box()["height"] > 20 for k in range(shapes.count()))
    assert page.locator(".fig svg title").count() > shapes.count(), "tooltips of tokens"
    assert page.locator("nav[aria-label=Pages] a").count() > 40


def test_a_narrow_window(lab, site):
    page = lab.page((site / "03_alignment/05_byte_align.html").as_uri(), width=390, height=800)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert lab.axe(page) == []
