"Generation as users of transformers and trl expect it: truncation, several responses, growing length, text that is used twice."
import dataclasses, json

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from test_distill import StopAfter, Wrapped, distiller, same, weights
from test_rollout import Ids, model
from xtokd.alignment.pair import Pair
from xtokd.data.prompts import load_prompts
from xtokd.data.stored_texts import Rollout, unpacked_rollout
from xtokd.models import prefix_cache, sampling
from xtokd.models.generation_settings import responses_per_step, rollout_length, rollout_number
from xtokd.models.loading import load_model, load_tokenizer
from xtokd.models.sampling import banned_ids, generate_responses, sampled_logp
from xtokd.models.side import load_side
from xtokd.objectives import objective
from xtokd.objectives.policy.sampled import surrogate_loss
from xtokd.rows.dense import LogitRows
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.forward_batch import ModelSet, build_batch, load_models
from xtokd.train.monitor import find_warnings, is_shortened
from xtokd.train.runlog import Run
from xtokd.train.samples import SampleSource, generate_samples

torch.set_num_threads(1)


def col(run, name): return list(run.column(name))


@pytest.fixture(scope="module")
def sides(): return load_side("tiny", "student", "cpu"), load_side("tiny", "teacher", "cpu")


# ---- settings ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad, says", [
    (dict(top_p=0), "top_p is 0: it must be above 0 and at most 1"), (dict(top_p=1.01), "top_p is 1.01"), (dict(top_p=-1.), "top_p is -1.0"), (dict(top_p=float("nan")), "top_p is nan"), (dict(top_p="0.9"), "top_p is '0.9'"),
    (dict(top_k=-1), "top_k is -1: it must be a whole number, at least 0"), (dict(top_k=2.5), "top_k is 2.5"), (dict(top_k=True), "top_k is True"),
    (dict(num_generations=0), "num_generations is 0: it must be a whole number, at least 1"), (dict(num_generations=-3), "num_generations is -3"), (dict(num_iterations=0), "num_iterations is 0"),
    (dict(max_new_tokens=8, max_new_tokens_start=9), "max_new_tokens_start is 9: it must be from 1 to max_new_tokens=8"), (dict(max_new_tokens_start=0), "max_new_tokens_start is 0"),
    (dict(max_new_tokens_ramp=0.), "max_new_tokens_ramp is 0.0"), (dict(max_new_tokens_ramp=1.5), "max_new_tokens_ramp is 1.5"), (dict(teacher_dtype="int8"), "teacher_dtype is 'int8': it is one of float32, bfloat16, float16")])
def test_settings_are_checked(bad, says):
    with pytest.raises(ValueError, match=says): DistillConfig(**bad)


def test_names_of_transformers_are_known():
    for name in ("dtype", "torch_dtype"):
        with pytest.raises(TypeError, match="student_dtype.*teacher_dtype"): DistillConfig(**{name: "bfloat16"})
    with pytest.raises(TypeError, match="did you mean 'num_iterations'"): DistillConfig(num_iteration=2)


@pytest.mark.parametrize("bad, obj, says", [
    (dict(num_generations=2, temperature=0.), "strict", "writes at temperature 0: all responses to a prompt would be the same"), (dict(num_generations=2, store_text=True, on_policy_fraction=0.), "strict", "one text for each prompt"),
    (dict(num_generations=2, teacher_temperature=0., on_policy_fraction=.5), "strict", "the teacher writes at temperature 0"), (dict(num_generations=2, on_policy_fraction=0., off_policy_source="reference"), "strict", "nothing is generated"),
    (dict(num_iterations=2), "sampled", "takes its ratio to be one"), (dict(num_iterations=2), "sharpen", "takes its ratio to be one"), (dict(max_new_tokens_start=4, on_policy_fraction=0.), "strict", "text of the teacher only")])
def test_settings_that_make_no_sense_together(tmp_path, bad, obj, says):
    with pytest.raises(ValueError, match=says): distiller(tmp_path/"run", obj, **bad)


