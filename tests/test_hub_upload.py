"A student that is uploaded while it is trained: what is asked of the hub, and that a failed upload loses nothing. Offline."
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from xtokd.cli.commands import main
from xtokd.train.config import DistillConfig
from xtokd.train.distiller import Distiller
from xtokd.train.runlog import Run

SMALL = dict(max_steps=2, batch_size=2, micro_batch_size=2, max_new_tokens=4, eval_size=0, save_steps=1, progress=False)


@pytest.fixture
def hub(monkeypatch):
    "The calls that reach the hub; `hub.error` is raised by uploads."
    found = SimpleNamespace(made=[], uploads=[], error=None)
    def create_repo(name, **how):
        found.made.append((name, how))
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")
    def upload_folder(**how):
        files = {f.name for f in Path(how["folder_path"]).iterdir()}
        found.uploads.append(how | {"files": files})
        if found.error: raise found.error
    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    return found


def run(out, **how): return Distiller("tiny", "tiny", "tiny", config=DistillConfig(**SMALL | how, output_dir=str(out))).fit()


def test_at_the_end(hub, tmp_path):
    run(tmp_path / "first", push_to_hub=True)
    assert hub.made == [("first", {"private": None, "exist_ok": True})]
    [upload] = hub.uploads
    assert upload["repo_id"] == "me/first" and upload["folder_path"] == str(tmp_path / "first/student") and upload["commit_message"] == "End of training"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= upload["files"]


def test_after_each_save(hub, tmp_path):
    run(tmp_path / "run", push_to_hub=True, hub_strategy="every_save", hub_model_id="org/student", hub_private_repo=True)
    assert hub.made == [("org/student", {"private": True, "exist_ok": True})]
    assert [u["commit_message"] for u in hub.uploads] == ["Training in progress, step 1", "End of training"]
    assert hub.uploads[0]["folder_path"].endswith("checkpoints/step-000001") and hub.uploads[0]["ignore_patterns"] == ["*.pt"]


def test_a_failed_upload_is_a_warning_that_says_what_to_do(hub, tmp_path):
    hub.error = ConnectionError("no route to the hub")
    done = run(tmp_path / "run", push_to_hub=True, hub_strategy="every_save", hub_model_id="org/student")
    assert done.of("end")[0]["reason"] == "finished" and len(done.steps) == 2 and (tmp_path / "run/student/model.safetensors").exists()
    first, last = [w["message"] for w in done.warnings if "uploaded" in w["message"]]
    assert "ConnectionError: no route to the hub" in first and f"hf upload org/student {tmp_path / 'run/student'}" in last


def test_a_repository_that_cannot_be_made_is_said_before_the_first_step(hub, tmp_path, monkeypatch, capsys):
    def refuse(name, **how): raise PermissionError("401 Unauthorized")
    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(RuntimeError, match="repository 'run' cannot be made or reached .PermissionError: 401 Unauthorized.. Log in"): run(tmp_path / "run", push_to_hub=True)
    assert not Run(tmp_path / "run").steps
    flags = ["--max-steps", "1", "--batch-size", "2", "--max-new-tokens", "4", "--eval-size", "0", "--no-progress"]
    assert main(["distill", *flags, "--push-to-hub", "--output-dir", str(tmp_path / "other")]) == 1 and "hub_model_id" in capsys.readouterr().err


def test_nothing_is_uploaded_unasked(hub, tmp_path):
    run(tmp_path / "run")
    assert not hub.made and not hub.uploads
    with pytest.raises(ValueError, match="hub_model_id is 'org/x' without push_to_hub"): DistillConfig(hub_model_id="org/x")
    with pytest.raises(ValueError, match="hub_strategy is 'often': it is one of end, every_save"): DistillConfig(hub_strategy="often")
