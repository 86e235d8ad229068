"""Tables on disk: the same objects with and without, and no damaged, stale or foreign file is ever read."""
import json, multiprocessing, os, time, warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from tokenizers import Tokenizer

import xtokd.vocab.cache as stored
from xtokd.vocab.bytevocab import ByteVocab
from xtokd.models.loading import load_tokenizer
from xtokd.objectives.cover.cells import CellGraph
from xtokd.vocab.adjacency import CanonicalPairs, PairRules

TOY = {"a": np.arange(5, dtype=np.int32), "b": np.array([[True, False]])}
equal = lambda x, y: x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k]) for k in x)
files = lambda: sorted(f.name for f in stored.tables_dir().iterdir()) if stored.tables_dir().exists() else []


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A folder of its own, in which everything is stored, however small."
    monkeypatch.setenv("XTOKD_HOME", str(tmp_path)); monkeypatch.delenv("XTOKD_CACHE", raising=False); monkeypatch.setattr(stored, "MIN_IDS", 0)
    return tmp_path


@pytest.fixture(scope="module")
def pair(): return tuple(ByteVocab(load_tokenizer("tiny", role)) for role in ("student", "teacher"))


def changed(bv, change):
    "The same tokenizer after a change of its JSON."
    state = json.loads(bv.tokenizer.to_str()); change(state)
    return ByteVocab(Tokenizer.from_str(json.dumps(state)), stops=bv.stop_ids)


def counted(pair):
    "How `CellGraph` makes the table of a pair, and how often it was asked to."
    asked = []
    return (lambda: asked.append(1) or CellGraph.make_tables(*pair)), asked


def same_bridge(x, y):
    for a, b in zip(x[:2], y[:2]): assert all(np.array_equal(getattr(a, k), getattr(b, k)) and getattr(a, k).dtype == getattr(b, k).dtype for k in ("order", "keys", "lo", "hi", "exact", "rank")) and (a.depth, a.token_bytes) == (b.depth, b.token_bytes)
    for a, b in zip(x[2:], y[2:]): assert np.array_equal(a, b) and a.dtype == b.dtype


# ---- the same with and without ---------------------------------------------------------------------------------------------
def test_the_second_time_is_read_and_equal(pair):
    make, asked = counted(pair)
    first = stored.pair_tables(*pair, make)
    assert asked == [1] and len(files()) == 1
    second = stored.pair_tables(*pair, make)
    assert asked == [1]
    same_bridge(first, second); same_bridge(first, CellGraph.make_tables(*pair))


def test_the_tries_answer_the_same(pair):
    made, read = stored.pair_tables(*pair, counted(pair)[0]), stored.pair_tables(*pair, lambda: pytest.fail("asked again"))
    some = [b"the quick", b"\xff", b"", "é".encode()[:1], b"12345 ", *pair[0].bytes[40:90]]
    for a, b in zip(made[:2], read[:2]): assert a.find(some).tolist() == b.find(some).tolist() and a.longest(some).tolist() == b.longest(some).tolist()


def test_graphs_with_and_without_are_equal(pair, monkeypatch):
    CellGraph(*pair); kept = CellGraph(*pair)
    assert len(files()) == 1
    monkeypatch.setenv("XTOKD_CACHE", "0"); made = CellGraph(*pair)
    assert made.n == kept.n and all(np.array_equal(getattr(made, k), getattr(kept, k)) for k in ("cell_s", "cell_t", "first_s", "first_t"))
    assert np.array_equal(made.written.ids, kept.written.ids) and np.array_equal(made.written.offsets, kept.written.offsets)


def test_switched_off_nothing_is_written_or_read(pair, monkeypatch):
    monkeypatch.setenv("XTOKD_CACHE", "0")
    make, asked = counted(pair)
    stored.pair_tables(*pair, make); stored.pair_tables(*pair, make)
    assert asked == [1, 1] and files() == []


def test_small_pairs_are_not_stored(pair, monkeypatch):
    monkeypatch.setattr(stored, "MIN_IDS", sum(map(len, pair)))
    make, asked = counted(pair)
    stored.pair_tables(*pair, make); stored.pair_tables(*pair, make)
    assert asked == [1, 1] and files() == []


# ---- whose table -----------------------------------------------------------------------------------------------------------
def swap(state): m = state["model"]["merges"]; m[0], m[1] = m[1], m[0]
def prefix(state): state["normalizer"] = {"type": "Lowercase"}
def added(state): state["added_tokens"].append(dict(id=max(state["model"]["vocab"].values()) + 50, content="~~new~~", single_word=False, lstrip=False, rstrip=False, normalized=False, special=False))


@pytest.mark.parametrize("change", [swap, prefix, added])
def test_another_tokenizer_has_another_identity(pair, change):
    assert stored.tokenizer_hash(changed(pair[0], lambda state: None)) == stored.tokenizer_hash(pair[0]) != stored.tokenizer_hash(changed(pair[0], change))


