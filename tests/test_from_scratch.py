"""The library is held against the plain version of the course: chunks, credit, losses, gradients, cover, first steps."""
import ast
import copy
import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import bars
from batches import batch, parts
from test_cover_definition import bound_error, random_world
from xtokd import Distiller, DistillConfig, Pair, objective
from xtokd.course import from_scratch
from xtokd.course.drawing import ToyPair
from xtokd.course.from_scratch import (
    LanguageModel, Vocabulary, advantages, byte_table, component_chunks, cover_row, distil, fkl, full_credit, jsd,
    policy_gradient_loss, policy_objective, project_row, reencode, rkl, sample_answer, semantic_prior_credit, sft_objective,
    shared_ids, shift_credit, strict_losses, token_logps, train_step, walk_chunks)
from xtokd.data.chat import render_prompt
from xtokd.data.prompts import load_prompts
from xtokd.models.side import load_side
from xtokd.objectives.cover.cells import cell_graph
from xtokd.objectives.cover.cover import cover_targets
from xtokd.objectives.cover.definition import Continuations, CoverRow, naive_cover
from xtokd.objectives.cover.places import TextPlaces
from xtokd.objectives.divergences import divergence
from xtokd.objectives.policy.sampled import chunk_advantage
from xtokd.objectives.projection.bpm import bpm_targets
from xtokd.rows.pair_batch import PairBatch
from xtokd.train.distiller import StepWriter

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
COURSE = ROOT / "nbs/00_course"
CREDITS = {"full": full_credit, "shift": shift_credit, "semantic_prior": semantic_prior_credit}


@lru_cache(maxsize=1)
def tiny_pair(): return Pair("tiny")


def words(vocab): return Vocabulary(vocab.bytes, vocab.encode, vocab.stop_ids[0])


@pytest.fixture(scope="module")
def pair(): return tiny_pair()


@pytest.fixture(scope="module")
def both(pair): return words(pair.student), words(pair.teacher)


# ---- the module -------------------------------------------------------------------------------------------------------------
def test_it_is_short_and_needs_only_torch():
    text = Path(from_scratch.__file__).read_text(encoding="utf8")
    assert sum(1 for line in text.split("\n") if line.strip()) <= 300
    imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    roots = {a.name.split(".")[0] for n in imports for a in n.names if isinstance(n, ast.Import)}
    roots |= {n.module.split(".")[0] for n in imports if isinstance(n, ast.ImportFrom)}
    assert roots - {"torch"} <= sys.stdlib_module_names and not any(getattr(n, "level", 0) for n in imports)


def definitions(tree): return {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def lesson_differences(cells):
    "Names that a notebook's code cells define and `from_scratch` defines otherwise, and all names that both define."
    ours, shared, differ = definitions(ast.parse(Path(from_scratch.__file__).read_text(encoding="utf8"))), [], []
    for cell in cells:
        if cell["cell_type"] != "code": continue
        for name, node in definitions(bars.tree_of(cell["source"])).items():
            if name not in ours: continue
            shared.append(name)
            if ast.dump(node) != ast.dump(ours[name]): differ.append(name)
    return differ, shared


LESSONS = sorted(COURSE.glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", LESSONS, ids=[f.stem for f in LESSONS])
def test_lessons_define_the_same_functions(path): assert not lesson_differences(bars.cells_of(path))[0]


def test_a_changed_lesson_would_be_seen():
    cells = bars.cells_of(COURSE / "from_scratch.ipynb")
    differ, shared = lesson_differences(cells)
    assert not differ and {"walk_chunks", "cover_row", "distil", "Vocabulary"} <= set(shared)
    changed = [{**c, "source": c["source"].replace("if lead < 0", "if lead <= 0")} for c in cells]
    assert lesson_differences(changed)[0] == ["walk_chunks"]


# ---- bytes ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tiny", "tiny2"])
def test_bytes(name):
    pair = Pair(name)
    for vocab in (pair.student, pair.teacher):
        table = byte_table(vocab.tokenizer)
        assert table == vocab.bytes[:len(table)] and not any(vocab.bytes[len(table):])


def test_reencode_is_what_the_teacher_reads(pair, both):
    from xtokd.models.forward import teacher_ids
    for text in ("Certainly: 735068", "7 altogether.", "", "na\u00efve"):
        for ids in (pair.student.encode(text), [*pair.student.encode(text), pair.student.stop_ids[0]]):
            assert reencode(*both, ids) == teacher_ids(pair, ids)


# ---- alignment --------------------------------------------------------------------------------------------------------------
def cut(data, places):
    "Pieces of bytes, cut at places that may lie outside."
    at = sorted({0, len(data), *(x for x in places if x < len(data))})
    return [data[a:b] for a, b in zip(at, at[1:])]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24), st.sets(st.integers(1, 23)), st.sets(st.integers(1, 23)), st.booleans(), st.booleans())
