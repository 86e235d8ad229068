"The dashboard in JupyterLab: steering a real run while it trains, a replay by keyboard, and the picture that stays."
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = str(ROOT / "data/runs/tiny-watched.jsonl")
COLLAPSE = str(ROOT / "data/runs/tiny-collapse.jsonl")

TRAIN = """import tempfile, torch
torch.set_num_threads(1)
from xtokd.train.distiller import Distiller
from xtokd.train.config import DistillConfig
from xtokd.viz.dashboard import Dashboard
out = tempfile.mkdtemp() + "/run"
config = DistillConfig(max_steps=5000, batch_size=4, micro_batch_size=4, max_new_tokens=12, eval_steps=5, eval_size=4, save_steps=0, progress=False, output_dir=out)
run = Distiller("tiny", "tiny", "tiny", config=config).fit(block=False)
dash = Dashboard(run)
dash"""


def step(page): return int(page.locator(".xd .xd-big").first.inner_text())


def arrives(lab, page, source, value, tries=20):
    """Whether `source` becomes `value` in Python.

    While the kernel has not answered the last message of a widget, JupyterLab keeps the newest value of a trait back. A cell
    that is run at that moment is queued before it and reads an older value, so one question may come too early."""
    return any(lab.ask(page, source) == value for _ in range(tries))


STATUS = "w => document.querySelector('.xd .xd-status').textContent.startsWith(w)"


def test_a_run_is_paused_resumed_and_stopped_while_it_trains(lab, tmp_path):
    page = lab.notebook([TRAIN])
    page.wait_for_selector(".xd .xd-panel")
    page.wait_for_function("() => Number(document.querySelector('.xd .xd-big').textContent) >= 6")
    keys = page.locator(".xd .xd-panel").evaluate_all("ps => ps.map(p => p.dataset.key)")
    assert {"loss", "kl", "signal", "length", "entropy", "speed", "memory"} <= set(keys)
    assert page.locator(".xd .xd-sample svg.xt-a rect.v").count() > 0, "the sample has no signal bars"

    page.get_by_role("button", name="Pause").click()
    page.wait_for_function(STATUS, arg="paused")
    held = int(lab.ask(page, "import time; time.sleep(2.5); n = run.steps[-1]['step']; n"))     # a step may still end; then it holds
    assert int(lab.ask(page, "time.sleep(1); run.steps[-1]['step']")) == held == step(page)

    page.get_by_role("button", name="Snapshot").click()
    page.wait_for_function("() => document.querySelector('.xd .xd-answer').textContent.includes('snapshot of step')")
    assert lab.ask(page, "from pathlib import Path; sorted(p.suffix for p in Path(out).glob('run-*'))") == "['.json', '.svg']"

    page.get_by_role("button", name="Resume").click()
    page.wait_for_function("n => Number(document.querySelector('.xd .xd-big').textContent) > n", arg=held)
    assert not lab.axe(page, ".xd")

    page.get_by_role("button", name="Stop").click()
    page.wait_for_function(STATUS, arg="stopped")
    assert json.loads(lab.ask(page, "run.wait(60); import json; print(json.dumps([run.of('end')[-1]['reason'], (Path(out)/'student').is_dir(), run.steps[-1]['step'] < 5000]))")) == ["stopped", True, True]
    assert page.get_by_role("button", name="Stop").get_attribute("aria-disabled") == "true"

    # what is saved with the notebook is the last picture, not the first
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    saved = json.loads(max((lab.home / "work").glob("test_*.ipynb")).read_text())
    data = [o["data"] for o in saved["cells"][0]["outputs"] if "data" in o][-1]
    assert "stopped" in "".join(data["image/svg+xml"]) and "stopped" in "".join(data["text/plain"])
    assert not saved["metadata"].get("widgets")
    assert lab.external(page) == []


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
    assert page.locator(".xd .xd-big").all_inner_texts() == json.loads(lab.ask(page, "import json; print(json.dumps([row[1] for row in dash.data['at'] if row[0] <= 7][-1]))"))
    assert arrives(lab, page, "dash.at", "7")
    assert page.locator(".xd .xd-cursor[visibility=visible]").count() == page.locator(".xd .xd-panel").count()
    page.locator(".xd .xd-range").focus()
    page.keyboard.press("Escape")
    assert page.locator(".xd .xd-where").inner_text() == "newest"

    plot = page.locator(".xd .xd-panel[data-key=loss] .xd-plot")
    plot.scroll_into_view_if_needed()
    plot.hover()
    assert page.locator(".xd .xd-where").inner_text().startswith("step ")
    assert not lab.axe(page, ".xd") and lab.external(page) == []


