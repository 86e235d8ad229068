"Evaluation: pass@k against enumeration, intervals that hold what they promise, several temperatures, and old logs."
import json
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from xtokd.alignment.pair import Pair
from xtokd.cli.commands import main
from xtokd.data.prompts import load_prompts
from xtokd.data.tasks.number_words import check_number
from xtokd.experiments.comparison import by_method, protocol, terminal_table
from xtokd.hub import data_dir
from xtokd.models.loading import load_model
from xtokd.models.start_weights import StartWeights, kl_from_start
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.evaluate import evaluate, mean_over_problems, pass_at_k, pass_sizes
from xtokd.train.runlog import Run, RunLog, interval_of, pass_names, truncated_shares, wilson
from xtokd.viz.run_charts import accuracy_chart, accuracy_over_distance_chart, pass_at_k_chart, start_distance
from xtokd.viz.run_state import RunState, run_panels

SMALL = dict(max_steps=1, batch_size=2, micro_batch_size=2, max_new_tokens=12, eval_size=6, save_steps=0, warmup_steps=0, progress=False)
scores = st.lists(st.sampled_from([0., .25, .5, 1.]), min_size=1, max_size=9)


# ---- pass@k -----------------------------------------------------------------------------------------------------------------
@given(scores, st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(values, data):
    k = data.draw(st.integers(1, len(values)))
    assert pass_at_k(values, k) == pytest.approx(np.mean([max(some) for some in combinations(values, k)]), abs=1e-12)


@given(st.integers(1, 40), st.data())
def test_pass_at_k_is_the_formula_of_the_paper(n, data):
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k([1.] * right + [0.] * (n - right), k) == pytest.approx(1 - comb(n - right, k) / comb(n, k), abs=1e-12)


def test_pass_at_k_is_unbiased():
    "The mean over many samples of n = 5 texts is the probability that one of k = 3 is right; the plug-in 1 - (1 - c/n)^k is not."
    rng = np.random.default_rng(0)
    drawn = (rng.random((20_000, 5)) < .2).astype(float)
    true = 1 - .8 ** 3
    assert np.mean([pass_at_k(row, 3) for row in drawn]) == pytest.approx(true, abs=.006)
    assert abs(np.mean(1 - (1 - drawn.mean(1)) ** 3) - true) > .03


@pytest.mark.parametrize("k", [0, 5, -1])
def test_a_k_that_cannot_be_drawn(k):
    with pytest.raises(ValueError, match=f"pass@{k} of 4 texts: k is a number from 1"): pass_at_k([0., 1., 0., 0.], k)


def test_the_k_of_so_many_texts(): assert [pass_sizes(n) for n in (1, 2, 3, 8, 10)] == [[], [2], [2, 3], [2, 4, 8], [2, 4, 8, 10]]


# ---- intervals --------------------------------------------------------------------------------------------------------------
@given(st.lists(st.sampled_from([0., 1.]), min_size=1, max_size=60))
def test_one_text_a_problem_has_the_interval_of_wilson(values):
    found = mean_over_problems(values)
    assert (found.low, found.high) == pytest.approx(wilson(np.mean(values), len(values))) and found.n == len(values)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 16))
def test_texts_narrow_an_interval_and_never_below_independence(values, texts):
    found, one, most = mean_over_problems(values, texts), mean_over_problems(values), wilson(np.mean(values), len(values) * texts)
    assert one.low - 1e-9 <= found.low <= most[0] + 1e-9 and most[1] - 1e-9 <= found.high <= one.high + 1e-9


@pytest.mark.parametrize("concentration", [.3, 2., 50.])
def test_an_interval_over_problems_holds_the_truth_in_19_of_20(concentration):
    "Problems of different difficulty, eight texts each; the interval of 8 * 40 independent trials would hold it far too seldom where they differ."
    rng, held, naive = np.random.default_rng(1), 0, 0
    for _ in range(2000):
        rates = rng.beta(.4 * concentration, .6 * concentration, 40)
        means = rng.binomial(8, rates) / 8
        found = mean_over_problems(means, 8)
        held += found.low <= .4 <= found.high
        low, high = wilson(means.mean(), 320)
        naive += low <= .4 <= high
    assert .935 < held / 2000 < .975
    if concentration < 1: assert naive / 2000 < .75


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no problem has a value"): mean_over_problems([])


# ---- the evaluation ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sides():
    pair, student = Pair("tiny", "tiny"), load_model("tiny", "student")
    return pair, student, load_prompts("tiny:heldout", limit=6)


