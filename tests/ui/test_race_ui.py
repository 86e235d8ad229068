"The race in JupyterLab: slider, keys, play and pause, other axes; every number is the log's."
import json

CELL = "from xtokd.viz.live.race import Race\nlive = Race(seconds=1.5)\nlive"


def table(page):
    "{run: [step, accuracy, distance, text]} as the page shows it."
    rows = page.locator(".xr tr[data-run]").evaluate_all("rs => rs.map(r => [r.dataset.run, r.cells[2].textContent, r.cells[3].textContent, r.cells[4].textContent, r.cells[5].querySelector('bdi').textContent])")
    return {name: [int(step), float(accuracy), float(distance), text] for name, step, accuracy, distance, text in rows}


def told(lab, page):
    "The same as Python says it, in three digits."
    rows = json.loads(lab.ask(page, "import json; print(json.dumps(live.standings()))"))
    return {row["run"]: [row["step"], float(f"{row['accuracy']:.3g}"), float(f"{row['distance']:.3g}"), row["text"]] for row in rows}


def test_the_race_runs_in_the_page(lab):
    page = lab.notebook([CELL])
    page.wait_for_selector(".xr tr[data-run]")
    start = table(page)
    assert len(start) == 6 and {row[0] for row in start.values()} == {0} and start == told(lab, page)

    slider = page.get_by_label("position in the race")
    slider.focus()
    page.keyboard.press("End")
    assert {row[0] for row in table(page).values()} == {400} and table(page) == told(lab, page)
    assert table(page)["cover"][1] > .95 and table(page)["strict"][1] < .1
    assert page.locator(".xr tr[data-run] .xr-best").count() >= 2
    slider.focus()                                  # a question to Python takes the focus away
    page.keyboard.press("Home")
    for _ in range(26): page.keyboard.press("ArrowRight")
    assert page.locator(".xr .xr-where").inner_text() == "52 of 400 optimizer steps"
    assert {row[0] for row in table(page).values()} == {50} and table(page) == told(lab, page)

    page.get_by_label("asked").select_option("1")
    assert table(page) == told(lab, page)
    page.get_by_label("compare at the same").select_option("teacher_tokens")
    steps = {row[0] for row in table(page).values()}
    assert table(page) == told(lab, page) and steps <= {0, 50}
    page.get_by_label("compare at the same").select_option("step")

    # play to the end, pause on the way, by the space key
    slider.focus()
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    page.wait_for_function("() => document.querySelector('.xr .xr-button').textContent.includes('Pause') && Number(document.querySelector('.xr .xr-range').value) > 100")
    page.keyboard.press(" ")
    assert "Play" in page.locator(".xr .xr-button").inner_text()
    held = page.locator(".xr .xr-where").inner_text()
    page.evaluate("() => new Promise(done => setTimeout(done, 300))")
    assert page.locator(".xr .xr-where").inner_text() == held and table(page) == told(lab, page)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => document.querySelector('.xr .xr-where').textContent.startsWith('400 of') && document.querySelector('.xr .xr-button').textContent.includes('Play')")

    # a click on a chart, and Python
    box = page.locator(".xr [data-panel=accuracy] svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] * .5, box["y"] + box["height"] * .5)
    assert 150 <= {row[0] for row in table(page).values()}.pop() <= 200
    lab.ask(page, "live.position = .25; 1")
    page.wait_for_function("() => document.querySelector('.xr .xr-where').textContent.startsWith('100 of')")
    assert {row[0] for row in table(page).values()} == {100}
    assert not lab.axe(page, ".xr") and lab.external(page) == []


def test_the_race_fits_a_narrow_dark_page(lab):
    page = lab.notebook([CELL], theme="dark", width=900)
    page.wait_for_selector(".xr tr[data-run]")
    assert page.evaluate("() => { const b = document.querySelector('.xr'); return b.scrollWidth <= b.clientWidth; }")
    assert not lab.axe(page, ".xr")
