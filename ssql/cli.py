"""The `ssql` command: what each of its words does, and where."""

import difflib
import importlib
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from ssql.commands.doctor import doctor, version
from ssql.terminal.errors import bug_report, sentence_of
from ssql.terminal.help import RUNS, command_help
from ssql.terminal.interruption import Interrupted, heard_everywhere, interruptible

USAGE = """usage: ssql COMMAND [options]

  import     published weights:         ssql import --weights whisper-base/ --output runs/whisper
  pack       files into shards:         ssql pack --data.root recordings --output shards/recordings
  pretrain   pretrain an encoder:       ssql pretrain --config FILE.yaml --output runs/mine
  finetune   encoder and head:          ssql finetune --encoder runs/mine/encoder --data SpokenWords --task word ...
  tokenizer  tokens of two streams:     ssql tokenizer --encoder runs/mine/encoder --data SpokenWords ...
  evaluate   accuracy at bit-widths:    ssql evaluate --config FILE.yaml --output runs/mine
  evaluate_tokenizer  tokens that stay: ssql evaluate_tokenizer --tokenizers.mine runs/tokens/model ...
  suite      speech at bit-widths:      ssql suite --encoders.mine runs/mine/encoder --output runs/mine
  compare    merge evaluations:         ssql compare --rows '[a/accuracy.json, b/accuracy.json]' --output runs/both
  report     runs as one HTML page:     ssql report --runs '[runs/a, runs/b]' --output report.html
  quantize   for low bits, no training: ssql quantize --encoder runs/whisper --bit_width w4a8 --output runs/w4 ...
  export     write ONNX files:          ssql export --encoder runs/mine/encoder --output runs/mine --bit_width w4a8
  stream     a streaming encoder:       ssql stream --encoder runs/mine/encoder --output runs/mine --bit_width w4a8
  verify     ONNX file against torch:   ssql verify --file F.onnx --encoder runs/mine/encoder
  features   of long audio files:       ssql features talk.wav --encoder runs/mine/encoder --output runs/features
  bench      latency of ONNX files:     ssql bench a.onnx b.onnx
  demo       files in a web page:       ssql demo --files runs/mine
  doctor     is all that is needed here, and does it load?

ssql COMMAND --help says more, with examples; --print_config writes a command's whole configuration;
--debug, anywhere, shows where an error came from; ssql --version. Recipes: experiments/; guide: README.md.
"""

# Each a function in a module of `ssql.commands`, both of its name; `import` is no name that Python allows.
COMMANDS = (
    "import", "pack", "pretrain", "finetune", "tokenizer", "evaluate", "evaluate_tokenizer", "suite", "compare",
    "report", "quantize", "export", "stream", "verify", "features", "bench", "demo",
)  # fmt: skip
NAMES = {"import": "import_weights"}

BAD_INPUT, BAD_COMMAND_LINE, BUG, INTERRUPTED = 1, 2, 70, 130


def main() -> None:
    """Entry point. An error is one sentence: exit code 1 for bad input, 2 for a bad command line, 70 for a bug."""
    debug = "--debug" in sys.argv
    name, *args = [word for word in sys.argv[1:] if word != "--debug"] or [""]
    with heard_everywhere():
        _run(name, args, debug)


def _answer(name: str, args: list[str]) -> None:
    """What was asked for, a command among others."""
    if name in ("", "-h", "--help"):
        sys.stdout.write(f"{version()}\n{USAGE}")
        sys.exit(0 if name else BAD_COMMAND_LINE)
    if name in ("--version", "-V"):
        sys.stdout.write(f"{version()}\n")
        return
    if name == "doctor":
        sys.exit(doctor(args))
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, [*COMMANDS, "doctor"], 1)
        hint = f": did you mean {nearest[0]}?" if nearest else "; ssql --help lists them"
        _stop(f"ssql: unknown command {name!r}{hint}", BAD_COMMAND_LINE)
    if "--help" in args or "-h" in args:
        sys.stdout.write(command_help(name, NAMES.get(name, name)))
        return
    if name in ("bench", "features"):
        args = _files_first(args)
    args = ["--help" if word == "--help_all" else word for word in args]
    sys.argv = [f"ssql {name}", *args]
    _command(name)(args)


def _run(name: str, args: list[str], debug: bool) -> None:
    """The one place that catches."""
    try:
        with interruptible([signal.SIGTERM]):  # Ctrl-C raises by itself
            _answer(name, args)
        sys.stdout.flush()
    except Interrupted as stop:
        if str(stop):
            sys.stderr.write(f"ssql {name}: {stop}\n")
        sys.exit(stop.code)
    except SystemExit as stopped:
        if debug and stopped.__context__ is not None:
            traceback.print_exception(stopped.__context__)
        raise
    except KeyboardInterrupt:
        if debug:
            raise
        _stop(f"ssql {name}: interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Who reads has enough, as `head` does. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BAD_INPUT)
    except Exception as error:
        if debug:
            raise
        sentence = sentence_of(error)
        if sentence is None:
            _stop(f"ssql {name}: {bug_report(error)}", BUG)
        sys.exit(f"ssql {name}: error: {sentence}")


def _stop(sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    sys.exit(code)


def _files_first(args: list[str]) -> list[str]:
    """`a.onnx b.onnx --threads 2` as `--files '["a.onnx", "b.onnx"]' --threads 2`."""
    count = next((place for place, word in enumerate(args) if word.startswith("-")), len(args))
    # As YAML has them: an emoji as itself, a byte that is no UTF-8 escaped.
    written = re.sub(
        "[\ud800-\udfff]", lambda byte: f"\\u{ord(byte[0]):04x}", json.dumps(args[:count], ensure_ascii=False)
    )
    return [f"--files={written}", *args[count:]] if count else args


def _command(name: str) -> Callable[[list[str]], object]:
    # Imported only when run: torch and Lightning take seconds, `ssql --help` should not.
    from ssql.terminal.logs import busy_sentence, set_up_logs

    set_up_logs()
    busy = busy_sentence()
    sys.stderr.write(f"{busy}\n" if busy else "")
    waits = "loading PyTorch ...\r" if sys.stderr.isatty() else ""
    sys.stderr.write(waits)
    function_name = NAMES.get(name, name)
    function: Callable[..., object] = getattr(importlib.import_module(f"ssql.commands.{function_name}"), function_name)
    sys.stderr.write(waits and f"{'':{len(waits)}}\r")
    if name in RUNS:
        return lambda args: function()
    from jsonargparse import auto_cli

    from ssql.terminal.parsing import Sentences

    return lambda args: auto_cli(function, args=args, as_positional=False, parser_class=Sentences, prog=f"ssql {name}")


if __name__ == "__main__":
    main()
