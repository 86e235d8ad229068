"The table of learning rates: from sweeps and from run logs, best rate, edge of the grid, failures."
import json

import numpy as np
import pytest

from xtokd.cli.commands import main
from xtokd.experiments.comparison import RateOutcome, evaluation_score, find_outcomes, rate_table, run_outcomes, sweep_outcomes
from xtokd.hub import data_dir
from xtokd.train.runlog import Run, RunLog


def written(folder, name, rate, end, reason="finished", method="strict"):
    log = RunLog(folder / name)
    log.write("start", 0, config={"learning_rate": rate}, objective=method, args={"student": "tiny", "teacher": "tiny", "prompts": "tiny", "objective": method})
    log.write("eval", 0, accuracy=.4, accuracy_sampled=.2)
    if end is not None: log.write("eval", 5, accuracy=end + .1, accuracy_sampled=end - .1)
    log.write("end", 5, reason=reason)
    log.close()
    return Run(folder / name)


def test_the_score_is_the_mean_of_the_accuracies_there_are():
    assert evaluation_score({"accuracy": .6, "accuracy_sampled": .4}) == pytest.approx(.5) and evaluation_score({"accuracy": .6}) == .6
    assert np.isnan(evaluation_score({"rkl_per_byte": 1.}))


def test_runs_of_one_rate_are_one_outcome(tmp_path):
    runs = [written(tmp_path, "a", 1e-3, .5), written(tmp_path, "b", 1e-3, .7), written(tmp_path, "c", 1e-4, .3), written(tmp_path, "d", 1e-2, .0, "FloatingPointError: nan")]
    found = {o.rate: o for o in run_outcomes(runs)}
    assert found[1e-3].end == pytest.approx(.6) and found[1e-3].runs == 2 and found[1e-3].start == pytest.approx(.3)
    assert found[1e-2].failure.startswith("FloatingPointError") and found[1e-4].failure == ""
    [row] = rate_table(list(found.values()))
    assert row["best rate"] == "0.001" and row["at the edge"] == "" and row["lost"] == "" and row["runs"] == 4
    assert row["all rates"] == "0.0001: 0.300, 0.001: 0.600, 0.01: 0.000"


def test_edge_loss_and_failure():
    def row(*ends): return rate_table([RateOutcome("tiny", "x", 10. ** k, .5, end) for k, end in enumerate(ends)])[0]
    assert row(.7, .6, .1)["at the edge"] == row(.1, .6, .7)["at the edge"] == "yes" and row(.6, .7, .1)["at the edge"] == ""
    assert row(.1, .4, .2)["lost"] == "yes" and row(np.nan, np.nan)["best rate"] == "" and "1: failed" in row(np.nan, .6)["all rates"]


def test_a_kept_sweep_is_read_whole():
    file = data_dir() / "runs/bakeoff/rates-tiny2.json"
    found, kept = sweep_outcomes(file), json.loads(file.read_text())
    assert len(found) == len(kept) and {f"{o.method} {o.rate:g}" for o in found} == set(kept) and {o.model for o in found} == {"tiny2"}
    for row in rate_table(found):
        ends = {o.rate: o.end for o in found if o.method == row["method"]}
        assert row["end"] == max(ends.values()) == ends[float(row["best rate"])]


def test_a_file_that_is_no_sweep(tmp_path):
    for text in ("[1]", '{"strict": {"end": 1}}', '{"strict x": {"end": 1}}', "{"):
        (tmp_path / "rates-a.json").write_text(text)
        with pytest.raises(ValueError, match="rates-a.json is no file of rates"): sweep_outcomes(tmp_path / "rates-a.json")


def test_the_command(tmp_path, capsys):
    for k, rate in enumerate((1e-4, 1e-3)): written(tmp_path, f"run{k}", rate, .3 + k / 10)
    (tmp_path / "rates-toy.json").write_text('{"cover 0.001": {"start": 0.3, "end": 0.6}, "cover 0.01": {"failed": "OutOfMemory"}}')
    assert main(["compare", "--rates", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "toy" in said and "0.01: failed" in said and "0.0001: 0.300, 0.001: 0.400" in said
    assert main(["compare", "--rates", "--json", str(tmp_path / "rates-toy.json")]) == 0
    assert json.loads(capsys.readouterr().out)[0]["best rate"] == "0.001"
    (tmp_path / "empty").mkdir()
    assert main(["compare", "--rates", str(tmp_path / "empty")]) == 1 and "no run log" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no run log"): find_outcomes([tmp_path / "empty"])
