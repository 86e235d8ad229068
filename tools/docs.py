"""The documentation as plain files: every notebook a page, every exported symbol in the reference, search, no network.

    python tools/docs.py                    all of nbs/ into _docs/; open _docs/index.html
    python tools/docs.py -o DIR NB.ipynb... only these notebooks

What is stored in the notebooks is what is shown: no cell is run. Figures stand in the page as SVG, so that their tooltips work; a live
widget is shown by its picture, and the pages in LIVE hold an explorer that works. Formulas in TeX become MathML. Pages load nothing
but the files beside them, and search reads its index only when it is used.
"""
import argparse, ast, configparser, html, inspect, json, re, shutil, sys
from pathlib import Path

import mistune
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

sys.path.insert(0, str(Path(__file__).resolve().parent))
from figures import words
from refresh import ROOT, joined, load

sys.path.insert(0, str(ROOT))    # explorers are drawn by the xtokd of this folder
from xtokd.viz.svg_charts import DARK_RULE

SITE = Path(__file__).resolve().parent / "site"
# folder below nbs/ -> the heading under which its notebooks stand, in reading order
PARTS = {
    "": "Start", "00_course": "Course", "20_lessons": "Lessons", "21_studies": "Studies",
    "01_vocab": "Vocabularies", "02_data": "Prompts and tasks", "03_alignment": "Alignment", "04_rows": "Next-token rows",
    "05_objectives": "Objectives", "2_policy": "Objectives: policy gradient", "3_matching": "Objectives: matching rows",
    "4_projection": "Objectives: projecting rows", "5_hidden": "Objectives: hidden states", "6_cover": "Objectives: cover",
    "06_models": "Models", "07_serving": "Serving", "08_train": "Training", "2_teachers": "Training: several teachers", "3_sharing": "Training: trackers and hub", "09_exact": "Exact scoring", "10_viz": "Pictures", "2_live": "Pictures: live",
    "11_experiments": "Experiments", "12_cli": "Command line", "13_support": "Support", "more": "More",
}
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*\|[ \t]*(.+?)[ \t]*$\n?", re.M)
# $$...$$ on lines of its own, or $...$ with no space inside its dollars and no word or digit after them: a price is no formula
TEX = re.compile(r"\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?![\s$])(?P<inline>[^$\n]+?)(?<![\s\\])\$(?![\w$])", re.S)
GLOSSARY = ROOT / "nbs" / "00_course" / "glossary.ipynb"
ORDINARY = {"cover", "row", "kind", "reason", "mass", "cell", "signal"}    # terms that are also ordinary words: no tooltip
# pages with an explorer that works: notebook -> what is aligned, and how it is shown at first
LIVE = {
    "10_viz/04_explorer.ipynb": dict(text="The sum of 120 and 34 is 154, naïve 👩‍👧!\n"),
    "03_alignment/04_alignment.ipynb": dict(text="one hundred thirty-two thousand and 7589\n", view="edges"),
}
CODE = re.compile(r"```.*?```|`[^`]*`", re.S)
esc = html.escape


def settings():
    c = configparser.ConfigParser(delimiters=["="], interpolation=None)
    c.read(ROOT / "settings.ini")
    return c["DEFAULT"]


def coloured(source, language="python"):
    try: lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound: lexer = get_lexer_by_name("text", stripnl=False)
    return highlight(source, lexer, HtmlFormatter(nowrap=True)).rstrip("\n")


def slug(text, taken):
    "An anchor for a heading, another one each time."
    base = re.sub(r"[^\w]+", "-", re.sub(r"<[^>]+>", "", text).lower()).strip("-") or "part"
    name, k = base, 1
    while name in taken: name, k = f"{base}-{(k := k + 1)}", k
    taken.add(name)
    return name


