"The bench against the library's own gradients and the oracle, its settings and its refusals; the race against the logs."
import json

import numpy as np
import pytest
import torch

from xtokd.exact.fidelity import exact_gradient
from xtokd.exact.scorer import Scorer, exact_rows
from xtokd.hub import data_dir
from xtokd.objectives import OBJECTIVES, ObjectiveSpec, objective
from xtokd.train.config import DistillConfig
from xtokd.train.forward_batch import ModelSet, build_batch
from xtokd.train.runlog import Run
from xtokd.viz.live.bench import Bench, bench_data, bench_svg, bench_text, token_table
from xtokd.viz.live.bench_state import BENCH_TEXT, BenchState, bench_methods, options_of, truth_row
from xtokd.viz.live.race import Race, point_at, race_data, race_svg, race_text, standings


@pytest.fixture(scope="module")
def state():
    torch.set_num_threads(1)
    return BenchState("tiny", methods=bench_methods())


@pytest.fixture
def fresh(state):
    "The state as it was at first, also after a test that has changed it."
    state.reset()
    return state.show(text=BENCH_TEXT, methods=("sampled", "strict", "bpm", "cover"), divergence="rkl", credit="full", top_k=0, tau=5.,
                      loss_temperature=1., temperature=1., step_method="cover", learning_rate=.0005)


def library_gradient(state, name, options, temperature=1.):
    "Gradient of the summed loss at the student's logits, through the batch of the training loop."
    asked, config = objective(name, **options), DistillConfig(loss_temperature=temperature)
    batch, _ = build_batch([state.shown.sample], ModelSet(state.start, state.teacher, pair=state.pair), asked, config)
    logits = batch.student.logits[0]
    output = asked(batch)
    return torch.autograd.grad(output.loss_sum, logits)[0].double().numpy(), output


@pytest.mark.parametrize("name", ["sampled", "dpca", "strict", "cover", "bpm", "simct", "gold", "alm", "xtoken", "uld"])
def test_pushes_are_the_gradients_of_the_objectives(fresh, name):
    fresh.show(methods=(name,))
    row = fresh.shown.rows[1]
    grad, output = library_gradient(fresh, name, options_of(name, fresh.shown.settings))
    ids = fresh.shown.sample.student_ids
    assert np.allclose(row.push, -grad[np.arange(len(ids)), ids], atol=1e-5) and np.abs(row.push).max() > .01
    assert np.allclose(row.loss, output.token_loss.numpy(), atol=1e-5)
    assert [value is None for value in row.values("push")] == (output.ledger["weight"] <= 0).tolist()


@pytest.mark.parametrize("kind", ["rkl", "fkl"])
def test_the_truth_is_the_oracle(fresh, kind):
    fresh.show(divergence=kind)
    shown, row = fresh.shown, fresh.shown.rows[0]
    scorer = Scorer(fresh.teacher.model, fresh.teacher.vocab, shown.sample.teacher_prompt_ids)
    exact = exact_rows(scorer, fresh.pair.student, shown.sample.student_ids, 1e-6)
    assert (shown.exact.low <= exact.high + 1e-9).all() and (exact.low <= shown.exact.high + 1e-9).all() and shown.doubt < .02
    want = exact_gradient(shown.student, shown.truth, kind)
    assert np.allclose(row.grad, want, atol=1e-9)
    best = -exact_gradient(shown.student, exact.value, kind)[np.arange(len(row.push)), shown.sample.student_ids]
    if kind == "fkl": assert np.abs(row.push - best).max() <= shown.doubt        # p - q, and q is known to `doubt`
    sure = np.abs(best) > .05                       # the coarser search knows the larger ones, with their sign
    assert sure.sum() >= 3 and np.allclose(row.push[sure], best[sure], atol=.15) and (np.sign(row.push[sure]) == np.sign(best[sure])).all()


def test_the_gradient_of_the_truth_is_that_of_its_loss(fresh):
    "Three divergences at two temperatures, against a difference quotient of the loss."
    ids, truth = fresh.shown.sample.student_ids, fresh.shown.truth
    logits = torch.as_tensor(np.log(fresh.shown.student + 1e-12))
    for kind in ("rkl", "fkl", "jsd"):
        for temperature in (1., .7):
            fresh.show(divergence=kind, loss_temperature=temperature)
            settings, at, h = fresh.shown.settings, torch.zeros_like(logits), 1e-4
            at[torch.arange(len(ids)), torch.as_tensor(ids)] = h
            up, down = (truth_row(logits + step, ids, truth, settings).loss for step in (at, -at))
            row = truth_row(logits, ids, truth, settings)
            assert np.allclose(-(up - down) / (2 * h), row.push, atol=1e-3), (kind, temperature)


def test_equal_models_have_no_push(state):
    teacher = state.teacher
    same = BenchState((teacher, teacher), text="Certainly: 735068", methods=("strict", "cover"), divergence="fkl")
    for row in same.shown.rows: assert np.nanmax(np.abs(row.push)) < (2 * same.shown.doubt if row.name == "truth" else 1e-3), row.name