# ---- top_p and top_k --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("top_p, top_k, temperature", [(.6, 0, 1.), (1., 5, .7), (.8, 9, 1.5), (1e-6, 0, 1.), (1., 1, 1.)])
def test_tokens_come_from_the_truncated_row_and_no_others(top_p, top_k, temperature):
    m, vocab = model(), Ids(holes=(4, 20))
    with torch.no_grad(): m.lm_head.weight.mul_(8)
    wrote = generate_responses(m, vocab, [[5, 6, 7]] * 3000, 1, temperature, 3000, seed=0, top_p=top_p, top_k=top_k)
    counts = torch.tensor(wrote)[:, 0].bincount(minlength=40) / 3000
    with torch.no_grad(): row = m.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1:]
    order = ((row[0, :30] / temperature).index_fill(0, torch.tensor([4, 20]), -torch.inf)).log_softmax(0)      # naively
    ids = order.argsort(descending=True).tolist()[:top_k or None]
    p = torch.tensor([float(order[i].exp()) for i in ids]); p = p / p.sum()
    kept = int((p.cumsum(0) < top_p - 1e-6).sum()) + 1 if top_p < 1 else len(ids)
    want = dict(zip(ids[:kept], (p[:kept] / p[:kept].sum()).tolist()))
    assert set(counts.nonzero()[:, 0].tolist()) <= set(want) and all(abs(float(counts[i]) - x) < .04 for i, x in want.items())
    rows = LogitRows([row.expand(kept, -1)[:, :30]], [ids[:kept]], vocab)
    found = sampled_logp(rows, temperature, top_p, top_k, banned_ids(m, vocab))
    assert torch.allclose(found.exp(), torch.tensor([want[i] for i in ids[:kept]]), atol=1e-5)


def test_sampled_logp_is_that_of_transformers_filters_and_counts_a_token_at_the_edge():
    vocab, logits, ids = Ids(), torch.randn(200, 30), torch.randint(0, 30, (200,))
    rows = LogitRows([logits], [ids.numpy()], vocab)
    chain = LogitsProcessorList([SuppressTokensLogitsProcessor([7]), TemperatureLogitsWarper(.8), TopKLogitsWarper(12), TopPLogitsWarper(.7)])
    scores = chain(torch.zeros(200, 1, dtype=torch.long), logits.clone())
    inside = scores.gather(1, ids[:, None])[:, 0] > -torch.inf
    found = sampled_logp(rows, .8, .7, 12, [7], rows_at_once=64)
    assert inside.any() and not inside.all() and found.isfinite().all() and float(found.max()) <= 1e-6
    assert torch.allclose(found[inside], scores.log_softmax(1).gather(1, ids[:, None])[inside, 0], atol=1e-5)
    assert torch.equal(sampled_logp(rows, .8), rows.at_temperature(.8).token_logp())


@pytest.mark.parametrize("bad, says", [(dict(top_p=0), "top_p is 0"), (dict(top_p=2.), "top_p is 2.0"), (dict(top_k=-2), "top_k is -2")])
def test_bad_truncations_are_named(bad, says):
    with pytest.raises(ValueError, match=says): generate_responses(model(), Ids(), [[5]], 2, **bad)


def test_the_ratio_is_to_the_truncated_policy(sides):
    "Each ratio of a first update is the mass that its row kept: at most 1, and above top_p."
    config = DistillConfig(top_p=.8, max_new_tokens=12)
    asked = objective("dpca")
    samples = generate_samples(load_prompts("tiny")[:6], *sides, config, seed=0)
    batch, _ = build_batch(samples, ModelSet(*sides), asked, config)
    own = batch.student.token_logp().detach()
    ratio = (own - batch.generation_logp).exp()
    assert float(ratio.max()) <= 1 + 1e-5 and float(ratio.min()) >= .8 - 1e-3 and float(ratio.min()) < .99
    out = asked(batch)
    signal, weight = torch.as_tensor(out.ledger["signal"]), torch.as_tensor(out.ledger["weight"])
    low = torch.maximum(-signal * ratio, -signal * ratio.clamp(.8, 1.28))
    want = torch.where(signal < 0, torch.minimum(low, -10 * signal), low)
    assert torch.allclose(out.token_loss, torch.where(weight > 0, want, 0.).float(), atol=1e-4) and (weight > 0).any()
    rows, _ = build_batch(samples, ModelSet(*sides), objective("strict"), config)
    assert rows.generation_logp is None                       # a loss on rows has no ratio


