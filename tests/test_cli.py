"""The command line: what it prints, what it refuses and how it ends. In this process where possible, two runs as a real command."""
import json, subprocess, sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest

from xtokd.cli import commands as cli, pairs
from xtokd.train.runlog import RunLog

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("doctor", "align", "explore", "distill", "generate", "compare", "models")


@pytest.fixture
def xtokd(capsys, monkeypatch):
    "Run a command line: exit code, stdout, stderr."
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    def run(*argv):
        capsys.readouterr()
        try: code = cli.main([str(a) for a in argv])
        except SystemExit as e: code = e.code or 0
        return code, *capsys.readouterr()
    return run


def refused(result, *words, code=1):
    "One message on stderr, no traceback, nothing on stdout, and the words are in it."
    got, out, err = result
    assert got == code and out == "" and "Traceback" not in err
    assert err.startswith("xtokd ") and len(err.strip().splitlines()) == 1, err
    for w in words: assert w in err, err


# ---- help -------------------------------------------------------------------------------------------------------------------
def test_help_teaches(xtokd):
    code, out, _ = xtokd("--help")
    assert code == 0 and all(c in out for c in COMMANDS) and 'xtokd align "Certainly: 894772."' in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_commands_that_work(xtokd, command):
    code, out, _ = xtokd(command, "--help")
    assert code == 0 and f"  xtokd {command}" in out and "--debug" in out


def test_examples_in_the_help_parse():
    import shlex
    p, n = cli.make_parser(with_config=True), 0
    for text in cli.HELP.values():
        for line in text.splitlines():
            if not line.startswith("  xtokd "): continue
            p.parse_args(shlex.split(line.split("   ")[0].strip())[1:])
            n += 1
    assert n > 12


def test_distill_has_a_flag_for_every_number(xtokd):
    from dataclasses import fields
    from xtokd.train.config import DistillConfig
    _, out, _ = xtokd("distill", "--help")
    for f in fields(DistillConfig): assert "--" + f.name.replace("_", "-") in out


def test_version(xtokd):
    import xtokd as package
    assert xtokd("--version")[:2] == (0, f"xtokd {package.__version__}\n")


def test_wrong_command_line(xtokd):
    for argv in ([], ["dcotor"], ["align", "--svgg"], ["models", "fetch"], ["distill", "--max-steps", "many"]):
        code, out, err = xtokd(*argv)
        assert code == 2 and "usage:" in err and "Traceback" not in err


# ---- doctor -----------------------------------------------------------------------------------------------------------------
def test_doctor_of_the_tiny_pair(xtokd):
    code, out, err = xtokd("doctor")
    assert code == 0 and "fit" in out and err == ""
    assert xtokd("doctor", "tiny")[1] == out == xtokd("doctor", "tiny", "tiny")[1]


def test_doctor_as_json(xtokd):
    code, out, _ = xtokd("doctor", "--json")
    assert code == 0 and json.loads(out)["verdict"] in ("fit", "fit with care")


def test_doctor_of_a_text(xtokd, tmp_path):
    (tmp_path / "t.txt").write_text("forty-two is 42\n", encoding="utf8")
    assert xtokd("doctor", "--text", tmp_path / "t.txt")[0] == 0


def test_an_unfit_pair_ends_with_1(xtokd, monkeypatch):
    unfit = SimpleNamespace(verdict="unfit", findings=["no shared bytes"])
    for module in (cli, pairs): monkeypatch.setattr(module, "diagnose", lambda words, texts=None: unfit)
    code, out, err = xtokd("doctor")
    assert code == 1 and err == ""
    refused(xtokd("distill", "--max-steps", "1"), "unfit", "no shared bytes", "--force")


def test_doctor_refuses(xtokd, tmp_path):
    refused(xtokd("doctor", "tiny", tmp_path / "nowhere"), "nowhere")
    refused(xtokd("doctor", "gemma"), "two names")
    refused(xtokd("doctor", "--text", tmp_path / "none.txt"), "none.txt")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    refused(xtokd("doctor", "--text", tmp_path / "latin1.txt"), "latin1.txt", "UTF-8")