def test_settings_act_where_they_say(fresh):
    methods = ("sampled", "dpca", "strict", "cover", "alm", "gold")
    before = {row.name: row.push for row in fresh.show(methods=methods).shown.rows}
    for change, moved in ((dict(credit="shift"), {"sampled", "dpca"}), (dict(top_k=2), {"strict"}), (dict(tau=1.), {"alm"}),
                          (dict(divergence="fkl"), {"truth", "strict", "cover"}), (dict(loss_temperature=1.5), {"truth", *methods})):
        fresh.show(credit="full", top_k=0, tau=5., divergence="rkl", loss_temperature=1.)
        fresh.show(**change)
        assert {row.name for row in fresh.shown.rows if not np.allclose(row.push, before[row.name], equal_nan=True)} >= moved, change
        if "loss_temperature" not in change:
            assert {row.name for row in fresh.shown.rows if not np.allclose(row.push, before[row.name], equal_nan=True)} - moved <= {"gold"}, change


def test_every_method_has_a_row_or_a_reason(fresh, monkeypatch):
    fresh.show(methods=bench_methods())
    named = {row.name for row in fresh.shown.rows[1:]} | set(fresh.shown.refused)
    assert named == set(bench_methods()) and len(fresh.shown.refused) <= 1
    class Refuses(OBJECTIVES["strict"].cls):
        def __call__(self, batch): raise ValueError("this batch has no such rows")
    monkeypatch.setitem(OBJECTIVES, "refuses", ObjectiveSpec(Refuses))
    fresh.show(methods=("refuses", "strict"))
    assert fresh.shown.refused == {"refuses": "this batch has no such rows"} and [row.name for row in fresh.shown.rows] == ["truth", "strict"]
    fresh.show(methods=())


@pytest.mark.parametrize("bad, words", [(dict(text=""), "empty"), (dict(prompt=""), "empty"), (dict(text="a\ud800"), "surrogate"), (dict(text="9 " * 60), "shorten"),
                                        (dict(methods=("dskd",)), "cannot be shown"), (dict(step_method="sft"), "cannot be shown"), (dict(loss_temperature=0.), "above 0"),
                                        (dict(top_k=-1), "0 or"), (dict(temperature=-1.), "0 or"), (dict(divergence="tvd"), "not known")])
def test_what_cannot_be_shown_is_refused_and_nothing_changes(fresh, bad, words):
    shown = fresh.shown
    with pytest.raises(ValueError, match=words): fresh.show(**bad)
    assert fresh.shown is shown


def test_an_unfit_pair_is_refused():
    from xtokd import Pair
    with pytest.raises(ValueError, match="tokenizers only"): BenchState(Pair(Pair("tiny").teacher, Pair("tiny").student))
    assert BenchState(Pair("tiny"), methods=()).shown.text == BENCH_TEXT


def test_the_student_writes_and_keeps_its_ids(fresh):
    for seed in range(6):
        text = fresh.write(seed)
        ids = fresh.shown.sample.student_ids
        assert fresh.shown.text == text and fresh.pair.student.decode(ids).decode("utf8", "replace") == text
        assert len(fresh.shown.rows) == 5
    assert fresh.show(tau=4.).shown.sample.student_ids == ids, "a setting must not encode the text again"


def test_a_step_is_taken_on_a_copy_and_undone(fresh):
    given = [p.clone() for p in fresh.start.model.parameters()]
    first, distance = fresh.student.answers(fresh.shown.prompt, 1.), fresh.shown.rows[0].loss.sum()
    fresh.step()
    assert fresh.written["before"] == first and fresh.student.steps == 1
    for _ in range(3): fresh.step()
    assert fresh.written["after"]["greedy"] != first["greedy"] and fresh.shown.rows[0].loss.sum() < .6 * distance
    assert all(torch.equal(a, b) for a, b in zip(given, fresh.start.model.parameters()))
    assert np.isclose(fresh.reset().shown.rows[0].loss.sum(), distance) and fresh.student.answers(fresh.shown.prompt, 1.) == first


def test_the_widget_follows_its_state_and_says_what_fails(fresh):
    bench = Bench("tiny", methods=("cover",))
    json.dumps(bench.data, allow_nan=False)
    assert [row["name"] for row in bench.data["rows"]] == ["truth", "cover"] and bench.data["tokens"][4]["tokens"][0] == "7"
    picture = bench.data["svg"]
    for name, value in (("text", ""), ("prompt", "\ud800"), ("settings", {**bench.settings, "tau": -1}), ("settings", {**bench.settings, "methods": ["no such"]})):
        old = getattr(bench, name)
        setattr(bench, name, value)
        assert bench.error and bench.data["svg"] == picture, (name, value)
        setattr(bench, name, old)
        assert not bench.error
    bench.settings = {**bench.settings, "methods": ["cover", "bpm"]}
    assert [row["name"] for row in bench.data["rows"]] == ["truth", "cover", "bpm"]
    bench.press("step")
    assert bench.data["steps"] == 1 and bench.data["written"]["before"] != bench.data["written"]["after"]
    bench.press("reset")
    assert bench.data["steps"] == 0 and bench.data["written"] is None
    bench.quantity = "loss"
    assert bench.data["rows"][0]["values"][4] == pytest.approx(bench.state.shown.rows[0].loss[4], rel=1e-3)
    bundle = bench._repr_mimebundle_()
    assert {"image/svg+xml", "text/plain", "application/vnd.jupyter.widget-view+json"} <= set(bundle) and "loss of each method" in bundle["text/plain"]


