"Flags as users of trl and transformers know them: each gets the flag of xtokd that was meant, or why there is none."
import json

import pytest

from xtokd.cli.arguments import _ELSEWHERE, unknown_flag
from xtokd.cli.commands import main, make_parser
from xtokd.train.config import OTHER_NAMES

DISTILL = [a for a in make_parser(with_config=True)._actions if a.dest == "command" or hasattr(a, "choices") and a.choices][-1].choices["distill"].flags()


@pytest.mark.parametrize("typed, meant", [
    ("--learning_rate", "--learning-rate"), ("--max_steps", "--max-steps"), ("--learning-rates", "--learning-rate"), ("--per_device_train_batch_size", "--batch-size"), ("--gradient_accumulation_steps", "--micro-batch-size"), ("--gradient-accumulation-steps", "--micro-batch-size"),
    ("--num_train_epochs", "--max-steps"), ("--model_name_or_path", "--student"), ("--teacher_model_name_or_path", "--teacher"), ("--dataset_name", "--prompts"), ("--lmbda", "--on-policy-fraction"), ("--max_completion_length", "--max-new-tokens"), ("--max_new_tokens", "--max-new-tokens"),
    ("--bf16", "--mixed-precision"), ("--resume_from_checkpoint", "--resume"), ("--use_peft", "--lora-r"), ("--lora_r", "--lora-r"), ("--beta", "--objective-arg"), ("--warmup_ratio", "--warmup-steps"), ("--run_name", "--output-dir"), ("--logging_steps", "every step is logged"),
    ("--eval_strategy", "--eval-steps"), ("--save_strategy", "--save-steps"), ("--deepspeed", "--fsdp"), ("--load_in_4bit", "--teacher-quantization 4"), ("--torch_dtype", "--student-dtype"), ("--overwrite_output_dir", "never written over"), ("--use_vllm", "--generation-url"), ("--steps", "--max-steps")])
def test_a_flag_of_trl_is_answered_with_ours(typed, meant): assert meant in unknown_flag(typed, DISTILL)


def test_the_tables_name_flags_that_exist():
    for name, advice in _ELSEWHERE.items():
        assert "--" + name.replace("_", "-") not in DISTILL and name not in OTHER_NAMES, name
        for word in advice.replace(",", " ").replace(";", " ").replace(":", " ").split():
            if word.startswith("--"): assert word in DISTILL, (name, word)
    for setting, _ in OTHER_NAMES.values(): assert "--" + setting.replace("_", "-") in DISTILL


def test_on_the_command_line_and_in_a_file(tmp_path, capsys):
    with pytest.raises(SystemExit): main(["distill", "--model_name_or_path", "tiny"])
    assert "no flag --model_name_or_path: it is called --student here" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("model_name_or_path: tiny\n")
    assert main(["distill", "--config", str(tmp_path / "run.yaml")]) == 1 and "it is called --student here" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json", "toml"])
def test_a_config_file_in_each_language(tmp_path, suffix):
    from xtokd.train.runlog import Run
    config = dict(max_steps=1, batch_size=2, max_new_tokens=4, eval_size=0, objective="strict", learning_rate=2e-5, progress=False, objective_args={"top_k": 8})
    text = {"json": json.dumps(config), "toml": "".join(f"{k} = {json.dumps(v) if not isinstance(v, dict) else '{ top_k = 8 }'}\n" for k, v in config.items())}.get(suffix) or "".join(f"{k}: {json.dumps(v)}\n" for k, v in config.items()).replace("2e-05", "2e-5")
    (tmp_path / f"run.{suffix}").write_text(text)
    assert main(["distill", "--config", str(tmp_path / f"run.{suffix}"), "--output-dir", str(tmp_path / "a")]) == 0
    start = Run(tmp_path / "a").start
    assert start["config"]["learning_rate"] == 2e-5 and start["args"]["objective"] == ["strict", {"top_k": 8}]
