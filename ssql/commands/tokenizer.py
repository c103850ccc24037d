"""`ssql tokenizer`: the Lightning CLI around one encoder, two codebooks and audio."""

from contextlib import ExitStack
from pathlib import Path

from lightning import Callback
from lightning.pytorch.cli import ArgsType

from encoders import Encoder, load_head, save_encoder
from quant.checks import check_at_least
from ssql.data.held_out import HeldOut, check_validation
from ssql.terminal.console import say
from ssql.tokenizing.training import TokenizerTraining
from ssql.training.checkpoints import LastCheckpoint
from ssql.training.launch import Options, RunCLI, kept_if_it_fails

HELP = """Train a tokenizer on a speech encoder: linguistic tokens at 16.7 Hz, semantic tokens at 25 Hz.

  ssql tokenizer --encoder runs/words/encoder --data SpokenWords --linguistic_codes 64 --semantic_codes 128 \\
    --output runs/tokens
  ssql tokenizer ... --ssql true                  (vectors at drawn bits learn the codes of full precision)
  ssql tokenizer ... --freeze false               (the encoder learns as well)
  ssql tokenizer ... --data AudioFolder --data.root FOLDER --data.labels null
  ssql tokenizer --config runs/tokens/checkpoints/config.yaml --resume true

Linguistic codes are k-means centroids of the encoder's frames, semantic codes a vector quantizer of a projection that
is trained to tell the log-mel; no labels are needed. A step logs codebook use (%), perplexity and reconstruction
(squared error over variance; 1 is a constant answer).

Leaves model/ (the encoder's folder with tokenizer.json and tokenizer.safetensors), checkpoints/ and logs/ in the output
folder; `ssql evaluate_tokenizer` tells how many tokens stay at a bit-width, `ssql export --encoder .../model` puts the
tokens into the files. Validation items are taken out of the training split.
"""
OPTIONS: Options = {
    "encoder": (Encoder | str | Path, ..., "folder of a speech encoder, or a class for a fresh one", "model.encoder"),
    "linguistic_codes": (int, 1024, "size of the linguistic codebook", "model.codebooks.linguistic"),
    "semantic_codes": (int, 4096, "size of the semantic codebook", "model.codebooks.semantic"),
    "ssql": (bool, False, "each step also a quantized pass at drawn bits", "model.ssql"),
    "freeze": (bool, True, "the encoder does not learn", "model.freeze"),
    "validation": (float, 0.1, "share of training items that validate"),
    "start_batches": (int, 32, "batches that means, projection and codebooks start from"),
}


class TokenizerCLI(RunCLI):
    """Adds the validation split."""

    help, options = HELP, OPTIONS
    products = ("model",)

    def check_options(self) -> None:
        """What is looked at once the data is there, or after the run."""
        super().check_options()
        check_validation(self.config.validation)
        check_at_least(1, start_batches=self.config.start_batches)

    def callbacks(self) -> list[Callback]:
        """Start the model from its data; then checkpoints by step."""
        self.held_out = HeldOut(self.datamodule, self.config.validation, seed=self.model.seed)
        self.model.start(self.held_out, self.config.start_batches)
        return [LastCheckpoint(self.folder.checkpoints, self.config.checkpoint_steps, self.interruption)]


def tokenizer(args: ArgsType = None) -> Path:
    """Run `ssql tokenizer` and return the folder of the encoder with its tokenizer.

    Args:
        args: command-line words; those of the process when None.
    """
    defaults = {"num_sanity_val_steps": 0, "max_epochs": 10, "devices": 1}
    with ExitStack() as until:
        cli = TokenizerCLI(TokenizerTraining, "ssql tokenizer", args, until, trainer_defaults=defaults)
        model, folder = cli.model, cli.output / "model"
        encoder = cli.config.encoder
        head = load_head(encoder) if isinstance(encoder, str) and model.frozen else None

        def save() -> None:
            save_encoder(model.encoder, folder, overwrite=True, head=head, tokenizer=model.tokenizer)

        cli.fit(cli.held_out)
        model.to(cli.trainer.strategy.root_device)
        with kept_if_it_fails(folder, save):
            model.finish(cli.held_out, cli.config.start_batches)
        save()
        say(f"encoder and tokenizer: {folder}")
        return folder