def mathml(tex, block=False):
    "A formula as MathML; ValueError for a command that is not known."
    try: done = convert(tex.strip(), display="block" if block else "inline")
    except Exception as e: raise ValueError(f"a formula that cannot be read, {tex!r}: {e}") from e
    if unknown := re.search(r"\\[A-Za-z]+", done): raise ValueError(f"a formula with the unknown command {unknown[0]}: {tex!r}")
    thin = '<mspace width="0.167em"></mspace>'
    named = lambda m: (m[1] + thin if m[1] else "") + m[2] + thin       # as TeX sets log, exp, max
    done = re.sub(r"(</(?:mfrac|msub|msup|msubsup|mi|mn|mrow|mo)>)?(<mi>[a-z]{2,}</mi>)(?!<mo)", named, done)
    return done.replace("<math ", f'<math alttext="{esc(" ".join(tex.split()))}" ', 1)


def definitions(path=GLOSSARY):
    "{term: (anchor, first paragraph)} of the glossary."
    text = "\n".join(c["source"] for c in load(path.read_text(encoding="utf8"))["cells"] if c["cell_type"] == "markdown")
    found, taken = {}, set()
    for level, heading, body in re.findall(r"^(#{2,3}) (.+)\n+((?:(?!^#).*\n?)*)", text, re.M):
        anchor = slug(heading, taken)
        if level == "###": found[heading] = anchor, re.sub(r"[`$]", "", body.strip().split("\n\n")[0])
    return found


# ---- reading ----------------------------------------------------------------------------------------------------------------
class Notebook:
    "What a page needs to know of one notebook."

    def __init__(self, path):
        self.path, self.stem, self.cells = Path(path), Path(path).stem, load(Path(path).read_text(encoding="utf8"))["cells"]
        first = self.cells[0]["source"] if self.cells else ""
        self.title = (re.search(r"^# (.+)$", first, re.M) or [0, self.stem])[1].replace("`", "")
        self.subtitle = (re.search(r"^> (.+)$", first, re.M) or [0, ""])[1]
        names = [d.split()[1] for c in self.cells if c["cell_type"] == "code" for d in DIRECTIVE.findall(c["source"]) if d.startswith("default_exp ")]
        self.module = names[0].removesuffix(".__init__") if names else None
        nbs = ROOT / "nbs"
        self.rel = self.path.resolve().relative_to(nbs) if self.path.resolve().is_relative_to(nbs) else Path(self.path.name)
        self.part = PARTS.get(self.rel.parent.name, PARTS["more"])
        self.symbols = [s for c in self.cells for s in symbols(c, self)] if self.module else []

    @property
    def url(self): return str(self.rel.with_suffix(".html"))

    @property
    def base(self): return "../" * (len(self.rel.parts) - 1)


def order(notebooks):
    "Reading order: the start, the lessons, then the floors of the library from the ground."
    rank = {title: k for k, title in enumerate(PARTS.values())}
    return sorted(notebooks, key=lambda n: (rank[n.part], n.stem != "index", n.stem))


class Symbol:
    "An exported function, class or constant: its signature as it is written, docstring, members, and the cell."

    def __init__(self, node, source, cell, nb, owner="", name=None):
        self.name, self.cell, self.nb, self.owner = name or node.name, cell["id"], nb, owner
        lines = source.split("\n")
        self.members, self.doc = [], ""
        if isinstance(node, (ast.Assign, ast.AnnAssign)): self.signature = ast.get_source_segment(source, node)
        else:
            body, start = node.body[0], min([d.lineno for d in node.decorator_list] + [node.lineno])
            same = body.lineno == start or lines[body.lineno - 1][:body.col_offset].strip()
            head = lines[start - 1:body.lineno - 1] + ([lines[body.lineno - 1].encode()[:body.col_offset].decode()] if same else [])
            self.doc = ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                head += [lines[b.lineno - 1] for b in node.body if isinstance(b, ast.AnnAssign)]
                self.members = [Symbol(b, source, cell, nb, self.name) for b in node.body if isinstance(b, (ast.FunctionDef, ast.AsyncFunctionDef)) and (b.name in ("__init__", "__call__") or not b.name.startswith("_"))]
            self.signature = inspect.cleandoc("\n" + "\n".join(head)).strip()
        if len(self.signature) > 1500: self.signature = self.signature[:1500] + " ..."

    @property
    def anchor(self): return f"{self.owner}.{self.name}" if self.owner else self.name

    @property
    def url(self): return f"api/{self.nb.module}.html#{self.anchor}"


