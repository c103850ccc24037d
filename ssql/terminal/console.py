"""What commands print: tables, and lines in which nothing is taken for markup."""

from typing import Any

from rich.console import Console
from rich.table import Table

LOG_WIDTH = 160


def say(*parts: Any) -> None:
    """Print tables and text; brackets in names stay brackets, and a path keeps to its line."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, emoji=False, width=LOG_WIDTH)  # a log does not cut names off
    for part in parts:
        console.print(part, soft_wrap=not isinstance(part, Table))
