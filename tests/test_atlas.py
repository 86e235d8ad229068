"""The atlas of a pair: the table of cells against its definition, what is typed, listed, drawn and saved, and how fast it answers."""
import csv, io, json, re, sys, time
from pathlib import Path

import numpy as np
import pytest
import traitlets

from xtokd.alignment.pair import Pair
from xtokd.viz import cell_table, ribbon
from xtokd.viz.live.atlas import Atlas

ROOT = Path(__file__).resolve().parent.parent
TEXT = "Certainly: the number is 894772 altogether, and seventy-two of 72."


@pytest.fixture(scope="module")
def atlas(): return Atlas(Pair("tiny"), TEXT)


@pytest.fixture(autouse=True)
def anew(request):
    "Each test finds the filters and the text as they were."
    yield
    if "atlas" in request.fixturenames:
        it = request.getfixturevalue("atlas")
        it.filters, it.text, it.query, it.side, it.start = {}, TEXT, "", 0, 0


def walk(table, token):
    "The component of a student token, by following links one by one."
    links, seen, todo = table.links.tolist(), {(0, token)}, [(0, token)]
    while todo:
        side, id = todo.pop()
        for link in links:
            other = (1 - side, link[1 - side])
            if link[side] == id and other not in seen:
                seen.add(other)
                todo.append(other)
    return [sorted(id for side, id in seen if side == k) for k in (0, 1)]


def test_a_row_is_a_component_of_the_graph(atlas):
    table = atlas.state.table
    for cell in table.select()[[0, 3, 20, -1]].tolist():
        members = [ids.tolist() for ids in table.members(cell)]
        assert walk(table, members[0][0]) == members
        assert table.sizes[cell].tolist() == [len(ids) for ids in members]
        assert table.num_links[cell] == sum(i in set(members[0]) for i, _ in table.links.tolist())
    assert sum(table.sizes[:, 0]) == (table.graph.cell_s >= 0).sum()
    kinds = [ribbon.link_kind(table.vocabs[0].bytes[i], table.vocabs[1].bytes[j]) for i, j in table.links.tolist()]
    assert table.link_kind.tolist() == kinds


def test_filters_keep_exactly_what_fits(atlas):
    state = atlas.state
    everything = set(state.table.select().tolist())
    for kind in range(5): assert set(state.table.select(kinds=[kind]).tolist()) == {c for c in everything if state.table.kind[c] == kind}
    for place, script in enumerate(state.table.scripts):
        state.select(script=script)
        want = set()
        for side, vocab in enumerate(state.table.vocabs):
            found, names = cell_table.token_scripts(vocab.bytes)
            fits = np.array([names[k] == script for k in found]) & (vocab.lengths > 0)
            want |= set(state.table.cells[side][fits & (state.table.cells[side] >= 0)].tolist())
        if script not in (cell_table.RARE, cell_table.STOP_SCRIPT): assert set(state.cells.tolist()) == want, script
    state.select(sizes=[2, 4])
    assert {int(s) for s in state.table.sizes[state.cells].sum(1)} <= {2, 3, 4} and len(state.cells)
    state.select()


@pytest.mark.parametrize("typed, raw", [("7", b"7"), ("#27", 27), ("\\x37", b"7"), (" f", b" f"), ("·f", b" f")])
def test_a_token_is_found_as_it_is_typed(atlas, typed, raw):
    atlas.query = typed
    side, id = atlas.shown["token"]
    assert not atlas.error and side == 0
    assert id == raw if isinstance(raw, int) else atlas.state.table.vocabs[0].bytes[id] == raw
    drawn = [token[0] for token in atlas.shown["sides"][0]]
    assert id in drawn, "the ribbon holds the token that was asked for"


def test_the_teachers_side_is_searched_too(atlas):
    atlas.side = 1
    atlas.query = "700"
    assert atlas.shown["token"][0] == 1 and atlas.state.table.vocabs[1].bytes[atlas.shown["token"][1]] == b"700"
    assert [label for _, label in atlas.suggestions][0] == "700"


@pytest.mark.parametrize("typed, why", [("no such token", "is not one token of"), ("#123456789", "is no id of"), ("\\xff\\xfe", "is not one token of")])
def test_what_is_no_token_is_answered_and_the_picture_stays(atlas, typed, why):
    atlas.show("7")
    before = atlas.shown
    atlas.query = typed
    assert why in atlas.error and atlas.shown == before
    atlas.query = ""
    assert not atlas.error


