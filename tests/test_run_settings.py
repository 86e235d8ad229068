"Settings of a run that reach the objective: the alignment's granularity, plug-ins by name, quotes, YAML."
import json

import numpy as np
import pytest

from xtokd.cli.arguments import read_config
from xtokd.data.segments import SupervisionWindow, named_function, window_from_quote
from xtokd.exact.toy_models import toy_bpe, make_pair
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.runlog import Run

SMALL = dict(max_steps=1, batch_size=2, micro_batch_size=2, max_new_tokens=6, eval_size=0, save_steps=0, progress=False, warmup_steps=0)


def test_the_granularity_of_a_run_reaches_its_batches(monkeypatch, tmp_path):
    import xtokd.rows.pair_batch as module
    asked, whole = [], module.align_batch
    monkeypatch.setattr(module, "align_batch", lambda *a, granularity, **k: asked.append(granularity) or whole(*a, granularity=granularity, **k))
    for word in ("byte", "char"):
        Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(**SMALL, granularity=word, output_dir=tmp_path / word)).fit()
        assert set(asked) == {word}
        asked.clear()
    with pytest.raises(ValueError, match="granularity is 'word': it is one of byte, char"): DistillConfig(granularity="word")


PLUGIN = '''
from xtokd.data.segments import SupervisionWindow, with_reflection
def window(item, text): return SupervisionWindow(2)
def context(item, text): return with_reflection(item["prompt"], "look again")
'''


def test_plugins_of_rosd_from_the_command_line(tmp_path, monkeypatch):
    from xtokd.cli.commands import main
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rosd.py").write_text(PLUGIN)
    flags = ["--max-steps", "1", "--batch-size", "2", "--max-new-tokens", "6", "--eval-size", "0", "--no-progress", "--objective", "strict"]
    code = main(["distill", *flags, "--supervision-window", "my_rosd:window", "--teacher-context", "my_rosd:context", "--output-dir", "with"])
    assert code == 0
    run = Run(tmp_path / "with")
    assert run.start["args"]["supervision_window"] == "my_rosd:window" and run.start["args"]["teacher_context"] == "my_rosd:context"
    assert run.steps[0]["coverage"] < 1                                    # the first tokens are outside
    assert Distiller.from_run(tmp_path / "with").generator.supervision_window("", "") == SupervisionWindow(2)
    assert main(["distill", *flags, "--resume", "with", "--max-steps", "2"]) == 0 and len(Run(tmp_path / "with").steps) == 2


@pytest.mark.parametrize("name, words", [("window", "write it as MODULE:FUNCTION"), ("no_such_module_here:x", "no module 'no_such_module_here'"), ("json:no_such", "json has no function")])
def test_a_plugin_that_is_not_there(name, words):
    with pytest.raises(ValueError, match=words): named_function(name, "supervision_window")
    with pytest.raises(ValueError, match=words): Distiller("tiny", "tiny", "tiny", supervision_window=name)


def test_a_run_with_a_function_in_memory_says_so_when_it_is_resumed(tmp_path):
    "The window was not in the log, and a resumed run went on without it."
    d = Distiller("tiny", "tiny", "tiny", "strict", DistillConfig(**SMALL, output_dir=tmp_path / "run"), supervision_window=lambda item, text: SupervisionWindow(2))
    d.fit()
    with pytest.raises(ValueError, match="supervision_window in memory"): Distiller.from_run(tmp_path / "run")
    assert Distiller.from_run(tmp_path / "run", supervision_window=lambda item, text: None)


@pytest.mark.parametrize("quote", [" 2+2=5", "2+2=5 ", "\t2+2=5\n", "  2+2=5  "])
def test_a_quote_with_blanks_at_its_ends_is_found(quote):
    text = "So (2+2=5)."
    assert window_from_quote(text, quote) == SupervisionWindow(4, None, True)
    assert window_from_quote("a  2+2=5", "  2+2=5").byte_start == 1                 # as it stands where it stands so
    assert not window_from_quote(text, " 2+2=6 ").found and window_from_quote(text, "   ").found is False


def test_yaml_is_read_with_numbers_as_people_write_them(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-6\nmax_steps: 3\nobjective_args: {preset: paper, tau: 1.5E+2, boundary: e5}\nobjective: alm\n")
    assert read_config(str(file)) == {"learning_rate": 1e-6, "max_steps": 3, "objective": "alm", "objective_args": {"preset": "paper", "tau": 150., "boundary": "e5"}}
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="one table of settings"): read_config(str(file))
    file.write_text("a: [1\n")
    with pytest.raises(ValueError, match="run.yaml: .*TOML, YAML or JSON"): read_config(str(file))
    file.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ValueError, match="could not determine a constructor"): read_config(str(file))


@pytest.mark.parametrize("logits", ["keep", "recompute"])
def test_the_papers_alm_and_sft_recipe_trains(tmp_path, logits):
    "Both losses have weights, measured at the student's last block, and the student moves."
    items = [{"prompt": f"What is {k} + {k}?", "reference": f"The number is {2 * k}."} for k in (2, 3, 12, 20)]
    config = DistillConfig(**SMALL | {"max_steps": 3}, learning_rate=1e-3, logits=logits, output_dir=tmp_path / "run")
    d = Distiller("tiny", "tiny", items, ("alm", {"preset": "paper"}), config)
    before = [p.detach().clone() for p in d.student.model.parameters()]
    run = d.fit()
    last = list(d.student.model.model.layers[-1].parameters())
    assert len(d.objective.last_layer) == len(last) and all(a is b for a, b in zip(d.objective.last_layer, last))
    assert all(0 < step["ce_weight"] < step["alm_weight"] < 1 and step["text_source"] == "reference" for step in run.steps)
    assert all(abs(step["ce_weight"] + step["alm_weight"] - 1) < 1e-5 for step in run.steps)
    assert all((p.detach() != q).any() for p, q in zip(d.student.model.parameters(), before))
    assert run.steps[-1]["loss"] != run.steps[0]["loss"]
