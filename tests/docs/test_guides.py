"""The guides are followed as a reader would: command by command, in one folder, on small data.

Run are the four commands of `make quickstart`, then every line of docs/start.md, quantize.md, data.md, pretrain.md,
finetune.md and export.md that PARSED_ONLY does not name, and their Python. Options behind a command make it small:
one step, a narrow encoder, a few clips, one bit-width. What PARSED_ONLY names takes long or runs in other tests;
test_commands.py lets the parsers read it, as all commands of README.md and the other pages.
"""

import re
import shlex
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
import published_reference as published
from pages import HOME, PAGES, blocks, command_lines, words_of

from export.runtime.ort_session import EXACT
from ssql import cli

GUIDES = ("start.md", "quantize.md", "data.md", "pretrain.md", "finetune.md", "export.md")
# Parts of the lines that are not run here.
PARSED_ONLY = (
    "distilled_tiny.yaml",  # tests/ssql/commands/test_quantize.py
    "transformer_distill_words.yaml",  # tests/ssql/commands/test_import_weights.py
    "data/pictures",  # tests/ssql/commands/test_pretrain.py
    "ssql suite",  # tests/ssql/commands/test_suite_and_evaluate.py
    "ssql report",
    "ssql tokenizer",  # tests/ssql/commands/test_tokenizer.py
    "ssql evaluate_tokenizer",
    "--resume true",
    "--task text",  # tests/ssql/test_cli.py
    "finetune --config",
    "ssql export --encoder runs/word/model",  # tests/ssql/test_commands.py
    "ssql export --encoder runs/whisper/quantized",
    "ssql verify --file runs/whisper",
    "runs/word/onnx/encoder-int4.onnx",  # tests/ssql/test_shipped.py
    "ssql verify --file runs/files/encoder-int4.onnx",  # int8 alone is exported there
    "ssql bench",  # tests/ssql/test_commands.py
    "ssql demo",  # tests/ssql/commands/test_demo.py
    "StreamingTransformer",  # tests/export/test_write_stream.py
    "ssql stream",
    "make install",
    "make web",
    ". .venv/bin/activate",
    "ssql doctor",  # tests/ssql/commands/test_doctor.py
    "hf download",  # no network
    "ct2-transformers-converter",
    "--reader WhisperDecoder",  # tests/ssql/commands/test_reader.py
    "pip install",
    "g++",
)
TRAINING = "--trainer.max_epochs 1 --trainer.max_steps 1 --trainer.logger false --data.batch_size 8"
NARROW = (
    "--model.encoder.width 16 --model.encoder.depth 1 --model.encoder.heads 2 --model.dim 16 --model.warmup_steps 0"
)
SMALLER = {
    "pretrain": f"{TRAINING} {NARROW} --calibration_batches 1 --bias_correction '[w8a8]'",
    "finetune": f"{TRAINING} --calibration_batches 1 --model.precision.test_at '[w4a8]'",
    "evaluate": "--bit_widths '[w4a8]'",
    "export": "--bit_width w8a8",
    "quantize": "--examples 4 --bit_width w8a8",
}
WORDS = "--data.languages '[de, fr]' --data.train_size 40 --data.test_size 20"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader has: the checkout's recipes and examples, recordings, published weights."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("experiments", "examples"):
        (folder / name).symlink_to(HOME / name)
    noise = np.random.default_rng(0)
    clips = [folder / "recordings" / name / f"{n}.wav" for name in ("anna", "ben") for n in range(12)]
    for clip in (folder / "talk.wav", *clips):
        clip.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(clip), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((3000 * noise.standard_normal(12_800)).astype("<i2").tobytes())
    for name in ("noises", "rooms"):
        (folder / name).symlink_to("recordings", target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        for size, value in {"width": 64, "heads": 1, "depth": 1, "positions": 600}.items():
            patch.setitem(published.SIZES, size, value)
        published.write(folder / "whisper-base", "whisper", published.random_weights(adaptor=False))
    return folder


def lines_of(page: str) -> list[str]:
    """What a reader of a guide types, `make quickstart` as the commands that it runs."""
    lines = []
    for line in command_lines(page):
        if line == "make quickstart":
            # In a folder that nobody has, so that nothing counts as made or as stopped in the middle.
            words = ["make", "--dry-run", "quickstart", "QUICKSTART=runs/none"]
            said = subprocess.run(words, cwd=HOME, capture_output=True, text=True, check=True).stdout
            whole = said.replace("\\\n", " ").replace("runs/none", "runs/quickstart")
            lines += re.findall(r"^\S*/(ssql .*)", whole, re.MULTILINE)
        else:
            lines.append(line)
    return lines


def smaller(words: list[str]) -> list[str]:
    more = SMALLER.get(words[0], "")
    spoken = "SpokenWords" in words or (words[0] == "pretrain" and "--data" not in words)
    alone = "--data.num_workers 0" if "--data.num_workers" in words else ""  # no forks of a process of many threads
    return [*words, *shlex.split(f"{more} {WORDS if spoken else ''} {alone}")]


def run(line: str, monkeypatch) -> None:
    words = words_of(line)
    if words is None:
        program, *arguments = line.split()
        assert program == "python", f"no test knows how to run {line!r}"
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return
    monkeypatch.setattr(sys, "argv", ["ssql", *smaller(words)])
    try:
        cli.main()
    except SystemExit as stopped:
        assert not stopped.code, f"{line}: {stopped.code}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_leads_to_its_end(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("export.runtime.bench.COLD_STARTS", 1)
    followed = [line for line in lines_of(page) if not any(part in line for part in PARSED_ONLY)]
    assert followed
    for line in followed:
        run(line, monkeypatch)
    for block in blocks("python"):
        if block.page == page:
            exec(compile(block.text, page, "exec"), {"__name__": "reader"})


def test_other_languages_name_what_the_files_take_and_give(folder):
    """After export.md was followed."""
    session = onnxruntime.InferenceSession(folder / "runs" / "files" / "encoder-int8.onnx")
    types = {"tensor(float)": ("float", "f32"), "tensor(int64)": ("int64_t", "i64")}
    for value in (*session.get_inputs(), *session.get_outputs()[:1]):
        for language, name_of in (("cpp", 0), ("rust", 1)):
            (block,) = blocks(language)
            assert f'"{value.name}"' in block.text
            assert types[value.type][name_of] in block.text


def test_sessions_in_pages_and_examples_compute_what_the_file_says():
    opened = [b.text for b in [*blocks("python"), *blocks("cpp"), *blocks("rust")] if re.search(r"\bSession\b", b.text)]
    opened += [b.text for b in blocks("python") if "InferenceSession" in b.text]
    opened += [
        (HOME / path).read_text(encoding="utf-8") for path in ("examples/python_without_torch.py", "export/card.md")
    ]
    assert len(opened) == 5
    for text in opened:
        for name, value in EXACT.items():
            assert re.search(rf'"{re.escape(name)}"(, |: )"{value}"', text), text


def test_python_is_in_guides_that_are_followed():
    assert {block.page for block in blocks("python")} <= set(GUIDES)


def test_what_is_only_parsed_is_still_written():
    lines = [line for page in PAGES for line in command_lines(page.name)]
    assert [part for part in PARSED_ONLY if not any(part in line for line in lines)] == []
