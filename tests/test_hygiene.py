"""What a reader would trip over: notebooks, exported modules, packaging, and files that do not belong in the repository."""
import configparser, json, os, re, subprocess, sys, tempfile, tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import bars
import refresh
from xtokd.viz.svg_charts import DARK_RULE

NOTEBOOKS = sorted(f for f in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in f.parts)
MODULES = sorted(f for f in (ROOT / "xtokd").rglob("*.py") if f.name != "_modidx.py")
BINARY = (".safetensors", ".png", ".whl", ".gz", ".model")
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w]+)", re.M)
names = lambda files: [str(f.relative_to(ROOT)) for f in files]


def tracked():
    "Files in git; in a source archive, where there is no git, every file that is not hidden."
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    found = [f for f in out.stdout.decode("utf8").split("\0") if f and (ROOT / f).is_file()] if out.returncode == 0 else []
    return found or [str(f.relative_to(ROOT)) for f in ROOT.rglob("*") if f.is_file() and not any(p.startswith(".") for p in f.relative_to(ROOT).parts)]


def cells(path): return refresh.load(path.read_text(encoding="utf8"))["cells"]
def code(path): return [c for c in cells(path) if c["cell_type"] == "code"]
def lines(cell): return [l for l in cell["source"].split("\n") if l.strip()]
def text_of(f): return (ROOT / f).read_text(encoding="utf8")


# ---- pictures ---------------------------------------------------------------------------------------------------------------
STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.S)


def drawn(path):
    "(cell, kind, text) of each SVG and HTML output of a notebook."
    return [(c, kind, refresh.joined(o["data"][kind])) for c in code(path) for o in c.get("outputs", [])
            for kind in ("image/svg+xml", "text/html") if kind in o.get("data", {})]


def bare_selectors(style):
    "Selectors of a style that begin with neither a class nor an id."
    style = re.sub(r"/\*.*?\*/|<!\[CDATA\[|\]\]>", "", style, flags=re.S)
    rules = [r for r in re.findall(r"([^{};]+)\{", style) if not r.strip().startswith("@")]
    return [s.strip() for r in rules for s in r.split(",") if not re.match(r"\s*[.#][\w-]", s)]


def svg_width(svg):
    "Pixels across: the width that the first tag names, or else its viewBox."
    head = svg[:svg.index(">")]
    found = re.search(r'\swidth="([\d.]+)(?:px)?"', head) or re.search(r'viewBox="\S+ \S+ ([\d.]+)', head)
    return float(found[1])


def test_bare_selectors_are_found():
    assert bare_selectors("text{a:b} .n{c:d} .in rect,path{e:f}") == ["text", "path"]
    assert bare_selectors("/* text{} */@media print{#a text{b:c}}.d,#e{f:g;h:i}") == []
    assert svg_width('<svg viewBox="0 0 1085 240" width="900.5px">') == 900.5 and svg_width('<svg viewBox="0 0 1085 240">') == 1085


# ---- notebooks --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
class TestNotebook:
    def test_is_clean(self, path):
        text = path.read_text(encoding="utf8")
        nb = json.loads(text)
        assert not nb["metadata"].get("widgets"), "widget state is stored"
        assert not any(c.get("execution_count") for c in nb["cells"]), "execution counts are stored"
        assert text == refresh.dump(refresh.clean(refresh.load(text))), "not as tools/refresh.py leaves it: make refresh, or tools/refresh.py --no-run"

    def test_is_small(self, path):
        assert path.stat().st_size <= 300 * 1024

    def test_begins_with_title_and_subtitle(self, path):
        first = cells(path)[0]
        assert first["cell_type"] == "markdown" and first["source"].startswith("# ")
        if path != ROOT / "nbs/index.ipynb": assert re.match(r"# .+\n+> .+", first["source"]), "begins with a title and a one-line subtitle"

    def test_has_outputs(self, path):
        ran = [c for c in code(path) if lines(c) and not set(DIRECTIVE.findall(c["source"])) & {"gpu", "slow", "export", "hide", "default_exp", "notest", "eval"}]
        if len(ran) > 5: assert any(c.get("outputs") for c in code(path)), "no outputs are committed"
        for c in code(path):
            for o in c.get("outputs", []):
                assert o.get("name") != "stderr"
                assert len(json.dumps(o)) <= 100 * 1024, "an output of more than 100 KB"
                assert not {refresh.WIDGET, refresh.PLOTLY} & set(o.get("data", {})), "live output without its picture"

    def test_styles_stay_in_their_picture(self, path):
        "Where a page holds a picture as elements, its `<style>` is a style of the page: `text{...}` changes every picture there."
        bare = [f"cell {c['id']}: {s}" for c, _, text in drawn(path) for style in STYLE.findall(text) for s in bare_selectors(style)]
        assert not bare, "begin each selector with a class or an id of the picture"

    def test_pictures_of_an_index_fit_into_a_notebook(self, path):
        if path.name != "index.ipynb": return
        wide = [f"cell {c['id']}: {w:.0f}" for c, kind, text in drawn(path) if kind == "image/svg+xml" and (w := svg_width(text)) > 920]
        assert not wide, "fold the picture into more rows: 920 pixels at most"

    def test_pictures_follow_dark_and_narrow_windows(self, path):
        "A stored picture is an image: only its own style can turn it dark, and only a `viewBox` lets it shrink."
        for c, kind, text in drawn(path):
            if kind != "image/svg+xml": continue
            head = text[text.index("<svg"):].split(">")[0]
            assert text.count(DARK_RULE) >= 1 and re.search(r'class="[^"]*\bxt-auto\b', head), f"cell {c['id']}: tools/refresh.py --no-run"
            assert "viewBox" in head, f"cell {c['id']}: neither a viewBox nor a size in pixels"
            assert re.search(r"<rect[^>]*(#fff|rgb\(255, 255, 255\))", text[:6000]), f"cell {c['id']}: no background of its own"

    def test_leaves_the_process_as_it_was(self, path):
        "Notebooks are run one after another in one process: what one changes there, the next one reads."
        changed, restored = set(), set()
        for source in (c["source"] for c in code(path) if "export" not in DIRECTIVE.findall(c["source"])):
            changed |= set(re.findall(r"^os\.environ\[(.+?)\] *=", source, re.M))
            changed |= set(re.findall(r"^os\.environ\.(?:setdefault|update|pop)\(.*", source, re.M))
            changed |= set(re.findall(r"^([a-z]\w*\.[A-Z][A-Z_]+) *=[^=]", source, re.M))
            restored |= set(re.findall(r"^del os\.environ\[(.+?)\]", source, re.M))
        assert not changed - restored, "use pytest.MonkeyPatch() and undo it in the last cell"


