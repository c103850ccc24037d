"""The `ssql` command as it is typed: help, mistakes, and the one place that catches."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from jsonargparse import capture_parser
from written import unmeasured

from encoders import Head, load_encoder, load_head
from encoders.storage.files import staged_file
from ssql import cli
from ssql.terminal import errors, logs
from ssql.terminal.help import command_help

HOME = Path(__file__).resolve().parents[2]


@pytest.fixture
def ssql(monkeypatch, capsys):
    """Types a command; returns exit code, what stdout got, and what stderr got."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        out, err = capsys.readouterr()
        return (1, out, err + code) if isinstance(code, str) else (code, out, err)

    return run


@pytest.fixture
def audio(tmp_path):
    """Twenty clips of noise in two classes, one named like markup, and their transcripts."""
    noise = np.random.default_rng(0)
    lines = []
    for name in ("[red]", "[b]"):
        folder = tmp_path / "audio" / name
        folder.mkdir(parents=True)
        for number in range(10):
            soundfile.write(folder / f"{number}.wav", 0.1 * noise.standard_normal(8000), 16_000)
            lines.append(f"{name}/{number}.wav\tyes {number % 2}\n")
    (tmp_path / "texts.tsv").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "audio"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_short_has_examples_and_every_option_of_the_parser(name, ssql, monkeypatch):
    code, text, _ = ssql(name, "--help")
    assert code == 0
    assert len(text.splitlines()) < 150
    example = re.search(rf"^  (?:\S+ .* )?ssql {name} .*", text, re.MULTILINE)
    assert example
    monkeypatch.setattr(sys, "argv", ["ssql"])
    parser = capture_parser(lambda: cli._command(name)([]))
    mentioned = set(re.findall(r"^ *--([a-z_0-9]+)", text.partition("\noptions:\n")[2], re.MULTILINE))
    flags = [option for option in parser._option_string_actions if option.startswith("--")]
    real = {option.removeprefix("--").partition(".")[0].rstrip("+") for option in flags}
    internal = {"print_config", "print_completion", "print_shtab", "help"}
    assert real - internal <= mentioned
    assert mentioned <= real
    within = re.findall(r"--(?:model|trainer)\.\w+", text.partition("\nmodel, of which")[2])
    assert set(within) <= set(flags)


def test_help_names_the_options_within_options_and_where_their_help_is(ssql):
    """Of every command: an object among the options has a help of its own, and that help is there."""
    for name in cli.COMMANDS:
        _, text, _ = ssql(name, "--help")
        kinds = dict(re.findall(r"^  --([a-z_]+) (.*?)(?: = .*| \(required\))?$", text, re.MULTILINE))
        for option, kind in kinds.items():
            if re.search(r"\b(Policy|Quantizer|Reader|Encoder|DataModule)\b", kind):
                assert f"ssql {name} --{option}.help" in text, (name, option)
    _, text, _ = ssql("quantize", "--help")
    assert "--policy has first_layer, layers, granularity, weight_range, attention, shift, activation_range" in text
    for words in (("quantize", "--policy.help"), ("evaluate", "--quantizers.help"), ("suite", "--quantizers.help")):
        code, text, _ = ssql(*words)
        assert code == 0
        assert f"{words[1].removesuffix('.help')}." in text


def test_help_imports_nothing_heavy():
    words = "import sys; from ssql import cli; sys.argv = ['ssql', 'finetune', '--help']; cli.main(); "
    words += "print('heavy:', sorted({'torch', 'lightning', 'jsonargparse', 'numpy', 'rich'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, cwd=HOME, check=True)
    assert ran.stdout.endswith("heavy: []\n")


def test_help_keeps_the_lines_of_examples():
    lines = command_help("evaluate", "evaluate").splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("  ssql evaluate --encoders"))
    assert lines[first].endswith(" \\")
    assert lines[first + 1].startswith("      --data SpokenWords")


def test_the_whole_help_cuts_lists_of_classes(ssql):
    code, text, _ = ssql("finetune", "--help_all")
    assert code == 0
    assert "--trainer.max_epochs" in text
    assert re.search(r"known subclasses: .* and \d+\s+more", text, re.DOTALL)
    assert len(text.splitlines()) < 700


def test_overview_and_version(ssql):
    code, text, _ = ssql("--help")
    assert code == 0
    assert {"ssql-toolkit", "doctor", *cli.COMMANDS} <= set(text.split())
    code, text, _ = ssql("--version")
    assert code == 0
    assert text.startswith("ssql-toolkit 0.")
    code, text, _ = ssql()
    assert code == 2