def test_walk_and_components_are_the_same_chunks(data, first, second, student_stops, teacher_stops):
    student, teacher = cut(data, first) + [b""] * student_stops, cut(data, second) + [b""] * teacher_stops
    assert walk_chunks(student, teacher) == component_chunks(student, teacher)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), st.sets(st.integers(1, 47)), st.sets(st.integers(1, 47)))
def test_library_chunks(text, first, second):
    student, teacher = cut(text.encode(), first), cut(text.encode(), second)
    library = ToyPair(student, teacher).align().chunks.tolist()
    assert [list(c) for c in walk_chunks(student, teacher)] == library


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("0179 aelnorty.:\u00e9\U0001f600"), max_size=20), st.booleans())
def test_library_chunks_of_the_tiny_pair(text, stop):
    pair = tiny_pair()
    student, teacher = words(pair.student), words(pair.teacher)
    ids = pair.student.encode(text) + [student.stop] * stop
    there = reencode(student, teacher, ids)
    assert [list(c) for c in walk_chunks(student.pieces(ids), teacher.pieces(there))] == pair.align(ids, there).chunks.tolist()


# ---- credit and losses ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CREDITS)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5), st.integers(0, 2**31), st.booleans())
def test_credit(name, sizes, seed, certain):
    generator = torch.Generator().manual_seed(seed)
    ends = np.cumsum([(0, 0), *sizes], 0)
    chunks = [(int(a), int(b), int(c), int(d)) for (a, c), (b, d) in zip(ends, ends[1:])]
    student, teacher = (-5 * torch.rand(int(n), generator=generator, dtype=torch.float64) for n in ends[-1])
    if certain: student[:chunks[0][1]] = 0
    ours = advantages(student.float(), teacher.float(), chunks, CREDITS[name])
    chunk = torch.tensor([k for k, c in enumerate(chunks) for _ in range(c[0], c[1])])
    totals = torch.stack([teacher[c[2]:c[3]].sum() for c in chunks])
    assert torch.allclose(ours.double(), chunk_advantage(student, chunk, totals, name), atol=1e-4)
    if name != "full":     # the shares of a chunk add up to its log-ratio
        gaps = torch.stack([totals[k] - student[c[0]:c[1]].sum() for k, c in enumerate(chunks)])
        assert torch.allclose(torch.zeros(len(chunks)).index_add(0, chunk, ours).double(), gaps, atol=1e-4)


def test_credits_of_the_paper():
    "Values from the released code's rule (arXiv 2606.09456)."
    for own, total, expected in (((-.2, -1.8), -3., (-.1, -.9)), ((-.5, -.5, -1.), -1.2, (.2, .2, .4)), ((0., 0.), -3., (-1.5, -1.5))):
        assert torch.allclose(semantic_prior_credit(torch.tensor(own), torch.tensor(total)), torch.tensor(expected))


def check_gradient(pair, both, library, plain, same_value=True, text_source=None):
    """The loss and the gradient by the student's logits of an objective on random rows are those of
    `plain(student rows, teacher rows, chunks, student ids, teacher ids) -> sum`. Returns the objective's output."""
    samples = parts(pair)
    output = library(batch(pair, samples, text_source))
    theirs = torch.autograd.grad(output.loss_sum, samples["student_logits"])
    total, (student, teacher) = 0., both
    for k, (ids, there) in enumerate(zip(samples["student_ids"], samples["teacher_ids"])):
        logits = samples["student_logits"][k]
        chunks = walk_chunks(student.pieces(ids), teacher.pieces(there))
        loss = plain(logits.log_softmax(-1), samples["teacher_logits"][k].log_softmax(-1), chunks, ids, there)
        mine = torch.autograd.grad(loss, logits)[0]
        assert mine.abs().max() > 1e-3 and torch.allclose(mine, theirs[k], atol=1e-5)
        total += float(loss.detach())
    if same_value: assert abs(total - float(output.loss_sum.detach())) < 1e-5 * max(1, abs(total))
    return output


@pytest.mark.parametrize("name", CREDITS)
@pytest.mark.parametrize("method", ["sampled", "dpca"])
def test_policy_gradient(pair, both, name, method):
    "The values differ by design: the library's is the surrogate, -A; ours is -A log p."
    def plain(student_rows, teacher_rows, chunks, ids, there):
        logp = token_logps(student_rows, ids)
        return policy_gradient_loss(logp, advantages(logp, token_logps(teacher_rows, there), chunks, CREDITS[name]))
    library = objective(method, clamp=None, credit=name, large_chunk=None)
    output = check_gradient(pair, both, library, plain, same_value=False)
    assert output.num_units == sum(map(len, parts(pair)["student_ids"]))