# ---- the bars, and who does not meet them yet --------------------------------------------------------------------------------
def test_everything_meets_the_bars_or_is_exempt():
    exempt = json.loads(text_of("tests/exemptions.json"))
    found = bars.all_faults()
    new = [f"{name}: {bar}: {what}" for name, faults in found.items() for bar, what in faults.items() if bar not in exempt.get(name, ())]
    assert not new, "\n".join(new)


def test_exemptions_are_needed():
    found = bars.all_faults()
    exempt = {name: row for name, row in json.loads(text_of("tests/exemptions.json")).items() if name != "public names"}
    spare = [f"{name}: {bar}" for name, row in exempt.items() for bar in row if bar not in found.get(name, ())]
    assert not spare, "take these off tests/exemptions.json: " + "; ".join(spare)


def test_public_names_exist_once():
    assert set(bars.duplicate_names()) == set(json.loads(text_of("tests/exemptions.json"))["public names"])


def test_no_folder_holds_more_than_twelve_modules():
    import collections
    count = collections.Counter(f.parent for f in MODULES if f.name not in ("__init__.py", "__main__.py"))
    assert not {str(d.relative_to(ROOT)): n for d, n in count.items() if n > 12}


def test_stems_are_unique():
    import collections
    stems = collections.Counter(re.sub(r"^\d+_", "", f.stem) for f in NOTEBOOKS if f.stem != "index")
    assert not [s for s, n in stems.items() if n > 1]


def test_no_module_has_the_name_of_a_public_name():
    import xtokd
    assert not {f.stem for f in MODULES} & set(xtokd.__all__)


# ---- modules ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_module_is_exported(path):
    text = path.read_text(encoding="utf8")
    if not text.strip(): return
    found = re.search(r"AUTOGENERATED! DO NOT EDIT! File to edit: (\S+)\.$", text, re.M)
    assert found, "not made by nbdev_export"
    assert (path.parent / found[1]).resolve().exists(), f"its notebook {found[1]} is gone"
    assert not re.search(r"^\s*(from|import) (fastcore|nbdev)\b", text, re.M), "fastcore and nbdev are not runtime dependencies"


def test_export_leaves_no_diff():
    import export
    assert not export.differences(), "xtokd/ is not what nbdev_export makes of nbs/: make export"


def test_readme_is_rendered_from_index():
    import readme
    assert not readme.stale(), "make export"


def prose(path):
    "The Markdown of a page or of a notebook."
    if path.suffix == ".md": return path.read_text(encoding="utf8")
    return "\n".join(c["source"] for c in cells(path) if c["cell_type"] == "markdown")


def anchors(path):
    "What a link can name behind # in a page: its headings with hyphens, as JupyterLab and GitHub write them."
    found = [re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", h).strip() for h in re.findall(r"^#+ (.+)$", prose(path), re.M)]
    if path.suffix == ".ipynb": return {h.replace(" ", "-") for h in found}
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


def test_links_lead_somewhere():
    lost = []
    for f in [ROOT / f for f in tracked() if f.endswith((".md", ".ipynb"))]:
        for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(f)):
            if re.match(r"\w+:", link): continue
            file, _, anchor = link.partition("#")
            to = f.parent / file if file else f
            if not to.exists() or anchor and anchor not in anchors(to): lost.append(f"{f.relative_to(ROOT)}: {link}")
    assert not lost


# ---- packaging --------------------------------------------------------------------------------------------------------------
def settings():
    c = configparser.ConfigParser(delimiters=["="], interpolation=None)
    c.read(ROOT / "settings.ini")
    return c["DEFAULT"]