def test_truncation_reaches_a_run_and_its_server(tmp_path):
    greedy = distiller(tmp_path/"greedy", temperature=0., max_steps=1).fit()
    narrow = distiller(tmp_path/"narrow", top_k=1, max_steps=1).fit()
    wide = distiller(tmp_path/"wide", max_steps=1).fit()
    assert col(narrow, "response_tokens")[0] == col(greedy, "response_tokens")[0] and col(narrow, "loss")[0] == pytest.approx(col(greedy, "loss")[0], rel=1e-5) != col(wide, "loss")[0]


def test_a_server_samples_from_the_truncated_row(sides):
    from xtokd.serving.client import Engine
    from xtokd.serving.server import Server
    student = sides[0]
    with Server(student.model, student.vocab, "tiny") as server:
        engine = Engine(server.url, student.vocab)
        prompts = [[5, 6, 7], [8, 9]]
        assert engine.generate(prompts, 8, seed=1, top_k=1) == generate_responses(student.model, student.vocab, prompts, 8, temperature=0)


# ---- several responses ------------------------------------------------------------------------------------------------------
def test_repeated_prompts_are_read_once_and_nothing_else_changes(monkeypatch):
    m, vocab = model(), Ids()
    prompts = [[(i * 7 + k) % 29 for i in range(20 + k)] for k in range(1, 6)]
    repeated = [prompt for prompt in prompts for _ in range(8)]
    asked = []
    monkeypatch.setattr(sampling, "repeats_pay", lambda *a: asked.append(prefix_cache.repeats_pay(*a)) or asked[-1])
    fast = generate_responses(m, vocab, repeated, 16, seed=0, batch_size=24)
    monkeypatch.setattr(sampling, "repeats_pay", lambda *a: False)
    assert asked == [True, True] and fast == generate_responses(m, vocab, repeated, 16, seed=0, batch_size=24)
    assert not prefix_cache.repeats_pay(m, prompts, 40) and not prefix_cache.repeats_pay(m, [[5, 6]] * 9, 20)      # nothing is repeated; too little is saved
    assert not prefix_cache.repeats_pay(model(attn_implementation="eager"), repeated, 1 << 41)


def test_the_model_reads_a_repeated_prompt_once(monkeypatch):
    m, read, whole = model(), [], None
    hook = m.model.register_forward_pre_hook(lambda mod, args, kw: read.append(tuple((kw.get("input_ids") if kw.get("input_ids") is not None else kw["inputs_embeds"]).shape[:2])), with_kwargs=True)
    prefix_cache.supports_prefix_cache(m)
    read.clear()
    generate_responses(m, Ids(stops=()), [list(range(1, 29))] * 8 + [list(range(2, 28))] * 8, 3, seed=0)
    hook.remove()
    assert read == [(2, 27), (16, 1), (16, 1), (16, 1)]


def test_a_step_has_batch_size_prompts_with_so_many_responses_each(tmp_path):
    run = distiller(tmp_path/"run", num_generations=3, max_steps=3, batch_size=4, micro_batch_size=5)
    seen, whole = [], run.generator.samples
    run.generator.samples = lambda items, *a: seen.append((items, whole(items, *a))) or seen[-1][1]
    found = run.fit()
    assert col(found, "samples") == [12] * 3 and responses_per_step(run.config) == 12
    for items, samples in seen:
        assert [s.item for s in samples] == [item for item in items for _ in range(3)] and len(items) == 4
    assert any(len({tuple(s.student_ids) for s in samples[i:i + 3]}) > 1 for _, samples in seen for i in (0, 3, 6, 9))
    assert len({id(item) for items, _ in seen for item in items}) == 12        # no prompt twice before all had their turn
    assert run.state.prompts_drawn == 12
    counts = found.events[-1]["costs"] if "costs" in found.events[-1] else found.steps[-1]["costs"]
    assert counts["student_tokens_written"] == sum(len(s.student_ids) for _, samples in seen for s in samples)


def test_references_are_not_repeated(sides):
    config = DistillConfig(num_generations=4, on_policy_fraction=.5, off_policy_source="reference")
    source = SampleSource(*sides, config)
    items = load_prompts("tiny")[:2]
    items = [{**item, "reference": "7"} for item in items]
    assert len(source.samples(items, "reference")) == 2 and len(source.samples(items, "student", 0)) == 8


