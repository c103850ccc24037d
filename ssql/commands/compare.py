"""`ssql compare`: results of several evaluations as one."""

from ssql.commands.results import reserved_results, save_results
from ssql.reports.figures import accuracy_figure
from ssql.reports.rows import load_different
from ssql.reports.tables import markdown_report
from ssql.terminal.checks import not_empty


def compare(rows: list[str], output: str, overwrite: bool = False) -> None:
    """Merge results of several `ssql evaluate` runs: other encoders side by side, seeds and folds as mean ± deviation.

    Writes accuracy.json, .csv, .md and .png, as `ssql evaluate` does.
    Example: ssql compare --rows '[runs/seed-0/accuracy.json, runs/seed-1/accuracy.json]' --output runs/both

    Args:
        rows: accuracy.json files; rows of the same method, task and bit-width become one line of the table.
        output: folder for the results.
        overwrite: replace earlier results.
    """
    not_empty(rows=rows)
    merged = load_different(rows)
    with reserved_results(output, "accuracy", overwrite):
        save_results(merged, output, "accuracy", markdown_report(merged), accuracy_figure(merged))
