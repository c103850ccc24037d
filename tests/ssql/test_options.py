"""What could fail only after training, or would train something else, is refused when a command starts."""

import math
import sys

import pytest
import torch
import yaml
from torch import nn
from written import SIMSIAM

import quant
from encoders import SpeechTransformer, Tokenizer, load_encoder, save_encoder
from ssql.augment import ImageAugmentation
from ssql.cli import main
from ssql.data import AudioFolder, ImageFolder, Noisy, SpokenProsody, SpokenWords, Subset
from ssql.finetuning.adapters import Adapters
from ssql.finetuning.training import Finetuning
from ssql.methods import Method, MoCo, SimSiam
from ssql.tokenizing.training import Codebooks, TokenizerTraining

# Warnings are those of Lightning; runs have them on stderr.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("speak_once")]

TRAINER = """
trainer: {enable_progress_bar: false, enable_model_summary: false, max_epochs: 1, logger: false, accelerator: cpu}
data:
  class_path: ssql.data.SpokenWords
  init_args: {languages: [en-us], train_size: 40, test_size: 20, batch_size: 16}
"""
CONFIGS = {
    "pretrain": TRAINER + SIMSIAM,
    "finetune": TRAINER + "task: word\nvalidation: 0.2\ncalibration_batches: 2\n",
    "tokenizer": TRAINER + "linguistic_codes: 8\nsemantic_codes: 8\nvalidation: 0.2\nstart_batches: 2\n",
}


@pytest.fixture(scope="module")
def learned(pretrained, tmp_path_factory):
    """Folder of an encoder whose steps were learned at w4a4."""
    encoder = load_encoder(pretrained)
    quant.learn_steps(encoder, "w4a4")
    folder = tmp_path_factory.mktemp("learned") / "encoder"
    save_encoder(encoder, folder)
    return folder


@pytest.fixture
def said(tmp_path, monkeypatch, pretrained):
    """What a command says when it stops, which must be before its first training step."""
    for module in (Method, Finetuning, TokenizerTraining):
        monkeypatch.setattr(module, "training_step", lambda *args: pytest.fail("it trained"))

    def run(command, *words):
        config = []
        if command in CONFIGS:
            (tmp_path / "config.yaml").write_text(CONFIGS[command], encoding="utf-8")
            config = ["--config", tmp_path / "config.yaml"]
        elif "--data" not in words:
            config = ["--data", "SpokenWords", "--data.languages", "[en-us]", "--data.train_size", "40"]
            config += ["--data.test_size", "20"]
        if command in ("finetune", "tokenizer", "quantize") and "--encoder" not in words:
            config += ["--encoder", pretrained]
        words = [command, *config, "--output", tmp_path / "run", *words]
        monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, str), "it ended well"
        assert stopped.value.code.startswith(f"ssql {command}: error:")
        assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("[em]*"))
        return stopped.value.code.partition("error: ")[2]

    return run


AUGMENTATIONS = "class_path must be one of ImageAugmentation, Joined, SpeechAugmentation"
ONLY_BASES = [
    ("pretrain", "model.augmentation", {}, "not the name of an Augmentation: " + AUGMENTATIONS),
    ("pretrain", "model.augmentation", {"init_args": {}}, "not the name of an Augmentation: " + AUGMENTATIONS),
    ("pretrain", "model.augmentation", {"class_path": "torch.nn.Module"}, AUGMENTATIONS),
    ("pretrain", "model.augmentation", {"class_path": "torch.nn.ReLU"}, AUGMENTATIONS),
    (
        "pretrain",
        "model.encoder",
        {"init_args": {"width": 16}},
        "Encoder is only what others are made from: class_path",
    ),
    ("pretrain", "model", {"init_args": {"dim": 16}}, "Method is only what others are made from: class_path must be"),
    ("pretrain", "data", {}, "not the name of a DataModule: class_path must be one of AudioFolder, "),
    ("pretrain", "trainer.callbacks", [{}], "Callback is only what others are made from: class_path must name one"),
    ("pretrain", "trainer.logger", {}, "not the name of a Logger"),
    ("finetune", "model.augmentation", {}, "not the name of an Augmentation: " + AUGMENTATIONS),
    ("finetune", "encoder", {}, "Encoder is only what others are made from: class_path must be one of Conformer, "),
    ("tokenizer", "encoder", {}, "Encoder is only what others are made from: class_path must be one of Conformer, "),
]


