"""Select in the vocabulary map in real JupyterLab: a box in the plot and a choice in the list reach Python."""

STATUS = ".jp-OutputArea-output .widget-html [role=status]"         # of the table; the buttons that save have one of their own
CELLS = ["from xtokd.alignment.pair import Pair\nfrom xtokd.viz.vocab_map import OverlapExplorer\nlive = OverlapExplorer(Pair('tiny'))\nlive"]


def opened(lab):
    "The page, and the place of the plot."
    page = lab.notebook(CELLS)
    plot = page.locator(".jp-OutputArea-output .nsewdrag").first
    plot.wait_for(state="attached")
    plot.scroll_into_view_if_needed()
    page.wait_for_selector(".jp-OutputArea-output .scatterlayer .point", state="attached")
    return page, plot.bounding_box()


def selected(page):
    "How many tokens the table says are selected, once it says so."
    page.wait_for_function("at => /[1-9][0-9,]* tokens selected/.test(document.querySelector(at)?.textContent || '')", arg=STATUS)
    return page.locator(STATUS).first.inner_text().split(" ")[0].replace(",", "")


def test_select_in_the_vocabulary_map(lab):
    page, box = opened(lab)
    page.mouse.move(box["x"] + .02 * box["width"], box["y"] + .3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + .5 * box["width"], box["y"] + .7 * box["height"], steps=6)
    page.mouse.move(box["x"] + .97 * box["width"], box["y"] + .98 * box["height"], steps=6)
    page.mouse.up()
    count = selected(page)
    assert lab.ask(page, "len(live.selected), len(live.tokens)") == f"({count}, {count})"
    page.locator(".jp-OutputArea-output select").first.select_option(index=2)      # a category, without a mouse
    page.wait_for_function("([at, n]) => document.querySelector(at).textContent.split(' ')[0].replace(',', '') !== n", arg=[STATUS, count])
    assert lab.ask(page, "len({r['category'] for r in live.tokens})") == "1"
    assert lab.external(page) == []
    assert lab.axe(page, ".jp-OutputArea-output [role=status]") == [] and lab.axe(page, ".jp-OutputArea-output .widget-hbox") == []


def test_a_box_that_ends_over_a_point_arrives(lab):
    "The event of the point under the pointer follows that of the box, and must not replace it."
    page, box = opened(lab)
    points = page.evaluate("() => [...document.querySelectorAll('.jp-OutputArea-output .scatterlayer .point')].map(p => { const b = p.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })")
    inside = [(x, y) for x, y in points if box["x"] + .5 * box["width"] < x < box["x"] + .95 * box["width"] and box["y"] + .3 * box["height"] < y < box["y"] + .95 * box["height"]]
    x, y = max(inside)
    page.mouse.move(box["x"] + 6, box["y"] + 6)
    page.mouse.down()
    page.mouse.move((box["x"] + x) / 2, (box["y"] + y) / 2, steps=6)
    page.mouse.move(x, y, steps=8)                                     # and the button is let go over the point
    page.mouse.up()
    selected(page)
    page.mouse.move(x + 1, y, steps=2)
    count = selected(page)
    assert lab.ask(page, "len(live.selected)") == count
