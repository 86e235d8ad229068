"""Select in the vocabulary map in real JupyterLab: a box in the plot and a choice in the list reach Python."""

CELLS = ["from xtokd.alignment.pair import Pair\nfrom xtokd.viz.vocab_map import OverlapExplorer\nlive = OverlapExplorer(Pair('tiny'))\nlive"]


def test_select_in_the_vocabulary_map(lab):
    page = lab.notebook(CELLS)
    plot = page.locator(".jp-OutputArea-output .nsewdrag").first
    plot.wait_for(state="attached")
    plot.scroll_into_view_if_needed()
    page.wait_for_selector(".jp-OutputArea-output .scatterlayer .point", state="attached")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + .02 * box["width"], box["y"] + .3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + .5 * box["width"], box["y"] + .7 * box["height"], steps=6)
    page.mouse.move(box["x"] + .97 * box["width"], box["y"] + .98 * box["height"], steps=6)
    page.mouse.up()
    page.wait_for_function("() => /[1-9][0-9]* tokens selected/.test(document.querySelector('.jp-OutputArea-output [role=status]')?.textContent || '')")
    count = page.locator(".jp-OutputArea-output [role=status]").first.inner_text().split(" ")[0].replace(",", "")
    assert lab.ask(page, "len(live.selected), len(live.tokens)") == f"({count}, {count})"
    page.locator(".jp-OutputArea-output select").first.select_option(index=2)      # a category, without a mouse
    page.wait_for_function("n => document.querySelector('.jp-OutputArea-output [role=status]').textContent.split(' ')[0] !== n", arg=count)
    assert lab.ask(page, "len({r['category'] for r in live.tokens})") == "1"
    assert lab.external(page) == []
    assert lab.axe(page, ".jp-OutputArea-output [role=status]") == [] and lab.axe(page, ".jp-OutputArea-output .widget-hbox") == []


def test_a_click_in_the_map_of_cells_draws_the_ribbon(lab):
    page = lab.notebook(["from xtokd.alignment.pair import Pair\nfrom xtokd.objectives.cover.cells import cell_graph\nfrom xtokd.viz.cell_map import cell_map\npair = Pair('tiny')\nlive = cell_map(cell_graph(pair.student, pair.teacher)).explore()\nlive"])
    plot = page.locator(".jp-OutputArea-output .nsewdrag").first
    plot.wait_for(state="attached")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.click(box["x"] + 4, box["y"] + 4)                      # the largest cell stands at the top left
    page.wait_for_selector(".jp-OutputArea-output img[alt*='cell of']")
    assert lab.ask(page, "bool(live.selected == live.map.ranked[0])") == "True"
    page.locator(".jp-OutputArea-output select").first.select_option(index=5)      # and without a mouse
    page.wait_for_function("() => document.querySelector('.jp-OutputArea-output [role=status]').textContent.startsWith('4:')")
    assert lab.ask(page, "bool(live.selected == live.map.ranked[4])") == "True"
    assert page.locator(".jp-OutputArea-output [data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert lab.external(page) == []
    assert lab.axe(page, ".jp-OutputArea-output [role=status]") == []
