"""`make fuzz`: damaged inputs, options and files through the command line; what must not happen is counted.

Each case is one command with one thing wrong, in a copy of a small sandbox (sandbox.py) and in a process of its own
(process.py), drawn from a seed and a number (cases.py, valid.py, options.py, damage.py, places.py) and judged by what
it printed, how it ended and what became of the files (verdicts.py).

  make fuzz                                     2,000 cases
  python tests/fuzz/run.py --count 200 --only export
  python tests/fuzz/run.py --case 17            one case again; its folder stays
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# Before torch is imported: no GPU, one thread; text files without an encoding follow the locale, as for most users.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb"}
sys.path.insert(0, str(Path(__file__).parents[2]))

import cases
import process
import sandbox
import verdicts


def main() -> int:
    """Run the cases; 1 where something happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="cases")
    parser.add_argument("--start", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at once")
    parser.add_argument("--only", help="one command")
    parser.add_argument("--case", type=int, help="one case alone; its folder stays")
    parser.add_argument("--output", type=Path, help="JSON file of all faults")
    parser.add_argument("--sandbox", type=Path, help="folder that keeps the sandbox from run to run")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that are not UTF-8
    process.warm()
    with tempfile.TemporaryDirectory(prefix="ssql-fuzz-") as work:
        world = _sandbox(options.sandbox or Path(work) / "sandbox")
        if options.case is not None:
            return _one(options, world)
        return _report(_all(options, world, Path(work)), options)


def _sandbox(folder: Path) -> Path:
    if not (folder / "report.html").exists():  # the last that is made
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.monotonic()
        sandbox.build(folder)
        print(f"sandbox of {len(verdicts.snapshot(folder))} files and folders: {time.monotonic() - started:.0f} s")
    return folder


def _one(options: argparse.Namespace, world: Path) -> int:
    folder = Path(tempfile.mkdtemp(prefix=f"ssql-fuzz-case-{options.case}-")) / "work"
    result = _run(options.seed, options.case, world, folder, options.only)
    print(f"{result['line']}\n  wrong: {result['wrong']}; {result['end']}\n{result['text']}\nfolder: {folder}")
    for fault in result["faults"]:
        print(f"  {fault['kind']}: {fault['key']}: {fault['detail']}")
    return 1 if result["faults"] else 0


def _run(seed: int, index: int, world: Path, folder: Path, only: str | None) -> dict:
    cases.prepare(world, folder)
    case = cases.draw(seed, index, folder, only)
    before = verdicts.snapshot(folder)
    outcome = process.run_command(case.words, folder, case.around)
    faults = verdicts.judge(case, outcome, before, verdicts.snapshot(folder), folder)
    return {
        "index": index, "command": case.command.name, "family": case.family, "line": case.line(), "wrong": case.wrong,
        "must_fail": case.must_fail, "end": f"code {outcome.code}, signal {outcome.signal}, {outcome.seconds:.1f} s",
        "code": outcome.code, "text": outcome.text[-6000:], "faults": [vars(fault) for fault in faults],
    }  # fmt: skip


def _all(options: argparse.Namespace, world: Path, work: Path) -> list[dict]:
    """Cases in forks of this process, so many at once; each leaves its result as a file. Ctrl-C ends with a report."""
    running: dict[int, int] = {}
    results: list[dict] = []
    started = time.monotonic()
    waiting = list(range(options.start, options.start + options.count))[::-1]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                index = waiting.pop()
                sys.stdout.flush()
                child = os.fork()
                if child == 0:
                    os._exit(_child(options, world, work, index))
                running[child] = index
            child, status = os.wait()
            index = running.pop(child)
            if status:
                raise RuntimeError(f"case {index} ended the fuzzer itself: --seed {options.seed} --case {index}")
            results.append(json.loads((work / f"{index}.json").read_text(encoding="utf-8")))
            _say(results, options.count, started)
    except KeyboardInterrupt:
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)
        for _ in running:
            os.wait()
    return results


def _say(results: list[dict], count: int, started: float) -> None:
    """Faults as they come, and how far it is."""
    for fault in results[-1]["faults"]:
        if fault["kind"] != "untidy":
            where = f"case {results[-1]['index']}: {fault['kind']}: ssql {fault['command']}"
            print(f"{where}: {fault['detail'][:160]}", flush=True)
    if len(results) % 50 == 0:
        print(f"{len(results)} of {count} cases, {(time.monotonic() - started) / 60:.0f} min", flush=True)


def _child(options: argparse.Namespace, world: Path, work: Path, index: int) -> int:
    folder = work / str(index) / "work"
    try:
        result = _run(options.seed, index, world, folder, options.only)
        (work / f"{index}.json").write_text(json.dumps(result), encoding="utf-8")
        return 0
    except KeyboardInterrupt:
        return 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def _report(results: list[dict], options: argparse.Namespace) -> int:
    results.sort(key=lambda result: result["index"])
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    findings: dict[tuple[str, str, str], list[tuple[dict, str]]] = {}
    for result in results:
        for fault in result["faults"]:
            name = (fault["kind"], fault["command"], fault["key"])
            findings.setdefault(name, []).append((result, fault["detail"]))
    for kind in verdicts.KINDS:
        found = {name: where for name, where in findings.items() if name[0] == kind}
        if found:
            print(f"\n{kind}: {len(found)} findings")
        for (_, command, key), where in sorted(found.items(), key=lambda item: -len(item[1])):
            result, detail = where[0]
            print(f"  {len(where)} x ssql {command}: {key}\n      {detail}")
            print(f"      case {result['index']} ({result['wrong']}): {result['line'][:400]}")
    _table(results)
    counts = {
        kind: sum(any(f["kind"] == kind for f in result["faults"]) for result in results) for kind in verdicts.KINDS
    }
    print(f"\n{len(results)} cases of seed {options.seed}: " + ", ".join(f"{counts[kind]} {kind}" for kind in counts))
    tracebacks = counts["traceback"] + counts["crash"] + counts["hang"]
    print(f"{tracebacks} tracebacks, {counts['lost']} with files lost, {counts['wrong']} wrong results accepted")
    return 1 if any(counts[kind] for kind in verdicts.FATAL) else 0


def _table(results: list[dict]) -> None:
    print(f"\n{'command':20}{'cases':>6}{'ended':>7}{'refused':>9}" + "".join(f"{kind:>10}" for kind in verdicts.KINDS))
    for command in dict.fromkeys(sorted(result["command"] for result in results)):
        own = [result for result in results if result["command"] == command]
        kinds = Counter(kind for result in own for kind in {fault["kind"] for fault in result["faults"]})
        ended = sum(result["code"] == 0 for result in own)
        line = f"{command:20}{len(own):>6}{ended:>7}{len(own) - ended:>9}"
        print(line + "".join(f"{kinds[kind]:>10}" for kind in verdicts.KINDS))


if __name__ == "__main__":
    sys.exit(main())
