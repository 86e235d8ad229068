"The files in recipes/: each is a run that can be started, with a published setting, and says what of it was run."
import re
from pathlib import Path

import pytest

from xtokd.cli.arguments import RUN_DEFAULTS, read_config, refuse_unknown_settings
from xtokd.cli.transfer import TRANSFER_SETTINGS
from xtokd.hub import resolve
from xtokd.objectives import OBJECTIVES, objective
from xtokd.train.config import DistillConfig, check_text_source
from xtokd.train.distiller import Distiller
from xtokd.train.step import make_objective

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
NAMES = [file.stem for file in RECIPES]


def parts(file):
    "Settings of a recipe: those of DistillConfig, and the others."
    settings = read_config(str(file))
    config_names = DistillConfig.__dataclass_fields__
    more = TRANSFER_SETTINGS if "tokenizer" in settings else {}         # of xtokd transfer
    refuse_unknown_settings(settings, [*RUN_DEFAULTS, *more, *config_names], file.name)
    return {k: v for k, v in settings.items() if k in config_names}, {k: v for k, v in settings.items() if k not in config_names}


@pytest.mark.parametrize("file", RECIPES, ids=NAMES)
def test_a_recipe_is_a_run(file):
    config, given = parts(file)
    config = DistillConfig(**config)
    assert {"student", "teacher", "prompts", "objective", "objective_args"} <= set(given)
    made = make_objective((given["objective"], given["objective_args"]))
    check_text_source(made, config)
    assert isinstance(config.learning_rate, float) and config.learning_rate < 1e-2
    wanted = {name for name in ("weak", "plus", "minus") if f"{name}_logp" in made.requires}
    assert set(given.get("aux", {})) == wanted
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert head[1].startswith("# Source: ") and head[-1].startswith("# What we have run of it: ")


@pytest.mark.parametrize("file", RECIPES, ids=NAMES)
def test_a_recipe_names_what_its_source_does_not_give(file):
    "The values that we chose stand in one line, by the names of the settings."
    config, given = parts(file)
    lines = [line for line in file.read_text().splitlines() if line.startswith("# Our choice: ")]
    named = set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", " ".join(lines)))) - {"Our", "choice"}
    assert len(lines) <= 1 and named <= {*config, *given}
    assert ("micro_batch_size" in config) <= ("micro_batch_size" in named)      # of memory alone: no source has it
    left = [line for line in file.read_text().splitlines() if line.startswith("# Our defaults, ")]
    left = set(re.findall(r"\w+_\w+", " ".join(left)))
    assert left == {"lr_scheduler_type", "warmup_steps", "weight_decay"} - {*config}
    follows = "max_new_tokens is what the two lengths leave." in file.read_text()
    if follows:
        assert config["max_new_tokens"] == config["max_length"] - config["max_prompt_length"]


def test_every_preset_of_a_paper_has_a_recipe():
    used = {(given["objective"], given["objective_args"].get("preset")) for _, given in map(parts, RECIPES)}
    missing = {name for name, spec in OBJECTIVES.items() if spec.presets} - {name for name, preset in used if preset}
    assert not missing and all(preset is None or preset in OBJECTIVES[name].presets for name, preset in used)


def test_the_folder_holds_recipes_alone():
    assert {file.suffix for file in FOLDER.iterdir()} == {".yaml"} and len(RECIPES) > 20
    assert not [line for file in RECIPES for line in file.read_text().splitlines() if len(line) > 160 or re.search(r"(^|[\s:])[~/]\w", line)]    # no path of a machine


ITEMS = [{"prompt": f"What is {k} + {k}?", "reference": f"The number is {2 * k}.", "chosen": f"It is {2 * k}.", "rejected": f"{k}."} for k in (2, 12)]


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=NAMES)
def test_two_steps_of_a_recipe_on_the_tiny_pair(file, tmp_path):
    "The recipe's objective, text, schedule and sampling; two steps of two prompts, short responses."
    config, given = parts(file)
    small = dict(max_steps=2, batch_size=2, micro_batch_size=2, max_new_tokens=8, max_length=64, max_prompt_length=None, warmup_steps=1, eval_size=0, save_steps=0, lora_r=None, lora_alpha=None, progress=False, output_dir=tmp_path / "run")
    one_tokenizer = objective(given["objective"], **given["objective_args"]).equal_vocabularies
    teacher = str(resolve("tiny", "teacher"))
    aux = {name: "tiny" for name in given.get("aux", {})}
    d = Distiller(teacher if one_tokenizer else "tiny", "tiny", ITEMS, (given["objective"], given["objective_args"]), DistillConfig(**config | small), auxiliary_models=aux)
    before = [p.detach().clone() for p in d.student.model.parameters()]
    run = d.fit()
    assert len(run.steps) == 2 and all(abs(step["loss"]) < 1e6 for step in run.steps)
    assert any((p.detach().cpu() != q.cpu()).any() for p, q in zip(d.student.model.parameters(), before))
    if given["objective"] == "alm": assert d.objective.last_layer and 0 < run.steps[0]["alm_weight"] < 1