def test_more_texts_change_nothing_that_was_there(sides):
    pair, student, items = sides
    ask = dict(check=check_number, max_new_tokens=24)
    one, first = evaluate(student, None, pair, items, **ask)
    many, again = evaluate(student, None, pair, items, num_generations=5, temperatures=[1., .5], **ask)
    assert first == again and all(many[name] == one[name] for name in ("n", "accuracy", "accuracy_low", "truncated_greedy", "accuracy_n"))
    assert pass_names(one) == [] and pass_names(many) == ["pass@2", "pass@4", "pass@5"] and list(many["temperatures"]) == ["0.5"]
    for found in (many, many["temperatures"]["0.5"]):
        chain = [found[name] for name in ("accuracy_sampled", *pass_names(found))]
        assert chain == sorted(chain) and all(found[f"{n}_low"] <= found[n] <= found[f"{n}_high"] for n in ("accuracy_sampled", "truncated_sampled", "pass@5"))
    json.dumps(many)


def test_a_plain_sum_over_texts(sides):
    "Accuracy, truncation and pass@k are what a loop over the same texts finds."
    pair, student, items = sides
    seen = {}
    def check(item, text):
        seen.setdefault(item["prompt"], []).append(score := check_number(item, text))
        return score
    found, _ = evaluate(student, None, pair, items, check, max_new_tokens=9, num_generations=4)
    texts = {prompt: values[:1] + values[1:4] for prompt, values in seen.items()}     # the last score is that of the greedy text
    assert all(len(values) == 5 for values in seen.values())
    assert found["accuracy_sampled"] == pytest.approx(np.mean([np.mean(v) for v in texts.values()]))
    assert found["pass@4"] == pytest.approx(np.mean([max(v) for v in texts.values()]))
    assert found["accuracy"] == pytest.approx(np.mean([values[4] for values in seen.values()]))
    assert 0 < found["truncated_sampled"] < 1 and found["truncated_sampled"] == pytest.approx(1 - found["stop_share"])


def test_dropout_is_off_while_a_student_is_evaluated(sides):
    "The reverse KL was measured in the mode that a step of training had left."
    pair, _, items = sides
    student, teacher = load_model("tiny", "student"), load_model("tiny", "teacher")
    layer = student.model.layers[0].self_attn
    layer.attention_dropout = .5
    quiet, _ = evaluate(student.eval(), teacher, pair, items, max_new_tokens=12)
    training, _ = evaluate(student.train(), teacher, pair, items, max_new_tokens=12)
    assert training == quiet and student.training


def test_a_text_without_a_score_is_not_counted(sides):
    pair, student, items = sides
    calls = iter(range(1000))
    def check(item, text): return None if next(calls) % 7 == 6 else 1.
    found, _ = evaluate(student, None, pair, items, check, max_new_tokens=6, num_generations=3)
    assert found["accuracy_sampled"] == 1 and found["pass@3"] == 1


# ---- settings ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given, found", [(None, None), ([.6, 1.2, .6], [.6, 1.2]), ("0.6,1.2", [.6, 1.2]), ("[0.6, 1.2]", [.6, 1.2]), (.5, [.5]), ([], None)])
def test_temperatures_as_people_write_them(given, found): assert DistillConfig(eval_temperatures=given).eval_temperatures == found


@pytest.mark.parametrize("bad", ["hot", [0.], [-1], [float("inf")], [float("nan")], [True], {"a": 1}, "", [None]])
def test_temperatures_that_are_none(bad):
    with pytest.raises(ValueError, match="eval_temperatures is .*: it is a list of finite numbers above 0"): DistillConfig(eval_temperatures=bad)


def test_the_number_of_texts_is_checked_and_has_the_names_of_others():
    with pytest.raises(ValueError, match="eval_num_generations is 0: it must be at least 1"): DistillConfig(eval_num_generations=0)
    for name in ("num_generations_eval", "num_return_sequences", "repeats"):
        with pytest.raises(TypeError, match="it is called 'eval_num_generations' here"): DistillConfig(**{name: 4})


