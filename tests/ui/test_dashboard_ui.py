"The dashboard in JupyterLab: a replay by keyboard."
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = str(ROOT / "data/runs/tiny-watched.jsonl")

def step(page): return int(page.locator(".xd .xd-big").first.inner_text())
STATUS = "w => document.querySelector('.xd .xd-status').textContent.startsWith(w)"


def test_a_replay_is_read_by_keyboard(lab):
    page = lab.notebook([f"from xtokd.viz.dashboard import Dashboard\ndash = Dashboard.replay({RUN!r}, speed=10)\ndash"])
    page.wait_for_selector(".xd .xd-panel")
    page.wait_for_function(STATUS, arg="replay")
    button = page.get_by_role("button", name="Pause")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.xd .xd-status').textContent.includes('paused')")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => document.activeElement.textContent").endswith("Stop")
    page.keyboard.press("Enter")
    page.wait_for_function(STATUS, arg="finished")
    assert step(page) == 120

    page.locator(".xd .xd-range").focus()
    page.keyboard.press("Home")
    for _ in range(7): page.keyboard.press("ArrowRight")
    assert page.locator(".xd .xd-where").inner_text() == "step 7"
    assert page.locator(".xd .xd-range").get_attribute("aria-valuetext").startswith("step 7: loss ")
    assert lab.ask(page, "dash.at") == "7"
    assert page.locator(".xd .xd-cursor[visibility=visible]").count() == page.locator(".xd .xd-panel").count()
    page.locator(".xd .xd-range").focus()
    page.keyboard.press("Escape")
    assert page.locator(".xd .xd-where").inner_text() == "newest"

    plot = page.locator(".xd .xd-panel[data-key=loss] .xd-plot")
    plot.scroll_into_view_if_needed()
    plot.hover()
    assert page.locator(".xd .xd-where").inner_text().startswith("step ")
    assert not lab.axe(page, ".xd") and lab.external(page) == []
