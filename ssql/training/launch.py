"""What training commands share: the output folder, resuming, loggers, checkpoints."""

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import set_parsing_settings
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from encoders.storage.paths import shown
from quant.checks import check_above, check_at_least
from ssql.data import DataModule
from ssql.terminal.inputs import check_inputs, check_root
from ssql.terminal.interruption import Interrupted, interruptible
from ssql.terminal.logs import quiet_lightning
from ssql.terminal.parsing import Sentences
from ssql.terminal.progress import LogProgress, on_terminal
from ssql.training.activation_checkpointing import checkpoint_activations
from ssql.training.batch_norm import SyncBatchNorms
from ssql.training.checkpoint_files import WholeCheckpoints, newest_whole
from ssql.training.memory import keep_freed_memory
from ssql.training.run_folder import CONFIG, RunFolder, claimed
from ssql.training.run_options import check_same_items, check_same_run, input_hashes, save_options
from ssql.training.schedule import check_ends

# A configuration is a file of this machine: Lightning would have addresses fetched.
set_parsing_settings(config_read_mode_fsspec_enabled=False)

# Options of a command beside those of trainer, model and data: type, default (`...`: it must be given), help, and where
# the model has it deeper inside. `ssql COMMAND --help` reads them in the source.
Options = Mapping[str, tuple[Any, Any, str] | tuple[Any, Any, str, str]]
OPTIONS: Options = {
    "output": (str, ..., "folder of the run"),
    "resume": (bool, False, "go on from the run's last checkpoint"),
    "overwrite": (bool, False, "replace an earlier run in the folder, which is kept until this one has finished"),
    "checkpoint_steps": (int, 200, "steps from checkpoint to checkpoint"),
    "activation_checkpointing": (bool, False, "less memory: blocks of the encoder are computed again in the backward "
                                 "pass, with the same numbers"),
}  # fmt: skip
# Options that may name the folder of an encoder.
ENCODERS_TO_LOAD = ("encoder", "model.init_args.encoder.init_args.folder")


class RunParser(Sentences, LightningArgumentParser):
    """Lightning's parser, with our errors."""


