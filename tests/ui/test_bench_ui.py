"The bench in JupyterLab: typing, sliders, methods, a step, bad input, and the tokens by keyboard; the numbers are those of Python."
import json

CELL = """import torch
torch.set_num_threads(1)
from xtokd.viz.live.bench import Bench
live = Bench("tiny")
live"""
ROWS = "import json; print(json.dumps([[row['name'] for row in live.data['rows']], live.data['rows'][0]['values'], live.text, live.settings['tau'], live.error, live.data['steps']]))"


def numbers(page, row):
    "The numbers of one row of the picture, by token; the cells of a token come in the order of the rows."
    cells = page.locator(".xb .xb-picture [data-token]").evaluate_all("gs => gs.map(g => [Number(g.dataset.token), g.querySelector('text').textContent])")
    found = {}
    for token, text in cells: found.setdefault(token, []).append(text)
    return [found[token][row] for token in sorted(found)]


def signed(values): return [f"{value:+.2f}" for value in values]


def becomes(lab, page, row, source):
    "Whether a row of the picture becomes what Python says its values are."
    return any(numbers(page, row) == signed(json.loads(lab.ask(page, source))) for _ in range(20))


def test_the_bench_answers_keys_mouse_and_bad_input(lab):
    page = lab.notebook([CELL])
    page.wait_for_selector(".xb .xb-picture svg [data-token]")
    names, truth, text, *_ = json.loads(lab.ask(page, ROWS))
    assert names == ["truth", "sampled", "strict", "bpm", "cover"] and text == "Certainly: 733680"
    assert numbers(page, 0) == signed(truth)

    # tokens by keyboard and mouse
    picture = page.locator(".xb .xb-picture")
    picture.focus()
    page.keyboard.press("Home")
    assert page.locator(".xb .xb-table caption").inner_text().startswith("Token 0, Certain")
    for _ in range(4): page.keyboard.press("ArrowRight")
    assert page.locator(".xb .xb-table caption").inner_text().startswith("Token 4, 7")
    first = page.locator(".xb .xb-table tr.xb-written-token td").all_inner_texts()
    want = json.loads(lab.ask(page, "t = live.data['tokens'][4]; print(json.dumps([t['student'][0], t['teacher'][0], t['push'][0][0]]))"))
    assert [float(x) for x in first[:3]] == [float(f"{x:.3g}") for x in want]
    page.locator(".xb .xb-picture [data-token='6']").first.click()
    assert page.locator(".xb .xb-table caption").inner_text().startswith("Token 6, 3")

    # typing, and what cannot be shown
    page.get_by_label("sentence").fill("735068")
    page.wait_for_function("() => document.querySelectorAll('.xb .xb-picture [data-token]').length === 5 * 7")
    assert json.loads(lab.ask(page, ROWS))[2] == "735068"
    page.get_by_label("sentence").fill("")
    page.wait_for_function("() => document.querySelector('.xb .xb-error').textContent.includes('empty')")
    assert page.locator(".xb .xb-picture [data-token]").count() == 35, "the last picture stays"
    page.get_by_label("sentence").fill("Certainly: 733680")
    page.wait_for_function("() => document.querySelector('.xb .xb-error').hidden && document.querySelectorAll('.xb .xb-picture [data-token]').length === 55")

    # methods, choices and sliders
    page.get_by_label("alm", exact=True).check()
    page.wait_for_function("() => document.querySelectorAll('.xb .xb-picture [data-token]').length === 66")
    before = numbers(page, 5)
    page.get_by_label("tau").focus()
    page.keyboard.press("Home")
    page.wait_for_function("() => document.querySelector('.xb [data-number=tau]').textContent === '0.5'")
    assert becomes(lab, page, 5, "import json; print(json.dumps(live.data['rows'][5]['values']))") and numbers(page, 5) != before
    assert json.loads(lab.ask(page, ROWS))[3] == .5
    truth = numbers(page, 0)
    page.get_by_label("divergence").select_option("fkl")
    assert becomes(lab, page, 0, "print(json.dumps(live.data['rows'][0]['values']))") and numbers(page, 0) != truth

    # one step and back
    page.get_by_role("button", name="Take one step").click()
    page.wait_for_function("() => document.querySelector('.xb .xb-written caption')?.textContent === 'The student before and after step 1'")
    told = json.loads(lab.ask(page, "w = live.data['written']; print(json.dumps([w[k][v] for k in ('before', 'after') for v in ('greedy', 'sample')]))"))
    assert page.locator(".xb .xb-written td bdi").all_inner_texts() == told and told[0] != told[2]
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("() => !document.querySelector('.xb .xb-written table')")
    page.get_by_role("button", name="Let the student write").click()
    page.wait_for_function("() => document.querySelector('.xb [aria-label=settings] .xb-texts label:nth-child(2) input').value !== 'Certainly: 733680'")
    assert page.get_by_label("sentence").input_value() == json.loads(lab.ask(page, ROWS))[2]
    assert not lab.axe(page, ".xb") and lab.external(page) == []


def test_the_bench_fits_a_narrow_dark_page(lab):
    page = lab.notebook([CELL], theme="dark", width=900)
    page.wait_for_selector(".xb .xb-picture svg [data-token]")
    assert page.evaluate("() => { const b = document.querySelector('.xb'); return b.scrollWidth <= b.clientWidth; }")
    ink, paper = page.evaluate("() => { const s = getComputedStyle(document.querySelector('.xb')); return [s.color, s.backgroundColor]; }")
    light = lambda colour: sum(map(float, colour[colour.index("(") + 1:-1].split(",")[:3]))
    assert light(ink) > 400 > 200 > light(paper)
    assert not lab.axe(page, ".xb")
