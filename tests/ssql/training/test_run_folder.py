"""The folder of a run through the command line: nothing of an earlier run or of the user is lost or misreported."""

import json
import os
import resource
import signal
import sys
import time

import pytest
import safetensors.torch
import torch
import yaml

import quant
from encoders import VisionEncoder, load_encoder, save_encoder
from encoders.storage.files import staged_file
from ssql import cli
from ssql.finetuning.training import Finetuning
from ssql.methods import SimSiam
from ssql.tokenizing.training import TokenizerTraining
from ssql.training.checkpoints import LastCheckpoint
from ssql.training.run_folder import locked

# Warnings are those of Lightning; runs have them on stderr.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("speak_once")]

RESNET = {"stem_width": 8, "channels": [8, 16, 24, 32]}
TRAINER = "trainer: {enable_progress_bar: false, enable_model_summary: false, accelerator: cpu, MORE}\n"
CONFIGS = {
    "pretrain": TRAINER.replace("MORE", "max_steps: 4")
    + f"""
model:
  class_path: SimSiam
  init_args:
    encoder:
      class_path: encoders.VisionEncoder
      init_args: {{model_name: resnet10t, in_channels: 1, model_arguments: {json.dumps(RESNET)}}}
    augmentation: {{class_path: ssql.augment.ImageAugmentation, init_args: {{image_size: 8}}}}
    dim: 16
data: {{class_path: ssql.data.Digits, init_args: {{batch_size: 32}}}}
calibration_batches: 1
bias_correction: [w4a4]
checkpoint_steps: 2
""",
    "finetune": TRAINER.replace("MORE", "max_epochs: 2, logger: false")
    + """
task: class
train_limit: 100
bit_width: w4a4
data: {class_path: ssql.data.Digits, init_args: {batch_size: 32}}
calibration_batches: 1
checkpoint_steps: 2
""",
    "tokenizer": TRAINER.replace("MORE", "max_epochs: 2")
    + """
linguistic_codes: 4
semantic_codes: 6
data: {class_path: ssql.data.SpokenWords, init_args: {languages: [en-us], train_size: 24, test_size: 4, batch_size: 8}}
start_batches: 1
validation: 0.2
checkpoint_steps: 1
""",
}
PRODUCT = {"pretrain": "encoder", "finetune": "model", "tokenizer": "model"}


@pytest.fixture
def start(tmp_path, pretrained):
    """What a command starts from."""
    torch.manual_seed(0)
    image = tmp_path / "image"
    save_encoder(VisionEncoder("resnet10t", 1, model_arguments=RESNET), image)
    return {"pretrain": [], "finetune": ["--encoder", image], "tokenizer": ["--encoder", pretrained]}


@pytest.fixture
def ssql(tmp_path, monkeypatch, capsys, start):
    """A command as it is typed: exit code, and what was said last."""

    def run(command, *words):
        config = tmp_path / f"{command}.yaml"
        config.write_text(CONFIGS[command], encoding="utf-8")
        first = [] if "--encoder" in words else start[command]
        typed = ["ssql", command, "--config", config, *first, *words]
        monkeypatch.setattr(sys, "argv", list(map(str, typed)))
        try:
            cli.main()
        except SystemExit as stop:
            code, said = (1, stop.code) if isinstance(stop.code, str) else (stop.code, capsys.readouterr().err)
            return code, said
        return 0, capsys.readouterr().out

    return run


def weights(folder):
    return {
        f"{file.name}/{key}": value
        for file in sorted(folder.glob("*.safetensors"))
        for key, value in safetensors.torch.load_file(file).items()
    }