def test_whether_an_added_token_is_a_word_of_its_own_counts(pair):
    alone = changed(pair[0], lambda s: (added(s), s["added_tokens"][-1].update(single_word=True)))
    assert stored.tokenizer_hash(alone) != stored.tokenizer_hash(changed(pair[0], added))


def test_stop_ids_share_a_table(pair):
    assert stored.table_key("bridge", *pair) == stored.table_key("bridge", ByteVocab(pair[0], stops=[7]), pair[1]) != stored.table_key("bridge", *pair[::-1])


def test_a_tokenizer_with_exchanged_merges_gets_its_own_table(pair):
    "Its fingerprint is the same: the probes of a fingerprint do not see every merge."
    other = changed(pair[0], swap)
    assert other.fingerprint == pair[0].fingerprint
    stored.pair_tables(*pair, counted(pair)[0])
    make, asked = counted((other, pair[1]))
    stored.pair_tables(other, pair[1], make)
    assert asked == [1] and len(files()) == 2


def test_an_old_format_is_not_read(pair, monkeypatch):
    stored.pair_tables(*pair, counted(pair)[0])
    old, key = files()[0], stored.table_key("bridge", *pair)
    monkeypatch.setattr(stored, "FORMAT_VERSION", stored.FORMAT_VERSION + 1)
    assert stored.read_table(key) is None                                       # also under its old name
    make, asked = counted(pair)
    stored.pair_tables(*pair, make)
    assert asked == [1] and len(files()) == 2 and old in files()


def test_another_version_of_the_tokenizers_library_is_not_read(pair, monkeypatch):
    key = stored.table_key("bridge", *pair)
    monkeypatch.setattr(stored, "version", lambda p: "0.0.1")
    assert stored.table_key("bridge", *pair) != key


# ---- damage ----------------------------------------------------------------------------------------------------------------
def test_cut_off_anywhere_is_no_table():
    path = stored.write_table("toy", TOY); whole = path.read_bytes()
    assert equal(stored.read_table("toy"), TOY)
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        assert stored.read_table("toy") is None, f"cut after {n} of {len(whole)} bytes"


def test_any_changed_byte_is_no_table_or_the_same():
    path = stored.write_table("toy", TOY); whole, seen = path.read_bytes(), 0
    for n in range(len(whole)):
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1:])
        found = stored.read_table("toy")
        assert found is None or equal(found, TOY), f"byte {n}"
        seen += found is None
    assert seen > len(whole) / 2


@pytest.mark.parametrize("content", [b"", b"PK", b"not a table", b"\x93NUMPY", os.urandom(500)])
def test_a_foreign_file_is_no_table(content):
    path = stored.write_table("toy", TOY); path.write_bytes(content)
    assert stored.read_table("toy") is None


def test_a_file_under_another_name_is_no_table():
    path = stored.write_table("toy", TOY); path.rename(path.with_name("other.npz"))
    assert stored.read_table("other") is None and stored.read_table("toy") is None


def test_npz_files_of_others_are_no_tables():
    path = stored.write_table("toy", TOY)
    np.savez(path, **TOY); assert stored.read_table("toy") is None
    np.savez(path, claim=np.zeros(3), **TOY); assert stored.read_table("toy") is None


def test_objects_are_never_unpickled(home):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(home / "sprung"),)
    path = stored.write_table("toy", TOY)
    np.savez(path, claim=np.array([Trap()], object), **TOY)
    assert stored.read_table("toy") is None and not (home / "sprung").exists()


def test_a_damaged_table_is_made_again(pair):
    first = stored.pair_tables(*pair, counted(pair)[0])
    path = stored.tables_dir() / files()[0]; whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    make, asked = counted(pair)
    same_bridge(first, stored.pair_tables(*pair, make))
    assert asked == [1] and path.read_bytes() == whole
    stored.pair_tables(*pair, make)
    assert asked == [1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["a", "b", "order"]), hnp.arrays(st.sampled_from([np.int8, np.int32, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)), max_size=3))
def test_what_is_written_is_read(arrays):
    stored.write_table("any", arrays)
    assert equal(stored.read_table("any"), arrays)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int64, st.integers(0, 6), elements=st.integers(-2**40, 2**40)))
def test_narrow_and_wide_keep_every_number(a): assert np.array_equal(stored._widen(stored._narrow(a)), a) and stored._widen(stored._narrow(a)).dtype == np.int64


# ---- several at once, and no room ------------------------------------------------------------------------------------------
def write_often(args):
    os.environ["XTOKD_HOME"], n = args
    bad = 0
    for k in range(40):
        stored.write_table("toy", {"a": np.full(2000, n)})
        found = stored.read_table("toy")
        bad += found is None or len(found["a"]) != 2000 or len(np.unique(found["a"])) != 1
    return bad


def test_two_writers_and_readers_see_whole_tables(home):
    with multiprocessing.get_context("spawn").Pool(2) as pool: assert pool.map(write_often, [(str(home), 1), (str(home), 2)]) == [0, 0]
    assert files() == ["toy.npz"]