class RunCLI(LightningCLI):
    """The Lightning CLI with an output folder and resuming; subclasses add options and callbacks.

    Args:
        model_class: of the model.
        command: as the user types it: `ssql pretrain`.
        args: command-line words; those of the process when None.
        until: closed by the caller when the command has done its work or failed: then the folder is let go.
        any_model: whether the configuration names a subclass of `model_class`.
        trainer_defaults: of the command, beside those that all have.

    Attributes:
        help: of the command.
        options: of the command, beside those of all.
        products: names in the output folder that the run leaves when it has finished.
        harmless: options that leave the trained weights as they are, beside those of every command.
    """

    help: ClassVar[str]
    options: ClassVar[Options]
    products: ClassVar[tuple[str, ...]]
    harmless: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model_class: type,
        command: str,
        args: ArgsType,
        until: ExitStack,
        any_model: bool = False,
        trainer_defaults: dict[str, Any] | None = None,
    ) -> None:
        self.command, self.until = command, until
        keep_freed_memory()
        quiet_lightning()
        super().__init__(
            model_class,
            DataModule,
            subclass_mode_model=any_model,
            subclass_mode_data=True,
            run=False,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfigWithLogs,
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

    def fit(self, data: DataModule) -> None:
        """Train, from the start or from where the run was interrupted.

        Args:
            data: of the run.

        Raises:
            ValueError: a run of other data is to go on.
            Interrupted: by a signal; a checkpoint is written.
        """
        if is_first_process():
            items = len(data.dataset("train"))  # type: ignore[arg-type]
            if self.config.resume:
                check_same_items(self.folder, items)
            self.begin.inputs["train_items"] = items
        self.trainer.fit(self.model, data, ckpt_path=self.last, weights_only=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside those of trainer, model and data."""
        parser.description = self.help
        for name, (kind, default, text, *target) in {**OPTIONS, **self.options}.items():
            given: dict[str, Any] = {"required": True} if default is ... else {"default": default}
            parser.add_argument(f"--{name}", type=kind, help=text, **given)
            if target:
                parser.link_arguments(name, target[0])

    def callbacks(self) -> list[Callback]:
        """Callbacks of the command; the model and the data module are there already."""
        raise NotImplementedError

    def check_options(self) -> None:
        """Refuse what could only fail later, or would train nothing; subclasses add their own options.

        Raises:
            ValueError: an option, and what would be right.
        """
        if shown(self.output) != str(self.output):
            raise ValueError(f"--output {shown(self.output)} is not UTF-8, as names in a run's logs must be")
        # Inputs are looked at before the output folder: whoever mistyped one mends that first.
        folders = (self.config.get(option) for option in ENCODERS_TO_LOAD)
        check_inputs(folder for folder in folders if isinstance(folder, str | Path))
        check_root(self.config.get("data.init_args.root"))
        check_at_least(1, checkpoint_steps=self.config.checkpoint_steps)
        trainer = self.config.trainer
        names = ("accumulate_grad_batches", "check_val_every_n_epoch")
        check_at_least(1, **{f"trainer.{name}": trainer[name] for name in names})
        check_at_least(0, **{"trainer.gradient_clip_val": trainer.gradient_clip_val})
        above = ("limit_train_batches", "limit_test_batches")
        check_above(0, **{f"trainer.{name}": trainer[name] for name in above})
        if 0 in (trainer.max_steps, trainer.max_epochs):
            raise ValueError("trainer.max_steps and trainer.max_epochs must not be 0: nothing would be trained")
        # Not said is no end: Lightning would take 1,000 epochs.
        check_ends(trainer.max_steps, -1 if trainer.max_epochs is None else trainer.max_epochs)

    def before_instantiate_classes(self) -> None:
        """Look at the options and the output folder before anything is built, and hold it until the command ends.

        Raises:
            FileExistsError, BlockingIOError, NotADirectoryError: see `claimed`.
            FileNotFoundError: nothing to resume.
            ValueError: no checkpoint that is whole, or those of a run with other options or weights.
        """
        self.check_options()
        self.folder = RunFolder(self.output, self.products)
        self.begin = Begin(self.folder)
        self.interruption = self.until.enter_context(interruptible())
        self.until.enter_context(self._said_how_to_resume())
        if is_first_process():
            self.until.enter_context(claimed(self.folder, self.config.resume, self.config.overwrite))
        self.last = newest_whole(self.folder.checkpoints) if self.config.resume else None
        if is_first_process():
            asked = self.config.clone()
            asked.resume = asked.overwrite = False  # whoever starts from the saved file says it anew
            options = self.parser.dump(asked, skip_none=False)
            inputs = input_hashes(options, self.command, self.output)
            if self.config.resume:
                check_same_run(self.folder, options, inputs, self.harmless)
            self.begin.options, self.begin.inputs = options, inputs

    def instantiate_classes(self) -> None:
        """The model, its encoder checkpointed where that is asked for, data and trainer."""
        super().instantiate_classes()
        if self.config.activation_checkpointing:
            checkpoint_activations(self.model.encoder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Loggers and checkpoints go to the output folder unless the configuration has its own."""
        kwargs["default_root_dir"] = self.config_init.trainer.default_root_dir or self.output
        plugins = self.config_init.trainer.plugins or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if self.config_init.trainer.sync_batchnorm:
            plugins.append(SyncBatchNorms())
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(WholeCheckpoints())
        kwargs["plugins"] = plugins
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
        self.trainer_defaults["callbacks"] = [*self.callbacks(), *monitor, progress, self.begin]
        return super().instantiate_trainer(**kwargs)

    @contextmanager
    def _said_how_to_resume(self) -> Iterator[None]:
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as stop:
            number = stop.signal_number if isinstance(stop, Interrupted) else signal.SIGINT
            launcher = self.trainer.strategy.launcher if hasattr(self, "trainer") else None
            if launcher is not None:
                launcher.kill(signal.SIGTERM)
            raise Interrupted(number, self._after_interruption() if is_first_process() else "") from None

    def _after_interruption(self) -> str:
        if not self.folder.begun or not (self.begin.steps or self.config.resume):
            return "interrupted before the first step; nothing was changed"
        with suppress(FileNotFoundError, ValueError):
            newest_whole(self.folder.checkpoints)
            kept = "; the run that it replaces is kept until then" if self.folder.replaced else ""
            options = self.folder.checkpoints / CONFIG
            return f"interrupted; go on with: {self.command} --config {options} --resume true{kept}"
        return "interrupted before a checkpoint was written: start again with --overwrite true"


def is_first_process() -> bool:
    """Whether this process is the one that writes; known before Lightning starts the others."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


class Begin(Callback):
    """After a run's first step writes what it was started with: from then on it is the run of its folder.

    Args:
        folder: of the run.

    Attributes:
        options: YAML of the run.
        inputs: of `input_hashes`.
        steps: batches that this process has trained on.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.options, self.inputs = "", dict[str, Any]()
        self.steps = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """After the first step."""
        if self.steps == 0 and trainer.is_global_zero:
            save_options(self.folder, self.options, self.inputs)
        self.steps += 1


class SaveConfigWithLogs(SaveConfigCallback):
    """Lightning's, only where there are logs: without them it would write into the user's folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Beside the logs."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


@contextmanager
def kept_if_it_fails(folder: Path, save: Callable[[], object]) -> Iterator[None]:
    """What comes after training may fail; what was trained is kept, and the error says where.

    Args:
        folder: that `save` has written or writes.
        save: called when something fails.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        save()
        raise RuntimeError(f"{error}; what was trained is saved in {folder}") from error