# ---- log, tables, charts ----------------------------------------------------------------------------------------------------
def test_a_run_logs_and_shows_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    flags = [part for name, value in SMALL.items() if name != "progress" for part in (f"--{name.replace('_', '-')}", str(value))]
    run_flags = ["--objective", "strict", "--no-progress", "--eval-num-generations", "4", "--eval-temperatures", "0.5", "--output-dir", str(tmp_path / "run")]
    assert main(["distill", *flags, *run_flags]) == 0
    said = capsys.readouterr().out
    assert "pass@4" in said and "accuracy of sampled text" in said and "accuracy at temperature 0.5" in said and "cut at max_new_tokens" in said
    run = Run(tmp_path / "run")
    assert all(pass_names(e) == ["pass@2", "pass@4"] and set(e["temperatures"]) == {"0.5"} for e in run.evals)
    assert main(["compare", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "pass@k" in said and "of 4" in said and "cut" in said
    assert {"sampled after", "sampled interval", "truncated", "sampled truncated", "pass@4 after", "pass@4 interval"} <= set(run.compare()[0])
    panel = next(p for p in run_panels(RunState(run.events)) if p.key == "accuracy")
    assert [(c.name, c.look) for c in panel.curves] == [("greedy", "all"), ("sampled", "sampled"), ("pass@4", "best"), ("start", "limit")] and all(c.low for c in panel.curves[:3])
    assert len(pass_at_k_chart(run).data) == 2 and len(accuracy_chart(run, measure="pass@4").data) == 3
    assert "pass@4" in by_method([run])[0] and "cut" in terminal_table(by_method([run]))[0]
    again = Distiller.from_run(tmp_path / "run")
    assert again.config.eval_num_generations == 4 and again.config.eval_temperatures == [.5]


def test_a_log_of_before_still_reads():
    run = Run(data_dir() / "runs/tiny-cover-0.jsonl")
    last, row = run.evals[-1], run.compare()[0]
    assert pass_names(last) == [] and row["interval"] == "{:.3f}-{:.3f}".format(*interval_of(last, "accuracy"))
    assert truncated_shares(last) == {"accuracy_sampled": pytest.approx(1 - last["stop_share"])} if "stop_share" in last else True
    assert "eval_num_generations" not in protocol(run) and "eval_temperatures" not in protocol(run)
    assert by_method([run])[0]["truncated"] == pytest.approx(1 - last["stop_share"])


def test_shares_cut_of_a_log(tmp_path):
    assert truncated_shares({"accuracy": .5, "truncated_greedy": .1, "accuracy_sampled": .4, "truncated_sampled": .2, "stop_share": .7}) == {"accuracy": .1, "accuracy_sampled": .2}
    assert truncated_shares({"stop_share": .5}) == {} and interval_of({"accuracy": .5, "n": 10}, "accuracy") == wilson(.5, 10)


# ---- KL from the start ------------------------------------------------------------------------------------------------------
def tiny_llama(vocabulary, seed):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, initializer_range=1., **sizes)).eval()


def test_the_sum_over_rows_is_the_divergence_of_whole_texts():
    "Against enumeration of all 27 texts of a model with three tokens: sum of p(y) log p(y)/q(y)."
    from itertools import product
    from xtokd.models.forward import response_logits, token_logp
    model = tiny_llama(3, 0)
    start = StartWeights(model)
    with torch.no_grad():
        for p in model.parameters(): p += .3 * torch.randn_like(p)
    texts = [list(ids) for ids in product(range(3), repeat=3)]
    def logps():
        with torch.no_grad(): rows = response_logits(model, [[1]] * 27, texts)
        return torch.stack([token_logp(r, ids).sum() for r, ids in zip(rows, texts)]).double()
    now = logps()
    with start.loaded(): then = logps()
    true = float((now.exp() * (now - then)).sum())
    rows = kl_from_start(model, start, [0, 1, 2], [[1]] * 27, texts, micro_batch_size=5)     # anything with a length of 3
    assert true > .01 and float(now.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert sum(float(p) * kl for p, (kl, _) in zip(now.exp(), rows)) == pytest.approx(true, rel=1e-4)
    assert all(kl >= 0 and n == 3 for kl, n in rows)


def test_one_process_one_copy_and_the_optimizer_is_left_alone():
    model = tiny_llama(5, 1)
    optimizer, start = torch.optim.AdamW(model.parameters(), lr=.1), StartWeights(model)
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    now = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="stop"):
        with start.loaded():
            assert all(torch.equal(p, v) for p, v in zip(model.parameters(), start.values)) and not torch.equal(next(model.parameters()), now[0])
            raise RuntimeError("stop")
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), now))
    optimizer.step()
    assert not torch.equal(next(model.parameters()), now[0])
    assert start.num_bytes == 4 * sum(p.numel() for p in model.parameters())


def test_a_response_without_room_and_an_empty_one():
    model = tiny_llama(4, 2)
    start = StartWeights(model)
    assert kl_from_start(model, start, range(4), [[1], [1, 2, 3], [1]], [[2, 3], [1, 2], []], max_length=4) == [(0., 2), None, None]