def symbols(cell, nb):
    "What an export cell adds to the module's public names."
    if cell["cell_type"] != "code" or not any(re.match(r"exports?\b", d) for d in DIRECTIVE.findall(cell["source"])): return []
    source = DIRECTIVE.sub("", cell["source"])
    try: body = ast.parse(source).body
    except SyntaxError: return []
    return [Symbol(n, source, cell, nb, name=name) for n in body for name in names(n) if not name.startswith("_")]


def names(node):
    "The names that a statement defines."
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(n, ast.Name)]


# ---- writing ----------------------------------------------------------------------------------------------------------------
def inline_svg(svg, number, caption=""):
    "An SVG to stand in a page: ids and style rules hold for this figure alone, and it has a name."
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>", "", svg, flags=re.S).strip()
    if re.search(r"<script|<foreignObject|\son\w+\s*=|javascript:", svg, re.I): raise ValueError("an SVG output holds a script; draw it without")
    svg = re.sub(r'class="xt-auto ?', 'class="', svg.replace(DARK_RULE, "")).replace(' class=""', "")     # the site has its own switch
    new = {i: f"f{number}-{i}" for i in set(re.findall(r'\bid="([^"]+)"', svg))}
    own = lambda i: new.get(i, i)
    svg = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{own(m[1])}"', svg)
    svg = re.sub(r"url\((&quot;|'|\"|)#([^)'\"&]+)\1\)", lambda m: f"url(#{own(m[2])})", svg)
    svg = re.sub(r'href="#([^"]+)"', lambda m: f'href="#{own(m[1])}"', svg)
    svg = re.sub(r'(aria-\w+)="([^"]+)"', lambda m: f'{m[1]}="{" ".join(own(i) for i in m[2].split(" "))}"', svg)
    rules = lambda css: re.sub(r"([^{}@]+)(\{[^{}]*\})", lambda m: ",".join(f"#fig-{number} {s.strip()}" for s in m[1].split(",")) + m[2], css)
    svg = re.sub(r"(<style[^>]*>)(.*?)(</style>)", lambda m: m[1] + rules(m[2]) + m[3], svg, flags=re.S)
    if not re.match(r"<svg[^>]*\srole=", svg):
        named = (re.search(r"<title[^>]*>(.*?)</title>", svg, re.S) or [0, ""])[1]
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{esc(html.unescape(named or words(svg) or caption or "figure"))}"', 1)
    return f'<div class="fig" id="fig-{number}">{svg}</div>'


