"""How fast the explorer draws and answers in headless Chromium, with 10,000 tokens a side.

    python bench/explorer.py            a table as markdown
    python bench/explorer.py --tokens 1000

Bars: the first picture in under 300 ms after the page has the data, an answer to the pointer in under 100 ms. Both are measured in
the page, from the call (or the event) to the second animation frame after it. Lines are drawn when they come near; so the
time of a jump to the last line is given too. The columns are made in Python beforehand; that time is given as well.
"""
import argparse, json, shutil, statistics, time

from playwright.sync_api import sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from xtokd.vocab.bytevocab import ByteVocab
from xtokd.alignment.pair import Pair
from xtokd.viz.explorer import Explorer

LINES = ["the student writes and the teacher scores what was written: 1234 apples at 56.78 each.\n", "def area(r):\n    return 3.14159 * r ** 2\n", "naïve café 数据 مرحبا\n"]
HOST = """window.Model = class { constructor(s) { this.s = s; this.h = {}; } get(k) { return this.s[k]; } save_changes() {}
 set(k, v) { if (JSON.stringify(this.s[k]) === JSON.stringify(v)) return; this.s[k] = v; for (const f of this.h['change:' + k] || []) f(); } on(k, f) { (this.h[k] = this.h[k] || []).push(f); } };
window.frames2 = () => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)));
window.open_ = async (source, state) => { const m = await import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'}))); window.model = new Model(state);
 const at = document.querySelector('main'); at.replaceChildren(); const t = performance.now(); m.default.render({model, el: at}); await frames2(); return performance.now() - t; };
window.point = async n => { const all = [...document.querySelectorAll('.seg')], g = all[n % all.length], t = performance.now(); g.querySelector('.box').dispatchEvent(new PointerEvent('pointerover', {bubbles: true})); await frames2(); return performance.now() - t; };
window.toEnd = async at => { at = at || document.body; const t = performance.now(); at.dispatchEvent(new KeyboardEvent('keydown', {key: 'End', bubbles: true})); await frames2(); return performance.now() - t; };"""


def side(size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return ByteVocab(tok, name=f"bpe-{size}")


def host(page, widget):
    "Put a widget's script and style on a bare page."
    page.set_content(f"<!doctype html><html lang=en><title>explorer</title><style>{widget._css}</style><main></main>")
    page.evaluate(HOST)


def state(widget): return {k: getattr(widget, k) for k in widget.traits(sync=True) if not k.startswith("_") and k not in ("layout", "comm", "keys", "tabbable", "tooltip")}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--tokens", type=int, default=10_000)
    n = p.parse_args().tokens
    pair, text = Pair(side(290), side(300)), ""
    while len(pair.student.encode(text)) < n: text += "".join(LINES) * (1 + n // 400)
    ids = pair.student.encode(text)[:n]
    text = pair.student.decode(ids).decode("utf8", "ignore")
    tic = time.perf_counter(); widget = Explorer(pair.align(text)); made = time.perf_counter() - tic
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page(viewport={"width": 1000, "height": 800})
        host(page, widget)
        draw = min(page.evaluate("([s, t]) => open_(s, t)", [widget._esm, state(widget)]) for _ in range(5))
        hover = [page.evaluate("n => point(n)", 7 * k + 1) for k in range(20)]
        page.wait_for_selector(".list")
        last = page.locator(".list").evaluate("at => toEnd(at)")
    al = widget.alignment
    print(f"| student tokens | teacher tokens | columns in Python | draw | hover (median) | hover (worst) | jump to the end |\n| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| {len(al.student_ids):,} | {len(al.teacher_ids):,} | {made * 1e3:.0f} ms | {draw:.0f} ms | {statistics.median(hover):.0f} ms | {max(hover):.0f} ms | {last:.0f} ms |")


if __name__ == "__main__": main()
