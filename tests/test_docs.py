"""The documentation site, and what a notebook shows where nothing runs: figures without scripts, links that lead somewhere, no other host."""
import json, re, sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import docs, figures, refresh

NOTEBOOKS = sorted(f for f in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
OUTER = re.compile(r"^(?:https?:)?//")
LIVE = re.compile(r"\.(?:explore|live|replay)\([^)]*\)\s*;?\s*$|^(?:go\.Figure|px\.\w+|Dashboard|FigureWidget)\(.*\)\s*$")
URLS = {"src", "href", "xlink:href", "data", "poster", "srcset", "action"}


class Tags(HTMLParser):
    "Start tags of a page with their attributes, and its text."

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs): self.tags.append((tag, {k: v or "" for k, v in attrs}))
    def handle_data(self, data): self.words.append(data)


def loads(page):
    "What a browser fetches to show the page."
    return [v for tag, attrs in page.tags for k, v in attrs.items() if k in URLS and tag not in ("a", "form") and not v.startswith(("data:", "#"))]


def whole(folder):
    "What is wrong with the links, the ids and the sources of a site."
    bad = []
    pages = {str(f.relative_to(folder)): Tags(f.read_text(encoding="utf8")) for f in folder.rglob("*.html")}
    ids = {name: [a["id"] for _, a in p.tags if "id" in a] for name, p in pages.items()}
    for name, page in pages.items():
        bad += [f"{name}: id {i} twice" for i in set(ids[name]) if ids[name].count(i) > 1]
        bad += [f"{name}: fetches {url}" for url in loads(page) if OUTER.match(url) or not (folder / name).parent.joinpath(url).is_file()]
        for tag, attrs in page.tags:
            url = attrs.get("href", "")
            if tag != "a" or re.match(r"\w+:", url): continue
            file, _, anchor = unquote(url).partition("#")
            to = str(((folder / name).parent / file).resolve().relative_to(folder.resolve())) if file else name
            if to not in pages or anchor and anchor not in ids[to]: bad.append(f"{name}: {url} leads nowhere")
    return bad


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    docs.build([ROOT / "nbs/03_alignment/05_byte_align.ipynb", ROOT / "nbs/10_viz/05_run_charts.ipynb"], out / "docs")
    return out / "docs"


def test_links_and_sources_stay_in_the_folder(site):
    assert whole(site) == []
    assert not re.search(r"@import|url\(", (site / "site.css").read_text()) and "http" not in (site / "site.js").read_text()


def test_every_stored_output_is_on_the_page(site):
    for name in ("03_alignment/05_byte_align", "10_viz/05_run_charts"):
        nb = docs.Notebook(ROOT / f"nbs/{name}.ipynb")
        text = (site / f"{name}.html").read_text(encoding="utf8")
        shown = [o for c in nb.cells if c["cell_type"] == "code" and not re.search(r"#\s*\|\s*hide", c["source"]) for o in c["outputs"]]
        assert text.count('class="fig"') == sum("image/svg+xml" in o.get("data", {}) for o in shown) > 0
        assert text.count('<div class="out') == len(shown)
        assert "#| " not in " ".join(Tags(text).words), "directives are not for readers"


def test_the_reference_has_signature_docstring_and_cell(site):
    text = (site / "api/alignment.byte_align.html").read_text(encoding="utf8")
    words = re.sub(r"\s+", " ", " ".join(Tags(text).words))
    module = import_module("xtokd.alignment.byte_align")
    assert getdoc(module.align).split("\n")[0].split("`")[0].strip() in words
    for name in module.__all__: assert f'id="{name}"' in text, name
    assert re.search(r'href="\.\./03_alignment/05_byte_align\.html#cell-[0-9a-f]{8}"', text)


def test_search_knows_headings_and_names(site):
    text = (site / "search.js").read_text(encoding="utf8")
    assert text.startswith("window.XTOKD_INDEX = ") and "</" not in text
    rows = json.loads(text.removeprefix("window.XTOKD_INDEX = ").rstrip(";\n"))
    assert all(len(r) == 4 for r in rows)
    assert any(r[2] == "api/alignment.byte_align.html#align" for r in rows) and any(r[1] == "A toy by hand" and r[2].startswith("03_alignment/05_byte_align.html#") for r in rows)


