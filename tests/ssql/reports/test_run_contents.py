import json

import pytest

from ssql.reports.run_contents import differences, read_runs

ROW = {"method": "SSQL", "task": "word", "bit_width": "fp", "metric": "linear", "value": 90.0}


def run(folder, configuration="seed: 0\n", losses=(2.0, 1.0), first_step=4):
    (folder / "logs" / "version_0").mkdir(parents=True)
    (folder / "accuracy.json").write_text(json.dumps([ROW]))
    (folder / "latency.json").write_text(json.dumps([{"file": "a.onnx", "latency_ms": 1.0}]))
    (folder / "logs" / "version_0" / "config.yaml").write_text(configuration)
    log(folder, 0, losses, first_step)
    return folder


def log(folder, version, losses, first_step):
    path = folder / "logs" / f"version_{version}"
    path.mkdir(exist_ok=True)
    lines = [f"0,{loss},,{first_step + 5 * index}" for index, loss in enumerate(losses)]
    (path / "metrics.csv").write_text("\n".join(["epoch,loss,lr,step", *lines]))


def test_results_logs_and_configuration_are_read_and_other_files_left(tmp_path):
    (found,) = read_runs([run(tmp_path / "a")])
    assert (found.name, found.rows, found.configuration, found.encoder) == ("a", [ROW], "seed: 0\n", None)
    assert found.curves == {"loss": ([4.0, 9.0], [2.0, 1.0])}


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path):
    folder = run(tmp_path / "a")
    for version, first_step in ((2, 14), (10, 24)):
        log(folder, version, [0.5], first_step)
    assert read_runs([folder])[0].curves["loss"] == ([4.0, 9.0, 14.0, 24.0], [2.0, 1.0, 0.5, 0.5])


def test_a_row_that_a_kill_cut_off_is_left_out_and_said(tmp_path, caplog):
    folder = run(tmp_path / "a")
    file = folder / "logs" / "version_0" / "metrics.csv"
    whole = file.read_text()
    for cut in ("\n0,0.", "\n0,0.5,,1e", "\n0,"):
        file.write_text(whole + cut)
        assert read_runs([folder])[0].curves == {"loss": ([4.0, 9.0], [2.0, 1.0])}
        assert "metrics.csv ends in the middle of its last row, which is left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "logs/version_0/metrics.csv",
            "epoch,loss,step\n0,abc,4\n0,1,9\n",
            r"metrics\.csv, row 1: a row is a step and",
        ),
        ("logs/version_0/metrics.csv", "epoch,loss\n0,1\n0,1\n", r"metrics\.csv, row 1: a row is a step and numbers"),
        (
            "logs/version_0/metrics.csv",
            "epoch,loss,step\n0,1,4\n0,abc,9\n",
            r"metrics\.csv, row 2: a row is a step and",
        ),
        (
            "logs/version_0/metrics.csv",
            "epoch,loss,step\n0," + "1" * 200_000,
            r"metrics\.csv is not CSV \(field larger",
        ),
        ("logs/version_0/config.yaml", "a: [", r"config\.yaml is not YAML"),
        ("logs/version_0/config.yaml", "[1, 2]", r"config\.yaml is not YAML of names and values"),
        ("accuracy.json", '[1, {"method": 2}]', r"accuracy\.json does not hold rows of"),
        ("accuracy.json", '{"a": [', r"accuracy\.json is not JSON"),
        ("accuracy.json", '[{"method": 1}]', r"accuracy\.json does not hold rows of"),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path, name, content, sentence):
    folder = run(tmp_path / "a")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_runs([folder])


def test_runs_and_methods_of_the_same_name_are_told_apart(tmp_path):
    runs = read_runs([run(tmp_path / "x" / "a"), run(tmp_path / "b")])
    assert [r.rows[0]["method"] for r in runs] == ["SSQL (a)", "SSQL (b)"]
    names = [r.name for r in read_runs([run(tmp_path / "y" / "a"), tmp_path / "x" / "a"])]
    assert names == [(tmp_path / "y" / "a").as_posix(), (tmp_path / "x" / "a").as_posix()]


def test_only_settings_that_differ_are_compared():
    table = differences({"a": "model:\n  ssql: true\n  dim: 8\nseed: 0\n", "b": "model:\n  dim: 8\nseed: 1\n"})
    assert table == {"model.ssql": ["True", "-"], "seed": ["0", "1"]}


def test_folders_without_anything_to_report_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="run nowhere does not exist"):
        read_runs(["nowhere"])
    with pytest.raises(ValueError, match=r"holds no results \(\*.json\), no logs/ and no encoder/"):
        read_runs([tmp_path])


def test_a_run_given_twice_would_count_twice(tmp_path):
    folder = run(tmp_path / "a")
    with pytest.raises(ValueError, match="is given twice: give each once"):
        read_runs([folder, tmp_path / "." / "a"])