def test_picture_and_table_have_the_numbers(fresh):
    shown = fresh.shown
    svg, text = bench_svg(shown.alignment, shown.rows), bench_text(shown.alignment, shown.rows)
    for row in shown.rows:
        for value in row.values("push"):
            if value is None: continue
            assert f">{value:+.2f}<" in svg and f"{value:+.3f}" in text
    table = token_table(shown, 6)
    written = shown.sample.student_ids[6]
    assert table["student"][0] == pytest.approx(shown.student[6, written], rel=1e-3) and table["push"][0][0] == pytest.approx(shown.rows[0].push[6], rel=1e-3)
    assert bench_data(fresh)["tokens"][6] == table


# ---- the race -----------------------------------------------------------------------------------------------------------------
RUNS = {name: data_dir() / f"runs/tiny-{name}-0.jsonl" for name in ("cover", "strict", "sft")}


def test_the_race_says_what_the_logs_say():
    data = race_data(RUNS)
    json.dumps(data, allow_nan=False)
    for run in data["runs"]:
        log = Run(RUNS[run["label"]])
        assert run["accuracy"] == pytest.approx(log.column("accuracy", "eval").tolist(), rel=1e-3)
        assert run["distance"] == pytest.approx(log.column("rkl_per_byte", "eval").tolist(), rel=1e-3)
        last = [event for event in log.of("sample") if event["source"] == "eval" and event["step"] == 400]
        assert {event["item"]["prompt"]: event["text"] for event in last} == {prompt: texts[-1][0] for prompt, texts in run["texts"].items()}
        costs = [event for event in log.of("step") if event["step"] <= 200][-1]["costs"]
        k = run["at"]["step"].index(200)
        assert run["at"]["teacher_tokens"][k] == pytest.approx(costs["teacher_tokens_scored"] + costs["teacher_tokens_written"], rel=1e-3)
        assert run["at"]["flops"][k] == pytest.approx(costs["flops"], rel=1e-3)


def test_a_position_shows_the_last_evaluation_before_it():
    data = race_data(RUNS)
    run = data["runs"][0]
    assert [point_at(run, "step", x) for x in (-1, 0, 49, 50, 399, 400, 1e9)] == [0, 0, 0, 1, 7, 8, 8]
    rows = standings(data, "step", 120, data["prompts"][1])
    assert {row["step"] for row in rows} == {100} and [row["text"] for row in rows] == [run["texts"][data["prompts"][1]][2][0] for run in data["runs"]]
    tokens = standings(data, "teacher_tokens", 40_000)
    for row, run in zip(tokens, data["runs"]):
        k = run["at"]["step"].index(row["step"])
        assert run["at"]["teacher_tokens"][k] <= 40_000 and (k == 8 or run["at"]["teacher_tokens"][k + 1] > 40_000)


def test_pictures_of_the_race_have_every_run():
    data = race_data(RUNS)
    for row in standings(data):
        assert f">{row['run']}</text>" in race_svg(data) and f"{row['accuracy']:.3f}" in race_text(data)
    race = Race(RUNS, axis="flops", position=1.)
    assert [row["accuracy"] for row in race.standings()] == [row["accuracy"] for row in standings(data)]
    assert {"image/svg+xml", "text/plain"} <= set(race._repr_mimebundle_())


def test_runs_that_cannot_race_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 runs"): race_data([])
    with pytest.raises(ValueError, match="9 runs"): race_data({str(k): RUNS["cover"] for k in range(9)})
    (tmp_path / "bare.jsonl").write_text('{"event": "start", "step": 0, "time": 0}\n')
    with pytest.raises(ValueError, match="no evaluation"): race_data({"bare": tmp_path / "bare.jsonl"})
    (tmp_path / "begun.jsonl").write_text('{"event": "eval", "step": 0, "time": 0, "accuracy": 0.5, "accuracy_n": 4}\n')
    with pytest.raises(ValueError, match="first evaluation"): race_data({"begun": tmp_path / "begun.jsonl"})
    with pytest.raises(Exception, match="same"): Race(RUNS, axis="luck")


def test_strange_texts_cannot_disturb_the_page(tmp_path):
    lines = [{"event": "start", "step": 0, "time": 0}, {"event": "eval", "step": 0, "time": 0, "accuracy": 0., "accuracy_n": 4}, {"event": "eval", "step": 5, "time": 0, "accuracy": .5, "accuracy_n": 4},
             {"event": "sample", "step": 0, "time": 0, "source": "eval", "item": {"prompt": "<b>&"}, "text": "</svg><script>\u202e\x07"}]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = race_data({"<i>": tmp_path / "odd.jsonl"})
    assert "<script>" not in race_svg(data) and "\u202e" not in json.dumps(data, ensure_ascii=False) and "<i>" not in race_svg(data)
