"""What training commands share: the output folder, resuming, loggers, checkpoints."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from quant.checks import check_above, check_at_least
from ssql.activation_checkpointing import checkpoint_activations
from ssql.batch_norm import SyncBatchNorms
from ssql.data import DataModule
from ssql.logs import quiet_lightning
from ssql.parsing import Sentences
from ssql.progress import LogProgress, on_terminal
from ssql.schedule import check_ends

# Top-level words of a command: type, default (None: required), where the model has them, help.
Words = Mapping[str, tuple[Any, Any, str, str]]


def add_words(parser: LightningArgumentParser, words: Words) -> None:
    """Let users write `--bit_width` for what the model has deeper inside."""
    for name, (kind, default, target, text) in words.items():
        required = {"required": True} if default is None else {"default": default}
        parser.add_argument(f"--{name}", type=kind, help=text, **required)
        parser.link_arguments(name, target)


class RunParser(Sentences, LightningArgumentParser):
    """Lightning's parser, with our errors."""


class RunCLI(LightningCLI):
    """The Lightning CLI with an output folder and resuming; subclasses add arguments and callbacks.

    Args:
        model_class: of the model.
        command: as the user types it: `ssql pretrain`.
        args: command-line words; those of the process when None.
        any_model: whether the configuration names a subclass of `model_class`.
        trainer_defaults: of the command, beside those that all have.

    Attributes:
        owned: names in the output folder that belong to the run, beside checkpoints and logs.
    """

    owned: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model_class: type,
        command: str,
        args: ArgsType,
        any_model: bool = False,
        trainer_defaults: dict[str, Any] | None = None,
    ) -> None:
        quiet_lightning()
        super().__init__(
            model_class,
            DataModule,
            subclass_mode_model=any_model,
            subclass_mode_data=True,
            run=False,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            args=args,
            parser_class=RunParser,
            parser_kwargs={"prog": command},
            trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 5} | (trainer_defaults or {}),
        )

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(self.config.output)

    @property
    def last_checkpoint(self) -> Path | None:
        """Where to go on from; None for a run that starts."""
        return self.output / "checkpoints" / "last.ckpt" if self.config.resume else None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments beside trainer, model and data."""
        parser.add_argument("--output", type=str, required=True, help="folder of the run")
        parser.add_argument("--resume", type=bool, default=False, help="go on from the run's last checkpoint")
        parser.add_argument("--overwrite", type=bool, default=False, help="delete an earlier run in the folder")
        parser.add_argument("--checkpoint_steps", type=int, default=200, help="steps from checkpoint to checkpoint")
        parser.add_argument(
            "--activation_checkpointing", type=bool, default=False,
            help="less memory: blocks of the encoder are computed again in the backward pass, with the same numbers",
        )  # fmt: skip

    def callbacks(self) -> list[Callback]:
        """Callbacks of the command; the model and the data module are there already."""
        raise NotImplementedError

    def check_options(self) -> None:
        """Refuse what could only fail later, or would train nothing; subclasses add their own options.

        Raises:
            ValueError: an option, and what would be right.
        """
        check_at_least(1, checkpoint_steps=self.config.checkpoint_steps)
        trainer = self.config.trainer
        names = ("accumulate_grad_batches", "check_val_every_n_epoch")
        check_at_least(1, **{f"trainer.{name}": trainer[name] for name in names})
        check_at_least(0, **{"trainer.gradient_clip_val": trainer.gradient_clip_val})
        above = ("limit_train_batches", "limit_test_batches")
        check_above(0, **{f"trainer.{name}": trainer[name] for name in above})
        if 0 in (trainer.max_steps, trainer.max_epochs):
            raise ValueError("trainer.max_steps and trainer.max_epochs must not be 0: nothing would be trained")
        # Lightning's own default, but with max_time, is 1,000 epochs.
        endless = trainer.max_epochs is None and trainer.max_time is not None
        check_ends(trainer.max_steps, -1 if endless else trainer.max_epochs)

    def before_instantiate_classes(self) -> None:
        """Look at the options and the output folder before anything is built."""
        self.check_options()
        _prepare_output(self.output, self.config.resume, self.config.overwrite, self.owned)

    def instantiate_classes(self) -> None:
        """The model, its encoder checkpointed where that is asked for, data and trainer."""
        super().instantiate_classes()
        if self.config.activation_checkpointing:
            checkpoint_activations(self.model.encoder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Loggers and checkpoints go to the output folder unless the configuration has its own."""
        # Where the configuration is kept when there is no logger.
        kwargs["default_root_dir"] = self.config_init.trainer.default_root_dir or self.output
        if self.config_init.trainer.sync_batchnorm:
            plugins = self.config_init.trainer.plugins or []
            kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), SyncBatchNorms()]
        if self.config_init.trainer.logger in (None, True):
            csv = CSVLogger(self.output, name="logs")
            kwargs["logger"] = [csv, TensorBoardLogger(self.output, name="logs", version=csv.version)]
        monitor = [] if self.config_init.trainer.logger is False else [LearningRateMonitor()]
        # Where nobody looks, a bar is thousands of lines of the log.
        asked = self.config_init.trainer
        bar = on_terminal() if asked.enable_progress_bar is None else asked.enable_progress_bar
        kwargs["enable_progress_bar"] = bar
        # Lightning's summary counts operations, none of them in quantized layers; LogProgress says the parameters.
        kwargs["enable_model_summary"] = bool(asked.enable_model_summary)
        progress = LogProgress(math.inf) if bar else LogProgress()
        self.trainer_defaults["callbacks"] = [*self.callbacks(), *monitor, progress]
        return super().instantiate_trainer(**kwargs)


def _prepare_output(output: Path, resume: bool, overwrite: bool, owned: tuple[str, ...]) -> None:
    last = output / "checkpoints" / "last.ckpt"
    if resume:
        if not last.exists():
            raise FileNotFoundError(f"nothing to resume: {last} does not exist")
        return
    found = [path for name in ("checkpoints", "logs", *owned) if (path := output / name).exists()]
    if found and not overwrite:
        raise FileExistsError(
            f"{output} holds an earlier run: go on with --resume true, replace it with --overwrite true, "
            "or choose another --output"
        )
    _delete(found)


@rank_zero_only
def _delete(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