# ---- a length that grows ----------------------------------------------------------------------------------------------------
def test_the_length_grows_to_the_whole_and_short_text_is_not_ended(tmp_path):
    config = DistillConfig(max_new_tokens=20, max_new_tokens_start=2, max_new_tokens_ramp=.5, max_steps=8)
    assert [rollout_length(config, step, 8) for step in range(1, 9)] == [2, 6, 11, 16, 20, 20, 20, 20]
    d = distiller(tmp_path/"run", "cover", max_steps=4, max_new_tokens=20, max_new_tokens_start=2)
    longest, whole = [], d.generator.samples
    def samples(*a):
        found = whole(*a)
        longest.append(max(len(s.student_ids) for s in found))
        return found
    d.generator.samples = samples
    run = d.fit()
    assert col(run, "max_new_tokens") == [2, 11, 20, 20] and longest[0] == 2 and longest[1] <= 11
    assert col(run, "stop_share")[0] == 0                                # two tokens that the limit cut are no end
    assert all(step["coverage"] > .9 for step in run.steps)


def test_warnings_compare_full_lengths_only():
    def steps(lengths, **columns): return [{"step": i, "text_source": "student", "max_new_tokens": n, **{k: v(n) for k, v in columns.items()}} for i, n in enumerate(lengths, 1)]
    config = {"max_new_tokens": 64}
    grown = steps([4] * 10 + [64] * 30, repetition=lambda n: n / 100, entropy=lambda n: .1 + n / 10, response_tokens=lambda n: n / 2, stop_share=lambda n: n / 64, loss=lambda n: n / 10)
    assert not find_warnings(grown, config=config) and find_warnings([{**s, "max_new_tokens": 64} for s in grown], config=config)
    assert is_shortened(grown[0], 64) and not is_shortened(grown[-1], 64) and not is_shortened({}, 64)
    broken = steps([4] * 10, loss=lambda n: float("nan"))
    assert [w.name for w in find_warnings(broken, config=config)] == ["loss"]       # no number is no matter of length


# ---- text that is used twice ------------------------------------------------------------------------------------------------
FOUR = dict(max_steps=4, save_steps=0, learning_rate=3e-3, batch_size=4, micro_batch_size=2)


@pytest.mark.parametrize("name", ["dpca", "minillm", "strict", "cover"])
def test_one_iteration_is_what_it_was(tmp_path, name):
    "The weights of two steps, bit by bit, against a loop that knows nothing of reuse."
    d = distiller(tmp_path/"new", name, max_steps=2)
    d.fit()
    e = distiller(tmp_path/"old", name, max_steps=2)
    from xtokd.distributed import clip_gradient, reduce_gradients
    from xtokd.train.config import combine_seeds, prompt_indices
    for step in (1, 2):
        items = [e.items[i] for i in prompt_indices(len(e.items), step, 4, 0)]
        samples = generate_samples(items, e.student, e.teacher, e.config, "student", combine_seeds(0, step, 0))
        e.student.model.train(); e.state.optimizer.zero_grad()
        totals = e.stepper.forward_backward(samples, "student")
        reduce_gradients(e.state.parameters, totals.num_units, e.accelerator)
        e.state.update(step, clip_gradient(e.state.parameters, 1.))
    assert same(weights(d), weights(e))


class Watch(Wrapped):
    "An objective that keeps what it was given and what came out."
    uses_ratio = True
    def __init__(self, inner): super().__init__(None, inner); self.seen = []
    def __call__(self, batch):
        out = self.inner(batch)
        self.seen.append((batch, out, batch.student.token_logp().detach()))
        return out


@pytest.mark.parametrize("name, low, high, dual", [("dpca", .8, 1.28, 10.), ("minillm", .8, 1.2, 1e9)])
def test_the_clip_acts_at_a_second_update(tmp_path, name, low, high, dual):
    "The loss of every token by the formula of PPO, one token at a time, with the log-probs of the first update."
    watch = Watch(name)
    d = distiller(tmp_path/"run", watch, num_iterations=2, **FOUR | {"max_steps": 2, "learning_rate": 1e-2, "micro_batch_size": 4})
    run = d.fit()
    (first, _, then), (second, out, now) = watch.seen
    assert first.text_uses == 0 and first.behaviour_logp is None and second.text_uses == 1
    assert torch.equal(second.behaviour_logp, then) and np.array_equal(first.student.ids, second.student.ids)
    clipped, counted = 0, 0
    for i, (advantage, weight) in enumerate(zip(out.ledger["signal"], out.ledger["weight"])):
        if not weight: continue
        ratio = float((now[i] - then[i]).exp())
        loss = max(-advantage * ratio, -advantage * min(max(ratio, low), high))
        if advantage < 0: loss = min(loss, -dual * advantage)
        assert float(out.token_loss[i].detach()) == pytest.approx(loss, rel=1e-4, abs=1e-5), i
        counted += advantage != 0
        clipped += (ratio > high and advantage > 0) or (ratio < low and advantage < 0) or (advantage < 0 and ratio > dual)
    assert clipped > 0 and out.stats["clip_share"] == pytest.approx(clipped / counted)
    assert "clip_share" not in run.steps[0] and run.steps[1]["clip_share"] > 0 and col(run, "iteration") == [1, 2]