def test_a_broken_tokenizer_is_one_message(xtokd, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(xtokd("align", tmp_path, "tiny", "a text"), tmp_path.name)


# ---- align ------------------------------------------------------------------------------------------------------------------
def test_align_prints_and_draws(xtokd, tmp_path):
    svg = tmp_path / "a.svg"
    code, out, _ = xtokd("align", "ninety-six is 96", "--svg", svg)
    assert code == 0 and "chunks" in out and str(svg) in out
    assert ET.parse(svg).getroot().get("role") == "img"


def test_align_reads_a_file(xtokd, tmp_path):
    (tmp_path / "t.txt").write_bytes("数据 12\r\n".encode())
    code, out, _ = xtokd("align", "tiny", "tiny", "--file", tmp_path / "t.txt")
    assert code == 0 and "␍" in out


def test_align_of_nothing_and_of_everything(xtokd):
    assert xtokd("align", "")[0] == 0
    assert xtokd("align", "\u202e\u0000\t👩‍👩‍👧 e\u0301")[0] == 0


def test_align_refuses(xtokd, tmp_path):
    refused(xtokd("align"), "no text")
    refused(xtokd("align", "a", "b", "c", "d"), "two names")
    refused(xtokd("align", "a", "--svg", tmp_path / "no" / "folder.svg"), "folder.svg")


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError): cli.main(["align", "--debug"])


def test_align_writes_a_page(xtokd, tmp_path):
    page = tmp_path / "a.html"
    code, out, _ = xtokd("align", "tiny", "tiny", "ninety-six is 96", "--html", page)
    assert code == 0 and str(page) in out and "xtokdPage.define" in page.read_text(encoding="utf8")
    refused(xtokd("doctor", "--html", tmp_path / "no" / "folder.html"), "folder.html")


# ---- explore ----------------------------------------------------------------------------------------------------------------
def test_explore_writes_a_page_of_a_text(xtokd, tmp_path):
    (tmp_path / "t.txt").write_text("naïve 数据 42", encoding="utf8")
    code, out, _ = xtokd("explore", "tiny", "tiny", "--text", tmp_path / "t.txt", "--html", tmp_path / "p.html")
    assert code == 0 and "written to" in out and "student tokens (tiny-student)" in (tmp_path / "p.html").read_text(encoding="utf8")


def test_explore_refuses(xtokd, tmp_path):
    refused(xtokd("explore", "gemma"), "two names")
    refused(xtokd("explore", "--text", tmp_path / "none.txt"), "none.txt")
    refused(xtokd("explore", "--html", tmp_path / "no" / "p.html"), "p.html")