def test_other_bad_input(atlas):
    with pytest.raises(traitlets.TraitError, match="half of a surrogate pair"): atlas.text = "a\ud800"
    with pytest.raises(traitlets.TraitError, match="half of a surrogate pair"): atlas.query = "\udc00"
    before = atlas.listing
    atlas.filters = {"script": "Klingon"}
    assert "Klingon" in atlas.error and atlas.listing == before
    atlas.filters = {"beauty": 1}
    assert atlas.error and atlas.listing == before
    with pytest.raises(ValueError, match="Klingon"): atlas.select(script="Klingon")
    with pytest.raises(ValueError): atlas.show("no such token")
    atlas.token = [0, 10 ** 9]
    assert "no id" in atlas.error
    atlas.filters = {}
    atlas.show("7")
    atlas.text = ""
    assert not atlas.error and atlas.tokens["sides"] == [[], []] and atlas.listing["rows"][0]["mass"] is None


def test_mass_counts_the_tokens_of_the_text(atlas):
    atlas.filters = {"sort": "mass"}
    ids = atlas.state.pair.student.encode(TEXT)
    table = atlas.state.table
    for row in atlas.listing["rows"]:
        assert row["mass"] == sum(table.cells[0][i] == row["cell"] for i in ids)
    masses = [row["mass"] for row in atlas.listing["rows"]]
    assert masses == sorted(masses, reverse=True) and masses[0] > 0
    atlas.filters = {"in_text": True}
    assert {c for side in atlas.tokens["sides"] for *_, c in side if c >= 0} == set(atlas.state.cells.tolist())


def test_paging_covers_the_list_once(atlas):
    seen = []
    for start in range(0, atlas.listing["total"], 25):
        atlas.start = start
        seen += [row["cell"] for row in atlas.listing["rows"]]
    assert seen == atlas.state.table.select().tolist()
    atlas.filters = {"kinds": [0]}
    assert atlas.start == 0 and atlas.listing["rows"]


def test_a_ribbon_of_a_large_cell_is_around_its_token(atlas):
    table = atlas.state.table
    cell = int(table.select()[0])
    for id in table.members(cell)[1][[0, len(table.members(cell)[1]) // 2, -1]].tolist():
        drawn = atlas.state.draw(1, id)[1]
        assert id in [t[0] for t in drawn["sides"][1]] and max(map(len, drawn["sides"])) <= 30
        place = [t[0] for t in drawn["sides"][1]].index(id)
        assert any(link[1] == place for link in drawn["links"])


def test_files(atlas, tmp_path):
    atlas.filters = {"kinds": [2]}
    rows = list(csv.DictReader(io.StringIO(atlas.save(tmp_path / "a.csv").read_text(encoding="utf8"))))
    assert [int(r["cell"]) for r in rows] == atlas.state.cells.tolist() and {r["kind"] for r in rows} == {"n-1"}
    atlas.asked += 1
    assert atlas.file["text"] == atlas.state.csv()
    page = atlas.save(tmp_path / "a.html", rows=3).read_text(encoding="utf8")
    assert not re.search(r"https?://", page.replace("http://www.w3.org/", "")) and not atlas.held
    state = json.loads(page.split('<script type="application/json">')[1].split("</script>")[0])["state"]
    assert len(state["held"]["rows"]) == 3 and len(state["held"]["shown"]) == 3
    assert atlas.save(tmp_path / "a.svg").read_text(encoding="utf8").startswith("<svg")


def test_the_page_gets_what_python_holds_only(atlas):
    traits = {name: getattr(atlas, name) for name in ("names", "listing", "shown", "tokens", "filters", "suggestions")}
    assert len(json.dumps(traits, allow_nan=False)) < 100_000
    bundle = atlas._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and {"image/svg+xml", "text/plain"} <= set(bundle)


def test_a_pair_opens_its_atlas():
    found = Pair("tiny").atlas("12")
    assert isinstance(found, Atlas) and found.text == "12"


@pytest.mark.slow
def test_two_large_vocabularies_open_and_answer_in_time():
    "Bars of bench/atlas.py, ten times as wide."
    sys.path.insert(0, str(ROOT / "bench"))
    import atlas as bench
    pair = bench.made_pair()
    assert [len(v) for v in (pair.student, pair.teacher)] == [100_000, 200_000]
    from xtokd.objectives.cover.cells import cell_graph
    cell_graph(pair.student, pair.teacher)                    # the tables are there
    tic = time.perf_counter()
    found, _ = bench.opened(pair)
    assert time.perf_counter() - tic < 30
    late = {name: wall for name, (wall, _) in bench.answers(found, rounds=3).items() if wall > 3}
    assert not late