def test_ids_and_styles_of_a_figure_are_its_own():
    svg = '<svg xmlns="x" aria-labelledby="t d"><style>text,.a{fill:red}@media print{.a{fill:blue}}</style><title id="t">T</title><g id="d" clip-path="url(#t)"/><use href="#d"/></svg>'
    done = docs.inline_svg(svg, 3)
    assert 'id="f3-t"' in done and 'url(#f3-t)' in done and 'href="#f3-d"' in done and 'aria-labelledby="f3-t f3-d"' in done
    assert "#fig-3 text,#fig-3 .a{" in done and "@media print{#fig-3 .a{" in done
    for bad in ("<script>1</script>", '<g onclick="x()"/>', "<foreignObject/>"):
        with pytest.raises(ValueError, match="script"): docs.inline_svg(f"<svg>{bad}</svg>", 1)


def page_of(tmp_path, text, name="a"):
    "The page that the site makes of one Markdown cell."
    cell = dict(cell_type="markdown", id="a", metadata={}, source=text)
    nb = tmp_path / f"{name}.ipynb"
    nb.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    docs.build([nb], tmp_path / "out")
    return (tmp_path / f"out/{name}.html").read_text(encoding="utf8")


def test_formulas_become_mathml(tmp_path):
    page = page_of(tmp_path, "# A\nso $x_i = \\frac{1}{2}$ and $p$, *with* $a_1*b_2*c$:\n\n$$\\sum_i \\log p_i$$\n\n`$HOME_x = $y` costs $3 and $4, a $5/$6")
    words = " ".join(Tags(re.sub(r"<math.*?</math>", "", page, flags=re.S)).words)
    assert page.count("<math ") == 4 and "<mfrac>" in page and 'display="block"' in page and "<em>with</em>" in page
    assert "$HOME_x = $y" in words and "$3 and $4, a $5/$6" in words and "\\frac" not in re.sub(r'alttext="[^"]*"', "", page)
    for bad in ("$\\nothing x$", "$x_{$"):
        with pytest.raises(SystemExit, match="a.ipynb: a formula"): page_of(tmp_path, f"# A\nso {bad} holds")


def test_every_formula_of_the_notebooks_is_read():
    count = 0
    for path in NOTEBOOKS:
        for c in refresh.load(path.read_text(encoding="utf8"))["cells"]:
            if c["cell_type"] != "markdown": continue
            for m in docs.TEX.finditer(docs.CODE.sub("", c["source"])):
                assert docs.mathml(m["block"] or m["inline"]).startswith("<math "), path.name
                count += 1
    assert count > 20


# ---- the glossary, and explorers that work ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def course(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "docs"
    named = [ROOT / "nbs" / name for name in ("index.ipynb", "00_course/index.ipynb", "00_course/glossary.ipynb", *docs.LIVE)]
    docs.build(named, out)
    return out


def test_live_explorers_stand_in_their_pages(course):
    assert whole(course) == []
    for name in docs.LIVE:
        text = (course / name).with_suffix(".html").read_text(encoding="utf8")
        assert text.count('class="xtokd-live"') == 1 and "live.js" in text and '<svg' in text.split('class="xtokd-live"')[1]
    assert "live.js" not in (course / "00_course/glossary.html").read_text(encoding="utf8")
    script = (course / "live.js").read_text(encoding="utf8")
    assert script.count("xtokdPage.define(") == 1 and not re.search(r"https?://(?!www\.w3\.org/)", script)


def test_search_finds_the_words_of_the_glossary(course):
    rows = json.loads((course / "search.js").read_text(encoding="utf8").removeprefix("window.XTOKD_INDEX = ").rstrip(";\n"))
    terms = docs.definitions()
    assert len(terms) > 30 and {"mapping graph", "credit assignment", "top-k"} <= set(terms)
    for term, (anchor, meaning) in terms.items():
        hits = [r for r in rows if all(w in f"{r[0]} {r[1]} {r[3]}".lower() for w in term.lower().split())]
        assert any(r[1] == term and r[2] == f"00_course/glossary.html#{anchor}" for r in hits), term
        assert len(meaning) > 20


def test_every_term_of_the_glossary_is_used_elsewhere():
    texts = {p: "\n".join(c["source"] for c in refresh.load(p.read_text(encoding="utf8"))["cells"]).lower() for p in NOTEBOOKS if p != docs.GLOSSARY}
    as_written = lambda term: r"\b" + "[- _]".join(map(re.escape, re.split("[- ]", term.lower()))) + r"s?\b"
    unused = [t for t in docs.definitions() if not any(re.search(as_written(t), text) for text in texts.values())]
    assert not unused


