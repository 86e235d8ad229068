"""The explorer in real JupyterLab: hover, pin, keyboard, typing; nothing leaves the machine."""
import pytest

pytestmark = pytest.mark.ui
OPEN = """from xtokd import Pair
ex = Pair("tiny").explore("the sum of 120 and 34 is <script>x</script>\\n")
ex"""


def test_hover_pin_keys_and_typing(lab):
    page = lab.notebook([OPEN])
    page.wait_for_selector(".xt-x .seg")
    page.locator(".xt-x .seg.k2 .box").first.hover()
    page.wait_for_selector(".xt-x.dim .seg.on")
    assert "n→1" in page.locator(".xt-x .cards").inner_text()
    page.locator(".xt-x .seg.k2 .box").first.click()
    page.wait_for_selector(".xt-x .seg.pin")
    page.locator(".xt-x .list").focus()
    page.keyboard.press("Escape"); page.keyboard.press("Home"); page.keyboard.press("ArrowRight"); page.keyboard.press("Shift+ArrowRight")
    page.wait_for_selector(".xt-x .tok.sel")
    assert page.locator(".xt-x .live").count() == 1
    page.locator(".xt-x textarea").fill("one two")
    page.wait_for_function("!document.querySelector('.xt-x .list').textContent.includes('120')")
    assert not lab.external(page) and not lab.axe(page, ".xt-x")


def test_a_brush_arrives_in_python(lab):
    page = lab.notebook(["""from xtokd import Pair
ex = Pair("tiny").align("Certainly: the number is 894772 altogether.").explore()
ex"""])
    page.wait_for_selector(".xt-x .seg")
    boxes = page.locator(".xt-x .tok .box")
    a, b = boxes.nth(0).bounding_box(), boxes.nth(8).bounding_box()
    page.mouse.move(a["x"] + 4, a["y"] + 8); page.mouse.down()
    page.mouse.move(a["x"] + 20, a["y"] + 8); page.mouse.move(b["x"] + 4, b["y"] + 8, steps=5); page.mouse.up()
    page.wait_for_selector(".xt-x .tok.sel")
    first, last = next(filter(None, (eval(lab.ask(page, "list(ex.selected)")) for _ in range(20))))    # it may be on its way
    text = eval(lab.ask(page, "ex.selected_text"))
    assert 0 == first < last and text.startswith(b"C") and len(text) == last
    assert not lab.external(page) and not lab.axe(page, ".xt-x")


HOSTILE = r"<img src=x onerror=alert(1)> \u202e \u200d \U0001F469\u200d\U0001F467 \x00\x1b "


def test_hostile_tokens_break_no_page(lab):
    page = lab.notebook([f"from xtokd import Pair\nex = Pair('tiny').explore('{HOSTILE}' + 'a' * 2000)\nex"])
    page.wait_for_selector(".xt-x .seg")
    assert page.locator(".xt-x img").count() == 0 and page.locator(".xt-x script").count() == 0
    page.locator(".xt-x .list").focus()
    page.keyboard.press("End"); page.wait_for_selector(".xt-x .seg.active")
    assert not lab.external(page)