def test_threads_that_make_the_same_table(pair):
    make, asked = counted(pair)
    with ThreadPoolExecutor(4) as pool: out = list(pool.map(lambda _: stored.pair_tables(*pair, make), range(4)))
    for x in out[1:]: same_bridge(out[0], x)
    assert len(files()) == 1


def test_a_folder_that_cannot_be_written_is_said_and_does_no_harm(pair, home):
    (home / "tables").write_text("a file where the folder should be")
    make, asked = counted(pair)
    with pytest.warns(UserWarning, match="XTOKD_CACHE=0"): first = stored.pair_tables(*pair, make)
    same_bridge(first, CellGraph.make_tables(*pair))


def refuse(*a, **k): raise PermissionError("not yours")


def test_a_folder_shared_for_reading_is_read(monkeypatch):
    stored.write_table("toy", TOY)
    monkeypatch.setattr(stored.os, "utime", refuse)
    assert equal(stored.read_table("toy"), TOY)


def test_files_that_cannot_be_deleted_do_not_stop_a_writer(monkeypatch):
    stored.write_table("other", TOY)
    (stored.tables_dir() / "old.part").write_text("x"); os.utime(stored.tables_dir() / "old.part", (0, 0))
    monkeypatch.setattr(stored.Path, "unlink", refuse); monkeypatch.setattr(stored, "MAX_BYTES", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stored.write_table("toy", TOY) and stored.read_table("toy") and stored.trim_cache() == 0


def test_a_writer_that_fails_leaves_nothing(monkeypatch):
    monkeypatch.setattr(stored.os, "replace", lambda a, b: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.warns(UserWarning, match="disk full"): assert stored.write_table("toy", TOY) is None
    assert files() == []


def test_the_total_is_bounded_and_the_last_used_stay(monkeypatch):
    size = stored.write_table("0", TOY).stat().st_size
    monkeypatch.setattr(stored, "MAX_BYTES", 3 * size + 10)
    for k in range(1, 3): stored.write_table(str(k), TOY)
    for k in range(3): os.utime(stored.tables_dir() / f"{k}.npz", (0, 1e9 + k))
    assert stored.read_table("0") is not None                    # the oldest is used
    stored.write_table("3", TOY)
    assert files() == ["0.npz", "2.npz", "3.npz"]


def test_leftovers_go_after_a_day_and_other_files_stay():
    stored.write_table("toy", TOY)
    for name, age in (("a.part", 2 * 86_400), ("b.part", 60), ("notes.txt", 9 * 86_400)):
        (stored.tables_dir() / name).write_text("x"); os.utime(stored.tables_dir() / name, (0, time.time() - age))
    stored.trim_cache(0)
    assert files() == ["b.part", "notes.txt"]


# ---- neighbours of one tokenizer -------------------------------------------------------------------------------------------
def same_rules(x, y):
    assert equal(x.to_arrays(), y.to_arrays())
    first, second = np.random.default_rng(0).integers(len(x.vocab), size=(2, 3000))
    for a, b in zip(x.decide(first, second), y.decide(first, second)): assert np.array_equal(a, b)
    clear = x.merges.derivable[first] & x.merges.derivable[second]
    assert np.array_equal(x.merges.merges_across(first[clear], second[clear]), y.merges.merges_across(first[clear], second[clear]))


def test_rules_of_neighbours_are_read_the_second_time_and_equal(pair, monkeypatch):
    for vocab in pair:
        made = CanonicalPairs(vocab).rules
        with monkeypatch.context() as changes:
            changes.setattr(PairRules, "_read_texts", lambda *_: pytest.fail("tried again"))
            read = CanonicalPairs(vocab).rules
        same_rules(made, read); same_rules(made, PairRules(vocab))
    assert [f.split("-")[0] for f in files()] == ["neighbours"] * 2


def test_damaged_rules_of_neighbours_are_made_again(pair):
    made = CanonicalPairs(pair[0]).rules
    (path,) = stored.tables_dir().iterdir(); whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], b"", whole[:900] + bytes([whole[900] ^ 1]) + whole[901:]):
        path.write_bytes(damaged)
        same_rules(made, CanonicalPairs(pair[0]).rules)
        assert path.read_bytes() == whole


def test_a_tokenizer_without_merges_stores_no_rules():
    from tokenizers import models
    vocab = ByteVocab(Tokenizer(models.Unigram([("<unk>", 0.), ("a", -1.), ("b", -2.)], unk_id=0)), stops=[0])
    assert CanonicalPairs(vocab).rules is None and files() == []


def test_garbage_collection_goes_on_after_a_table_is_made(pair):
    import gc
    seen = []
    def make(): seen.append(gc.isenabled()); raise ValueError("no table")
    with pytest.raises(ValueError, match="no table"): stored.stored_arrays("toy", pair, make)
    assert seen == [False] and gc.isenabled()
    gc.disable()
    try:
        with stored.collection_paused(): pass
        assert not gc.isenabled()                   # it was off before
    finally: gc.enable()
