"""`ssql pretrain`: the Lightning CLI around one method and one data module."""

import logging
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from ssql.checkpoint import HealthyCheckpoint
from ssql.data import DataModule
from ssql.evaluate import calibrate_on
from ssql.memory import keep_freed_memory
from ssql.methods import Method

log = logging.getLogger(__name__)

HELP = """Pretrain an encoder whose features survive quantization.

  ssql pretrain --config experiments/speech/transformer_ssql_words.yaml --output runs/words
  ssql pretrain --config runs/words/logs/version_0/config.yaml --resume true
  ssql pretrain --config ... --model.ssql false      (the plain method, the baseline)
  ssql pretrain --config ... --model.optimizer bitsandbytes.optim.AdamW8bit --model.optimizer.lr 1e-3
  torchrun --nproc_per_node 4 $(which ssql) pretrain --config ... --trainer.devices 4 --trainer.strategy ddp
  srun --ntasks-per-node 4 ssql pretrain --config ... --trainer.devices 4 --trainer.num_nodes 2 --trainer.strategy ddp

Methods: SimSiam, BYOL, MoCo, SimCLR, MaskedPrediction, Distillation. Optimizers: any of torch (AdamW), timm
(timm.optim.Lars) and bitsandbytes by their names.

Leaves encoder/ (config.json, model.safetensors), checkpoints/ and logs/ (CSV, TensorBoard) in the output folder.
"""


class PretrainCLI(LightningCLI):
    """Adds the output folder, resuming and checkpoint frequency to the Lightning CLI."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments beside trainer, model and data."""
        parser.description = HELP
        parser.add_argument("--output", type=str, required=True, help="folder of the run")
        parser.add_argument("--resume", type=bool, default=False, help="go on from the run's last checkpoint")
        parser.add_argument("--overwrite", type=bool, default=False, help="delete an earlier run in the folder")
        parser.add_argument("--checkpoint_steps", type=int, default=200, help="steps from checkpoint to checkpoint")
        parser.add_argument("--calibration_batches", type=int, default=8, help="batches that set the saved ranges")
        parser.add_argument(
            "--calibration_observer", type=Literal["min_max", "moving_average", "percentile", "mse"], default="mse",
            help="how the saved activation ranges are found",
        )  # fmt: skip

    def before_instantiate_classes(self) -> None:
        """Look at the output folder before anything is built."""
        _prepare_output(Path(self.config.output), self.config.resume, self.config.overwrite)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Loggers and checkpoints go to the output folder unless the configuration has its own."""
        output = Path(self.config.output)
        # Where the configuration is kept when there is no logger.
        kwargs["default_root_dir"] = self.config_init.trainer.default_root_dir or output
        if self.config_init.trainer.logger in (None, True):
            csv = CSVLogger(output, name="logs")
            kwargs["logger"] = [csv, TensorBoardLogger(output, name="logs", version=csv.version)]
        self.trainer_defaults["callbacks"] = [
            HealthyCheckpoint(
                output / "checkpoints",
                filename="step-{step}",
                auto_insert_metric_name=False,
                every_n_train_steps=self.config.checkpoint_steps,
                save_last=True,
            ),
            *([] if self.config_init.trainer.logger is False else [LearningRateMonitor()]),
        ]
        return super().instantiate_trainer(**kwargs)


def pretrain(args: ArgsType = None) -> Path:
    """Run `ssql pretrain` and return the folder of the saved encoder.

    Args:
        args: command-line words; those of the process when None.
    """
    keep_freed_memory()
    cli = PretrainCLI(
        Method,
        DataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        args=args,
        parser_kwargs={"prog": "ssql pretrain"},
        trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 5},
    )
    cli.model.check_run(cli.trainer, cli.datamodule)
    output = Path(cli.config.output)
    checkpoint = output / "checkpoints" / "last.ckpt" if cli.config.resume else None
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if cli.model.health.suspicious_steps:
        log.warning("a collapse is suspected at the end of the run: look at feature_std in %s", output / "logs")
    # Back from the CPU, where Lightning leaves it: ranges are joined over ranks on the device of their backend.
    encoder = cli.model.encoder.to(cli.trainer.strategy.root_device)
    calibrate_on(encoder, cli.datamodule, cli.config.calibration_batches, cli.config.calibration_observer)
    if cli.trainer.is_global_zero:
        encoder.save_pretrained(output / "encoder", overwrite=True)
        log.info("encoder saved in %s", output / "encoder")
    return output / "encoder"


def _prepare_output(output: Path, resume: bool, overwrite: bool) -> None:
    last = output / "checkpoints" / "last.ckpt"
    if resume:
        if not last.exists():
            raise FileNotFoundError(f"nothing to resume: {last} does not exist")
        return
    owned = [output / name for name in ("checkpoints", "logs", "encoder")]
    found = [path for path in owned if path.exists()]
    if found and not overwrite:
        raise FileExistsError(
            f"{output} holds an earlier run: go on with --resume true, replace it with --overwrite true, "
            "or choose another --output"
        )
    _delete(found)


@rank_zero_only
def _delete(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder)
