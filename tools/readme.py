"""README.md from nbs/index.ipynb: markdown as it is, code in fences, SVG outputs as pictures in nbs/images/, other outputs as text."""
import re, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from refresh import ROOT, joined, load

INDEX, README, IMAGES = ROOT / "nbs" / "index.ipynb", ROOT / "README.md", ROOT / "nbs" / "images"
NOTE = "<!-- generated from nbs/index.ipynb; edit that, then: make export -->\n"


def directives(source): return set(re.findall(r"^\s*#\s*\|\s*(.+?)\s*$", source, re.M))


def links(text):
    "Links in index.ipynb are relative to nbs/; README.md lies one folder higher."
    return re.sub(r"(\]\(|src=\")(?!https?:|#|/)([^)\"]+)", lambda m: m[1] + (m[2][3:] if m[2].startswith("../") else "nbs/" + m[2]), text)


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


def render():
    "The text of README.md, and the pictures by file name."
    parts, pictures = [], {}
    for c in load(INDEX.read_text(encoding="utf8"))["cells"]:
        if c["cell_type"] == "markdown": parts.append(links(c["source"].strip("\n")))
        elif c["cell_type"] == "code":
            text, svgs = code(c)
            parts.append(text)
            pictures |= svgs
    return NOTE + "\n" + "\n\n".join(p for p in parts if p) + "\n", pictures


def stale():
    "Which files are not what the notebook makes?"
    text, pictures = render()
    want = {README: text} | {IMAGES / n: s for n, s in pictures.items()}
    bad = [f for f, t in want.items() if not f.exists() or f.read_text(encoding="utf8") != t]
    return [str(f.relative_to(ROOT)) for f in bad + [f for f in IMAGES.glob("index-*.svg") if f not in want]]


def write():
    text, pictures = render()
    IMAGES.mkdir(exist_ok=True)
    for f in IMAGES.glob("index-*.svg"): f.unlink()
    for n, s in pictures.items(): (IMAGES / n).write_text(s, encoding="utf8")
    README.write_text(text, encoding="utf8")


if __name__ == "__main__": write()