def project(): return tomllib.loads(text_of("pyproject.toml"))


def test_settings_and_pyproject_agree():
    s, p = settings(), project()["project"]
    assert p["name"] == s["lib_name"] and p["description"] == s["description"] and p["requires-python"] == f">={s['min_python']}"
    assert p["dependencies"] == s["requirements"].split()
    assert p["optional-dependencies"]["dev"] == s["dev_requirements"].split()
    assert p["optional-dependencies"]["models"] == s["models_requirements"].split()
    assert [f"{k}={v}" for k, v in p["scripts"].items()] == s["console_scripts"].split()
    assert p["keywords"] == s["keywords"].split() and p["entry-points"]["nbdev"] == {"xtokd": "xtokd._modidx:d"}
    assert f'__version__ = "{s["version"]}"' in text_of("xtokd/__init__.py")


def test_every_package_is_packaged():
    found = {".".join(f.parent.relative_to(ROOT).parts) for f in (ROOT / "xtokd").rglob("*.py")}
    assert found | {"xtokd._data"} == set(project()["tool"]["setuptools"]["packages"])


def test_pins_cover_the_requirements():
    s = settings()
    pins = dict(l.split("==") for l in text_of("constraints.txt").splitlines() if l and not l.startswith("#"))
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    have = {plain(k): v for k, v in pins.items()}
    wanted = " ".join(s[k] for k in ("requirements", "dev_requirements", "models_requirements")).split()
    from packaging.requirements import Requirement
    for r in map(Requirement, wanted):
        assert plain(r.name) in have, f"constraints.txt does not pin {r.name}: make pins"
        assert r.specifier.contains(have[plain(r.name)]), f"constraints.txt pins {r.name} to {have[plain(r.name)]}, which {r} excludes"
    assert pins["nbdev"] == "2.4.14" and not any("+" in v for v in pins.values())


def test_bare_import_is_light():
    ask = "import sys, xtokd; xtokd.__version__, dir(xtokd); print(*sorted({'torch', 'plotly', 'transformers', 'numpy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert out == "", f"import xtokd brings {out}"


GROUND = ["train.config", "vocab.bytevocab", "alignment.byte_align", "vocab.overlap", "alignment.pair", "data.chat", "vocab.trie", "models.loading", "data.prompts", "train.runlog", "alignment.text_match"]


def test_ground_floor_needs_no_torch():
    code = f"import sys, importlib\nfor m in {GROUND}: importlib.import_module('xtokd.' + m)\nprint(*sorted({{'torch', 'plotly'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert out == "", f"the ground floor brings {out}"


def test_every_name_of_the_door_opens():
    import xtokd
    for name in xtokd.__all__: assert getattr(xtokd, name) is not None
    assert callable(xtokd.align) and callable(xtokd.generate_responses)
    with pytest.raises(AttributeError, match="Aligner"): xtokd.Aligner


# ---- the repository ---------------------------------------------------------------------------------------------------------
def test_no_path_of_a_machine():
    roots = {str(ROOT), str(ROOT.parent), os.path.expanduser("~")} - {"/", tempfile.gettempdir()}
    here = re.compile("|".join(re.escape(r) + "/" for r in sorted(roots)))
    general = re.compile(r"/(?:home|Users)/[a-z]\w+/|/roo[t]/|\.pyenv/")
    bad = []
    for f in tracked():
        if f.endswith(BINARY) or (ROOT / f).stat().st_size > 2_000_000: continue
        for k, line in enumerate(text_of(f).splitlines(), 1):
            if f != "tests/test_hygiene.py" and (here.search(line) or general.search(line)): bad.append(f"{f}:{k}")
    assert not bad


def test_no_big_files():
    big = [f"{f}: {(ROOT / f).stat().st_size // 1024} KB" for f in tracked() if (ROOT / f).stat().st_size > 8_000_000]
    assert not big
    assert sum((ROOT / f).stat().st_size for f in tracked() if f.endswith(".ipynb")) < 10_000_000, "notebooks of more than 10 MB in all"


def test_no_litter():
    litter = [f for f in tracked() if re.search(r"(^|/)(__pycache__|\.ipynb_checkpoints|_proc|_docs|\.venv|\.work)/|\.pyc$|\.orig$|\.rej$|\.DS_Store$", f)]
    assert not litter
    marked = [f for f in tracked() if not f.endswith(BINARY) and re.search(r"^(<{7} |>{7} )", text_of(f), re.M)]
    assert not marked, "merge conflicts"


def test_probe_texts_are_kept_byte_by_byte():
    if not (ROOT / ".git").exists(): pytest.skip("not a git checkout")
    out = subprocess.run(["git", "check-attr", "text", "data/probes/any.txt"], cwd=ROOT, capture_output=True, text=True).stdout
    assert out.strip().endswith("unset")


def test_licence_is_whole():
    text = text_of("LICENSE")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_changelog_names_the_version_or_is_unreleased():
    assert "## Unreleased" in text_of("CHANGELOG.md") or f"## {settings()['version']}" in text_of("CHANGELOG.md")