@pytest.mark.parametrize("lora", [None, 2])
def test_a_run_logs_how_far_it_has_moved(tmp_path, lora):
    "Zero before the first step; the start is that of the run after a resume too; training is as without it."
    plan = SMALL | dict(max_steps=4, eval_steps=2, learning_rate=3e-3, lora_r=lora, save_steps=2)
    def run(name, **more): return Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(**plan | more, output_dir=tmp_path / name))
    told = run("with", eval_kl_from_start=True)
    assert told.evaluator.start.num_bytes == 4 * sum(p.numel() for p in told.state.parameters)
    whole = told.fit()
    kl = whole.column("kl_from_start", "eval")
    assert kl[0] == 0 and 0 < kl[1] < kl[2] and whole.evals[-1]["kl_from_start_error"] > 0
    assert whole.evals[-1]["kl_from_start_per_token"] == pytest.approx(kl[-1] / whole.evals[-1]["response_tokens"])
    assert np.array_equal(run("without").fit().column("loss"), whole.column("loss"))
    run("parts", eval_kl_from_start=True, max_steps=2).fit()
    again = Distiller.from_run(tmp_path / "parts", config=DistillConfig(**plan, eval_kl_from_start=True, output_dir=tmp_path / "parts")).fit(resume=True)
    assert again.evals[-1]["kl_from_start"] == pytest.approx(kl[-1], rel=1e-3)
    fig = accuracy_over_distance_chart(whole, measure="rkl_per_byte")
    assert fig.data[0].x == pytest.approx(np.sqrt(kl)) and list(fig.data[0].text) == ["0", "2", "4"]
    panels = {p.key: p for p in run_panels(RunState(whole.events))}
    assert panels["moved"].curves[0].y[0] == 0 and whole.compare()[0]["KL from start"] == kl[-1]


def test_the_path_of_a_run_as_a_panel():
    from xtokd.viz.dashboard import snapshot_svg, snapshot_text
    from xtokd.viz.run_state import dashboard_data
    record = lambda step, kl, y: {"event": "eval", "step": step, "time": 0., "kl_from_start": kl, "accuracy": y, "accuracy_low": y - .1, "accuracy_high": y + .1}
    state = RunState([record(0, 0., .3), record(5, 4., .5), {"event": "eval", "step": 7, "time": 0., "accuracy": .6}, record(10, 9., .7)])
    path = next(p for p in run_panels(state) if p.key == "path")
    assert path.curves[0].x == [0., 2., 3.] and path.curves[0].steps == [0, 5, 10] and path.curves[0].y == [.3, .5, .7] and path.x_end == 3
    data = dashboard_data(state)
    assert "√(KL from the start)" in snapshot_svg(data) and "path greedy" in snapshot_text(data)
    assert not [p for p in run_panels(RunState([record(0, "NaN", .3)])) if p.key == "path"]


def test_settings_that_do_not_go_with_it(monkeypatch):
    import xtokd.models.start_weights as module
    with pytest.raises(ValueError, match="eval_kl_from_start is 'yes': it is True or False"): DistillConfig(eval_kl_from_start="yes")
    monkeypatch.setattr(module, "is_sharded", lambda model: True)
    with pytest.raises(ValueError, match="eval_kl_from_start with a sharded student"): StartWeights(tiny_llama(3, 0))
    with pytest.raises(ValueError, match="per is 'byte': it is one of response, token"): start_distance(Run(data_dir() / "runs/tiny-cover-0.jsonl"), "byte")


def test_the_plan_counts_the_copy(tmp_path):
    from xtokd.train.dry_run import forecast
    def memory(**more): return forecast(Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(**SMALL | more, output_dir=tmp_path / "never"))).memory
    assert memory(eval_kl_from_start=True)["weights at the start"] == memory()["gradients"] and not memory()["weights at the start"]


def test_a_trainer_logs_it(tmp_path):
    from transformers import TrainingArguments
    from xtokd.models.loading import load_tokenizer
    from xtokd.train.hf_trainer import DistillTrainer
    arguments = TrainingArguments(tmp_path, per_device_train_batch_size=2, max_steps=2, learning_rate=3e-3, report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True)
    trainer = DistillTrainer(load_model("tiny", "student", device="cpu"), arguments, train_dataset=load_prompts("tiny", limit=8), eval_dataset=load_prompts("tiny:heldout", 4),
                             processing_class=load_tokenizer("tiny", "student"), teacher="tiny", objective="strict", check=check_number,
                             distill=DistillConfig(max_new_tokens=8, eval_kl_from_start=True, eval_num_generations=2))
    assert trainer.evaluate()["eval_kl_from_start"] == 0
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_kl_from_start"] > 0 and "eval_pass@2" in after
