"""The stepper in real JupyterLab: keys, mouse, playing, typing; what is lit and said is compared with what Python knows."""
import pytest

pytestmark = pytest.mark.ui
OPEN = """from functools import partial
from xtokd import Pair
from xtokd.viz.live.step_lists import alignment_steps
from xtokd.viz.live.stepper import Stepper
pair = Pair("tiny")
live = Stepper(alignment_steps(pair), make=partial(alignment_steps, pair), text="The number 120")
live"""


def state(page):
    "(step from 1, lit lines, sentence, place of the slider)"
    lit = page.locator(".xt-st .codeline.lit").evaluate_all("all => all.map(x => +x.dataset.line)")
    at = int(page.locator(".xt-st .place").inner_text().split(" / ")[0])
    slider = page.locator(".xt-st input[type=range]")
    assert slider.get_attribute("aria-valuetext").startswith(f"step {at} of")
    return at, lit, page.locator(".xt-st .sentence").inner_text(), int(slider.input_value())


def known(lab, page):
    "The same, as Python has it."
    step, (first, last), sentence = eval(lab.ask(page, "(live.step, live.current.lines, live.current.sentence)"))
    return step + 1, list(range(first, last + 1)), sentence, step + 1


def test_keys_mouse_and_slider(lab):
    page = lab.notebook([OPEN])
    page.wait_for_selector(".xt-st .picture svg")
    count = int(page.locator(".xt-st .place").inner_text().split(" / ")[1])
    assert state(page)[0] == 1 and "byte 0" in state(page)[2]
    page.locator(".xt-st .picture").focus()
    for _ in range(2): page.keyboard.press("ArrowRight")
    assert state(page) == known(lab, page) and state(page)[0] == 3
    assert "reads its token 0, 'The', of 3 bytes" in state(page)[2]
    assert "student_end += student_sizes[i]" in page.locator(".xt-st .codeline.lit").first.inner_text()
    page.keyboard.press("End")       # the focus is in the new cell now: keys there do not move the stepper
    assert state(page)[0] == 3
    page.locator(".xt-st input[type=range]").focus()
    page.keyboard.press("End")
    assert state(page)[0] == count and page.get_by_role("button", name="Step forward").is_disabled()
    page.keyboard.press("ArrowLeft")
    assert state(page)[0] == count - 1
    page.get_by_role("button", name="First step").click()
    assert state(page)[0] == 1 and page.get_by_role("button", name="Step back").is_disabled()
    page.get_by_role("button", name="Step forward").click()
    assert state(page) == known(lab, page) and state(page)[0] == 2
    lab.ask(page, "live.step = 5")
    page.wait_for_function("document.querySelector('.xt-st .place').textContent.startsWith('6 ')")
    assert state(page) == known(lab, page)
    assert page.locator(".xt-st .formula math").count() >= 1
    assert not lab.external(page) and not lab.axe(page, ".xt-st")


def test_playing_and_typing(lab):
    page = lab.notebook([OPEN], theme="dark", width=900)
    page.wait_for_selector(".xt-st .picture svg")
    page.get_by_label("Speed").select_option("4")
    page.locator(".xt-st .picture").focus()
    page.keyboard.press("Space")
    page.wait_for_function("+document.querySelector('.xt-st .place').textContent.split(' ')[0] >= 4")
    page.get_by_role("button", name="Pause").click()
    at = state(page)[0]
    assert page.get_by_role("button", name="Play", exact=True).count() == 1 and at >= 4
    box = page.locator(".xt-st textarea")
    box.fill("seventy-two")
    page.wait_for_function("document.querySelector('.xt-st .picture').textContent.includes('seventy')")
    assert state(page)[0] == 1 and state(page) == known(lab, page)
    box.fill("")
    page.wait_for_selector(".xt-st .error:not([hidden])")
    assert "empty" in page.locator(".xt-st .error").inner_text()
    assert "seventy" in page.locator(".xt-st .picture").inner_text()      # the last picture stays
    box.fill("<img src=x>")
    page.wait_for_selector(".xt-st .error", state="hidden")
    assert page.locator(".xt-st img").count() == 0
    wide = page.evaluate("(() => { const x = document.querySelector('.xt-st'); return [x.scrollWidth, x.clientWidth] })()")
    assert wide[0] <= wide[1] and not lab.external(page) and not lab.axe(page, ".xt-st")