def test_the_same_text_and_no_cost_of_writing_twice(tmp_path):
    d = distiller(tmp_path/"run", "dpca", num_iterations=2, **FOUR)
    texts, whole = [], d.stepper.forward_backward
    d.stepper.forward_backward = lambda samples, source: texts.append([list(s.student_ids) for s in samples]) or whole(samples, source)
    run = d.fit()
    assert texts[0] == texts[1] != texts[2] == texts[3] and [rollout_number(d.config, s) for s in (1, 2, 3, 4)] == [1, 1, 2, 2]
    costs = [step["costs"] for step in run.steps]
    written, scored = ([c[k] for c in costs] for k in ("student_tokens_written", "teacher_tokens_scored"))
    assert written[0] == written[1] < written[2] == written[3] == sum(map(len, texts[0] + texts[2]))
    assert scored[0] < scored[1] < scored[2] < scored[3] and d.state.prompts_drawn == 8
    plain = distiller(tmp_path/"plain", "dpca", **FOUR | {"max_steps": 1}); plain.fit()
    assert run.steps[0]["loss"] == Run(tmp_path/"plain").steps[0]["loss"]          # the first update is that of a plain run


@pytest.mark.parametrize("name, more", [
    ("minillm", {"top_p": .9, "num_generations": 2}), pytest.param("dpca", {}, marks=pytest.mark.slow),
    pytest.param("strict", {"max_new_tokens_start": 4}, marks=pytest.mark.slow)])
def test_a_run_that_is_resumed_between_two_updates_is_bit_equal(tmp_path, name, more):
    kw = FOUR | more | {"num_iterations": 3, "max_steps": 5}
    whole = distiller(tmp_path/"whole", name, **kw); whole.fit()
    for stop in (1, 2, 3, 4):
        out = tmp_path/f"parts-{stop}"
        first = distiller(out, name, callbacks=[StopAfter(stop)], **kw); first.fit()
        assert (first.state.rollout is None) == (stop == 3)
        second = distiller(out, name, **kw); second.fit(resume=True)
        assert same(weights(whole), weights(second)) and col(Run(tmp_path/"whole"), "loss") == col(Run(out), "loss"), stop


def test_an_error_in_a_second_update_saves_a_state_that_goes_on(tmp_path):
    class Breaks(Exception): pass
    def change(call, out):
        if call == 4: raise Breaks
        return out
    kw = FOUR | {"num_iterations": 3, "micro_batch_size": 4}
    class Fails(Wrapped): uses_ratio = True
    with pytest.raises(Breaks): distiller(tmp_path/"a", Fails(change, "dpca"), **kw | {"max_steps": 4}).fit()      # step 4: a new text was written
    again = distiller(tmp_path/"a", Fails(lambda call, out: out, "dpca"), **kw | {"max_steps": 4}); again.fit(resume=True)
    whole = distiller(tmp_path/"b", Fails(lambda call, out: out, "dpca"), **kw | {"max_steps": 4}); whole.fit()
    assert same(weights(again), weights(whole))


def test_text_of_a_checkpoint_is_shared_out_among_other_numbers_of_processes():
    @dataclasses.dataclass
    class Toy: item: dict; ids: list; logp: object = None
    items = [{"prompt": str(i)} for i in range(6)]
    parts = [Rollout(2, [Toy(items[i], [i], np.float32([i, .1])) for i in own], "student", 12, items, 1) for own in ((0, 2, 4), (1, 3, 5))]
    packed = [json.loads(json.dumps(part.packed())) for part in parts]
    assert [s.ids for s in unpacked_rollout(packed, items, Toy, (1, 2)).samples] == [[1], [3], [5]]
    one = unpacked_rollout(packed, items, Toy)
    assert len(one.samples) == 6 and one.uses == 1 and all(s.item is items[s.ids[0]] for s in one.samples)
    assert np.float32(one.samples[0].logp[1]) == np.float32(.1) and unpacked_rollout([], items, Toy) is None


