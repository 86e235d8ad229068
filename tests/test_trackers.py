"What a tracker is handed, read back from its files."
import math, shutil
from importlib.util import find_spec

import pytest
from hypothesis import given, strategies as st

from xtokd.models import loading as big
from xtokd.train.checkpoint import checkpoints
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.runlog import to_json
from xtokd.train.callbacks import scalars

board = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def distiller(out, **how): return Distiller("tiny", "tiny", "tiny", config=DistillConfig(**dict(max_steps=2, batch_size=2, max_new_tokens=8, eval_size=2, save_steps=1, progress=False, report_to="tensorboard", output_dir=str(out)) | how))


def read_back(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder))
    found.Reload()
    return {k: {e.step: e.value for e in found.Scalars(k)} for k in found.Tags()["scalars"]}


values = st.recursive(st.one_of(st.floats(), st.integers(-9, 9), st.booleans(), st.text(max_size=3), st.none()), lambda x: st.dictionaries(st.sampled_from(["a", "b", "step", "time"]), x, max_size=3), max_leaves=8)

@given(st.dictionaries(st.sampled_from(["loss", "costs", "step", "time"]), values))
def test_only_finite_numbers_go_on(record):
    for r in (record, to_json(record)):
        found = scalars(r, "train")
        assert all(math.isfinite(v) and not isinstance(v, bool) for v in found.values())
        for k, v in r.items():
            if isinstance(v, (int, float)): assert (f"train/{k}" in found) == (math.isfinite(v) and not isinstance(v, bool) and k not in ("step", "time"))


@board
def test_tensorboard_has_the_numbers_of_the_run_log(tmp_path):
    run = distiller(tmp_path).fit()
    found = read_back(tmp_path/"tensorboard")
    for name, at, events in (("train/loss", "loss", run.steps), ("train/costs/flops", None, run.steps), ("eval/rkl_per_byte", "rkl_per_byte", run.evals)):
        assert found[name] == pytest.approx({e["step"]: e[at] if at else e["costs"]["flops"] for e in events})
    assert len(run.evals) == len(found["eval/rkl_per_byte"]) == 2


@board
def test_a_run_goes_on_in_its_tracker_without_what_was_undone(tmp_path):
    distiller(tmp_path/"b", max_steps=3).fit()
    shutil.rmtree(checkpoints(tmp_path/"b"/"checkpoints")[-1])      # back to step 2
    run = distiller(tmp_path/"b", max_steps=4).fit(resume=True)
    found = read_back(tmp_path/"b"/"tensorboard")
    assert [e["step"] for e in run.steps] == [1, 2, 3, 4] == sorted(found["train/loss"]) and found["train/loss"] == pytest.approx({e["step"]: e["loss"] for e in run.steps})


def test_what_is_not_there_is_said_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(big, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="report_to='wandb' needs the package wandb, which is not installed: pip install wandb"): Distiller("no/such", "tiny", "tiny", config=DistillConfig(report_to="wandb"))
    with pytest.raises(ValueError, match="report_to is 'board': it is one of none, all, tensorboard, wandb"): DistillConfig(report_to="board")


def test_no_tracker_where_none_is_asked_for(tmp_path):
    distiller(tmp_path, report_to=None, max_steps=1).fit()
    assert not (tmp_path/"tensorboard").exists()


def test_names_as_in_transformers(tmp_path, monkeypatch):
    "Several trackers, each with the numbers of the run; \"none\" is no tracker."
    assert DistillConfig(report_to="wandb, tensorboard").report_to == "wandb,tensorboard" and DistillConfig(report_to=["tensorboard"]).report_to == "tensorboard"
    for wrong in ("wandb,none", "all,wandb", "tensorboard,board"):
        with pytest.raises(ValueError, match="several trackers with commas between them"): DistillConfig(report_to=wrong)
    with pytest.raises(ImportError, match="report_to='trackio' needs the package trackio, which is not installed: pip install trackio"):
        monkeypatch.setattr(big, "find_spec", lambda name: None)
        Distiller("no/such", "tiny", "tiny", config=DistillConfig(report_to="trackio"))
    distiller(tmp_path, report_to="none", max_steps=1).fit()
    assert not (tmp_path/"tensorboard").exists()


def test_two_trackers_get_the_same_numbers(tmp_path, monkeypatch):
    from accelerate.tracking import GeneralTracker
    from xtokd.train import callbacks
    seen = {"one": {}, "two": {}}
    class Kept(GeneralTracker):
        requires_logging_directory, name = False, "kept"
        def __init__(self, name): super().__init__(); self.own, self.ended = name, False
        @property
        def tracker(self): return self
        def store_init_configuration(self, values): seen[self.own]["config"] = values
        def log(self, values, step=None, **kw): seen[self.own].setdefault(step, {}).update(values)
        def finish(self): seen[self.own]["ended"] = True
    monkeypatch.setattr(callbacks, "filter_trackers", lambda names, folder: [Kept("one"), Kept("two")])
    monkeypatch.setattr(callbacks, "require_package", lambda *a: None)
    run = distiller(tmp_path, report_to="wandb,trackio", max_steps=1).fit()
    for found in seen.values(): assert found[1]["train/loss"] == run.steps[0]["loss"] and found["config"]["max_steps"] == 1 and found["ended"]


class FakeWandb:
    "The part of wandb that accelerate uses; keeps what it is asked."
    class Settings:
        def __init__(self, **kw): pass
    def __init__(self): self.asked, self.config, self.logged = [], self, []
    def init(self, **kw): self.asked.append(kw); return self
    def update(self, *a, **kw): pass
    def log(self, *a, **kw): self.logged.append(a)
    def finish(self): pass


@pytest.mark.parametrize("variables, project, name", [({}, "xtokd", "run-7"), ({"WANDB_PROJECT": "mine", "WANDB_NAME": "first", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a,b"}, "mine", "first")])
def test_wandb_is_named_by_its_variables(tmp_path, monkeypatch, variables, project, name):
    "Group and tags are not given, because wandb would then not look into its variables."
    import sys
    from accelerate import tracking
    for variable in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_TAGS"): monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items(): monkeypatch.setenv(variable, value)
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(tracking, "is_wandb_available", lambda: True)
    monkeypatch.setattr("xtokd.train.callbacks.require_package", lambda *a: None)
    monkeypatch.setattr("xtokd.train.callbacks.filter_trackers", lambda names, folder: names)
    distiller(tmp_path / "run-7", report_to="wandb", max_steps=1).fit()
    [asked] = wandb.asked
    assert (asked["project"], asked["name"]) == (project, name) and not {"group", "tags"} & set(asked)