def test_the_code_that_the_glossary_names_exists():
    text = "\n".join(c["source"] for c in refresh.load(docs.GLOSSARY.read_text(encoding="utf8"))["cells"])
    code = "\n".join(f.read_text(encoding="utf8") for f in (ROOT / "xtokd").rglob("*.py"))
    for line in re.findall(r"Here: (.+?); see", text):
        for name in re.findall(r"`([^`]+)`", line):
            for word in re.findall(r"\w+", name):
                assert re.search(rf"\b{word}\b", code), f"{name}: {word}"


def test_words_of_the_course_have_tooltips(course):
    text = (course / "00_course/index.html").read_text(encoding="utf8")
    found = re.findall(r'<a class="term" href="([^"]+)" title="([^"]+)">([^<]+)</a>', text)
    assert found and len({w.lower() for *_, w in found}) == len(found), "the first use only"
    assert all(url.startswith("../00_course/glossary.html#") and len(meaning) > 20 for url, meaning, _ in found)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SystemExit, match="other files"): docs.build([ROOT / "nbs/03_alignment/05_byte_align.ipynb"], tmp_path)
    assert (tmp_path / "mine").read_text() == "x"


# ---- every notebook, opened and not run, on a page without scripts -----------------------------------------------------------
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[f.stem for f in NOTEBOOKS])
def test_every_figure_is_seen_without_scripts(path):
    for c in refresh.load(path.read_text(encoding="utf8"))["cells"]:
        if c["cell_type"] != "code": continue
        for o in c.get("outputs", []):
            data = {k: refresh.joined(v) for k, v in o.get("data", {}).items() if not k.endswith("json")}
            if svg := data.get("image/svg+xml"):
                tree = ET.fromstring(svg)
                assert not re.search(r"<script|<foreignObject|\son\w+=|(?:href|src)=\"(?!#|data:)|url\((?![\"']?#|&quot;#)|@import", svg), "a figure needs a script or another file"
                assert "viewBox" in tree.attrib or {"width", "height"} <= set(tree.attrib)
                assert data.get("text/plain", "").strip(), "a figure without words: JupyterLab shows those where a notebook is not trusted"
            elif "application/" in " ".join(o.get("data", {})): assert {"image/png", "text/html", "text/plain"} & set(data), "live output without a picture"
            if page := data.get("text/html"): assert not re.search(r"<(?:script|iframe|object|embed|img|link)\b|\son\w+\s*=", page, re.I), "an HTML output that is empty, or loads something, where scripts are stripped"
        last = next((l for l in reversed(c["source"].splitlines()) if l.strip()), "")
        flags = re.search(r"#\s*\|\s*(hide|slow|gpu|notest|eval)", c["source"])
        if LIVE.search(last) and not flags and not re.match(r"\s|#|\w+ = |assert", last):
            assert any({"image/svg+xml", "image/png"} & set(o.get("data", {})) for o in c["outputs"]), f"{last}: its live widget left no picture"


def test_the_words_of_a_chart():
    svg = '<svg><text class="gtitle">Loss &amp; more</text><text class="xtitle">step</text><text class="legendtext">a</text><text class="legendtext">b</text></svg>'
    assert figures.words(svg) == "Loss & more (across: step; shown: a, b)"
    assert figures.words("<svg><text>x</text></svg>") == ""


def test_names_of_one_assignment_are_one_entry(tmp_path):
    sources = ["#| default_exp toy", "#| export\nFIRST, SECOND, THIRD = 1, 2, 3"]
    code = [dict(cell_type="code", id=f"c{k}", metadata={}, source=s, outputs=[], execution_count=None) for k, s in enumerate(sources)]
    title = dict(cell_type="markdown", id="t", metadata={}, source="# Toy\n> one assignment")
    (tmp_path / "toy.ipynb").write_text(json.dumps(dict(cells=[title, *code], metadata={}, nbformat=4, nbformat_minor=5)))
    docs.build([tmp_path / "toy.ipynb"], tmp_path / "out")
    page = (tmp_path / "out/api/toy.html").read_text(encoding="utf8")
    assert page.count('id="FIRST"') == page.count('id="SECOND"') == 1 and '<h2 id="SECOND"' not in page
    assert page.count("FIRST, SECOND") <= 2
