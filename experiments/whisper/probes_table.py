"""The results of probes.mk as tables: what heads keep of their skill, those of full precision and those fitted anew.

    python probes_table.py OUTPUT PART...

Skill is R2, or the accuracy above that of the most frequent class; intervals are of 95 %, by paired bootstrap over
clips.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADS = {"heads of full precision": ("linear_fp_head", "r2_fp_head"), "heads fitted at the bit-width": ("linear", "r2")}


def kept(row: dict[str, Any] | None) -> str:
    """A cell: what is left of the skill, in percent."""
    if row is None:
        return ""
    if row.get("retained") is None:
        return "no skill"
    return f"{100 * row['retained']:.0f} ({100 * row['retained_low']:.0f} to {100 * row['retained_high']:.0f})"


def at_full_precision(row: dict[str, Any]) -> str:
    """A cell: the score itself."""
    return f"{row['value']:.1f} % (chance {row['chance']:.0f})" if row["unit"] == "%" else f"R2 {row['value']:.3f}"


def table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Lines of tasks by encoder, with a column for each bit-width."""
    found = {(row["task"], *row["method"].split("@")): row for row in rows if row["metric"] in metrics}
    tasks, names, widths = (list(dict.fromkeys(column)) for column in zip(*found, strict=True))
    widths.remove("fp")
    lines = [f"| task | full precision | encoder | {' | '.join(widths)} |", f"|{' --- |' * (3 + len(widths))}"]
    for task in tasks:
        for name in names:
            cells = [kept(found.get((task, name, width))) for width in widths]
            lines.append(f"| {task} | {at_full_precision(found[task, name, 'fp'])} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(output: str, *parts: str) -> None:
    """Print both tables."""
    rows = []
    for part in parts:
        for row in json.loads((Path(output) / part / "accuracy.json").read_text(encoding="utf-8")):
            rows.append(row | {"task": f"{part}: {row['task']}"})
    for title, metrics in HEADS.items():
        print(f"What is left of the skill of {title}, %:\n\n{table(rows, metrics)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
