import csv
import json

import pytest

from ssql.reports.figures import accuracy_figure
from ssql.reports.result_files import refuse_existing, save

ROWS = [
    {"method": "a, b", "task": "word", "bit_width": "fp", "metric": "linear", "value": 90.0, "low": 80.0, "high": 95.0},
    {"method": "a, b", "task": "pitch", "bit_width": "fp", "metric": "r2", "value": 0.5, "unit": ""},
]


def test_rows_become_json_csv_and_a_plot_and_nothing_else(tmp_path):
    folder = tmp_path / "new"
    save({folder / "rows.json": ROWS, folder / "rows.csv": ROWS, folder / "rows.png": accuracy_figure(ROWS)})
    assert json.loads((tmp_path / "new" / "rows.json").read_text()) == ROWS
    with (tmp_path / "new" / "rows.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert read[0] == {key: str(value) for key, value in ROWS[0].items()} | {"unit": ""}
    assert (read[1]["task"], read[1]["value"], read[1]["low"]) == ("pitch", "0.5", "")
    assert (tmp_path / "new" / "rows.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_results_are_not_replaced_unasked(tmp_path):
    file = tmp_path / "rows.json"
    refuse_existing([file], overwrite=False)
    save({file: ROWS})
    refuse_existing([file], overwrite=True)
    with pytest.raises(FileExistsError, match="rows.json exists already: choose another output, or overwrite it"):
        refuse_existing([file], overwrite=False)


def test_all_are_replaced_or_none(tmp_path):
    first, second = tmp_path / "rows.json", tmp_path / "rows.csv"
    first.write_text("earlier")
    second.mkdir()
    with pytest.raises(FileExistsError, match=r"rows\.csv is a folder"):
        save({first: ROWS, second: ROWS})
    assert first.read_text() == "earlier"
    assert sorted(tmp_path.iterdir()) == [second, first]