def test_strict_loss_and_gradient(pair, both):
    def plain(student_rows, teacher_rows, chunks, ids, there):
        return strict_losses(student_rows, teacher_rows, chunks, shared_ids(*both)).sum()
    check_gradient(pair, both, objective("strict"), plain)


def test_sft_loss_and_gradient(pair, both):
    def plain(student_rows, teacher_rows, chunks, ids, there):
        example = from_scratch.Example([], [], ids, there)
        return sft_objective(student_rows, teacher_rows, chunks, example)[0]
    check_gradient(pair, both, objective("sft"), plain, text_source="teacher")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_divergences(seed, width):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(5, width, generator=generator, dtype=torch.float64) for _ in "ST")
    student.requires_grad_()
    for name, plain in (("fkl", fkl), ("rkl", rkl), ("jsd", jsd)):
        losses = [f.sum() for f in (plain(student.log_softmax(-1), teacher.log_softmax(-1)),
                                    divergence(student.log_softmax(-1), teacher.log_softmax(-1), name))]
        gradients = [torch.autograd.grad(loss, student)[0] for loss in losses]
        assert torch.allclose(*losses) and torch.allclose(*gradients)


# ---- projection and cover ---------------------------------------------------------------------------------------------------
def test_projection(pair, both):
    random = batch(pair, parts(pair))
    graph, seen = cell_graph(pair.student, pair.teacher), set()
    places, rows = TextPlaces(random.alignment, graph.t_trie, back=0), random.teacher.logp().exp()
    targets, _ = bpm_targets(places, graph, rows)
    for k in range(0, len(places.rows), 3):
        row = places.last[k]
        written = places.text[places.start[row]:places.byte[k]]
        seen.add(bool(written))
        ours = project_row(rows[row], *both, written)
        assert torch.allclose(ours, targets[k], atol=1e-5), (k, written)
    assert seen == {True, False}       # both at a boundary and inside of a teacher token


def check_cover(ours, library, truth=None):
    """Each cell of ours lies in one of the library's; the mass inside a library cell keeps the library's bound, and is equal
    where the library's `unknown` is ours. With `truth` [Vs]: our own bound holds. Returns whether all was equal."""
    cells, masses, unknown = ours
    assert abs(sum(masses) + unknown - 1) < 1e-5 and unknown <= library.unknown + 1e-6
    inside = [[mass for cell, mass in zip(cells, masses) if cell <= set(whole)] for whole in library.cells]
    for whole, mass, parts_of_it in zip(library.cells, library.masses, inside):
        assert mass - 1e-5 <= sum(parts_of_it) <= mass + library.unknown + 1e-5, (whole, mass, parts_of_it)
    if truth is not None: assert bound_error(CoverRow(*ours), truth) < 1e-9
    if abs(unknown - library.unknown) > 1e-6: return False
    assert sum(map(len, inside)) == len(cells)
    assert all(abs(sum(found) - mass) < 1e-5 for mass, found in zip(library.masses, inside))
    return True


def test_cover_on_random_worlds():
    "The truth, counted, and the library's definition. Only whole characters: the plain version leaves partial ones out."
    equal = []
    for seed in range(40):
        student, teacher, texts = random_world(seed)
        if not all(x.isascii() for x in texts): continue
        sides, plain = (Continuations(student.vocab), Continuations(teacher.vocab)), (words(student.vocab), words(teacher.vocab))
        for text in texts[:2]:
            ids, there = list(student.codes[text]), list(teacher.codes[text])
            rows, position = np.asarray(teacher.rows(there), float), seed % len(ids)
            ours = cover_row(*plain, ids, there, torch.as_tensor(rows), position)
            truth = np.asarray(student.row(tuple(ids[:position])), float)
            equal.append(check_cover(ours, naive_cover(*sides, ids, there, rows, position), truth))
    assert len(equal) > 40 and np.mean(equal) > .9


def test_cover_of_the_tiny_pair(pair, both):
    "Against the fast version that trains: every position of an answer but the slowest (1 s each)."
    teacher = load_side("tiny", "teacher", "cpu")
    prompt = render_prompt(pair.teacher, {"prompt": "seventy-three, please"})
    ids = [*pair.student.encode("Certainly: 73"), pair.student.stop_ids[0]]
    there = reencode(*both, ids)
    with torch.no_grad(): logits = teacher.model(torch.tensor([[*prompt, *there]])).logits[0, len(prompt) - 1:-1, :len(pair.teacher)]
    rows = logits.softmax(-1)
    rows = torch.where(rows < 1e-6, 0., rows)       # what is lighter is unknown to the fast version
    random = PairBatch.from_logits(pair, [ids], [there], [torch.zeros(len(ids), len(pair.student))], [rows.log()])
    fast = cover_targets(random)
    positions = (0, 1, 2, 5, 6)
    for position in positions:
        k = fast.rows.tolist().index(position)
        columns = fast.masses.shape[1]
        cells = [set() for _ in range(columns)]
        for row, column, token in zip(fast.entry_row, fast.entry_column, fast.entry_token):
            if row == k: cells[column].add(int(token))
        some = [c for c in range(columns) if cells[c]]
        library = CoverRow([cells[c] for c in some], [float(fast.masses[k, c]) for c in some], float(fast.unknown[k]))
        assert check_cover(cover_row(*both, ids, there, rows, position), library), position


