"""What a figure says, in words: for pages and programs that do not draw it."""
import html, re

AXIS = re.compile(r'<text[^>]*class="(gtitle|[xy]\d*title|legendtext)"[^>]*>(.*?)</text>', re.S)


def words(svg):
    "A line of text for a chart: its title, its axes, its traces; empty for other pictures."
    parts = {}
    for name, text in AXIS.findall(svg):
        if t := html.unescape(re.sub(r"<[^>]+>", " ", text)).strip(): parts.setdefault(re.sub(r"\d", "", name), {})[t] = None
    axes = [f"{a}: {', '.join(parts[k])}" for a, k in (("across", "xtitle"), ("up", "ytitle"), ("shown", "legendtext")) if k in parts]
    head = ", ".join(parts.get("gtitle", {})) or ("Chart" if axes else "")
    return f"{head} ({'; '.join(axes)})" if axes else head