def test_hostile_samples_and_warnings_in_the_dark(lab, tmp_path):
    log = tmp_path / "hostile.jsonl"
    evil = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>\u202e" + "y" * 5_000
    lines = Path(COLLAPSE).read_text(encoding="utf8").splitlines()
    said = json.dumps({"event": "sample", "step": 150, "time": 1.0, "source": evil, "item": {"prompt": evil}, "text": evil, "score": evil})
    picture = json.loads(next(l for l in lines if '"alignment"' in l)) | {"step": 150}
    picture["alignment"]["student"]["name"] = evil
    log.write_text("\n".join(lines[:-1] + [said, json.dumps(picture), lines[-1]]) + "\n", encoding="utf8")
    page = lab.notebook([f"from xtokd.viz.dashboard import Dashboard\nDashboard.replay({str(log)!r}, speed=None)"], theme="dark", reduced_motion="reduce")
    page.wait_for_selector(".xd .xd-warnings li")
    assert page.locator(".xd script, .xd img, .xd [onerror]").count() == 0 and page.title() != "broken"
    assert "<script>" in page.locator(".xd .xd-prompt").last.inner_text()
    assert page.locator(".xd").bounding_box()["width"] < 1400
    assert page.locator(".xd .xd-pulse").evaluate("e => getComputedStyle(e).animationName") == "none"
    assert not lab.axe(page, ".xd") and lab.external(page) == []


def test_opened_without_running_the_picture_is_there(lab):
    page = lab.open(ROOT / "nbs/10_viz/07_dashboard.ipynb")
    page.wait_for_selector(".jp-RenderedSVG img, .jp-RenderedSVG svg", state="attached")
    assert page.locator(".jp-RenderedSVG img, .jp-RenderedSVG svg").count() >= 3 and page.locator(".xd").count() == 0
    assert lab.external(page) == []


def test_a_panel_over_another_axis_than_steps(lab, tmp_path):
    "Accuracy over the root of the KL from the start: its points are read by the step that they belong to."
    log = tmp_path / "path.jsonl"
    events = [{"event": "start", "step": 0, "time": 0.0, "config": {"max_steps": 10}}]
    events += [{"event": "step", "step": k, "time": float(k), "loss": 1.0} for k in range(1, 11)]
    events += [{"event": "eval", "step": k, "time": float(k), "kl_from_start": kl, "accuracy": y, "accuracy_sampled": y - .1, "pass@4": y + .2}
               for k, kl, y in ((0, 0.0, .3), (5, 4.0, .5), (10, 9.0, .7))]
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    page = lab.notebook([f"from xtokd.viz.dashboard import Dashboard\ndash = Dashboard.replay({str(log)!r}, speed=None)\ndash"])
    page.wait_for_selector(".xd .xd-panel[data-key=path]")
    assert page.locator(".xd .xd-panel[data-key=path] .xd-tick").all_text_contents()[-1] == "3"
    assert page.locator(".xd .xd-panel[data-key=accuracy] .xd-tick").all_text_contents()[-1] == "10"
    assert page.locator(".xd .xd-panel[data-key=path] polyline").count() == 3
    page.locator(".xd .xd-range").focus()
    page.keyboard.press("Home")
    for _ in range(5): page.keyboard.press("ArrowRight")
    assert "greedy 0.5" in page.locator(".xd .xd-panel[data-key=path] .xd-plot svg").get_attribute("aria-label")
    page.keyboard.press("Escape")
    plot = page.locator(".xd .xd-panel[data-key=path] .xd-plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] * .7, "y": box["height"] / 2})        # near the root 2, of step 5
    assert page.locator(".xd .xd-where").inner_text() == "step 5"
    assert not lab.axe(page, ".xd") and lab.external(page) == []


def test_samples_stand_beside_the_charts_where_there_is_room(lab):
    page = lab.notebook([f"from xtokd.viz.dashboard import Dashboard\ndash = Dashboard.replay({RUN!r}, speed=None, teacher_accuracy=.99)\ndash"], width=1440, height=900)
    page.wait_for_selector(".xd .xd-said")
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.wait_for_function("""() => {
        const charts = document.querySelector('.xd .xd-grid-of-panels').getBoundingClientRect(), wrote = document.querySelector('.xd .xd-written').getBoundingClientRect();
        return wrote.left >= charts.right && Math.abs(wrote.top - charts.top) < 20;
    }""")
    names = page.locator(".xd [data-key=accuracy] .xd-entry span").all_inner_texts()
    assert {"start", "teacher"} <= set(names)
    page.set_viewport_size(dict(width=900, height=900))
    page.wait_for_function("() => document.querySelector('.xd .xd-written').getBoundingClientRect().top >= document.querySelector('.xd .xd-grid-of-panels').getBoundingClientRect().bottom")
    first = page.locator(".xd .xd-numbers > div").first.evaluate("d => [...d.children].map(c => c.getBoundingClientRect()).map(r => [r.top, r.bottom])")
    assert all(a[1] <= b[0] + 1 for a, b in zip(first, first[1:])), "a numeral touches its label"