class Page:
    "Turns the cells of a notebook into HTML and remembers headings and texts for navigation and search."

    def __init__(self, site, nb):
        self.site, self.nb, self.taken, self.figures, self.live = site, nb, set(), 0, []
        self.taken_terms = set()
        self.headings, self.sections = [], [["", "", []]]    # a section: heading, anchor, texts
        page = self

        class Renderer(mistune.HTMLRenderer):
            def heading(self, text, level, **attrs):
                plain = html.unescape(re.sub(r"<[^>]+>", "", text))
                anchor = slug(text, page.taken)
                if level > 1:
                    page.headings.append((level, plain, anchor))
                    page.sections.append([plain, anchor, []])
                    return f'<h{level} id="{anchor}">{text}<a class="at" href="#{anchor}" aria-label="link to {esc(plain)}">#</a></h{level}>\n'
                return f"<h1>{text}</h1>\n"

            def block_code(self, code, info=None): return f'<div class="in"><pre>{coloured(code, (info or "text").split()[0])}</pre></div>\n'

            def codespan(self, text):
                url = page.site.symbol(html.unescape(text))
                return f'<a href="{nb.base}{url}"><code>{esc(html.unescape(text))}</code></a>' if url else f"<code>{esc(html.unescape(text))}</code>"

            def link(self, text, url, title=None): return f'<a href="{esc(page.site.target(url, nb))}">{re.sub("</?a[^>]*>", "", text)}</a>'

        self.markdown = mistune.create_markdown(renderer=Renderer(escape=False), plugins=["table", "strikethrough"])

    def html(self, source):
        "Markdown as HTML: formulas are taken out before and come back as MathML, so that no `_` or `*` in them is read as Markdown."
        kept, made = [], []
        keep = lambda m: kept.append(m[0]) or f"\ue000{len(kept) - 1}\ue001"
        def formula(m):
            made.append(mathml(m["block"] or m["inline"], m["block"] is not None))
            return f"\ue002{len(made) - 1}\ue003"
        source = TEX.sub(formula, CODE.sub(keep, source))
        done = self.markdown(re.sub("\ue000(\\d+)\ue001", lambda m: kept[int(m[1])], source))
        return re.sub("\ue002(\\d+)\ue003", lambda m: made[int(m[1])], done)

    def text(self, source):
        try: done = self.html(source)
        except ValueError as e: raise SystemExit(f"{self.nb.path.name}: {e}") from None
        if self.nb.rel.parent.name == "00_course": done = self.explained(done)
        self.sections[-1][2].append(re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", done))))
        return done

    def explained(self, page):
        "The first time that a paragraph uses a word of the glossary, the word is a link whose tooltip says what it means."
        if self.nb.path.resolve() == GLOSSARY: return page
        out, closed = [], []
        for part in re.split(r"(<[^>]+>)", page):
            tag = re.match(r"<(/?)(a|code|pre|h\d|math|svg|th)\b", part)
            if tag and tag[1]: closed and closed.pop()
            elif tag: closed.append(tag[2])
            elif not closed and not part.startswith("<"): part = self.linked(part)
            out.append(part)
        return "".join(out)

    def linked(self, text):
        terms, new = self.site.terms, set(self.site.terms) - self.taken_terms - ORDINARY
        if not new: return text
        words = "|".join(sorted(map(re.escape, new), key=len, reverse=True))
        def link(m):
            term = next(t for t in terms if t.lower() == m[1].lower())
            if term in self.taken_terms: return m[0]
            self.taken_terms.add(term)
            anchor, meaning = terms[term]
            return f'<a class="term" href="{self.nb.base}00_course/glossary.html#{anchor}" title="{esc(meaning)}">{m[0]}</a>'
        return re.sub(rf"(?<![\w-])({words})s?(?![\w-])", link, text, flags=re.I)

    def explorer(self):
        "The explorer that works, where this page has one."
        wanted = LIVE.get(str(self.nb.rel))
        if not wanted: return ""
        from xtokd import Pair
        from xtokd.viz.live.page import live_element, static_picture
        wanted = dict(wanted)
        widget = Pair("tiny").align(wanted.pop("text")).explore(**wanted)
        self.live.append(widget)
        self.figures += 1
        picture = inline_svg(static_picture(widget), self.figures)
        return (f'<section class="live" aria-label="An explorer that works here"><p>Hover, click, or use the arrow keys. To type texts of your own: '
                f'<code>xtokd explore STUDENT TEACHER</code>, or <code>pair.explore()</code> in a notebook.</p>{live_element(widget, picture=picture)}</section>')

    def output(self, o):
        "One output: the picture where there is one, else the table, else the text."
        kind = o["output_type"]
        if kind == "error": return f'<div class="out text"><pre>{esc(o["ename"] + ": " + o["evalue"])}</pre></div>'
        data = {k: joined(v) for k, v in o.get("data", {}).items() if not k.endswith("json")}
        if kind == "stream": data = {"text/plain": joined(o["text"])}
        if "image/svg+xml" in data:
            self.figures += 1
            return f'<div class="out">{inline_svg(data["image/svg+xml"], self.figures, self.sections[-1][0])}</div>'
        if "image/png" in data: return f'<div class="out"><div class="fig"><img alt="{esc(data.get("text/plain", "figure"))}" src="data:image/png;base64,{data["image/png"].strip()}"></div></div>'
        if "text/html" in data and not ("text/plain" in data and data["text/html"].lstrip().startswith("<pre")):
            if re.search(r"<(script|iframe|object|embed)\b|\son\w+\s*=|src=[\"']?http", data["text/html"], re.I): raise ValueError(f"{self.nb.path.name}: an HTML output needs a script or another host; give it a picture")
            return f'<div class="out"><div class="sheet">{data["text/html"]}</div></div>'
        if "text/markdown" in data: return f'<div class="out">{self.html(data["text/markdown"])}</div>'
        return f'<div class="out text"><pre>{esc(data["text/plain"].rstrip())}</pre></div>' if data.get("text/plain", "").strip() else ""

    def code(self, cell):
        flags = DIRECTIVE.findall(cell["source"])
        if any(re.match(r"(hide|default_exp|include:\s*false)\b", f) for f in flags): return ""
        source = DIRECTIVE.sub("", cell["source"]).strip("\n")
        exported = any(f.startswith("export") for f in flags)
        where = f"in xtokd.{self.nb.module}" if exported else "slow" if "slow" in flags else "needs a GPU" if "gpu" in flags else ""
        if exported: self.sections[-1][2] += [s.name for s in symbols(cell, self.nb)]
        shown = source and not {"echo: false", "hide_input"} & set(flags)
        block = f'<div class="in" id="cell-{cell["id"]}">' + (f'<span class="where">{where}</span>' if where else "") + f"<pre>{coloured(source)}</pre></div>\n" if shown else ""
        return block + "\n".join(self.output(o) for o in cell.get("outputs", []))

    def body(self):
        cells = [self.text(c["source"]) if c["cell_type"] == "markdown" else self.code(c) if c["cell_type"] == "code" else "" for c in self.nb.cells]
        return "\n".join(cells[:1] + [self.explorer()] + cells[1:])


def together(symbols):
    "Symbols in lists: names of one assignment, such as `A, B = 1, 2`, are one list."
    out = []
    for s in symbols:
        if out and " = " in s.signature and s.signature == out[-1][0].signature and s.cell == out[-1][0].cell: out[-1].append(s)
        else: out.append([s])
    return out


class Site:
    def __init__(self, notebooks):
        self.notebooks = order(notebooks)
        self.pages = {n.path.resolve(): n.url for n in self.notebooks}
        self.modules = sorted((n for n in self.notebooks if n.symbols), key=lambda n: n.module)
        known = {}
        for n in self.modules:
            for s in n.symbols:
                for t in [s] + s.members: known.setdefault(t.anchor, []).append(t.url)
        self.known = {name: urls[0] for name, urls in known.items() if len(set(urls)) == 1}
        self.settings, self.index, self.copied, self.live = settings(), [], set(), {}
        self.terms = definitions() if GLOSSARY in self.pages else {}

    def symbol(self, text):
        "Where `text` leads when it is the name of one exported symbol."
        return self.known.get(text.removeprefix("xtokd.").removesuffix("()")) if re.fullmatch(r"[\w.]+(\(\))?", text) else None

    def target(self, url, nb):
        "A link of the notebook `nb` as a link of the site: pages to pages, other files of the repository to where the repository is."
        if re.match(r"\w+:", url): return url
        file, _, anchor = url.partition("#")
        if anchor: anchor = slug(anchor, set())       # a notebook's anchors keep the capitals of their headings
        if not file: return f"#{anchor}"
        path = (nb.path.parent / file).resolve()
        if path in self.pages: return nb.base + self.pages[path] + (f"#{anchor}" if anchor else "")
        images = ROOT / "nbs" / "images"
        if path.is_relative_to(images) and path.is_file():
            self.copied.add(str(path.relative_to(ROOT / "nbs")))
            return nb.base + str(path.relative_to(ROOT / "nbs"))
        return f"{self.settings['git_url']}/blob/{self.settings['branch']}/{path.relative_to(ROOT)}" if path.is_relative_to(ROOT) else url

    def nav(self, here, headings=(), base=""):
        current = lambda url: ' aria-current="page"' if url == here else ""
        out = []
        for part in PARTS.values():
            rows = [n for n in self.notebooks if n.part == part]
            if part == "More": rows, extra = rows, f'<li><a href="{base}api/index.html"{current("api/index.html")}>Reference: every name</a></li>'
            else: extra = ""
            if not rows and not extra: continue
            items = []
            for n in rows:
                inner = "".join(f'<li><a href="#{a}">{esc(t)}</a></li>' for level, t, a in headings if level == 2) if n.url == here else ""
                items.append(f'<li><a href="{base}{n.url}"{current(n.url)}>{esc(n.title)}</a>{f"<ul>{inner}</ul>" if inner else ""}</li>')
            out.append(f"<h2>{'Reference' if not rows else part}</h2><ul>{''.join(items)}{extra}</ul>")
        if here.startswith("api/"): out.append("<ul>" + "".join(f'<li><a href="{base}api/{n.module}.html"{current(f"api/{n.module}.html")}>xtokd.{n.module}</a></li>' for n in self.modules) + "</ul>")
        return "".join(out)

    def frame(self, here, title, body, headings=(), description="", live=False):
        base = "../" * here.count("/")
        more = f'<link rel="stylesheet" href="{base}live.css"><script src="{base}live.js"></script>' if live else ""
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(title)}{"" if title == "xtokd" else " · xtokd"}</title><meta name="description" content="{esc(description)}">
<link rel="icon" href="data:,"><link rel="stylesheet" href="{base}site.css"><script src="{base}site.js" data-base="{base}"></script>{more}</head>
<body><a class="skip" href="#page-text">To the text</a><div class="page">
<header class="side"><a class="home" href="{base}index.html">xtokd</a>
<div class="tools" role="search" hidden><input id="search" type="search" placeholder="Search ( / )" aria-label="Search the documentation" autocomplete="off"><button id="theme" type="button">Dark</button></div>
<p class="count" id="count" role="status"></p><ul id="found" aria-label="Search results"></ul>
<nav aria-label="Pages">{self.nav(here, headings, base)}</nav></header>
<main id="page-text" tabindex="-1">
{body}
</main></div></body></html>
"""

    def notebook(self, n, before, after):
        page = Page(self, n)
        body = page.body()
        for widget in page.live: self.live[type(widget).__name__] = widget
        turn = [f'<a href="{n.base}{m.url}" rel="{rel}">{arrow(esc(m.title))}</a>' if m else "<span></span>" for m, rel, arrow in ((before, "prev", "← {}".format), (after, "next", "{} →".format))]
        for heading, anchor, texts in page.sections: self.index.append([n.title, heading, n.url + (f"#{anchor}" if anchor else ""), " ".join(texts)])
        return self.frame(n.url, n.title, f'{body}<nav class="turn" aria-label="Next pages">{"".join(turn)}</nav>', page.headings, n.subtitle, bool(page.live))

    def prose(self, doc, base="../"):
        "A docstring: its text as it stands, code in backticks, names as links."
        def mark(m):
            name = html.unescape(m[1])
            url = self.symbol(name)
            return f'<a href="{base}{url}"><code>{esc(name)}</code></a>' if url else f"<code>{esc(name)}</code>"
        return f'<div class="doc">{re.sub(r"`([^`]+)`", mark, esc(doc))}</div>' if doc else ""

    def entry(self, s, level=2, more=()):
        "A name with its signature; `more` are further names of the same assignment."
        inner = "".join(f'<div class="sub">{self.entry(m, 3)}</div>' for m in s.members)
        names = ", ".join([esc(s.anchor), *('<span id="{0}">{0}</span>'.format(esc(m.anchor)) for m in more)])
        for x in (s, *more): self.index.append([f"xtokd.{s.nb.module}", x.anchor, x.url, x.doc.split("\n\n")[0]])
        return (f'<section class="sym" aria-labelledby="{s.anchor}"><h{level} id="{s.anchor}">{names}</h{level}><div class="in"><pre>{coloured(s.signature)}</pre></div>{self.prose(s.doc)}'
                + (f'<p class="from"><a href="../{s.nb.url}#cell-{s.cell}">The cell that defines {esc(s.name)}</a></p>' if not s.owner else "") + f"{inner}</section>")

    def module(self, n):
        rows = {s.anchor: s for s in n.symbols}    # a name that is defined twice is what it was last
        body = f'<h1>xtokd.{n.module}</h1><p>{esc(n.subtitle)}</p><p class="from">Written and explained in <a href="../{n.url}">{esc(n.title)}</a>.</p>' + "".join(self.entry(first, more=rest) for first, *rest in together(rows.values()))
        return self.frame(f"api/{n.module}.html", f"xtokd.{n.module}", body, description=n.subtitle)

    def reference(self):
        item = lambda s: f'<li><a href="../{s.url}"><code>{esc(s.anchor)}</code></a> {esc(s.doc.split(chr(10))[0])}</li>'
        body = "<h1>Reference</h1><p>Every name that a notebook exports, by module.</p>" + "".join(f'<h2 id="{n.module}"><a href="{n.module}.html">xtokd.{n.module}</a></h2><ul>{"".join(map(item, {s.anchor: s for s in n.symbols}.values()))}</ul>' for n in self.modules)
        return self.frame("api/index.html", "Reference", body, description="Every name that a notebook exports, by module.")

    def write(self, out):
        out = Path(out)
        if out.exists() and any(out.iterdir()) and not (out / "search.js").exists(): raise SystemExit(f"{out} holds other files; name a new folder, or empty it")
        ring = [None, *self.notebooks, None]
        files = {n.url: self.notebook(n, ring[k], ring[k + 2]) for k, n in enumerate(self.notebooks)}
        files |= {f"api/{n.module}.html": self.module(n) for n in self.modules} | {"api/index.html": self.reference()}
        if "index.html" not in files: files["index.html"] = self.frame("index.html", "xtokd", "<h1>xtokd</h1><ul>" + "".join(f'<li><a href="{n.url}">{esc(n.title)}</a></li>' for n in self.notebooks) + "</ul>")
        safe = json.dumps(self.index, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        files["search.js"] = f"window.XTOKD_INDEX = {safe};\n"
        if self.live:
            from xtokd.viz.live.page import define_script, page_script, page_style
            files["live.js"] = page_script() + "".join(map(define_script, self.live.values()))
            files["live.css"] = page_style() + "".join(str(w._css) for w in self.live.values())
        shutil.rmtree(out, ignore_errors=True)      # last: an error above leaves the old site
        (out / "api").mkdir(parents=True)
        for name, text in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, encoding="utf8")
        for f in ("site.css", "site.js"): shutil.copyfile(SITE / f, out / f)
        for f in self.copied:
            (out / f).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / "nbs" / f, out / f)
        return sorted(files)


def build(paths=None, out=ROOT / "_docs"):
    "Write the site of these notebooks (default: all) into `out`; returns the names of its pages."
    paths = paths or sorted(f for f in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
    notebooks = [Notebook(p) for p in paths]
    return Site(notebooks).write(out)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("notebooks", nargs="*", type=Path)
    p.add_argument("-o", "--out", type=Path, default=ROOT / "_docs")
    a = p.parse_args(argv)
    n = len(build(a.notebooks, a.out)) - 1
    print(f"{n} pages: open {a.out / 'index.html'}")


if __name__ == "__main__": main()