@pytest.mark.parametrize("name", ["dpca", "minillm", "opd", "sampled", "compass"])
def test_used_text_without_the_log_probs_of_its_writer_is_an_error(sides, name):
    options = {"surrogate": True} if name == "sampled" else {}
    asked, config = objective(name, **options), DistillConfig(max_new_tokens=8)
    assert asked.uses_ratio and asked.takes_used_text
    samples = generate_samples(load_prompts("tiny")[:2], *sides, config, seed=0)
    models = ModelSet(*sides)
    if name == "compass": models.auxiliary = {"weak": sides[1], "reference": sides[0]}
    for sample in samples: sample.updates = 1
    batch, _ = build_batch(samples, models, asked, config)
    with pytest.raises(ValueError, match="no behaviour_logp, and text_uses is 1.*Give PairBatch.from_tensors"): asked(batch)
    batch.behaviour_logp = batch.student.token_logp().detach() - .1
    assert "clip_share" in asked(batch).stats


def test_a_ratio_counts_all_stop_ids_as_one_on_both_sides(sides):
    "With two stop ids the numerator is the mass of both; so is the denominator."
    from xtokd.vocab.bytevocab import ByteVocab
    from xtokd.objectives.policy.sampled import sampling_logps
    student = load_side("tiny", "student", "cpu")
    vocab = ByteVocab(load_tokenizer("tiny"), stops=(*student.vocab.stop_ids, 0 if 0 not in student.vocab.stop_ids else 1)) if len(student.vocab.stop_ids) < 2 else student.vocab
    config, asked = DistillConfig(max_new_tokens=8, temperature=.7), objective("dpca")
    both = (dataclasses.replace(student, vocab=vocab), sides[1])
    batch, _ = build_batch(generate_samples(load_prompts("tiny")[:2], *both, config, seed=0), ModelSet(*both), asked, config)
    assert len(batch.pair.student.stop_ids) > 1 or pytest.skip("one stop id")
    own = batch.student.token_logp().detach()
    merged = own + .5
    assert torch.allclose(sampling_logps(batch, merged, merged), batch.generation_logp + .5)


def test_a_trainer_of_transformers_refuses_what_it_cannot_do():
    from xtokd.train.hf_trainer import text_settings_of_distiller
    assert text_settings_of_distiller(DistillConfig(num_iterations=2)) == ["num_iterations"]


# ---- how models are loaded --------------------------------------------------------------------------------------------------
def test_dtype_and_attention_of_both_models(tmp_path):
    config = DistillConfig(teacher_dtype="bfloat16", attn_implementation="eager", output_dir=tmp_path/"x")
    found = load_models("tiny", "tiny", config, torch.device("cpu"))
    assert found.teacher.model.dtype == torch.bfloat16 and found.student.model.dtype == torch.float32
    assert {side.model.config._attn_implementation for side in found.sides().values()} == {"eager"}
    plain = load_models("tiny", "tiny", DistillConfig(), torch.device("cpu"))
    assert plain.teacher.model.dtype == torch.float32 and plain.student.model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="teacher_dtype is 'bfloat16', and this teacher is in memory"):
        load_models("tiny", (plain.teacher.model, plain.teacher.vocab), config, torch.device("cpu"))
    with pytest.raises(ValueError, match="attn_implementation is 'fast', and .* cannot do that here"):
        load_models("tiny", "tiny", DistillConfig(attn_implementation="fast"), torch.device("cpu"))


def test_flags_of_the_command_line(tmp_path):
    from xtokd.cli.commands import main
    flags = "--max-steps 2 --batch-size 2 --max-new-tokens 6 --eval-size 0 --no-progress --objective dpca --top-p 0.9 --top-k 40 --num-generations 2 --num-iterations 2 --max-new-tokens-start 3".split()
    assert main(["distill", *flags, "--attn-implementation", "eager", "--output-dir", str(tmp_path/"run")]) == 0
    run = Run(tmp_path/"run")
    assert run.config["top_p"] == .9 and run.config["num_generations"] == 2 and col(run, "samples") == [4, 4] and col(run, "iteration") == [1, 2]
