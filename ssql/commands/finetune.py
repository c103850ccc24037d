"""`ssql finetune`: the Lightning CLI around one encoder, one head and labelled data."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import ArgsType

from encoders import Encoder, save_encoder, state_sha256, weights_sha256
from quant.checks import check_at_least
from ssql.data.held_out import HeldOut, check_validation
from ssql.finetuning.training import Finetuning
from ssql.reports.result_files import save
from ssql.reports.rows import Row, load_rows
from ssql.reports.tables import terminal_table
from ssql.terminal.console import say
from ssql.training.checkpoint_files import is_whole
from ssql.training.checkpoints import BestCheckpoint, LastCheckpoint
from ssql.training.launch import Options, RunCLI, kept_if_it_fails

log = logging.getLogger(__name__)

HELP = """Fine-tune an encoder with a task head at the bit-width it will run at.

  ssql finetune --encoder runs/words/encoder --data SpokenWords --task word --bit_width w4a4 --output runs/word-w4a4
  ssql finetune ... --bit_width w4a4 --quantizer lsq       (learned steps)
  ssql finetune ... --bit_width random                     (one model for all bit-widths)
  ssql finetune ... --freeze true                          (the head alone)
  ssql finetune ... --model.adapters.base nf4              (low-rank adapters on a frozen 4-bit base)
  ssql finetune ... --task text                            (speech recognition by CTC; WER and CER)
  ssql finetune ... --task '[pitch, energy]' --data SpokenProsody      (numbers, answered in their units)
  ssql finetune --encoder SpeechTransformer --encoder.width 144 ...    (from scratch)
  ssql finetune --config runs/word-w4a4/checkpoints/config.yaml --resume true

