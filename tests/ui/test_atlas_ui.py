"""The atlas in real JupyterLab: search, list, filters, places in the text and files, by mouse and by keyboard."""

CELLS = ["from xtokd.alignment.pair import Pair\nlive = Pair('tiny').atlas('Certainly: the number is 894772 altogether, and 72.')\nlive"]
AT = ".jp-OutputArea-output .xt-atlas"


def waits(page, test): page.wait_for_function(f"() => {{ const at = document.querySelector('{AT}'); return at && ({test}); }}")


def test_search_and_walk(lab):
    page = lab.notebook(CELLS)
    at = page.locator(AT)
    search = at.locator("input[type=search]")
    search.fill("7")
    waits(page, "at.querySelector('.tok.here text')?.textContent === '7'")
    assert at.locator(".title").inner_text() == "A cell of 1 student and 111 teacher tokens"
    assert lab.ask(page, "live.shown['token'], live.error") == "([0, 27], '')"
    assert at.locator(".written .in").count() == 3 and at.locator(".places").inner_text() == "3 places of this component in the text"
    at.locator("button[aria-label='next place']").click()
    at.locator("button[aria-label='next place']").click()
    assert at.locator(".places").inner_text() == "place 2 of 3" and at.locator(".written .at").text_content() == "7"
    search.fill("no such token")
    waits(page, "!at.querySelector('.error').hidden")
    assert "is not one token of tiny-student" in at.locator(".error").inner_text() and at.locator(".title").inner_text().startswith("A cell of 1 student and 111")
    at.locator(".written span", has_text="Certain").first.click()          # a token of the text leads to its component
    waits(page, "at.querySelector('.error').hidden")
    assert lab.ask(page, "live.state.table.vocabs[0].bytes[live.shown['token'][1]]") == "b'Certain'"
    tok = at.locator(".tok[data-side='1']").first
    tok.focus()
    tok.press("Enter")
    waits(page, "at.querySelector('.tok.here')?.dataset.side === '1'")
    assert lab.ask(page, "live.shown['token'][0]") == "1"
    assert lab.external(page) == []


def test_list_filters_and_files(lab):
    page = lab.notebook(CELLS, width=900)
    at = page.locator(AT)
    waits(page, "at.querySelectorAll('.item').length === 25")
    total = int(lab.ask(page, "live.listing['total']"))
    assert at.locator(".where").inner_text() == f"1–25 of {total} components"
    at.locator("button[aria-label='next rows']").click()
    waits(page, "at.querySelector('.where').textContent.startsWith('26–50')")
    at.locator("select").nth(2).select_option("mass")
    waits(page, "at.querySelector('.where').textContent.startsWith('1–25')")
    at.locator("button[data-of=kinds][data-k='1']").click()
    waits(page, "[...at.querySelectorAll('.item .numbers')].filter((n, k) => k % 2 === 0).every(n => n.textContent.startsWith('1-n'))")
    rows = at.locator(".list")
    rows.focus()
    rows.press("ArrowDown")
    rows.press("Enter")
    waits(page, "at.querySelectorAll('.item')[1].getAttribute('aria-selected') === 'true'")
    assert lab.ask(page, "live.shown['cell'] == live.listing['rows'][1]['cell'], live.filters") == "(True, {'sort': 'mass', 'kinds': [1]})"
    bar = at.locator(".bars button").last
    low = bar.get_attribute("data-low")
    bar.click()
    waits(page, f"at.querySelector('.bars [data-low=\"{low}\"]').getAttribute('aria-pressed') === 'true'")
    assert lab.ask(page, "{r['student_tokens'] + r['teacher_tokens'] >= live.filters['sizes'][0] for r in live.listing['rows']}") == "{True}"
    with page.expect_download() as got: at.locator("button[data-save=csv]").click()
    text = open(got.value.path(), encoding="utf8").read()
    assert got.value.suggested_filename == "cells.csv" and len(text.splitlines()) == 1 + int(lab.ask(page, "live.listing['total']"))
    with page.expect_download() as got: at.locator("button[data-save=svg]").click()
    assert open(got.value.path(), encoding="utf8").read().startswith("<svg")
    with page.expect_download() as got: at.locator("button[data-save=html]").click()
    assert "This page holds the components" in open(got.value.path(), encoding="utf8").read()
    at.locator("textarea").fill("seven hundred")
    waits(page, "[...at.querySelectorAll('.written span')].map(n => n.textContent).join('') === 'seven·hundred'")
    wide = page.evaluate(f"() => {{ const at = document.querySelector('{AT}'); return at.scrollWidth - at.clientWidth; }}")
    assert wide <= 0
    assert lab.external(page) == [] and lab.axe(page, AT) == []


def test_a_saved_page_works_alone(lab, tmp_path):
    from xtokd.alignment.pair import Pair
    saved = Pair("tiny").atlas("Certainly: 894772").save(tmp_path / "atlas.html", rows=30)
    page = lab.page()
    page.goto(saved.as_uri())
    page.wait_for_selector(".xt-atlas .item")
    at = page.locator(".xt-atlas")
    assert at.locator(".where").inner_text() == "1–25 of 30 components held here"
    at.locator(".item").nth(3).click()
    page.wait_for_function("() => document.querySelectorAll('.xt-atlas .item')[3].getAttribute('aria-selected') === 'true'")
    title = at.locator(".title").inner_text()
    at.locator("input[type=search]").fill("no such token")
    page.wait_for_function("() => !document.querySelector('.xt-atlas .error').hidden")
    assert at.locator(".title").inner_text() == title
    at.locator("button[data-of=kinds][data-k='3']").click()
    page.wait_for_function("() => [...document.querySelectorAll('.xt-atlas .item .numbers')].filter((n, k) => k % 2 === 0).every(n => n.textContent.startsWith('n-m'))")
    assert lab.external(page) == []
