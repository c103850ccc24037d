"""Every command in README.md and docs/*.md is one that `ssql` takes; those of the guides' chain are run."""

import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
from jsonargparse import capture_parser

sys.path.insert(0, str(Path(__file__).parent))
from pages import HOME, PAGES, command_lines, spans, words_of

from ssql import cli

COMMANDS = {*cli.COMMANDS, "doctor"}
# What a page's options in prose and tables are options of.
OF_PAGE = {
    "pretrain.md": "ssql pretrain --config experiments/speech/transformer_ssql_words.yaml --output runs/x",
    "finetune.md": "ssql finetune --encoder runs/x --data AudioFolder --data.root x --task class --output runs/y",
    "data.md": "ssql finetune --encoder runs/x --data AudioFolder --data.root x --task class --output runs/y",
    "quantize.md": "ssql quantize --encoder runs/x --data AudioFolder --data.root recordings --output runs/y",
    "export.md": "ssql quantize --encoder runs/x --data SpokenWords --output runs/y",
}
EXPORT = "ssql export --encoder runs/x --output runs/y"
IMPORT = "ssql import --weights x --layout whisper --output runs/y"
READ = "ssql evaluate --encoders.a runs/x --data SpokenWords --output runs/y --reader WhisperDecoder --reader.folder x"
OTHERS = {
    "export.md": {"--input waveform": EXPORT, "--float16 true": EXPORT, "--runtime openvino": EXPORT},
    "quantize.md": {
        "--layout whisper": IMPORT,
        "--fill false": IMPORT,
        "--margin 5": IMPORT,
        "--bench false": EXPORT,
        "--accuracy runs/whisper/read/accuracy.json": EXPORT,
        """--encoders '{"fp": "runs/whisper/encoder-fp32.onnx", "int8": "runs/whisper/encoder-int8.onnx"}'""": READ,
        "--reader.language de --reader.normalizer basic": READ,
    },
}
LINES = [(page.name, line) for page in PAGES for line in command_lines(page.name)]
SPANS = [(page.name, span) for page in PAGES for span in spans(page)]


@cache
def parser_of(name: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ssql"])
        return capture_parser(lambda: cli._command(name)([]))


def check(line: str, words: list[str]) -> None:
    """Let the command's own parser read a line, as it would before it runs."""
    name, *options = words
    assert name in COMMANDS, f"{line}: there is no command {name}"
    if name == "doctor" or options == ["--help"]:
        return
    if "--resume" in options:  # its configuration is made by the run that was stopped
        place = options.index("--config")
        options[place : place + 2] = ["--output", "runs/x"]
        options += RESUMABLE[name]
    if name in ("bench", "features"):
        options = cli._files_first(options)
    try:
        parser_of(name).parse_args(options)
    except SystemExit as stopped:
        pytest.fail(f"{line}: {stopped}")


RESUMABLE = {
    "pretrain": ["--config", "experiments/speech/transformer_ssql_words.yaml"],
    "finetune": ["--encoder", "runs/x", "--task", "word", "--data", "SpokenWords"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "line"), LINES)
def test_what_a_reader_types_is_taken(page, line, monkeypatch):
    monkeypatch.chdir(HOME)
    words = words_of(line)
    if words is not None:
        check(line, words)
    elif line.startswith("make "):
        target = line.split()[1]
        assert re.search(rf"^{target}:", (HOME / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
    elif re.match(r"(\.venv/bin/)?python \S+\.py", line):
        assert (HOME / line.split()[1]).is_file(), line
    else:
        known = (
            r"\. \.venv/bin/activate",
            r"pip install onnxruntime numpy",
            r"pip install 'ssql-toolkit\[\w+\]'",
            r"hf download openai/",
            r"ct2-transformers-converter --model openai/",
            r"g\+\+ -std=c\+\+17 ",
        )
        assert re.match("|".join(known), line), f"{page}: no test knows what to do with {line!r}"


@pytest.mark.filterwarnings("ignore")
def test_options_in_prose_and_tables_are_taken(monkeypatch):
    monkeypatch.chdir(HOME)
    seen = set()
    for page, span in SPANS:
        if span.startswith("ssql ") and "COMMAND" not in span:
            name, *options = shlex.split(span)[1:]
            if name == "--help":
                continue
            assert name in COMMANDS, f"{page}: {span}"
            known = (
                {option.partition(".")[0] for option in parser_of(name)._option_string_actions} if options else set()
            )
            for option in options:
                if option.startswith("--"):
                    assert option.partition(".")[0] in known, f"{page}: {span}"
        elif span.startswith("--") and " " in span and page in OF_PAGE:
            base = OTHERS.get(page, {}).get(span, OF_PAGE[page])
            seen.add(page)
            check(f"{page}: {span}", [*shlex.split(base)[1:], *shlex.split(span)])
    assert seen == OF_PAGE.keys()
