"""Pictures of every view in JupyterLab and of the documentation site, light and dark, to be looked at.

    python tools/screenshots.py                     all of them, into _shots/
    python tools/screenshots.py -o DIR explorer     only views whose name contains a word

A view is a cell whose output is drawn. A view that fails leaves the picture of its error, and the exit status is 1.
"""
import argparse, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import browser, docs
from browser import ROOT

RUN = str(ROOT / "data/runs/tiny-watched.jsonl")
SET_UP = f"""
import numpy as np, torch
torch.set_num_threads(1)
from xtokd.alignment.pair import Pair
from xtokd.rows.pair_batch import PairBatch
from xtokd.objectives import objective
from xtokd.viz.explorer import Explorer, PairExplorer, explore_batch
pair, RUN = Pair("tiny"), {RUN!r}
text = "The sum of 120 and 34 is 154,\\nnaïve café 👩‍👧, and 数据.\\n"
al = pair.align(text)
rng = np.random.default_rng(0)
log_p = lambda n: (-rng.gamma(1.2, 1.5, n)).tolist()
facts = dict(student={{"log p": log_p(len(al.student_ids)), "rank": rng.integers(1, 50, len(al.student_ids)).tolist()}}, teacher={{"log p": log_p(len(al.teacher_ids))}})
batch = PairBatch.from_logits(pair, [al.student_ids.tolist()], [al.teacher_ids.tolist()],
    [torch.randn(len(al.student_ids), len(pair.student))], [torch.randn(len(al.teacher_ids), len(pair.teacher))])
"""


LIVE = """
import tempfile, time
from xtokd.train.distiller import Distiller
from xtokd.train.config import DistillConfig
from xtokd.data.tasks.number_words import check_number
from xtokd.viz.dashboard import Dashboard
config = DistillConfig(steps=60, batch_size=16, max_new_tokens=16, eval_steps=10, eval_size=16, out=tempfile.mkdtemp() + "/run", progress=False)
run = Distiller("tiny", "tiny", "tiny", check=check, config=config).fit(block=False)
time.sleep(8)
Dashboard(run)"""


def hover(page, area):
    "A pointer over a token, where there is one."
    token = area.locator(".seg .box").nth(6)
    if token.count(): token.hover()


def keys(page, area):
    "The keyboard's focus on a chunk, pinned."
    box = area.locator("[role=listbox]").first
    if box.count():
        box.focus()
        for k in ("Home", "ArrowRight", "ArrowRight", "Enter", "ArrowRight"): page.keyboard.press(k)


VIEWS = {    # name: the cell, and what to do before the picture is taken
    "alignment": ("al", None),
    "doctor": ("pair.doctor([text])", None),
    "explorer": ("Explorer(al, **facts)", hover),
    "explorer-keys": ("Explorer(al, **facts)", keys),
    "explorer-edges": ("Explorer(pair.align('naïve 1234'), view='edges')", None),
    "explorer-signals": ("explore_batch(batch, {name: objective(name)(batch) for name in ('cover', 'sampled')})", hover),
    "explorer-pair": ("PairExplorer(pair, 'one two 1234\\n', others={'bytes': pair.teacher})", None),
    "explorer-hostile": ("Explorer(pair.align('<script>alert(1)</script> \\u202eabc\\u200d\\x00 ' + 'x' * 200 + ' مرحبا نص'))", None),
    "map-overlap": ("from xtokd.viz.vocab_map import overlap_map\noverlap_map(pair)", None),
    "map-select": ("from xtokd.viz.vocab_map import OverlapExplorer\nOverlapExplorer(pair)", None),
    "map-atlas": ("pair.atlas(text).show('7')", None),
    "map-matrix": ("from xtokd.viz.pair_matrix import pair_matrix\npair_matrix({'tiny-student': pair.student, 'tiny-teacher': pair.teacher}).figure()", None),
    "map-doctor": ("pair.doctor().page()", None),
    "map-sankey": ("from xtokd.viz.ribbon import token_ribbon\ntoken_ribbon(pair, ' f').sankey()", None),
    "map-ribbon": ("from xtokd.viz.ribbon import token_ribbon\ntoken_ribbon(pair, ' f')", None),
    "dashboard": ("from xtokd.viz.dashboard import Dashboard\nDashboard.replay(RUN, speed=None)", None),
    "dashboard-live": (LIVE, None),
    "dashboard-going": ("Dashboard.replay(RUN, speed=2.)", None),
    "dashboard-collapse": ("Dashboard.replay(RUN.replace('watched', 'collapse'), speed=None)", None),
    "puzzle": ("from xtokd.course.puzzles import board, puzzle\npuzzle('chunks').check([(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3), (5, 6, 4, 5)])", None),
    "puzzle-board": ("board()", None),
}
PAGES = {"docs-start": "index.html", "docs-notebook": "01_align.html", "docs-charts": "21_charts.html", "docs-reference": "api/align.html"}
MEASURE = """area => {
    const words = [...area.querySelectorAll('.jp-OutputArea-output')].map(o => o.dataset.mimeType).join(', ');
    return [area.scrollWidth > area.clientWidth + 1, words, area.querySelector('[data-mime-type="application/vnd.jupyter.error"]')?.innerText.slice(-300) || ''];
}"""


def shoot_views(lab, out, names, theme):
    "One notebook with a cell a view; a picture of each output. Returns the names of those that failed."
    failed = []
    page = lab.notebook([SET_UP] + [VIEWS[n][0] for n in names], theme=theme, height=1400)
    for k, name in enumerate(names, 1):
        area = lab.output(page, k)
        area.scroll_into_view_if_needed()
        if VIEWS[name][1]: VIEWS[name][1](page, area)
        page.evaluate(browser.FRAMES)
        area.screenshot(path=out / f"{name}-{theme}.png")
        wide, kinds, error = area.evaluate(MEASURE)
        if error: failed.append(name)
        print(f"{name}-{theme}.png: {kinds}{', wider than its cell' if wide else ''}{'  FAILED ' + error if error else ''}", flush=True)
    if left := lab.external(page): raise SystemExit(f"requests left the machine: {left}")
    lab.close(page)
    return failed


def shoot_pages(lab, out, names, theme):
    for name in names:
        page = lab.page((out / "site" / PAGES[name]).as_uri(), theme=theme)
        page.screenshot(path=out / f"{name}-{theme}.png")
        print(f"{name}-{theme}.png", flush=True)
        lab.close(page)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("words", nargs="*", help="only views whose name contains one of these")
    p.add_argument("-o", "--out", type=Path, default=ROOT / "_shots")
    p.add_argument("--theme", choices=["light", "dark"], action="append")
    a = p.parse_args(argv)
    if why := browser.missing(): raise SystemExit(why)
    a.out.mkdir(parents=True, exist_ok=True)
    wanted = lambda table: [n for n in table if not a.words or any(w in n for w in a.words)]
    views, pages, failed = wanted(VIEWS), wanted(PAGES), []
    if pages: docs.build(out=a.out / "site")
    with (browser.Lab() if views else browser.Browser()) as lab:
        for theme in a.theme or ["light", "dark"]:
            shoot_pages(lab, a.out, pages, theme)
            if views: failed += shoot_views(lab, a.out, views, theme)
    return bool(failed)


if __name__ == "__main__": sys.exit(main())
