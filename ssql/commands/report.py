"""`ssql report`: runs as one HTML page."""

from pathlib import Path

from quant.checks import check_at_least
from ssql.data import DataModule
from ssql.reports.page import report_page
from ssql.reports.result_files import refuse_existing, save
from ssql.reports.run_contents import read_runs
from ssql.terminal.checks import not_empty
from ssql.terminal.console import say
from ssql.terminal.groups import check_installed
from ssql.terminal.inputs import check_inputs


def report(
    runs: list[str], output: str, data: DataModule | None = None, batches: int = 1, overwrite: bool = False
) -> None:
    """One self-contained HTML page about runs: accuracy against bits and size, layers, training, configuration.

    A run's folder holds results (*.json of evaluate, suite, compare, finetune), logs/ and encoder/, or some of these.
    Example: ssql report --runs '[runs/a, runs/b]' --data SpokenWords --output report.html

    Args:
        runs: folders.
        output: HTML file.
        data: data module on whose first training batches sensitivities and activations are measured; without it the
            page has no such parts.
        batches: how many.
        overwrite: replace an existing file.
    """
    not_empty(runs=runs)
    check_at_least(1, batches=batches)
    if not output.endswith(".html"):
        raise ValueError(f"the report is a page: --output {output} should end in .html")
    check_installed("matplotlib")
    check_inputs(data=data)
    found = read_runs(runs)
    refuse_existing([Path(output)], overwrite)
    save({Path(output): report_page(found, data, batches)})
    say(f"report: {output}")