# ---- training ---------------------------------------------------------------------------------------------------------------
def side(loaded, vocabulary): return LanguageModel(lambda ids: loaded.model(ids).logits, vocabulary)


@pytest.mark.parametrize("name, options, plain", [
    ("sft", {}, sft_objective), ("sampled", {"clamp": None}, policy_objective),
    ("dpca", {"clamp": None, "large_chunk": None}, partial(policy_objective, credit=semantic_prior_credit)),
    ("strict", {}, None)])
def test_the_first_three_steps_are_those_of_the_distiller(name, options, plain, tmp_path, monkeypatch, pair, both):
    "On the texts that the library wrote; parameters are equal to 1e-5."
    steps, write = [], StepWriter.write
    def recorded(self, step):
        found = write(self, step)
        steps.append(found[0].samples)
        return found
    monkeypatch.setattr(StepWriter, "write", recorded)
    config = DistillConfig(max_steps=3, batch_size=4, micro_batch_size=2, learning_rate=1e-3, warmup_steps=0, max_new_tokens=16,
                           eval_size=0, eval_steps=0, save_steps=0, progress=False, output_dir=str(tmp_path / "run"))
    distiller = Distiller("tiny", "tiny", "tiny", (name, options), config)
    learner, start = load_side("tiny", "student", "cpu"), [p.detach().clone() for p in distiller.student.model.parameters()]
    learner.model.load_state_dict(copy.deepcopy(distiller.student.model.state_dict()))
    log = distiller.fit()
    student, teacher = side(learner, both[0]), side(distiller.teacher, both[1])
    if plain is None:
        shared = shared_ids(*both)
        def plain(student_rows, teacher_rows, chunks, example):
            losses = strict_losses(student_rows, teacher_rows, chunks, shared)
            return losses.sum(), len(losses)
    optimizer = torch.optim.AdamW(learner.model.parameters(), lr=1e-3, weight_decay=0.)
    losses = [train_step(student, teacher, samples, plain, optimizer) for samples in steps]
    pairs = list(zip(learner.model.parameters(), distiller.student.model.parameters(), start, strict=True))
    assert len(steps) == 3 and max(float((ours - theirs).detach().abs().max()) for ours, theirs, _ in pairs) < 1e-5
    assert max(float((ours - before).detach().abs().max()) for ours, _, before in pairs) > 1e-3
    if plain is sft_objective or name == "strict": assert np.allclose(losses, [e["loss"] for e in log.steps], rtol=1e-4)


def test_a_sample_follows_the_model():
    "Two ids and a stop, each with its own probability at the first place."
    table = torch.tensor([[0., 1., 2.]]).expand(3, 3)
    model = LanguageModel(lambda ids: table[ids], Vocabulary([b"a", b"b", b""], None, 2))
    generator = torch.Generator().manual_seed(0)
    answers = [sample_answer(model, [0], 4, generator) for _ in range(2000)]
    share = np.bincount([ids[0] for ids in answers], minlength=3) / 2000
    assert np.abs(share - torch.tensor([0., 1., 2.]).softmax(0).numpy()).max() < .03
    assert all(2 not in ids[:-1] and (ids[-1] == 2 or len(ids) == 4) for ids in answers)


def test_distil_brings_the_student_to_the_teacher():
    "One row is the whole model: the student's distribution goes to the teacher's."
    vocabulary = Vocabulary([b"a", b"b", b""], lambda text: ["ab".index(x) for x in text], 2)
    goal, table = torch.tensor([.2, .3, .5]).log(), torch.zeros(3, requires_grad=True)
    student = LanguageModel(lambda ids: table.expand(*ids.shape, 3), vocabulary)
    teacher = LanguageModel(lambda ids: goal.expand(*ids.shape, 3), vocabulary)
    before = float(fkl(table.log_softmax(-1), goal).detach())
    distil(student, teacher, [([0], [0])] * 16, policy_objective, torch.optim.Adam([table], lr=.02), 60, 16, 8, seed=0)
    assert float(fkl(table.log_softmax(-1), goal).detach()) < .05 * before
