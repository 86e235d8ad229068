"""Saved pages from the file system, in a browser: they work, load nothing, and their buttons save what is shown."""
import xml.etree.ElementTree as ET

import pytest

from xtokd import Pair
from xtokd.viz.dashboard import Dashboard
from xtokd.viz.live.race import Race
from xtokd.viz.live.step_lists import alignment_steps
from xtokd.viz.live.stepper import Stepper
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


@pytest.mark.parametrize("theme, width", [("light", 1440), ("dark", 900)])
def test_a_stepper_is_stepped_by_keys(lab, tmp_path, theme, width):
    step_list = alignment_steps(Pair("tiny"), "The number 120")
    page = opened(lab, Stepper(step_list, make=lambda text: step_list).save(tmp_path / "s.html"), theme, width)
    page.locator(".xt-st .picture").focus()
    for k in (1, 2, 3):
        page.keyboard.press("ArrowRight")
        step = step_list.steps[k]
        assert page.inner_text(".xt-st .place") == f"{k + 1} / {len(step_list.steps)}" and page.inner_text(".xt-st .sentence") == step.sentence
        lit = page.locator(".xt-st .codeline.lit").evaluate_all("all => all.map(x => +x.dataset.line)")
        assert lit == list(range(step.lines[0], step.lines[1] + 1))
    page.keyboard.press("End")
    assert page.inner_text(".xt-st .sentence") == step_list.steps[-1].sentence and page.get_by_role("button", name="Step forward").is_disabled()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".xt-st .place").startswith(f"{len(step_list.steps) - 1} /") and not page.locator(".xt-st textarea").is_visible()
    with page.expect_download() as got: page.click("[data-save=svg]")
    picture = got.value.path().read_text(encoding="utf8")
    assert got.value.suggested_filename == f"step-{len(step_list.steps) - 1}.svg" and "var(" not in picture
    words = {e.text for e in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}
    assert words == {e.text for e in ET.fromstring(f"<svg>{step_list.steps[-2].picture}</svg>").iter("text")} and len(words) > 5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert lab.axe(page) == [] and lab.external(page) == [] and page.faults == []


@pytest.mark.parametrize("theme, width", [("light", 900), ("dark", 1440)])
def test_a_race_is_run_by_keys(lab, tmp_path, theme, width):
    race = Race()
    page = opened(lab, race.save(tmp_path / "r.html"), theme, width)
    slider = page.get_by_label("position in the race")
    slider.focus()
    for key, position in (("Home", 0.), ("ArrowRight", .005), ("End", 1.)):
        page.keyboard.press(key)
        race.position = position
        rows = page.locator(".xr tr[data-run]").evaluate_all("rows => rows.map(r => [r.dataset.run, ...[2, 3, 4].map(k => +r.cells[k].textContent), r.cells[5].querySelector('bdi').textContent])")
        assert rows == [[row["run"], row["step"], *(float(f"{row[name]:.3g}") for name in ("accuracy", "distance")), row["text"]] for row in race.standings()]
    with page.expect_download() as got: page.click("[data-save=svg]")
    picture = ET.fromstring(got.value.path().read_text(encoding="utf8"))
    words = [e.text for e in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"cover", "strict", "Held-out accuracy, share right"} <= set(words) and len(list(picture.iter("{http://www.w3.org/2000/svg}polyline"))) == 12
    with page.expect_download() as got: page.click("[data-save=png]")
    got.value.save_as(tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 20_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert lab.axe(page) == [] and lab.external(page) == [] and page.faults == []


def test_the_html_button_in_jupyterlab(lab):
    page = lab.notebook([f"from xtokd import Pair\nex = Pair('tiny').explore({SENTENCE!r})\nex"])
    page.wait_for_selector(".xt-x .seg")
    with page.expect_download() as got: page.click(".xt-x [data-save=html]")
    text = got.value.path().read_text(encoding="utf8")
    assert got.value.suggested_filename == "alignment.html" and "154" in text and not lab.external(page)


def test_a_served_pair_aligns_what_is_typed(lab):
    import threading
    from xtokd.cli.explore import ExploreServer
    with ExploreServer(Pair("tiny").explore("one", others=["no/such"])) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = lab.page(server.url, theme="dark")
        page.wait_for_selector(".xt-x .seg")
        page.fill(".xt-x textarea", "seventy-two")
        page.wait_for_selector(".xt-x .tok text:text-is('seventy')")
        page.select_option(".xt-x .pair select >> nth=1", "no/such")
        page.wait_for_selector(".xt-x .error:visible")
        assert "no/such" in page.inner_text(".xt-x .error") and page.locator(".xt-x .seg").count() > 0
        assert lab.external(page) == [] and lab.axe(page) == []
        server.shutdown()