Leaves model/ (the encoder's folder with head.json and head.safetensors), results.json (test scores at each
bit-width), checkpoints/ and logs/ in the output folder. Validation items are taken out of the training split.
"""
OPTIONS: Options = {
    "encoder": (Encoder | str | Path, ..., "folder of an encoder, or a class for a fresh one", "model.encoder"),
    "task": (str | list[str], ..., "classes, numbers to predict, or text", "model.task"),
    "bit_width": (str, "fp", "fp, w8a8, w4a8, w4a4, ... or random", "model.precision.bit_width"),
    "quantizer": (Literal["min_max", "lsq"], "min_max", "ranges, or learned steps", "model.precision.quantizer"),
    "freeze": (bool, False, "train the head alone", "model.freeze"),
    "name": (str | None, None, "in results.json; the output folder's name"),
    "validation": (float, 0.1, "share of training items that validate"),
    "train_limit": (int | None, None, "labelled training items in all"),
    "patience": (int | None, None, "validations without a better one"),
    "calibration_batches": (int, 8, "batches that set activation ranges"),
}


class FinetuneCLI(RunCLI):
    """Adds the validation split and early stopping."""

    help, options = HELP, OPTIONS
    products = ("model", "results.json")
    harmless = ("name", "model.precision.test_at")

    def check_options(self) -> None:
        """What is looked at once the data is there, or after the run."""
        super().check_options()
        check_validation(self.config.validation)
        check_at_least(2, train_limit=self.config.train_limit)
        check_at_least(1, patience=self.config.patience, calibration_batches=self.config.calibration_batches)

    def callbacks(self) -> list[Callback]:
        """Start the model from its data; then checkpoints by step and by metric, and early stopping."""
        names = self.model.names
        balance = names if isinstance(names, str) else None
        self.datamodule.setup()
        self.held_out = HeldOut(
            self.datamodule,
            self.config.validation,
            self.config.train_limit,
            balance if balance in self.datamodule.classes else None,
            self.model.seed,
        )
        self.model.start(self.held_out, self.config.calibration_batches)
        metric: dict[str, Any] = {"monitor": self.model.monitored, "mode": self.model.task.mode}
        # A run that repeats steps after a kill writes the same file again, instead of a second one beside it.
        self.best = BestCheckpoint(self.folder.checkpoints, "best-{step}", enable_version_counter=False, **metric)
        last = LastCheckpoint(self.folder.checkpoints, self.config.checkpoint_steps, self.interruption)
        patience = self.config.patience
        stopping = [] if patience is None else [EarlyStopping(patience=patience, strict=False, **metric)]
        return [self.best, *stopping, last]


def finetune(args: ArgsType = None) -> Path:
    """Run `ssql finetune` and return the folder of the fine-tuned encoder and its head.

    Args:
        args: command-line words; those of the process when None.
    """
    defaults = {"num_sanity_val_steps": 0, "max_epochs": 20}
    with ExitStack() as until:
        cli = FinetuneCLI(Finetuning, "ssql finetune", args, until, trainer_defaults=defaults)
        cli.fit(cli.held_out)
        _take_best(cli)
        _finish(cli)
        return cli.output / "model"


def _take_best(cli: FinetuneCLI) -> None:
    """The weights of the best validation, where there was one and its file is whole; else the last ones."""
    model, path = cli.model, cli.best.best_model_path
    if path and is_whole(Path(path)):
        best = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(best["state_dict"], strict=model.strict_loading)
    else:
        reason = f"{path} is missing or damaged" if path else "the run ended before its first validation"
        log.warning("%s: the last weights are taken", reason)
        cli.best.best_model_path = ""
    model.to(cli.trainer.strategy.root_device)


def _finish(cli: FinetuneCLI) -> None:
    """Save encoder and head, then test them: whatever the test says, they are there."""
    model, folder, results = cli.model, cli.output / "model", cli.output / "results.json"

    def save_model() -> None:
        if cli.trainer.is_global_zero:
            save_encoder(model.encoder, folder, overwrite=True, head=model.head)
            if not _tells_of(results, model):
                results.unlink(missing_ok=True)

    with kept_if_it_fails(folder, save_model):
        model.finish(cli.held_out, cli.config.calibration_batches)
    save_model()
    with kept_if_it_fails(folder, lambda: None):
        rows = _test(cli)
    if cli.trainer.is_global_zero:
        save({results: rows})
        title = f"test, best checkpoint by {model.monitored}: {Path(cli.best.best_model_path).stem or 'none'}"
        say(terminal_table(rows, list(dict.fromkeys(row["metric"] for row in rows)), title))
        say(f"model: {folder}\nrows: {results}")


def _tells_of(results: Path, model: Finetuning) -> bool:
    """Whether a file of results is of this very encoder and head, and not of the model that was replaced."""
    try:
        rows = load_rows(results)
    except (FileNotFoundError, ValueError):
        return False
    hashes = weights_sha256(model.encoder), state_sha256(model.head)
    return all((row.get("weights_sha256"), row.get("head_sha256")) == hashes for row in rows)


def _test(cli: FinetuneCLI) -> list[Row]:
    """Scores of the saved model, as its folder gives it, of every test split at every tested bit-width."""
    model, data = cli.model, cli.held_out
    cli.trainer.strategy.barrier()  # the folder is there for every process
    model.take_saved(cli.output / "model")
    common = {
        "method": cli.config.name or cli.output.name,
        "quantizer": model.precision.quantizer,
        "trained_at": model.precision.bit_width,
        "train_items": len(data.dataset("train")),  # type: ignore[arg-type]
        "weights_sha256": weights_sha256(model.encoder),
        "head_sha256": state_sha256(model.head),
    }
    rows: list[Row] = []
    for split in data.test_splits:
        model.test_on(data.evaluation_dataloader(split))
        clips = len(data.dataset(split))  # type: ignore[arg-type]
        suffix = "" if split == "test" else f", {split}"
        rows += [
            common | score._asdict() | {"task": score.task + suffix, "bit_width": bit_width, "clips": clips}
            for bit_width, scores in model.take_scores().items()
            for score in scores
        ]
    return rows