@pytest.mark.parametrize(("command", "key", "value", "sentence"), ONLY_BASES)
def test_a_class_path_that_was_left_out(capsys, tmp_path, monkeypatch, command, key, value, sentence):
    config = yaml.safe_load(CONFIGS[command]) | ({} if command == "pretrain" else {"encoder": "nowhere"})
    place, *path = config, *key.replace("model.", "model.init_args.").split(".")
    if command == "finetune" and key != "encoder":
        path.remove("init_args")
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = [command, "--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["ssql", *words])
    monkeypatch.setattr(SpokenWords, "load", lambda self: pytest.fail("the data was made"))
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    option = "model.encoder" if key == "encoder" else key
    assert stopped.value.code == 2
    assert said.count("\n") == 1
    assert said.startswith(f"ssql {command}: error: --{option}: ")
    assert sentence in said


BEFORE_THE_DATA = [
    ("pretrain", ["--checkpoint_steps", "0"], "checkpoint_steps must be 1 or more, got 0"),
    *[
        (command, ["--trainer.max_time", "00:00:00:01", "--trainer.max_epochs", epochs], "last step is not known: give")
        for command, epochs in (("pretrain", "null"), ("finetune", "-1"))
    ],
    ("pretrain", ["--trainer.max_epochs", "null"], "last step is not known: give"),
    ("finetune", ["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches must be above 0, got 0"),
    ("pretrain", ["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches must be 1 or more"),
    ("tokenizer", ["--trainer.check_val_every_n_epoch", "0"], "trainer.check_val_every_n_epoch must be 1 or more"),
    ("tokenizer", ["--trainer.max_epochs", "0"], "must not be 0: nothing would be trained"),
    ("pretrain", ["--calibration_batches", "0"], "calibration_batches must be 1 or more, got 0"),
    ("pretrain", ["--bias_correction", "[w9a9]"], "unknown bit-width 'w9a9'"),
    ("pretrain", ["--bias_correction", "[fp]"], "full precision has no integers to choose"),
    ("pretrain", ["--model.encoder.depth", "-1"], "depth must be 1 or more, got -1"),
    ("finetune", ["--calibration_batches", "-1"], "calibration_batches must be 1 or more, got -1"),
    ("finetune", ["--patience", "-1"], "patience must be 1 or more, got -1"),
    ("finetune", ["--train_limit", "-3"], "train_limit must be 2 or more, got -3"),
    *[("finetune", ["--validation", share], "must be above 0 and below 1") for share in ("0", ".nan")],
    ("finetune", ["--model.precision.test_at", "[w9a9]"], "unknown bit-width 'w9a9'"),
    ("finetune", ["--data.batch_size", "0"], "batch_size must be 1 or more, got 0"),
    ("tokenizer", ["--start_batches", "0"], "start_batches must be 1 or more, got 0"),
    ("tokenizer", ["--validation", "1"], "must be above 0 and below 1"),
    ("tokenizer", ["--semantic_codes", "1"], "codebooks need two codes or more; got 8 linguistic and 1 semantic"),
    ("quantize", ["--examples", "0"], "examples must be 1 or more, got 0"),
    ("quantize", ["--bit_width", "[]"], "--bit_width is empty: give at least one"),
    ("quantize", ["--average_bits", "1"], "average_bits must be 2 or more, got 1"),
    ("quantize", ["--observer", "max_min"], "unknown observer 'max_min'"),
    ("quantize", ["--bit_width", "[w4a8, w9a9]"], "unknown bit-width 'w9a9'"),
    ("quantize", ["--bit_width", "fp"], "full precision has no integers to choose"),
]


@pytest.mark.parametrize(("command", "words", "sentence"), BEFORE_THE_DATA)
def test_refused_before_the_data_is_made(said, monkeypatch, command, words, sentence):
    monkeypatch.setattr(SpokenWords, "load", lambda self: pytest.fail("the data was made"))
    found = said(command, *words)
    assert sentence in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("command", "words"),
    [("evaluate", ["--calibration_batches", "0"]), ("evaluate_tokenizer", ["--calibration_batches", "-1"])],
)
def test_measurements_are_refused_before_the_data_is_made(said, monkeypatch, pretrained, tokenized, command, words):
    monkeypatch.setattr(SpokenWords, "load", lambda self: pytest.fail("the data was made"))
    folders = ["--encoders.a", pretrained] if command == "evaluate" else ["--tokenizers.a", tokenized]
    assert "calibration_batches must be 1 or more, got" in said(command, *folders, *words)


@pytest.fixture(scope="module")
def tokenized(pretrained, tmp_path_factory):
    """Folder of an encoder with a tokenizer that has learned nothing."""
    encoder = load_encoder(pretrained)
    folder = tmp_path_factory.mktemp("tokens") / "model"
    tokenizer = Tokenizer(encoder.feature_dim, encoder.frame_rate, 8, 8, 4)
    save_encoder(encoder, folder, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize(
    ("command", "rate", "sentence"),
    [
        ("pretrain", "-0.1", "Invalid learning rate: -0.1"),  # as torch says it
        ("finetune", ".nan", "the optimizer's lr of the group encoder must be 0 or more, got nan"),
        ("tokenizer", ".inf", "the optimizer's lr must be 0 or more, got inf"),
    ],
)
def test_learning_rates_that_nobody_means(said, command, rate, sentence):
    assert sentence in said(command, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", rate)


ENCODER = {"width": 16, "depth": 1, "heads": 2}
SIZES = [
    (lambda: SpokenWords(num_workers=-1), "num_workers must be 0 or more, got -1"),
    (lambda: SpokenWords(train_size=0), "train_size must be 1 or more, got 0"),
    (lambda: SpokenProsody(test_size=0), "test_size must be 1 or more, got 0"),
    (lambda: Subset(SpokenWords(), test_size=-1), "test_size must be 1 or more, got -1"),
    (lambda: Noisy(SpokenWords(), snr_db=[math.nan]), "snr_db must be finite, got nan"),
    (lambda: ImageFolder("images", image_size=0), "image_size must be 1 or more, got 0"),
    (lambda: ImageFolder("images", train_limit=-1), "train_limit must be 1 or more, got -1"),
    (lambda: AudioFolder("audio", max_seconds=math.nan), "max_seconds nan is shorter than one 25 ms frame"),
    (lambda: ImageAugmentation(image_size=0), "image_size must be 1 or more, got 0"),
    (lambda: SimSiam(SpeechTransformer(**ENCODER), nn.Identity(), dim=0), "dim must be 1 or more, got 0"),
    (lambda: SimSiam(SpeechTransformer(**ENCODER), nn.Identity(), warmup_steps=-1), "warmup_steps must be 0 or more"),
    (lambda: MoCo(SpeechTransformer(**ENCODER), nn.Identity(), queue_size=0), "queue_size must be 1 or more, got 0"),
    (lambda: MoCo(SpeechTransformer(**ENCODER), nn.Identity(), temperature=math.nan), "temperature must be above 0"),
    (lambda: Codebooks(code_dim=0), "code_dim must be 1 or more, got 0"),
    (lambda: Adapters(alpha=0), "alpha must be above 0, got 0"),
]


@pytest.mark.parametrize(("build", "sentence"), SIZES)
def test_sizes_are_named_by_whatever_takes_them(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


PROSODY = [
    "--data",
    "SpokenProsody",
    "--data.languages",
    "[en-us]",
    "--data.train_size",
    "10",
    "--data.batch_size",
    "4",
]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.test_size", "1"], "in all 1 items of the test split: R2, error"),
        (["--data.test_size", "4", "--validation", "0.1"], "in all 1 items of the validation split"),
    ],
)
def test_one_number_has_no_r2(said, words, sentence):
    assert sentence in said("finetune", *PROSODY, "--task", "[pitch, energy]", *words)


def test_constant_numbers_have_no_r2(said, monkeypatch):
    load = SpokenProsody.load

    def constant(self):
        splits = load(self)
        splits["test"].labels["energy"] = [-30.0] * len(splits["test"])
        return splits

    monkeypatch.setattr(SpokenProsody, "load", constant)
    found = said("finetune", *PROSODY, "--data.test_size", "4", "--task", "[pitch, energy]")
    assert "energy is -30 dB in all 4 items of the test split: R2, error" in found


def test_a_test_split_without_the_tasks_answers(said):
    data = {"class_path": "SpokenWords", "init_args": {"languages": ["en-us"], "train_size": 40, "test_size": 20}}
    words = ["--data", "Noisy", "--data.data", data, "--data.noisy_tasks", "[word]", "--data.snr_db", "[10]"]
    assert "the items of the split white 10 dB have no answer for voice" in said("finetune", *words, "--task", "voice")


@pytest.mark.parametrize("words", [["--ssql", "true"], ["--freeze", "false"]])
def test_a_tokenizer_that_would_move_learned_steps(said, learned, words):
    found = said("tokenizer", "--encoder", learned, *words)
    assert "the encoder's steps were learned at w4a4, its ranges cannot follow: keep it frozen" in found


def test_learned_steps_are_not_calibrated(said, learned):
    found = said("quantize", "--encoder", learned)
    assert "were learned at w4a4, they are its ranges: give a policy to begin anew" in found


@pytest.mark.parametrize("words", [["--bit_width", "random"], ["--bit_width", "w8a8"]])
def test_a_frozen_encoder_with_learned_steps_runs_at_no_other_bits(said, learned, words):
    assert "steps were learned at w4a4" in said("finetune", "--encoder", learned, "--freeze", "true", *words)


def test_a_frozen_encoder_that_could_not_run_at_all_bits_that_are_drawn(said, tmp_path):
    encoder = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2))
    quant.calibrate(encoder, [torch.randn(2, 80, 60)], observer="mse")
    with torch.no_grad():
        encoder.blocks[0].mlp[0].activation_max[3] = torch.inf  # of 5 bits
    save_encoder(encoder, tmp_path / "encoder")
    found = said("finetune", "--encoder", tmp_path / "encoder", "--freeze", "true", "--bit_width", "random")
    assert "layer 'blocks.0.mlp.0' has no activation range for w8a5" in found
