"""Pages without Jupyter: one file, no request, nothing of Python in it, and hostile text stays text."""
import importlib, json, pkgutil, re
import xml.etree.ElementTree as ET

import anywidget, ipywidgets, pytest, traitlets

from test_docs import Tags, loads
from xtokd import Pair
from xtokd.course.answer_box import AnswerBox, LivePicture, bytes_picture, choice_puzzle
from xtokd.viz.dashboard import Dashboard
from xtokd.viz.explorer import Explorer, PairExplorer
from xtokd.viz.live.atlas import Atlas
from xtokd.viz.live.bench import Bench
from xtokd.viz.live.page import PageWidget, define_script, live_element, widget_page, save_page, widget_state
from xtokd.viz.live.picture import PictureView, save_picture
from xtokd.viz.live.race import Race
from xtokd.viz.live.step_lists import alignment_steps
from xtokd.viz.live.stepper import Stepper
from xtokd.viz.ribbon import token_ribbon
from xtokd.viz.vocab_map import OverlapExplorer

PAIR, LOG = Pair("tiny"), "data/runs/tiny-watched.jsonl"


def state_of(text):
    "The options of the one widget of a page."
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    assert len(found) == 1
    return json.loads(found[0])


def stepper(): return Stepper(alignment_steps(PAIR), make=lambda text: alignment_steps(PAIR, text))


def letters(): return LivePicture(lambda text: bytes_picture(text, {}), text=ipywidgets.Text("naïve"))


def question(): return AnswerBox(choice_puzzle("even", "Which is even?", {"3": "odd", "4": "even"}, {"4"}, "4 = 2 * 2"), ["3", "4"])


# class, how to make one, trait that holds what is drawn; the page of a picture holds a PictureView
WIDGETS = {
    "explorer": (Explorer, lambda: PAIR.align("the sum of 120 and 34").explore(), "data"),
    "pair": (PairExplorer, lambda: PAIR.explore("the sum"), "data"),
    "run": (Dashboard, lambda: Dashboard.replay(LOG, speed=None), "data"),
    "ribbon": (PictureView, lambda: PictureView(token_ribbon(PAIR, "th")), "svg"),
    "map": (OverlapExplorer, lambda: OverlapExplorer(PAIR), "svg"),
    "atlas": (Atlas, lambda: Atlas(PAIR), "held"),
    "stepper": (Stepper, stepper, "data"),
    "bench": (Bench, Bench, "data"),
    "race": (Race, Race, "data"),
    "letters": (LivePicture, letters, "svg"),
    "question": (AnswerBox, question, "svg"),
}


def class_name(cls): return f"{cls.__module__}.{cls.__name__}"     # anywidget makes one more class for each instance


def widget_names(base=ipywidgets.DOMWidget):
    "Every widget class of this package but the two that are only inherited from."
    for cls in base.__subclasses__():
        if cls.__module__.startswith("xtokd.") and cls.__name__ not in ("PageWidget", "WidgetBase"): yield class_name(cls)
        yield from widget_names(cls)


def test_every_widget_is_in_the_list():
    for package in ("xtokd.viz", "xtokd.viz.live", "xtokd.course"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."): importlib.import_module(module.name)
    assert set(widget_names()) == {class_name(cls) for cls, *_ in WIDGETS.values()}


@pytest.mark.parametrize("name", WIDGETS)
def test_a_page_is_one_file_that_asks_for_nothing(name, tmp_path):
    cls, make, drawn = WIDGETS[name]
    widget = make()
    path = widget.save(tmp_path / "x.html")
    text = path.read_text(encoding="utf8")
    page = Tags(text)
    assert isinstance(widget, cls) and loads(page) == [] and list(tmp_path.iterdir()) == [path]
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "connect-src" not in policy
    assert not re.search(r"@import|url\(", "".join(re.findall(r"<style>(.*?)</style>", text, re.S)))
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<)]*", re.sub(r"^\s*//.*|\s// .*", "", text, flags=re.M)))
    assert {address for address in addresses if "www.w3.org/" not in address} == set()      # names of XML vocabularies, never fetched
    state = state_of(text)["state"]
    assert state[drawn] and not {"page", "page_asked"} & set(state)
    assert re.search(r"<h1>[^<]{4,}</h1>", text) and len(text) < 450_000


def test_what_only_python_can_answer_is_left_out_and_said(tmp_path):
    live = PAIR.explore("the sum")
    text = widget_page(live)
    options = state_of(text)
    assert "text" not in options["state"] and options["server"] == "" and options["inputs"] == []
    assert "xtokd explore STUDENT TEACHER" in text
    served = widget_page(live, server="state")
    options = state_of(served)
    assert options["state"]["text"] == "the sum" and options["server"] == "state" and "page" not in options["inputs"]
    assert "xtokd explore STUDENT TEACHER" not in served and "connect-src 'self'" in served


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!-- ", "\u2028", "<img src=x onerror=alert(1)>"])
def test_text_of_a_page_stays_text(text):
    page = widget_page(PAIR.align(text).explore(), title=text)
    assert page.count("<script") == page.count("</script>") == 2
    assert not any("onerror" in attrs for _, attrs in Tags(page).tags)
    assert json.loads(state_of(page)["state"]["data"])["summary"]


def test_a_lone_surrogate_can_be_written(tmp_path):
    widget = PAIR.align("a").explore()
    widget.error = "\ud800"
    assert save_page(widget, tmp_path / "x.html").stat().st_size > 1000


def test_a_module_that_a_page_cannot_hold_is_refused():
    class Exports(anywidget.AnyWidget): _esm = "export const a = 1;\nexport default { render() {} }"
    class Twice(anywidget.AnyWidget): _esm = "export default {};\nexport default {}"
    class Closing(anywidget.AnyWidget): _esm = "export default { render() { '</script>' } }"
    for bad in (Exports, Twice, Closing):
        with pytest.raises(ValueError, match=bad.__name__): define_script(bad())


def test_a_trait_that_is_not_json_is_named():
    class Odd(PageWidget):
        _esm = "export default { render() {} }"
        rows = traitlets.Any({1, 2}).tag(sync=True)
    with pytest.raises(TypeError, match="'rows' of Odd"): widget_state(Odd())


def test_the_html_button_gets_the_page_again():
    widget, seen = PAIR.align("the sum").explore(), []
    widget.observe(lambda change: seen.append(len(change["new"])), "page")
    widget.page_asked += 1
    widget.page_asked += 1
    assert seen[0] > 10_000 and seen[1:] == [0, seen[0]]


def test_pictures_are_saved_as_svg_and_as_pages(tmp_path):
    ribbon = token_ribbon(PAIR, "th")
    ET.parse(ribbon.save(tmp_path / "r.svg"))
    assert ribbon.save(tmp_path / "r.html", "Mine").read_text(encoding="utf8").count("<h1>Mine</h1>") == 1
    ET.parse(PAIR.explore("the sum").save(tmp_path / "e.svg"))
    assert OverlapExplorer(PAIR).save(tmp_path / "m.html").stat().st_size < 400_000
    with pytest.raises(ValueError, match="nor in .html"): save_picture(ribbon, tmp_path / "r.gif")
    assert "saveButtons" in PictureView._esm and live_element(PictureView(ribbon)).startswith('<div class="xtokd-live"><svg')