def test_explore_serves_until_it_is_interrupted():
    import signal, urllib.request
    ask = "import sys; from xtokd.cli.commands import main; sys.exit(main())"
    def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL)         # a test run in the background hands "ignore" on
    p = subprocess.Popen([sys.executable, "-c", ask, "explore"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        url = p.stdout.readline().split()[0]
        assert url.startswith("http://127.0.0.1:")
        assert "xtokdPage.define" in urllib.request.urlopen(url).read().decode()
        for text, key in (("seventy-two \ud800", "error"), ("seventy-two", "data")):    # a lone surrogate: said, and the server lives on
            request = urllib.request.Request(url + "state", json.dumps({"text": text}).encode(), {"Content-Type": "application/json"})
            assert json.loads(urllib.request.urlopen(request).read())[key]
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        assert p.returncode == 0 and "ended" in out and "Traceback" not in err
    finally: p.kill()


# ---- distill: settings ------------------------------------------------------------------------------------------------------
def read(*argv):
    from dataclasses import fields
    from xtokd.train.config import DistillConfig
    return cli.read_settings(cli.make_parser(with_config=True).parse_args(["distill", *map(str, argv)]), [*cli.RUN_DEFAULTS, *(f.name for f in fields(DistillConfig))])


def test_flags_win_over_a_file_and_a_file_over_defaults(tmp_path):
    f = tmp_path / "run.json"
    f.write_text(json.dumps({"max_steps": 7, "objective": "strict", "objective_args": {"top_k": 4}, "learning_rate": 0.5}))
    s = read("--config", f, "--max-steps", 9, "--no-progress")
    assert (s["max_steps"], s["objective"], s["objective_args"], s["learning_rate"], s["student"], s["progress"]) == (9, "strict", {"top_k": 4}, 0.5, "tiny", False)
    assert read("--objective-arg", "top_k=2", "divergence=rkl")["objective_args"] == {"top_k": 2, "divergence": "rkl"}


def test_toml(tmp_path):
    f = tmp_path / "run.toml"
    f.write_text('max_steps = 3\nteacher = "smollm2"\n[objective_args]\nbeta = 0.1\n')
    assert read("--config", f)["objective_args"] == {"beta": .1} and read("--config", f)["teacher"] == "smollm2"


def test_distill_refuses(xtokd, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"max_stepz": 3}')
    refused(xtokd("distill", "--config", bad), "max_stepz", "did you mean 'max_steps'")
    bad.write_text("[1")
    refused(xtokd("distill", "--config", bad), "bad.json")
    refused(xtokd("distill", "--config", tmp_path / "none.toml"), "none.toml")
    refused(xtokd("distill", "--objective-arg", "top_k"), "key=value")
    refused(xtokd("distill", "--max-steps", "0"), "steps")
    refused(xtokd("distill", "--resume"), "--output-dir")
    refused(xtokd("distill", "--resume", tmp_path / "no-run"), "no-run")
    refused(xtokd("distill", "--student", tmp_path / "nowhere"), "nowhere")
    refused(xtokd("distill", "--prompts", tmp_path / "none.jsonl"), "none.jsonl")
    refused(xtokd("distill", "--objective", "covr"), "covr", "cover")
    refused(xtokd("distill", "--objective", "strict", "--objective-arg", "topk=3"), "topk", "top_k")


def refused_flag(result, *words):
    "Exit code 2, a usage line, and the words in the last line of stderr."
    code, out, err = result
    assert code == 2 and out == "" and "usage:" in err and "Traceback" not in err
    for w in words: assert w in err.splitlines()[-1], err


@pytest.mark.parametrize("old, new", [
    ("--lr=3e-4", "--learning-rate"), ("--steps=3", "--max-steps"), ("--out=runs/a", "--output-dir"),
    ("--gradient-accumulation-steps=2", "--micro-batch-size"), ("--per-device-train-batch-size=2", "--batch-size"),
    ("--lmbda=1", "--on-policy-fraction"), ("--knob=top_k=16", "--objective-arg"), ("--weak=org/w", "--aux weak=MODEL"),
    ("--plus=org/p", "--aux plus=MODEL"), ("--minus=org/m", "--aux minus=MODEL"), ("--heldout=p.jsonl", "--eval-prompts"),
    ("--max-step=3", "--max-steps")])
def test_an_old_flag_names_the_new_one(xtokd, old, new):
    flag, _, value = old.partition("=")
    refused_flag(xtokd("distill", old), flag, new)
    refused_flag(xtokd("distill", flag, value), flag, new)
    refused_flag(xtokd("doctor", "--dry-run", flag, value), flag, new)


def test_other_commands_name_the_new_flag_too(xtokd):
    refused_flag(xtokd("serve", "tiny", "--follow"), "--follow", "--accept-weights")
    refused_flag(xtokd("align", "--svgg", "a.svg", "text"), "--svgg", "did you mean --svg?")


def test_every_other_name_of_a_setting_is_answered(xtokd):
    from xtokd.train.config import OTHER_NAMES
    for old, (new, _) in OTHER_NAMES.items():
        if old == "eval_prompts": continue      # a flag of its own: the prompts themselves
        refused_flag(xtokd("distill", "--" + old.replace("_", "-")), "it is called --" + new.replace("_", "-"))


def test_old_keys_of_a_config_file_name_the_new_ones(xtokd, tmp_path):
    f = tmp_path / "old.json"
    for old, new in (("knobs", "objective_args"), ("weak", "aux.weak"), ("lr", "learning_rate")):
        f.write_text(json.dumps({old: 1}))
        refused(xtokd("distill", "--config", f), repr(old), new)


def test_auxiliary_models(xtokd, tmp_path):
    f = tmp_path / "run.toml"
    f.write_text('[aux]\nplus = "org/p"\n')
    assert read("--aux", "weak=org/w", "--aux", "minus=org/m")["aux"] == {"weak": "org/w", "minus": "org/m"}
    assert read("--config", f, "--aux", "weak=org/w")["aux"] == {"plus": "org/p", "weak": "org/w"}
    refused(xtokd("distill", "--aux", "week=org/w"), "week", "weak")
    refused(xtokd("distill", "--aux", "weak"), "key=value")


def test_the_help_is_aligned():
    lines = [l for l in cli.HELP["top"].splitlines() if l.startswith("  xtokd ")]
    assert len({l.rindex("   ") for l in lines}) == 1


def test_bad_prompts_name_their_line(xtokd, tmp_path):
    f = tmp_path / "p.jsonl"
    f.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    refused(xtokd("distill", "--prompts", f), "line 2", "prompt")


# ---- distill, compare: real runs --------------------------------------------------------------------------------------------
FAST = ("--batch-size", 4, "--micro-batch-size", 4, "--max-new-tokens", 12, "--eval-size", 4, "--eval-steps", 0, "--save-steps", 1, "--no-progress")


def test_distill_then_resume_then_compare(xtokd, tmp_path):
    out = tmp_path / "run"
    code, said, err = xtokd("distill", "--objective", "strict", "--max-steps", 1, "--output-dir", out, *FAST)
    assert code == 0 and "accuracy" in said and "before" in said and "after" in said, err
    code, said, err = xtokd("distill", "--resume", out, "--max-steps", 2)
    assert code == 0 and "2 steps" in said, err
    code, said, _ = xtokd("compare", out)
    assert code == 0 and "strict" in said and "accuracy before and after" in said
    rows = json.loads(xtokd("compare", "--json", tmp_path)[1])
    assert len(rows) == 1 and rows[0]["steps"] == 2


def test_compare_of_a_folder_of_runs(xtokd, tmp_path):
    for name in ("a", "b"):
        log = RunLog(tmp_path / name)
        log.write("start", 0, objective=name, config={})
        log.write("eval", 0, accuracy=.25, n=8)
        log.close()
    code, out, _ = xtokd("compare", tmp_path)
    assert code == 0 and "0.250" in out
    assert xtokd("compare", tmp_path / "a", tmp_path / "b")[1] == out


def test_compare_refuses(xtokd, tmp_path):
    refused(xtokd("compare", tmp_path / "nothing"), "nothing")


# ---- models -----------------------------------------------------------------------------------------------------------------
def test_models_list(xtokd):
    code, out, _ = xtokd("models", "list")
    assert code == 0 and all(name in out for name in ("tiny", "smollm2", "gemma", "Apache-2.0"))


def test_models_get_passes_on(xtokd, monkeypatch):
    import xtokd.models.gguf as rooms

    got = []
    monkeypatch.setattr(rooms, "download", lambda name, force=False: got.append((name, force)))
    assert xtokd("models", "get", "smollm2", "gemma")[0] == 0 and got == [("smollm2", False), ("gemma", False)]


def test_models_convert_passes_on_and_refuses(xtokd, monkeypatch, tmp_path):
    import xtokd.models.gguf as rooms
    file, folder, got = tmp_path / "m.gguf", tmp_path / "m", []
    monkeypatch.setattr(rooms, "convert_gguf", lambda *a: got.append(a) or a[1])
    refused(xtokd("models", "convert", str(file)), "folder to write")
    refused(xtokd("models", "convert", str(file), str(folder)), "m.gguf")
    file.write_bytes(b"GGUF")
    assert xtokd("models", "convert", str(file), str(folder), "--stop", "<e>")[0] == 0 and got == [(str(file), str(folder), ["<e>"])]
    folder.mkdir()
    refused(xtokd("models", "convert", str(file), str(folder)), "--force")


def test_models_get_refuses(xtokd):
    refused(xtokd("models", "get", "gpt9"), "gpt9", "smollm2")
    refused(xtokd("models", "get"), "name")


# ---- as a real command ------------------------------------------------------------------------------------------------------
def command(*argv, **kw):
    return subprocess.run([sys.executable, "-c", "import sys; from xtokd.cli.commands import main; sys.exit(main())", *argv], cwd=ROOT, capture_output=True, **kw)


def test_a_real_process_with_a_poor_terminal():
    p = command("align", "96 → 数", env={"PATH": "", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)})
    assert p.returncode == 0 and b"chunks" in p.stdout, p.stderr


def test_a_real_process_fails_with_one_line():
    p = command("doctor", "--text", "no-such-file.txt")
    assert p.returncode == 1 and p.stdout == b"" and p.stderr.count(b"\n") == 1 and b"no-such-file.txt" in p.stderr
