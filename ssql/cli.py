"""The `ssql` command: what each of its words does, and where."""

import importlib
import json
import sys
from collections.abc import Callable

from ssql.interruption import Interrupted

USAGE = """usage: ssql COMMAND [options]

  import     published weights:         ssql import --weights FILE.safetensors --layout whisper --output runs/start
  pretrain   pretrain an encoder:       ssql pretrain --config FILE.yaml --output runs/mine
  finetune   encoder and head:          ssql finetune --encoder runs/mine/encoder --data SpokenWords --task word ...
  tokenizer  tokens of two streams:     ssql tokenizer --encoder runs/mine/encoder --data SpokenWords ...
  evaluate   accuracy at bit-widths:    ssql evaluate --config FILE.yaml --output runs/mine
  evaluate_tokenizer  tokens that stay: ssql evaluate_tokenizer --tokenizers.mine runs/tokens/model ...
  suite      speech at bit-widths:      ssql suite --encoders.mine runs/mine/encoder --output runs/mine
  compare    merge evaluations:         ssql compare --rows '[a/accuracy.json, b/accuracy.json]' --output runs/both
  report     runs as one HTML page:     ssql report --runs '[runs/a, runs/b]' --output report.html
  calibrate  other grids and ranges:    ssql calibrate --encoder runs/mine/encoder --output runs/mse --observer mse ...
  export     write ONNX files:          ssql export --encoder runs/mine/encoder --output runs/mine --bit_width w4a8
  stream     a streaming encoder:       ssql stream --encoder runs/mine/encoder --output runs/mine --bit_width w4a8
  verify     ONNX file against torch:   ssql verify --file F.onnx --encoder runs/mine/encoder
  features   of long audio files:       ssql features talk.wav --encoder runs/mine/encoder --output runs/features
  bench      latency of ONNX files:     ssql bench a.onnx b.onnx
  demo       files in a web page:       ssql demo --files runs/mine

ssql COMMAND --help says more; --print_config writes a command's whole configuration.
"""

# Where each command is: module and function.
COMMANDS = {
    "import": ("ssql.importing", "import_weights"),
    "pretrain": ("ssql.pretrain", "pretrain"),
    "finetune": ("ssql.finetune", "finetune"),
    "tokenizer": ("ssql.tokenizer", "tokenizer"),
    "evaluate": ("ssql.results", "evaluate"),
    "evaluate_tokenizer": ("ssql.results", "evaluate_tokenizer"),
    "suite": ("ssql.results", "suite"),
    "compare": ("ssql.results", "compare"),
    "report": ("ssql.results", "report"),
    "calibrate": ("ssql.commands", "calibrate"),
    "export": ("ssql.commands", "export"),
    "stream": ("ssql.commands", "stream"),
    "verify": ("ssql.commands", "verify"),
    "features": ("ssql.commands", "features"),
    "bench": ("ssql.commands", "bench"),
    "demo": ("ssql.demo", "demo"),
}


def main() -> None:
    """Entry point: one-line errors, exit code 1 for bad input and 2 for a bad command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    name, *args = sys.argv[1:]
    if name not in COMMANDS:
        sys.exit(f"ssql: unknown command {name!r}\n{USAGE}")
    if name in ("bench", "features"):
        args = _files_first(args)
    sys.argv = [f"ssql {name}", *args]
    try:
        _command(name)(args)
    except Interrupted as stop:
        if str(stop):
            sys.stderr.write(f"ssql {name}: {stop}\n")
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.stderr.write(f"ssql {name}: interrupted\n")
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, TypeError) as error:
        if "--debug" in args:
            raise
        sys.exit(f"ssql {name}: error: {_sentence(error)}")


def _files_first(args: list[str]) -> list[str]:
    """`a.onnx b.onnx --threads 2` as `--files '["a.onnx", "b.onnx"]' --threads 2`."""
    count = next((place for place, word in enumerate(args) if word.startswith("-")), len(args))
    return [f"--files={json.dumps(args[:count])}", *args[count:]] if count else args


def _sentence(error: Exception) -> str:
    """What was wrong, out of the nested lists that jsonargparse makes of a class's own error."""
    reasons = [line.strip(" -") for line in str(error).splitlines() if line.lstrip().startswith("- ")]
    reasons = [reason for reason in reasons if not reason.startswith(("Expected a", "Does not validate"))]
    return "; ".join(reasons) or str(error)


def _command(name: str) -> Callable[[list[str]], object]:
    # Imported only when run: torch and Lightning take seconds, `ssql --help` should not.
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("matplotlib", "httpx", "torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    module, function_name = COMMANDS[name]
    function: Callable[..., object] = getattr(importlib.import_module(module), function_name)
    if name in ("pretrain", "finetune", "tokenizer"):
        logging.getLogger("lightning.pytorch").propagate = False  # it has a handler of its own
        return lambda args: function()
    from jsonargparse import auto_cli

    return lambda args: auto_cli(function, args=args, as_positional=False, prog=f"ssql {name}")


if __name__ == "__main__":
    main()
