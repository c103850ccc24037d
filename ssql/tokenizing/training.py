"""Training a tokenizer on an encoder's frames: codebooks that follow the frames, a projection that learns.

| stream | vectors | what trains its codes | what trains its projection |
| --- | --- | --- | --- |
| linguistic, 50/3 Hz | the encoder's frames | k-means, then a moving average of each code's frames | - |
| semantic, 25 Hz | a projection of the frames | the same | the log-mel of each frame, told from its code alone |

The linguistic stream is what Step-Audio has: k-means of the frames. Step-Audio's semantic stream is a vector quantizer
inside a network that is trained for more than acoustics; without labels the log-mel stands for what a code should
still tell (VQ-VAE, van den Oord et al. 2017; the moving average is its Appendix A.1).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import lightning
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

import quant
from encoders import Encoder, FrameEncoder, LogMel, Tokenizer, load_encoder
from encoders.speech.frame_rates import Resampling
from encoders.speech.frames import frame_mask, unpadded
from encoders.speech.log_mel import HOP, SAMPLE_RATE
from encoders.speech.tokenizer import SEMANTIC_RATE
from quant.checks import check_at_least
from ssql.data import DataModule
from ssql.data.batch import Batch
from ssql.evaluation.calibration import calibrate_on, prepare_anew
from ssql.evaluation.codebooks import code_counts, perplexity, use
from ssql.finetuning.precision import drop_stale_corrections
from ssql.finetuning.training import OBSERVER
from ssql.methods.method import View, seeded
from ssql.methods.objectives import relative_distance
from ssql.training.batch_norm import frozen_statistics
from ssql.training.draw import draw_bit_width
from ssql.training.schedule import WARMUP, built, scheduled, total_steps

# Distances that k-means holds at once, as many as fill 128 MB.
MOST_DISTANCES = 2**25
HIDDEN = 256  # width of the decoder
DECAY = 0.95  # of the codes' moving average, from step to step
REVIVE_BELOW = 0.1  # a code that is given less often than this share of the average becomes a random frame
COMMITMENT = 0.25  # weight of the vectors' squared distance to their codes


@dataclass(frozen=True)
class Codebooks:
    """Sizes of the codebooks.

    Args:
        linguistic: codes of the linguistic stream; Step-Audio has 1,024.
        semantic: codes of the semantic stream; Step-Audio has 4,096. A codebook wants at least 20 training frames a
            code: 20 minutes of audio fill about 1,000 linguistic codes at the very most.
        code_dim: width of the semantic projection and its codes.

    Raises:
        ValueError: a size that is too small.
    """

    linguistic: int = 1024
    semantic: int = 4096
    code_dim: int = 32

    def __post_init__(self) -> None:
        if min(self.linguistic, self.semantic) < 2:
            raise ValueError(
                f"codebooks need two codes or more; got {self.linguistic} linguistic and {self.semantic} semantic codes"
            )
        check_at_least(1, code_dim=self.code_dim)


class Pass(NamedTuple):
    """What one pass gives each stream: vectors (batch, tokens, dim) and their mask (batch, tokens)."""

    vectors: dict[str, Tensor]
    masks: dict[str, Tensor]


class TokenizerTraining(lightning.LightningModule):
    """A tokenizer that learns on an encoder's frames.

    Args:
        encoder: folder of a speech encoder, or a fresh one.
        codebooks: sizes.
        freeze: the encoder keeps its weights and ranges; otherwise it learns with the projection.
        ssql: each step also a quantized pass at drawn bits, whose vectors learn to lie near the codes of the
            full-precision pass (weights 2 to 8 bits, activations 4 to 8). It moves what learns: the semantic
            projection, and the encoder where it is not frozen.
        optimizer: any of torch, timm or bitsandbytes.
        seed: of codebooks, decoder, drawn bits and revived codes.

    Attributes:
        tokenizer: built by `start`.
    """

    tokenizer: Tokenizer
    mel_mean: Tensor
    mel_std: Tensor

    def __init__(
        self,
        encoder: Encoder | str,
        codebooks: Codebooks = Codebooks(),
        freeze: bool = True,
        ssql: bool = False,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
        seed: int = 0,
    ) -> None:
        super().__init__()
        loaded = load_encoder(encoder) if isinstance(encoder, str) else encoder
        if not isinstance(loaded, FrameEncoder):
            raise ValueError(f"tokens need an encoder of frames, such as SpeechTransformer; {loaded.name} has none")
        prepare_anew(loaded, None)
        learned = quant.learned_bit_width(loaded)
        if learned is not None and (ssql or not freeze):
            raise ValueError(
                f"the encoder's steps were learned at {learned}, its ranges cannot follow: keep it frozen (freeze "
                "true) without drawn bits (ssql false), or start from another encoder"
            )
        self.encoder, self.codebooks, self.frozen, self.ssql = loaded, codebooks, freeze, ssql
        self.optimizer, self.seed = optimizer, seed

    def start(self, data: DataModule, batches: int) -> None:
        """Everything that needs the data: ranges, means, the projection's start, codebooks by k-means.

        Raises:
            ValueError: data without audio.
        """
        if data.modality != self.encoder.modality:
            raise ValueError(f"the {self.encoder.name} encoder takes {self.encoder.modality}, not {data.modality}")
        if not self.frozen:
            drop_stale_corrections(self.encoder)
        if self.ssql or not self.frozen:
            _calibrate_where_needed(self.encoder, data, batches)
        self.encoder.requires_grad_(not self.frozen)
        sizes = self.codebooks
        with seeded(self.seed, self.device):
            self.tokenizer = Tokenizer(
                self.encoder.feature_dim, self.encoder.frame_rate, sizes.linguistic, sizes.semantic, sizes.code_dim
            )
            self.log_mel = LogMel()
            self.mel_resampling = Resampling(SAMPLE_RATE / HOP, SEMANTIC_RATE)
            self.decoder = nn.Sequential(
                nn.Linear(sizes.code_dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, self.log_mel.n_mels)
            )
            self._start_from(data, batches)
        self.train()  # an encoder comes from its folder in evaluation mode, and Lightning would leave it there

    def finish(self, data: DataModule, batches: int) -> None:
        """Codebooks as they are now go into the tokenizer; an encoder that has learned gets new ranges."""
        self._keep_codes()
        if self.frozen:
            _calibrate_where_needed(self.encoder, data, batches)
        else:
            calibrate_on(self.encoder, data, batches, "mse")
        self.encoder.requires_grad_(True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A full-precision pass: codes, and the log-mel from them; with SSQL a quantized pass toward the same codes."""
        view = self.encoder.front_end(batch["inputs"], batch["lengths"])
        with seeded(hash((self.seed, self.global_step, batch_idx, self.global_rank)) % 2**63, self.device):
            with self._observed():
                full = self._pass(view)
            loss, codes = self._full_precision_loss(full, batch)
        if self.ssql:
            drawn = draw_bit_width(self.seed, self.global_step)
            with quant.at(self.encoder, drawn, reuse_weights=True), frozen_statistics(self.encoder):
                loss = (loss + self._quantized_loss(self._pass(view), codes)) / 2
        if not loss.isfinite():
            raise RuntimeError(f"loss is {loss.item()} at step {self.global_step}: lower the learning rate")
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """The codebooks as they are now; nothing counted yet."""
        self._keep_codes()
        self.counts = {name: torch.zeros(len(stream.codebook)) for name, stream in self.tokenizer.streams.items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Reconstruction, and how often each code is given."""
        passed = self._pass(self.encoder.front_end(batch["inputs"], batch["lengths"]))
        for name, stream in self.tokenizer.streams.items():
            tokens = stream.distances(passed.vectors[name]).argmin(dim=-1)
            self.counts[name] += code_counts(tokens[passed.masks[name]], len(stream.codebook)).cpu()
            if name == "semantic":
                error = self._reconstruction(stream.codebook[tokens], passed.masks[name], batch)
        self.log("val/reconstruction", error, batch_size=len(batch["inputs"]), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Use and perplexity of the codebooks over the whole split."""
        for name, counts in self.counts.items():
            self.log_dict({f"val/{name}/use": use(counts), f"val/{name}/perplexity": perplexity(counts)})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a linear warm-up and a cosine to zero over the whole run."""
        optimizer = built(self.optimizer, (parameter for parameter in self.parameters() if parameter.requires_grad))
        total = total_steps(self.trainer)
        return scheduled(optimizer, round(WARMUP * total), total)

    def setup(self, stage: str) -> None:
        """Refuse several processes: each would have codebooks of its own."""
        if self.trainer.world_size > 1:
            raise ValueError("a tokenizer trains in one process: use --trainer.devices 1 and --trainer.num_nodes 1")

    def train(self, mode: bool = True) -> "TokenizerTraining":
        """A frozen encoder stays in evaluation mode: its running statistics do not move."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def _observed(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.frozen else quant.observe(self.encoder, OBSERVER)

    def _pass(self, view: View) -> Pass:
        """Vectors of both streams at the encoder's present bit-width."""
        with torch.no_grad() if self.frozen else nullcontext():
            features, lengths = self.encoder(*view)
        vectors, masks = {}, {}
        for name, (found, counts) in self.tokenizer.vectors(features, lengths).items():
            vectors[name], masks[name] = found, frame_mask(counts, found.shape[1])
        return Pass(vectors, masks)

    def _full_precision_loss(self, full: Pass, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Commitment and reconstruction, and the code (batch, tokens, dim) that each vector gets; codebooks move on."""
        codes, decodable = {}, {}
        losses = []
        for name, quantizer in self._quantizers():
            before = quantizer.codebook.clone()
            decodable[name], tokens, commitment = quantizer(full.vectors[name], mask=full.masks[name])
            losses.append(commitment)
            codes[name] = before[tokens.clamp_min(0)]
            counts = code_counts(tokens, len(before))
            self.log_dict({f"{name}/use": use(counts), f"{name}/perplexity": perplexity(counts)})
        reconstruction = self._reconstruction(decodable["semantic"], full.masks["semantic"], batch)
        self.log("reconstruction", reconstruction.detach(), prog_bar=True)
        return torch.stack([*losses, reconstruction]).sum(), codes

    def _quantized_loss(self, quantized: Pass, codes: dict[str, Tensor]) -> Tensor:
        """Distance of quantized vectors to the codes of full precision, in units of the codes' variance."""
        losses = []
        for name in self.quantizers:
            mask, vectors = quantized.masks[name], quantized.vectors[name]
            losses.append(relative_distance(vectors[mask], codes[name][mask]))
            self.log(f"{name}/loss_quantized", losses[-1].detach())
        return torch.stack(losses).sum()

    def _reconstruction(self, codes: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """Squared error of the log-mel that the decoder makes of codes (batch, tokens, code_dim), over its variance."""
        target, counts = self.mel_resampling(*self._log_mel_frames(batch))  # (batch, frames at 25 Hz, n_mels)
        target = (target - self.mel_mean) / self.mel_std
        tokens = min(codes.shape[1], target.shape[1])  # encoder and log-mel may round a clip's end in their own ways
        mask = mask[:, :tokens] & frame_mask(counts, tokens)
        return (self.decoder(codes[:, :tokens]) - target[:, :tokens])[mask].square().mean()

    def _log_mel_frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        log_mel, lengths = self.log_mel(batch["inputs"], batch["lengths"])
        return log_mel.transpose(1, 2), lengths

    def _keep_codes(self) -> None:
        for name, quantizer in self._quantizers():
            self.tokenizer.streams[name].codebook.copy_(quantizer.codebook)

    def _quantizers(self) -> Iterator[tuple[str, VectorQuantize]]:
        return ((name, cast(VectorQuantize, module)) for name, module in self.quantizers.items())

    @torch.no_grad()
    def _start_from(self, data: DataModule, batches: int) -> None:
        """Means, projection and codebooks from the first training batches."""
        self.encoder.eval()
        batches_seen = list(data.first_batches(batches))
        mel = torch.cat([unpadded(*self._log_mel_frames(batch)) for batch in batches_seen])
        self.register_buffer("mel_mean", mel.mean(dim=0))
        self.register_buffer("mel_std", mel.std(dim=0).clamp_min(1e-3))
        features = [self.encoder(*self.encoder.front_end(batch["inputs"], batch["lengths"])) for batch in batches_seen]
        frames = torch.cat([unpadded(*passed) for passed in features])
        projection = self.tokenizer.semantic.projection
        assert projection is not None
        projection.weight.copy_(whitening(frames, self.codebooks.code_dim))
        self.tokenizer.mean.copy_(frames.mean(dim=0))
        vectors = [self.tokenizer.vectors(*passed) for passed in features]
        quantizers = {}
        for name, stream in self.tokenizer.streams.items():
            valid = torch.cat([unpadded(*passed[name]) for passed in vectors])
            quantizers[name] = self._quantizer(valid, len(stream.codebook), len(features))
        self.quantizers = nn.ModuleDict(quantizers)
        self._keep_codes()

    def _quantizer(self, vectors: Tensor, codes: int, batches: int) -> VectorQuantize:
        """A quantizer of vectors (frames, dim) whose codebook starts by k-means of them."""
        quantizer = VectorQuantize(
            vectors.shape[1],
            codes,
            decay=DECAY,
            kmeans_init=True,
            threshold_ema_dead_code=REVIVE_BELOW * len(vectors) / batches / codes,
            commitment_weight=COMMITMENT,
        ).to(vectors.device)
        chosen = torch.randperm(len(vectors), device=vectors.device)[: max(MOST_DISTANCES // codes, 2 * codes)]
        quantizer(vectors[chosen].unsqueeze(0))
        return quantizer


def whitening(frames: Tensor, dim: int) -> Tensor:
    """Weights (dim, feature_dim) onto leading principal components of frames (frames, feature_dim), of variance 1."""
    variances, directions = torch.linalg.eigh(torch.cov(frames.double().T))
    leading = variances.argsort(descending=True)[:dim]
    weights = (directions[:, leading] / variances[leading].clamp_min(1e-8).sqrt()).T.to(frames)
    return torch.cat([weights, weights.new_zeros(dim - len(weights), frames.shape[1])])


def _calibrate_where_needed(encoder: Encoder, data: DataModule, batches: int) -> None:
    """Ranges for an encoder that has none; those of a trained one are kept, and learned steps are ranges."""
    if quant.learned_bit_width(encoder) is not None:
        return
    try:
        with quant.at(encoder, "w8a8"):
            pass
    except quant.NotCalibratedError:
        calibrate_on(encoder, data, batches, "mse")
