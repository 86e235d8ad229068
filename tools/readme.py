"""README.md from nbs/index.ipynb and GLOSSARY.md from nbs/00_course/glossary.ipynb: markdown as it is, code in fences, SVG outputs
as pictures in nbs/images/, other outputs as text."""
import os, re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from refresh import ROOT, joined, load

IMAGES = ROOT / "nbs" / "images"
PAGES = {ROOT / "README.md": ROOT / "nbs" / "index.ipynb", ROOT / "GLOSSARY.md": ROOT / "nbs" / "00_course" / "glossary.ipynb"}
NOTE = "<!-- generated from {}; edit that, then: make export -->\n"


def directives(source): return set(re.findall(r"^\s*#\s*\|\s*(.+?)\s*$", source, re.M))


def links(text, folder):
    "Links of a notebook are relative to its folder; the page lies at the top."
    place = lambda link: os.path.relpath(folder / link, ROOT)
    return re.sub(r"(\]\(|src=\")(?!https?:|#|/)([^)\"]+)", lambda m: m[1] + place(m[2]), text)


def code(cell):
    "A code cell and its outputs as markdown, and the pictures that it needs."
    flags, parts, pictures = directives(cell["source"]), [], {}
    if "hide" in flags: return "", {}
    body = re.sub(r"^\s*#\s*\|.*\n?", "", cell["source"], flags=re.M).strip("\n")
    if body and "echo: false" not in flags: parts.append(f"```python\n{body}\n```")
    for o in cell.get("outputs", []):
        data = o.get("data", {"text/plain": o.get("text", "")})
        if "image/svg+xml" in data:
            svg = joined(data["image/svg+xml"])
            title = (re.search(r"<title[^>]*>(.*?)</title>", svg, re.S) or [0, "figure"])[1]
            name = f"index-{cell['id']}.svg"
            pictures[name] = svg if svg.endswith("\n") else svg + "\n"
            parts.append(f"![{title}](nbs/images/{name})")
        elif "text/markdown" in data: parts.append(joined(data["text/markdown"]))
        else: parts.append("```text\n" + joined(data.get("text/plain", "")).rstrip("\n") + "\n```")
    return "\n\n".join(parts), pictures


def render(notebook):
    "The text of the page of a notebook, and its pictures by file name."
    parts, pictures = [], {}
    for c in load(notebook.read_text(encoding="utf8"))["cells"]:
        if c["cell_type"] == "markdown": parts.append(links(c["source"].strip("\n"), notebook.parent))
        elif c["cell_type"] == "code":
            text, svgs = code(c)
            parts.append(text)
            pictures |= svgs
    return NOTE.format(notebook.relative_to(ROOT)) + "\n" + "\n\n".join(p for p in parts if p) + "\n", pictures


def rendered():
    "{file: text} of all pages and pictures."
    files = {}
    for page, notebook in PAGES.items():
        text, pictures = render(notebook)
        files |= {page: text} | {IMAGES / name: svg for name, svg in pictures.items()}
    return files


def stale():
    "Which files are not what the notebooks make?"
    want = rendered()
    bad = [f for f, t in want.items() if not f.exists() or f.read_text(encoding="utf8") != t]
    return [str(f.relative_to(ROOT)) for f in bad + [f for f in IMAGES.glob("index-*.svg") if f not in want]]


def write():
    IMAGES.mkdir(exist_ok=True)
    for f in IMAGES.glob("index-*.svg"): f.unlink()
    for f, text in rendered().items(): f.write_text(text, encoding="utf8")


if __name__ == "__main__": write()