PRETRAIN = (
    "pretrain --model SimSiam --model.encoder SpeechTransformer --model.augmentation SpeechAugmentation "
    "--data Digits --output y"
)
BAD_LINES = {
    "pretrian": "unknown command 'pretrian': did you mean pretrain?",
    "xyzzy": "unknown command 'xyzzy'; ssql --help lists them",
    "finetune --ouput x": "unknown option --ouput: did you mean --output?",
    "finetune --encoder x": "--task must be given",
    "bench": "--files must be given; see ssql bench --help",
    "evaluate --encoders.a x --data AudioFolder --output y": "--data.root must be given",
    "evaluate --encoders.a x --data Digits --output y --bit_widths w8a8":
        "--bit_widths takes a list such as '[a, b]', not w8a8",
    "evaluate --encoders.a x --data SpokenWordz --output y": "there is no class SpokenWordz: did you mean SpokenWords?",
    "evaluate --encoders.a x --data SpokenWords --data.train_siz 3 --output y": "did you mean train_size?",
    "quantize --encoder x --data Digits --output y --examples eight": "--examples takes a whole number, not eight",
    "quantize --encoder x --data Digits --output y --policy.shitf true": "did you mean shift?",
    "export --encoder x --output y --input wave": "--input takes log_mel or waveform, not wave",
    "finetune --encoder x --task w --data Digits --output y --model.freeze true":
        "write --freeze instead of --model.freeze",
    "finetune --encoder SpeechTransformr --encoder.width 3 --task w --data Digits --output y":
        "there is no class SpeechTransformr: did you mean SpeechTransformer?",
    "pretrain --config nowhere.yaml": "nowhere.yaml",
    "verify --encode x --file y": "did you mean --encoder?",
    "features a.wav --encoder x --output y --batch_size 99999999999999999999": "--batch_size must be from",
    "bench x.onnx --threads [1,99999999999999999999]": "--threads must be from",
    "finetune --encoder x --task w --data Digits --output y --trainer.max_steps 99999999999999999999":
        "--trainer.max_steps must be from",
    "quantize --encoder x --data {} --output y": "not the name of a DataModule",
    "export --encoder x --outpu y": "did you mean --output?",
    f"{PRETRAIN} --model.optimizer SimSiam": "SimSiam is a class, but of another kind than is needed here",
    f"{PRETRAIN} --model.optimizer torch.nn.Linear": "--model.optimizer: torch.nn.Linear makes no Optimizer",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_command_line_is_one_sentence_and_exit_code_2(line, ssql):
    code, _, said = ssql(*line.split())
    assert code == 2
    assert BAD_LINES[line] in said
    assert len(said.strip().splitlines()) == 1


BAD_INPUT = {
    "bench x.onnx": "x.onnx does not exist",
    "bench x.onnx --seconds [0]": "seconds must be 0.025 or more, got 0",
    "bench x.onnx --seconds []": "--seconds is empty",
    "bench x.onnx --threads [-1]": "threads must be 0 or more, got -1",
    "demo --files x --port 99999": "--port is from 0 to 65535, not 99999",
    "demo --files x --clips []": "--clips is empty",
    "verify --encoder x --file .": ". is a folder: give a file that ssql export wrote",
    "bench x.onnx --output ''": "--output is empty",
    "export --encoder x --output y --bit_width []": "--bit_width is empty",
    "export --encoder x --output y --accuracy ''": "--accuracy is empty",
    "stream --encoder x --output y --bit_width []": "--bit_width is empty",
    "evaluate --encoders.a x --data Digits --output y --bit_widths []": "--bit_widths is empty",
    "evaluate --encoders {} --data Digits --output y": "--encoders is empty",
    "evaluate --encoders.a x --data Digits --data.batch_size 0 --output y": "batch_size must be 1 or more",
    "compare --rows [] --output y": "--rows is empty",
    "report --runs [] --output y": "--runs is empty",
    "suite --encoders {} --output y": "--encoders is empty",
    "features a.wav --encoder x --output y --batch_size 0": "batch_size must be 1 or more, got 0",
    "quantize --encoder x --data Digits --output y": "no encoder at x",
}


@pytest.mark.parametrize("line", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_1(line, ssql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = ssql(*shlex.split(line))
    assert code == 1
    assert BAD_INPUT[line] in said
    assert not list(tmp_path.iterdir())


def test_configurations_that_are_none_are_named(ssql, tmp_path):
    for name, content in {"cut.yaml": b"a: [b\n", "picture.yaml": b"\xff\xfe\x00\x80"}.items():
        (tmp_path / name).write_bytes(content)
        code, _, said = ssql("finetune", "--config", tmp_path / name)
        assert code == 2
        assert f"{tmp_path / name} is not YAML" in said
    (tmp_path / "other.yaml").write_text("encoder: x\ntask: w\noutput: o\ndata: Digits\nquantiser: lsq\n")
    code, _, said = ssql("finetune", "--config", tmp_path / "other.yaml")
    assert code == 2
    assert "unknown option quantiser: did you mean quantizer?" in said


def break_command(monkeypatch, error):
    def broken(args):
        raise error

    monkeypatch.setattr(cli, "_command", lambda name: broken)


@pytest.mark.parametrize("command", ["pretrain", "evaluate"])
def test_a_configuration_is_not_fetched_from_an_address(command, ssql, monkeypatch):
    monkeypatch.setattr("fsspec.open", lambda *args, **kwargs: pytest.fail("it reached out to the network"))
    code, _, said = ssql(command, "--config", "https://example.invalid/recipe.yaml")
    assert code == 2 and "File does not exist: 'https://example.invalid/recipe.yaml'" in said


def test_a_bug_says_so_and_leaves_its_traceback(ssql, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # An operation that fails within our code, rather than a sentence that our code raises.
    monkeypatch.setattr(cli, "_command", lambda name: lambda args: cli._files_first(None))
    code, _, said = ssql("bench", "a.onnx")
    assert code == 70
    assert re.search(r"ssql bench: internal error: TypeError: .* \(cli\.py:\d+\)", said)
    assert "please report it" in said
    (left,) = tmp_path.iterdir()
    assert str(left) in said
    assert "Traceback (most recent call last)" in left.read_text(encoding="utf-8")
    assert "_files_first" in left.read_text(encoding="utf-8")


def test_debug_shows_the_traceback_wherever_it_stands(ssql):
    for words in (["--debug", "bench", "x.onnx"], ["bench", "--debug", "x.onnx"], ["bench", "x.onnx", "--debug"]):
        with pytest.raises(FileNotFoundError, match=r"x\.onnx does not exist"):
            ssql(*words)


def test_interrupted_and_errors_of_the_system(ssql, monkeypatch):
    break_command(monkeypatch, KeyboardInterrupt())
    assert ssql("bench", "x") == (130, "", "ssql bench: interrupted\n")
    break_command(monkeypatch, OSError(28, "No space left on device", "runs/a/model.safetensors"))
    assert ssql("bench", "x")[2] == "ssql bench: error: runs/a/model.safetensors: no space left on the disk"
    break_command(monkeypatch, PermissionError(13, "Permission denied", "/root/x"))
    assert ssql("bench", "x")[2] == "ssql bench: error: /root/x: permission denied"
    break_command(monkeypatch, ModuleNotFoundError("No module named 'torchaudio'"))
    assert "`ssql doctor`" in ssql("bench", "x")[2]


def test_a_full_disk_is_said_with_the_file_that_was_not_written(tmp_path):
    with pytest.raises(OSError, match="was not written") as full, staged_file(tmp_path / "train-000003.tar"):
        raise OSError(28, "No space left on device")
    unchanged = "train-000003.tar was not written, and what was there is unchanged: No space left on device"
    assert errors.sentence_of(full.value) == f"{tmp_path}/{unchanged}"


def test_errors_of_other_libraries_about_files_are_no_bugs(tmp_path):
    import onnxruntime
    import safetensors.torch
    import torch

    (tmp_path / "bad").write_bytes(b"nothing of the kind" * 3)

    def of(function, *arguments):
        with pytest.raises(Exception) as caught:
            function(*arguments)
        return errors.sentence_of(caught.value)

    assert of(safetensors.torch.load_file, tmp_path / "bad").startswith("a safetensors file cannot be read")
    assert of(onnxruntime.InferenceSession, tmp_path / "bad").startswith("ONNX Runtime: ")
    assert of(json.loads, "{").startswith("a file is not JSON")
    assert of(yaml.safe_load, "[").startswith("a file is not YAML")
    assert of((tmp_path / "missing").read_bytes) == f"{tmp_path / 'missing'}: no such file or directory"
    assert errors.sentence_of(torch.OutOfMemoryError("CUDA out of memory. Tried")).startswith("out of memory")
    assert of(torch.zeros(2, 3).matmul, torch.zeros(2)) is None


def test_files_of_any_name_reach_their_command():
    names = ["é😀.wav", "a'b.wav", '"c".wav', os.fsdecode(b"\xff.wav")]
    [files, more] = cli._files_first([*names, "--more"])
    assert more == "--more"
    assert yaml.safe_load(files.removeprefix("--files=")) == names


def test_a_busy_machine_is_told_what_helps(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (4.8, 0.0, 0.0))
    assert "load 4.8 on 2 cores): with OMP_NUM_THREADS=1" in logs.busy_sentence()
    monkeypatch.setattr("os.getloadavg", lambda: (2.1, 9.0, 9.0))
    assert logs.busy_sentence() is None


def test_a_reader_that_has_enough_ends_it_quietly():
    words = "import sys; from ssql import cli; sys.argv = ['ssql', 'bench', 'x']\n"
    words += "cli._command = lambda name: lambda args: print('word\\n' * 100_000)\ncli.main()"
    ran = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -1', sys.executable, words], capture_output=True, text=True, cwd=HOME
    )
    assert (ran.stdout, ran.stderr) == ("word\n", "")


def test_warnings_are_one_line_and_chatter_is_not_shown(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logs.set_up_logs()
        warnings.warn("Found 24 module(s) in eval mode at the start of training.", stacklevel=1)
        warnings.warn("the 'train_dataloader' does not have many workers", stacklevel=1)
        warnings.warn("a real one,\nof two lines", stacklevel=1)
    assert capsys.readouterr().err == "warning: a real one, of two lines\n"


def test_transcripts_reach_recognition_as_a_path(audio, saved, ssql, tmp_path, caplog):
    """From jsonargparse 4.51 on the file's content came instead; the log of the run tells how far it is."""
    caplog.set_level(logging.INFO)
    words = ["--encoder", saved, "--task", "text", "--data", "AudioFolder", "--data.root", audio]
    words += ["--data.batch_size", 6, "--validation", 0.34, "--trainer.max_epochs", 1, "--bit_width", "w4a8"]
    code, out, err = ssql("finetune", *words, "--data.texts", tmp_path / "texts.tsv", "--output", tmp_path / "run")
    assert code == 0, err
    head = load_head(tmp_path / "run" / "model")
    assert isinstance(head, Head)
    assert set("yes") < set("".join(head.classes))
    lines = [record.getMessage() for record in caplog.records if record.name == "ssql.terminal.progress"]
    assert re.match(r"training [\d,]+ of [\d,]+ parameters on cpu", lines[0])
    assert re.match(r"epoch 1 of 1, step 1 of 2, loss [\d.]+, [\d.]+ steps/s, \d:\d\d:\d\d left", lines[1])
    assert lines[-1].endswith("trained")
    for chatter in ("FLOPs", "litlogger", "eval mode", "weights_only", "does not have many workers"):
        assert chatter not in out + err
    # And from the configuration that the run has left.
    config = next((tmp_path / "run").glob("logs/version_*/config.yaml"))
    again = yaml.safe_load(config.read_text(encoding="utf-8"))
    assert again["data"]["init_args"]["texts"] == str(tmp_path / "texts.tsv")
    end = ["--trainer.max_steps", 1, "--trainer.max_epochs", 2]
    code, _, err = ssql("finetune", "--config", config, "--output", tmp_path / "again", *end)
    assert code == 0, err
    lines = [record.getMessage() for record in caplog.records if record.name == "ssql.terminal.progress"]
    assert re.match(r"epoch 1 of 2, step 1 of 1, .* trained", lines[-1])


def test_spelling_and_files_for_encoders_on_the_command_line(audio, saved, ssql, tmp_path):
    words = ["--task", "text", "--data", "AudioFolder", "--data.root", audio, "--data.batch_size", 6]
    words += ["--output", tmp_path / "run", "--trainer.max_steps", 1, "--validation", 0.34]
    code, _, err = ssql("finetune", "--encoder", saved, *words, "--data.texts.task", "class")
    assert code == 0, err
    # A file is no folder: its name is said, and not what is in it.
    for name in ("model.safetensors", "config.json"):
        words[-5] = tmp_path / name
        code, _, err = ssql("finetune", "--encoder", saved / name, *words)
        assert code == 1
        assert f"no encoder at {saved / name}" in err


def test_data_without_a_test_split_serves_what_measures_nothing(audio, saved, ssql, tmp_path, monkeypatch):
    monkeypatch.setattr("export.measure_files", unmeasured)
    words = ["--encoder", saved, "--data", "AudioFolder", "--data.root", audio, "--data.batch_size", 4]
    words += ["--data.test_pattern", "nothing", "--output", tmp_path / "run"]
    training = ["--trainer.max_steps", 1, "--validation", 0.34]
    code, out, err = ssql("export", *words, "--bit_width", "fp")
    assert code == 0, err
    report = json.loads((tmp_path / "run" / "encoder-fp32.verification.json").read_text())
    assert (report["inputs"], report["passed"]) == ("given data", True)
    code, _, err = ssql("tokenizer", *words, *training, "--linguistic_codes", 4, "--semantic_codes", 6)
    assert code == 0, err
    words[-1] = tmp_path / "finetuned"
    code, _, err = ssql("finetune", *words, *training, "--task", "class")
    assert (code, "test_pattern 'nothing' leaves none for the test split" in err) == (1, True), err


def test_brackets_in_names_are_not_markup(saved, ssql, tmp_path, audio):
    words = ["--data", "AudioFolder", "--data.root", audio, "--data.batch_size", 6]
    code, out, err = ssql("quantize", "--encoder", saved, *words, "--output", tmp_path / "[red]a[/b]")
    assert code == 0, err
    assert f"encoder: {tmp_path}/[red]a[/b]\n" in out
    load_encoder(tmp_path / "[red]a[/b]")
    rows = [
        {"method": "[/b]mine", "task": "[red]", "bit_width": b, "metric": "linear", "value": 50.0, "clips": 4}
        for b in ("fp", "w8a8")
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    code, out, err = ssql("compare", "--rows", f'["{tmp_path}/rows.json"]', "--output", tmp_path / "both")
    assert code == 0, err
    assert "[/b]mine" in out
    assert "[red]" in out


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("devices", "0", "--trainer.devices is the number of processes, 1 or more"),
        ("accelerator", "gpu", "this machine has no accelerator of that kind"),
        ("max_time", "abc", "--trainer.max_time is written DD:HH:MM:SS"),
    ],
)
def test_machines_that_are_not_there(option, value, sentence, audio, saved, ssql, tmp_path):
    words = ["--encoder", saved, "--task", "class", "--data", "AudioFolder", "--data.root", audio]
    words += ["--data.batch_size", 6, "--validation", 0.34, "--output", tmp_path / "run"]
    code, _, said = ssql("finetune", *words, f"--trainer.{option}", value)
    assert code == 1
    assert sentence in said


def test_doctor_and_help_without_torch(tmp_path):
    """As where torch does not load: a module of its name that fails stands in front."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: cannot open shared object file')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{HOME}"}

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "ssql.cli", *words], capture_output=True, text=True, cwd=HOME, env=environment
        )

    ran = run("quantize", "--help")
    assert ran.returncode == 0, ran.stderr
    ran = run("quantize", "--encoder", "x", "--data", "Digits", "--output", "y")
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "libtorch.so" in ran.stderr and "`ssql doctor`" in ran.stderr


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--data.train_size", "null"], "data.train_size"),
        (["--data.test_size", "null"], "data.test_size"),
        (["--data.batch_size", "null"], "data.batch_size"),
    ],
)
def test_null_is_no_number(words, option, saved, tmp_path, monkeypatch, capsys):
    arguments = ["evaluate", "--encoders.a", saved, "--data", "SpokenWords", "--output", tmp_path / "out", *words]
    monkeypatch.setattr(sys, "argv", ["ssql", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert f"ssql evaluate: error: {option} must have a value: null is none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_data_and_no_configuration_is_said(saved, tmp_path, monkeypatch, capsys):
    def said(*words):
        monkeypatch.setattr(sys, "argv", ["ssql", "quantize", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr().err

    os.mkfifo(tmp_path / "pipe")
    assert said("--config", tmp_path / "pipe") == (
        2, f"ssql quantize: error: {tmp_path}/pipe is a named pipe: give a file or a folder\n"
    )  # fmt: skip
    words = ["--task", "x", "--data", "Digits", "--output", tmp_path / "out"]
    for option in (["--encoder", tmp_path / "pipe"], [f"--encoder={tmp_path}/pipe"]):
        monkeypatch.setattr(sys, "argv", ["ssql", "finetune", *map(str, (*option, *words))])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        assert "pipe is a named pipe: give a file or a folder" in capsys.readouterr().err
    code, text = said("--encoder", saved, "--data", "DataModule", "--output", tmp_path / "out")
    assert (code, text.count("\n")) == (2, 1), text
    assert "DataModule is only what others are made from: class_path must be one of AudioFolder, " in text
