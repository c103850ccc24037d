"""`ssql pretrain`: the Lightning CLI around one method and one data module."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from lightning import Callback
from lightning.pytorch.cli import ArgsType

import quant
from encoders import Encoder, save_encoder
from quant.checks import check_at_least
from ssql.evaluation.calibration import calibrate_on, correct_bias_on
from ssql.methods import Method
from ssql.training.checkpoints import HealthyCheckpoint
from ssql.training.launch import Options, RunCLI, kept_if_it_fails
from ssql.training.sharding import gathered_encoder

log = logging.getLogger(__name__)

HELP = """Pretrain an encoder whose features survive quantization.

  ssql pretrain --config experiments/speech/transformer_ssql_words.yaml --output runs/words
  ssql pretrain --config runs/words/checkpoints/config.yaml --resume true
  ssql pretrain --config ... --model.ssql false      (the plain method, the baseline)
  ssql pretrain --config ... --model.optimizer bitsandbytes.optim.AdamW8bit --model.optimizer.lr 1e-3
  ssql pretrain --config ... --model.augmentation.noise FOLDER --model.augmentation.rooms FOLDER   (recordings)
  ssql pretrain --config ... --activation_checkpointing true       (less memory, the same numbers)
  torchrun --nproc_per_node 4 $(which ssql) pretrain --config ... --trainer.devices 4 --trainer.strategy ddp
  torchrun --nproc_per_node 4 $(which ssql) pretrain --config ... --trainer.devices 4 --trainer.strategy fsdp2
  srun --ntasks-per-node 4 ssql pretrain --config ... --trainer.devices 4 --trainer.num_nodes 2 --trainer.strategy ddp

Methods: SimSiam, BYOL, MoCo, SimCLR, MaskedPrediction, Distillation. Optimizers: any of torch (AdamW), timm
(timm.optim.Lars) and bitsandbytes by their names. The learning rate falls to zero over the whole run, whose last step
--trainer.max_steps or --trainer.max_epochs says; --trainer.max_time may stop it sooner.

Leaves encoder/ (config.json, model.safetensors), checkpoints/ and logs/ (CSV, TensorBoard) in the output folder.
"""
OPTIONS: Options = {
    "calibration_batches": (int, 8, "batches that set the saved ranges"),
    "calibration_observer": (Literal["min_max", "moving_average", "mse"], "mse", "how they are found"),
    "bias_correction": (list[str], ["w8a8", "w4a8", "w4a4"], "bit-widths at which biases are corrected, so that layers "
                        "keep their mean outputs of full precision"),
}  # fmt: skip


class PretrainCLI(RunCLI):
    """Adds calibration and checkpoints of good health."""

    help, options = HELP, OPTIONS
    products = ("encoder",)
    harmless = tuple(OPTIONS)  # they come after the training

    def check_options(self) -> None:
        """What calibration after the run is going to take."""
        super().check_options()
        check_at_least(1, calibration_batches=self.config.calibration_batches)
        for bit_width in self.config.bias_correction:
            quant.check_correctable(bit_width)

    def callbacks(self) -> list[Callback]:
        """Checkpoints every so many steps."""
        return [HealthyCheckpoint(self.folder.checkpoints, self.config.checkpoint_steps, self.interruption)]


def pretrain(args: ArgsType = None) -> Path:
    """Run `ssql pretrain` and return the folder of the saved encoder.

    Args:
        args: command-line words; those of the process when None.
    """
    with ExitStack() as until:
        cli = PretrainCLI(Method, "ssql pretrain", args, until, any_model=True)
        cli.model.check_run(cli.trainer, cli.datamodule)
        cli.fit(cli.datamodule)
        if cli.model.health.suspicious_steps:
            log.warning("a collapse is suspected at the end of the run: look at feature_std in %s", cli.output / "logs")
        # Back from the CPU, where Lightning leaves it: ranges are joined over ranks on the device of their backend.
        encoder = gathered_encoder(cli.model.encoder).to(cli.trainer.strategy.root_device)
        _finish(cli, encoder)
        # The folder is there for every process.
        cli.trainer.strategy.barrier()
        return cli.output / "encoder"


def _finish(cli: PretrainCLI, encoder: Encoder) -> None:
    """Find ranges and bias corrections, and save the encoder; without them where they fail.

    Ranges may stay what the encoder came with. Bit-widths that learned biases, or came with them, need no correction.
    """
    batches, folder = cli.config.calibration_batches, cli.output / "encoder"

    def save() -> None:
        quant.settle_bit_widths(encoder)
        if cli.trainer.is_global_zero:
            save_encoder(encoder, folder, overwrite=True)

    if not cli.model.keeps_ranges:
        with kept_if_it_fails(folder, save):
            calibrate_on(encoder, cli.datamodule, batches, cli.config.calibration_observer)
    save()
    known = quant.corrected_bit_widths(encoder)
    to_correct = [each for each in cli.config.bias_correction if quant.parse_bit_width(each) not in known]
    with kept_if_it_fails(folder, lambda: None):
        for bit_width in to_correct:
            correct_bias_on(encoder, cli.datamodule, batches, bit_width)
    if to_correct:
        save()
    if cli.trainer.is_global_zero:
        log.info("encoder saved in %s", folder)
