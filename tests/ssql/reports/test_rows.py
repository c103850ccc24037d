import json

import pytest

from ssql.reports.rows import Cell, load_rows, pivot, retained_rows
from ssql.reports.tables import intervals_sentence, markdown_report, markdown_table, suite_report, terminal_table


def row(bit_width, value, method="a", task="word", metric="linear", **more):
    return {"method": method, "task": task, "bit_width": bit_width, "metric": metric, "value": value, **more}


ROWS = [row("fp", 90.0, low=85.0, high=93.0), row("w4a4", 72.0, low=66.0, high=78.0)]


def test_a_table_has_a_line_for_each_task_and_method_in_the_order_they_came():
    rows = [*ROWS, row("fp", 50.0, task="digit"), row("w4a4", 40.0, task="digit"), row("fp", 1.0, method="b")]
    bit_widths, lines = pivot(rows, "linear")
    assert bit_widths == ["fp", "w4a4"]
    assert [(line.task, line.method) for line in lines] == [("word", "a"), ("word", "b"), ("digit", "a")]
    assert lines[0].cells == [Cell(90.0, None, 85.0, 93.0), Cell(72.0, None, 66.0, 78.0)]
    assert lines[1].cells == [Cell(1.0), None]
    assert markdown_table(rows).splitlines()[2:4] == [
        "| word | a | 90.0 (85.0 to 93.0) | 72.0 (66.0 to 78.0) |",
        "| word | b | 1.0 | - |",
    ]
    table = terminal_table(rows)
    assert [list(column.cells)[0] for column in table.columns] == ["word", "a", "90.0", "72.0"]


def test_a_table_says_how_many_clips_its_intervals_are_over():
    assert intervals_sentence(ROWS) == ""
    assert intervals_sentence([each | {"clips": 1} for each in ROWS]).startswith("measured on 1 clip alone")
    many = [ROWS[0] | {"clips": 20}, ROWS[1] | {"clips": 1000}]
    assert intervals_sentence(many) == "in brackets the interval of 95 %, over 20 to 1,000 clips"
    table = terminal_table(many, intervals=True)
    assert list(table.columns[2].cells) == ["90.0 (85.0 to 93.0)"]
    assert table.caption == intervals_sentence(many)
    assert markdown_report(many).endswith("\nIn brackets the interval of 95 %, over 20 to 1,000 clips.\n")
    assert intervals_sentence([row("fp", 1.0, clips=7)]) == "over 7 clips"


def test_runs_are_merged_and_must_be_measured_equally_often():
    more = [row("fp", 92.0), row("w4a4", 70.0)]
    _, (line,) = pivot(ROWS + more, "linear")
    assert line.runs == 2
    assert line.cells[0] == Cell(91.0, pytest.approx(2**0.5))
    assert line.texts() == ["91.0 ± 1.4", "71.0 ± 1.4"]
    with pytest.raises(ValueError, match="a on word was not measured equally often at fp, w4a4"):
        pivot(ROWS + more[:1], "linear")


def test_several_metrics_stand_in_one_table_with_their_own_decimals():
    rows = [*ROWS, row("fp", 0.876, task="pitch", metric="r2"), row("w4a4", -1.0, task="pitch", metric="r2")]
    assert markdown_table(rows, ["linear", "r2"]).splitlines()[3] == "| pitch | R2 | a | 0.88 | -1.00 |"


def test_what_is_retained_comes_from_the_probe_or_from_words_still_right():
    probed = row("w4a4", 72.0, retained=0.8, retained_low=0.7, retained_high=0.9)
    no_skill = row("w4a4", 10.0, task="noise", retained=None, retained_low=None, retained_high=None)
    worse = row("w2a4", -3.0, metric="r2", task="pitch", retained=-4.0, retained_low=-5.0, retained_high=-3.0)
    assert retained_rows([worse])[0]["value"] == 0
    wer = [row(bits, value, metric="wer", task="text") for bits, value in (("fp", 20.0), ("w4a4", 40.0))]
    kept = retained_rows([probed, no_skill, *wer])
    assert [(r["task"], r["metric"], round(r["value"])) for r in kept] == [
        ("word", "retained", 80), ("text", "retained", 100), ("text", "retained", 75),
    ]  # fmt: skip
    assert (kept[0]["low"], kept[0]["high"]) == (70, 90)


def test_each_run_is_compared_with_its_own_full_precision():
    wer = [row(bits, value, metric="wer") for bits, value in (("fp", 0), ("w4a4", 50), ("fp", 50), ("w4a4", 75))]
    assert [r["value"] for r in retained_rows(wer)] == [100, 50, 100, 50]


def test_reports_have_a_table_for_each_metric_and_what_is_retained():
    full = row("fp", 90.0, retained=1.0, retained_low=1.0, retained_high=1.0)
    probed = row("w4a4", 72.0, retained=0.8, retained_low=0.7, retained_high=0.9)
    text = markdown_report([full, probed, row("fp", 1.0, metric="knn"), row("w4a4", 2.0, metric="knn")])
    assert text.count("| task | method | fp | w4a4 |") == 3
    assert "| word | a | 100 (100 to 100) | 80 (70 to 90) |" in text
    text = suite_report([full, probed], ["prompts (real recordings) skipped: data/prompts does not exist"])
    assert text.startswith("prompts (real recordings) skipped: data/prompts does not exist.\n")
    assert "| word | accuracy, % | a | 90.0 | 72.0 |" in text
    assert "| word | a | 100 (100 to 100) | 80 (70 to 90) |" in text


def test_files_that_hold_no_rows_are_errors(tmp_path):
    file = tmp_path / "accuracy.json"
    file.write_text(json.dumps(ROWS))
    assert load_rows(file) == ROWS
    for text, message in (("nothing", "is not JSON"), ('[{"method": "a"}]', "does not hold rows of bit_width, method")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_rows(file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bit_width": "w99a99"}, "unknown bit-width 'w99a99'"),
        ({"value": 4000.0}, "row 2: an accuracy is from 0 to 100 %, not 4000"),
        ({"clips": -3}, "row 2: clips must be 0 or more, not -3"),
        ({"clips": 2.5}, "row 2: clips is counted: a whole number, not 2.5"),
        ({"chance": 400}, "row 2: chance is from 0 to 100 %, not 400"),
        ({"low": -20.0}, "row 2: low is from 0 to 100 %, not -20"),
        ({"metric": "wer", "value": -1.0}, r"row 2: wer is 0 or more, not -1.0 \(value\)"),
        ({"low": 99.0, "high": 1.0}, "row 2: its interval goes from low to high, not from 99.0 to 1.0"),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path, change, sentence):
    (tmp_path / "rows.json").write_text(json.dumps([ROWS[0], ROWS[0] | change]))
    with pytest.raises(ValueError, match=sentence):
        load_rows(tmp_path / "rows.json")


def test_names_do_not_break_a_markdown_table():
    assert "| word | a\\|b c | 90.0 |" in markdown_report([row("fp", 90.0, method="a|b\nc")])
