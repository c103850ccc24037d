"""The tables of finetune_modes.sh: what each mode reached, and whether its ONNX file says what torch says.

python experiments/speech/finetune_modes.py runs/finetune/modes
"""

import json
import sys
from pathlib import Path


def decimals(row: dict) -> str:
    """R2 has no unit, and wants two."""
    return ".1f" if row["unit"] else ".2f"


def main(folder: Path) -> None:
    """Print a line for each run: test results by bit-width, then its file's verification."""
    print("| recipe | test results | file | clips | torch, % right | ONNX, % right | the same answer, % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for run in sorted(path.parent for path in folder.glob("*/results.json")):
        rows = json.loads((run / "results.json").read_text(encoding="utf-8"))
        results = ", ".join(
            f"{row['task']} {row['metric']} {row['value']:{decimals(row)}} {row['unit']} at {row['bit_width']}"
            for row in rows
        )
        (report,) = (run / "onnx").glob("*.verification.json")
        found = json.loads(report.read_text())
        assert found["passed"], f"{report} did not pass"
        accuracy = found["accuracy"]
        cells = ["-"] * 4
        if accuracy is not None:
            cells = [str(accuracy["clips"])] + [f"{accuracy[key]:.1f}" for key in ("torch", "onnx", "agreement")]
        print(f"| `{run.name}` | {results} | {found['bit_width']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