def alike(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def contents(folder):
    """Every file with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stopped_at(monkeypatch, module, step, stop):
    """Call `stop` once a step of a run is done."""
    finish = module.on_train_batch_end

    def and_stop(self, *args):
        finish(self, *args)
        if self.global_step == step:
            stop()

    monkeypatch.setattr(module, "on_train_batch_end", and_stop)


BAD = {
    "pretrain": [
        (["--data.batch_size", "5000"], "do not fill one batch"),
        (["--checkpoint_steps", "0"], "checkpoint_steps must be 1 or more, got 0"),
    ],
    "finetune": [
        (["--encoder", "nowhere"], "no encoder at nowhere"),
        (["--task", "colour"], "unknown task 'colour'"),
    ],
    "tokenizer": [(["--linguistic_codes", "1"], "two codes or more"), (["--data", "Digits"], "takes audio, not image")],
}


NOT_OURS = "was not written by a run of ssql: move it elsewhere"
FOREIGN = {
    "pretrain": ("logs/notes.txt", NOT_OURS),
    "finetune": ("checkpoints/old/x.ckpt", NOT_OURS),
    "tokenizer": ("model/README.md", "model holds what is not of an encoder (README.md): choose another folder"),
}


@pytest.mark.parametrize("command", CONFIGS)
def test_overwrite_keeps_the_earlier_run_until_the_new_one_is_ready(ssql, tmp_path, command):
    output = tmp_path / "run"
    assert ssql(command, "--output", output)[0] == 0
    (output / "notes.txt").write_text("mine")
    before = contents(output)
    for words, message in BAD[command]:
        code, said = ssql(command, "--output", output, "--overwrite", "true", *words)
        assert (code, message in said) == (1, True), said
        assert contents(output) == before
    # A foreign file, wherever it is, stops it before anything is touched.
    name, message = FOREIGN[command]
    place = output / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    code, said = ssql(command, "--output", output, "--overwrite", "true")
    assert (code, message in said) == (1, True), said
    place.unlink()
    assert contents(output) == before
    if command == "finetune":
        place.parent.rmdir()
    assert ssql(command, "--output", output, "--overwrite", "true", "--model.seed", "1")[0] == 0
    after = contents(output)
    assert not [name for name in after if ".replaced" in name or ".lock" in name or ".tmp" in name]
    assert after["notes.txt"] == b"mine"
    assert after["checkpoints/last.ckpt"] != before["checkpoints/last.ckpt"]


def test_an_overwriting_run_that_is_killed_before_its_first_step_is_undone_by_the_next_start(ssql, tmp_path):
    output = tmp_path / "run"
    assert ssql("pretrain", "--output", output)[0] == 0
    before = contents(output)
    # As a kill leaves it: set aside in part, or whole with logs of the new run.
    for names in (["checkpoints"], ["checkpoints", "logs"]):
        (output / ".replaced-1").mkdir()
        for name in names:
            os.rename(output / name, output / ".replaced-1" / name)
        if "logs" in names:
            (output / "logs" / "version_0").mkdir(parents=True)
            (output / "logs" / "version_0" / "metrics.csv").write_text("")
        code, said = ssql("pretrain", "--output", output)
        assert code == 1
        assert "holds an earlier run" in said
        assert contents(output) == before


def test_an_overwriting_run_that_was_interrupted_goes_on_and_the_earlier_one_stays(ssql, tmp_path, monkeypatch):
    output = tmp_path / "run"
    assert ssql("pretrain", "--output", output)[0] == 0
    earlier = contents(output)
    other = ["--model.seed", "3"]
    assert ssql("pretrain", "--output", tmp_path / "whole", *other)[0] == 0
    with monkeypatch.context() as patch:
        stopped_at(patch, SimSiam, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        code, said = ssql("pretrain", "--output", output, "--overwrite", "true", *other)
    assert code == 143
    assert "the run that it replaces is kept until then" in said
    kept = contents(output / ".replaced-1")
    assert kept == {name: value for name, value in earlier.items() if name.startswith(("checkpoints", "logs"))}
    assert alike(weights(output / "encoder"), weights(output / "encoder"))
    assert contents(output / "encoder")["model.safetensors"] == earlier["encoder/model.safetensors"]
    # A second attempt that fails takes nothing away from the one that can go on.
    before = contents(output)
    assert ssql("pretrain", "--output", output, "--overwrite", "true", "--data.batch_size", "5000")[0] == 1
    assert contents(output) == before
    assert ssql("pretrain", "--output", output, "--resume", "true", *other)[0] == 0
    assert alike(weights(output / "encoder"), weights(tmp_path / "whole" / "encoder"))
    assert not list(output.glob(".*"))


def test_the_input_may_lie_in_the_output(ssql, tmp_path):
    output = tmp_path / "run"
    assert ssql("finetune", "--output", output)[0] == 0
    first = weights(output / "model")
    code, said = ssql("finetune", "--output", output, "--encoder", output / "model", "--overwrite", "true")
    assert code == 0, said
    assert not alike(first, weights(output / "model"))
    # Its base is gone now: going on would start from another one.
    code, said = ssql("finetune", "--output", output, "--encoder", output / "model", "--resume", "true")
    assert code == 1
    assert "holds other weights than when the run in" in said


@pytest.mark.parametrize("name", ["results.json", "model/config.json"])
def test_results_and_an_encoder_of_the_users_own_stay(ssql, tmp_path, name):
    own = tmp_path / "run" / name
    own.parent.mkdir(parents=True)
    own.write_text('{"my": "notes"}')
    before = contents(tmp_path / "run")
    code, said = ssql("finetune", "--output", tmp_path / "run", "--overwrite", "true")
    assert (code, f"ssql finetune: error: {own.parents[0]}" in said) == (1, True), said
    assert contents(tmp_path / "run") == before


def test_an_output_that_is_no_folder_is_refused(ssql, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, message in (("file", "is a file, and a run needs a folder"), ("link", "is a link to nothing")):
        code, said = ssql("pretrain", "--output", tmp_path / name, "--overwrite", "true")
        assert (code, message in said) == (1, True), said
    code, said = ssql("pretrain", "--output", tmp_path / os.fsdecode(b"\xff"))
    assert (code, r"\xff is not UTF-8" in said) == (1, True), said
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / os.fsdecode(b"\xff")).exists()
    assert ssql("pretrain", "--output", tmp_path / "new", "--data.batch_size", "5000")[0] == 1
    assert not (tmp_path / "new").exists()


SIGNALS = [("pretrain", signal.SIGINT, 130), ("finetune", signal.SIGTERM, 143), ("tokenizer", signal.SIGINT, 130)]


@pytest.mark.parametrize(("command", "number", "code"), SIGNALS)
def test_a_signal_ends_training_with_a_checkpoint(ssql, tmp_path, monkeypatch, command, number, code):
    module = {"pretrain": SimSiam, "finetune": Finetuning, "tokenizer": TokenizerTraining}[command]
    whole, half = tmp_path / "whole", tmp_path / "half"
    words = ["--checkpoint_steps", "100"] + (
        ["--data.batch_size", "512"] if command == "pretrain" else []
    )  # two steps an epoch
    assert ssql(command, "--output", whole, *words)[0] == 0
    with monkeypatch.context() as patch:
        stopped_at(patch, module, 1, lambda: os.kill(os.getpid(), number))
        found, said = ssql(command, "--output", half, *words)
    assert found == code
    assert said.strip().splitlines()[-1] == (
        f"ssql {command}: interrupted; go on with: ssql {command} --config {half / 'checkpoints' / 'config.yaml'} "
        "--resume true"
    )
    assert not (half / PRODUCT[command]).exists()
    assert (half / "checkpoints" / "last.ckpt").exists()
    monkeypatch.setattr(sys, "argv", said.strip().splitlines()[-1].partition("go on with: ")[2].split())
    cli.main()
    assert alike(weights(whole / PRODUCT[command]), weights(half / PRODUCT[command]))


def test_a_second_signal_stops_at_once_and_one_before_training_changes_nothing(ssql, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_at(patch, SimSiam, 2, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
        patch.setattr(LastCheckpoint, "save", lambda *args: pytest.fail("there is no time for a checkpoint"))
        code, said = ssql("pretrain", "--output", tmp_path / "run", "--checkpoint_steps", "100")
    assert code == 130
    assert "interrupted before a checkpoint was written: start again with --overwrite true" in said
    before = contents(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(SimSiam, "check_run", lambda *args: os.kill(os.getpid(), signal.SIGINT))
        code, said = ssql("pretrain", "--output", tmp_path / "run", "--overwrite", "true")
    assert (code, contents(tmp_path / "run")) == (130, before)
    assert said.strip().endswith("interrupted before the first step; nothing was changed")


def test_ctrl_c_in_any_command_is_130_without_a_traceback(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_command", interrupted)
    monkeypatch.setattr(sys, "argv", ["ssql", "bench"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "ssql bench: interrupted\n"


def test_sigterm_ends_any_command_with_143_and_tidies_up(monkeypatch, capsys, tmp_path):
    def terminated(args):
        with staged_file(tmp_path / "encoder.onnx") as staging:
            staging.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(cli, "_command", lambda name: terminated)
    monkeypatch.setattr(sys, "argv", ["ssql", "export"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 143
    assert capsys.readouterr().err == "ssql export: interrupted\n"
    assert not list(tmp_path.iterdir())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


UNBROKEN = {}


@pytest.fixture
def whole(ssql, tmp_path):
    """Weights of that run had nothing stopped it; one run serves all tests."""
    if not UNBROKEN:
        assert ssql("finetune", "--output", tmp_path / "whole")[0] == 0
        UNBROKEN.update(weights(tmp_path / "whole" / "model"))
    return UNBROKEN


@pytest.fixture
def half(ssql, tmp_path, monkeypatch):
    """A run of fine-tuning that can go on."""
    with monkeypatch.context() as patch:
        stopped_at(patch, Finetuning, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert ssql("finetune", "--output", tmp_path / "half")[0] == 143
    return tmp_path / "half"


def test_a_run_goes_on_with_its_own_options_only(ssql, half, tmp_path):
    for words, message in (
        (["--bit_width", "w8a8"], "bit_width is w4a4 there and w8a8 here"),
        (["--model.seed", "1"], "model.seed is 0 there and 1 here"),
        (["--data.batch_size", "16"], "data.init_args.batch_size is 32 there and 16 here"),
        (["--freeze", "true"], "freeze is False there and True here"),
        (["--model.optimizer.lr", "1"], "model.optimizer"),
        (["--trainer.max_epochs", "5"], "the learning rate follows the length of the whole run"),
    ):
        code, said = ssql("finetune", "--output", half, "--resume", "true", *words)
        assert code == 1, words
        assert message in said, said
        assert f"go on with --config {half}/checkpoints/config.yaml --resume true" in said
    other = tmp_path / "other"
    save_encoder(VisionEncoder("resnet10t", 1, model_arguments=RESNET), other)
    code, said = ssql("finetune", "--output", half, "--resume", "true", "--encoder", other)
    assert code == 1
    assert "encoder is " in said
    # The same folder, with other weights in it.
    encoder = load_encoder(tmp_path / "image")
    with torch.no_grad():
        next(encoder.parameters()).mul_(2)
    save_encoder(encoder, tmp_path / "image", overwrite=True)
    code, said = ssql("finetune", "--output", half, "--resume", "true")
    assert code == 1
    assert f"encoder {tmp_path / 'image'} holds other weights than when the run in {half} was started" in said
    inputs = half / "checkpoints" / "inputs.json"
    content = inputs.read_text()
    inputs.write_text("{}")
    code, said = ssql("finetune", "--output", half, "--resume", "true")
    assert code == 1 and "inputs.json does not say what the run was started on" in said
    inputs.write_text(content)
    code, said = ssql("pretrain", "--output", half, "--resume", "true")
    assert code == 1
    assert "is a run of ssql finetune, not of ssql pretrain" in said


def test_options_that_change_nothing_may_change(ssql, half, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--checkpoint_steps", "1", "--data.num_workers", "0", "--trainer.log_every_n_steps", "1", "--name", "x"]
    code, said = ssql("finetune", "--output", "half", "--encoder", "image", "--resume", "true", *words)
    assert code == 0, said
    assert {row["method"] for row in json.loads((half / "results.json").read_text())} == {"x"}


def test_a_run_in_a_moved_folder_still_knows_its_best_checkpoint(ssql, half, whole, tmp_path):
    os.rename(half, tmp_path / "moved")
    code, said = ssql("finetune", "--output", tmp_path / "moved", "--resume", "true")
    assert code == 0, said
    assert alike(whole, weights(tmp_path / "moved" / "model"))


def test_a_damaged_last_checkpoint_is_one_sentence_or_an_older_one(ssql, half, whole):
    (half / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert ssql("finetune", "--output", half, "--resume", "true")[0] == 0
    assert alike(whole, weights(half / "model"))
    for path in (half / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"PK")
    code, said = ssql("finetune", "--output", half, "--resume", "true")
    assert code == 1
    assert "nothing to resume: no checkpoint in" in said
    assert "\n" not in said


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_afterwards(ssql, half, whole):
    before = contents(half)
    for way in ("--resume", "--overwrite"):  # a new run that leaves no checkpoint leaves the earlier one
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            code, said = ssql("finetune", "--output", half, way, "true")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert code == 1
        assert said.startswith("ssql finetune: error: checkpoint ")
        assert said.endswith("could not be written (File too large); earlier checkpoints are whole")
        assert contents(half) == before
    assert ssql("finetune", "--output", half, "--resume", "true")[0] == 0
    assert alike(whole, weights(half / "model"))


@pytest.fixture
def holder(tmp_path):
    """Another process that has the run's folder."""
    (tmp_path / "run").mkdir()
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with locked(tmp_path / "run"):
            os.write(writing, b"held")
            signal.pause()
    assert os.read(reading, 4) == b"held"
    yield process
    os.close(reading), os.close(writing)


def test_two_processes_do_not_share_an_output(ssql, tmp_path, holder):
    output = tmp_path / "run"
    code, said = ssql("pretrain", "--output", output)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert code == 1
    assert said == (
        f"ssql pretrain: error: another process ({holder}) is at work in {output}: wait for it, or choose another "
        "--output"
    )
    # Its lock has gone with it.
    assert "do not fill one batch" in ssql("pretrain", "--output", output, "--data.batch_size", "5000")[1]
    assert not (output / ".lock").exists()


def test_what_was_trained_is_saved_whatever_comes_after(ssql, tmp_path, monkeypatch):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(quant, "correct_bias", lambda *args, **more: (_ for _ in ()).throw(ValueError("no such layer")))
        patch.setattr("ssql.commands.pretrain.correct_bias_on", quant.correct_bias)
        code, said = ssql("pretrain", "--output", output)
    kept = f"what was trained is saved in {output / 'encoder'}"
    assert (code, said) == (1, f"ssql pretrain: error: no such layer; {kept}")
    with quant.at(load_encoder(output / "encoder"), "w4a4"):  # its ranges are there
        pass
    row = {"method": "a", "task": "class", "bit_width": "fp", "metric": "accuracy", "value": 1.0}
    (output / "results.json").write_text(json.dumps([row]))
    with monkeypatch.context() as patch:
        patch.setattr(Finetuning, "test_on", lambda *args: (_ for _ in ()).throw(RuntimeError("too few items")))
        code, said = ssql("finetune", "--output", output, "--overwrite", "true")
    assert (code, said) == (1, f"ssql finetune: error: too few items; what was trained is saved in {output / 'model'}")
    assert load_encoder(output / "model")
    assert not (output / "results.json").exists()  # of another model
    options = yaml.safe_load((output / "checkpoints" / "config.yaml").read_text(encoding="utf-8"))
    assert options["bit_width"] == "w4a4"
