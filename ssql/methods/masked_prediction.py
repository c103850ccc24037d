"""Masked prediction of a teacher's frames, and its SSQL form: the student predicts at two precisions."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from encoders.base import Encoder
from encoders.speech.frames import BlockEncoder, frame_mask
from encoders.speech.log_mel import HOP, SAMPLE_RATE
from quant.checks import check_above
from ssql.augment import Augmentation
from ssql.methods.method import SSQLOptions
from ssql.methods.momentum import MomentumMethod
from ssql.methods.objectives import masked_mean_square


class MaskedClips(NamedTuple):
    """A view and what the student does not see of it.

    Args:
        log_mel: shape (batch, n_mels, frames), 100 Hz.
        lengths: frames of each clip, shape (batch,).
        mask: bool, shape (batch, frames'), on the encoder's output frames, True where hidden.
    """

    log_mel: Tensor
    lengths: Tensor
    mask: Tensor


class Frames(NamedTuple):
    """Features (batch, frames', feature_dim), predictions (batch, frames', width), mask (batch, frames')."""

    features: Tensor
    predictions: Tensor
    mask: Tensor


class MaskedPrediction(MomentumMethod):
    """Frame-level pretraining in the manner of data2vec (Baevski et al., ICML 2022), on log-mels.

    A full-precision teacher sees the whole view; its target for a frame is the mean of its upper blocks' outputs, less
    what they are for a clip that is hidden entirely, each normalized over the clip's frames. The student sees the view
    with spans of mel frames replaced by a learned value for each mel band, and predicts the targets of the masked
    frames by mean square error. With SSQL it does so in full precision and at the random bit-width, with the same mask
    and the same targets.

    The subtraction is ours: sinusoidal positions (data2vec's are convolutional) are in every block's output, and
    without it nine tenths of the targets' variance is the number of the frame, which is then all that is learned.

    Args:
        encoder: of log-mel frames in blocks: speech or streaming transformer, Conformer.
        augmentation: makes the view.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains without it.
        target_blocks: upper blocks whose outputs are averaged; two thirds of them when None (data2vec: 8 of 12).
        mask_share: frames that begin a span are this share divided by `mask_seconds`' frames; overlaps leave
            about half of a clip masked at 0.65, as published.
        mask_seconds: length of a span, at most half of the clip; 0.2 s is published (10 frames of 50 Hz).
        momentum: of the teacher, at the start and (on a cosine) at the end; 0.999 to 0.9999 is published.
        optimizer: AdamW 5e-4 (published: Adam 5e-4, weight decay 0.01).
        common: see `Method`.
    """

    encoder: BlockEncoder

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool = True,
        target_blocks: int | None = None,
        mask_share: float = 0.65,
        mask_seconds: float = 0.2,
        momentum: float | Sequence[float] = (0.999, 0.9999),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-4, weight_decay=1e-2),
        **common: Any,
    ) -> None:
        if not isinstance(encoder, BlockEncoder):
            raise ValueError(
                "masked prediction needs an encoder of frames in blocks (SpeechTransformer, StreamingTransformer, "
                f"Conformer), not {encoder.name}: choose SimSiam, BYOL, MoCo or SimCLR for it"
            )
        depth, width = len(encoder.blocks), encoder.block_width
        target_blocks = max(1, round(2 * depth / 3)) if target_blocks is None else target_blocks
        if not 1 <= target_blocks <= depth:
            raise ValueError(f"target_blocks must be from 1 to the encoder's depth {depth}, got {target_blocks}")
        if not 0 < mask_share <= 1:
            raise ValueError(f"mask_share must be above 0 and at most 1, got {mask_share}")
        check_above(0, mask_seconds=mask_seconds)
        super().__init__(encoder, augmentation, ssql, nn.Identity(), momentum, optimizer=optimizer, **common)
        self.predictor = nn.Linear(encoder.feature_dim, width)
        self.hide = Hidden(encoder.arguments["n_mels"])
        self.target_blocks, self.mask_share = target_blocks, mask_share
        self.span = max(1, round(mask_seconds * encoder.frame_rate))
        self.stride = round(SAMPLE_RATE / HOP / encoder.frame_rate)

    def random_views(self, batch: dict[str, Any]) -> MaskedClips:
        """One random view with random spans hidden."""
        log_mel, lengths = self.augmentation(batch["inputs"], batch["lengths"], self.encoder)
        frames = (lengths // self.stride).clamp_min(1)
        return MaskedClips(log_mel, lengths, random_spans(frames, self.mask_share, self.span))

    def branch(self, views: MaskedClips) -> Frames:
        """The student's features of the masked view, and its predictions."""
        hidden = views.mask.repeat_interleave(self.stride, dim=1)
        hidden = F.pad(hidden, (0, views.log_mel.shape[2] - hidden.shape[1])).unsqueeze(1)
        features, _ = self.encoder(self.hide(views.log_mel, hidden), views.lengths)
        mask = F.pad(views.mask, (0, features.shape[1] - views.mask.shape[1]))
        return Frames(features, self.predictor(features), mask)

    @torch.no_grad()
    def targets(self, views: MaskedClips, branch: Frames) -> list[Tensor]:
        """The teacher's frames of the whole view, shape (batch, frames', width)."""
        encoder = cast(BlockEncoder, self.teacher.encoder)
        outputs, lengths = encoder.block_outputs(views.log_mel, views.lengths)
        nothing = self.hide(views.log_mel, torch.ones_like(views.log_mel, dtype=torch.bool))
        hidden, _ = encoder.block_outputs(nothing, views.lengths)
        valid = frame_mask(lengths, outputs[0].shape[1]).unsqueeze(2)
        upper = list(zip(outputs, hidden, strict=True))[-self.target_blocks :]
        mean = torch.stack([normalized_over_clip((seen - blank).float(), valid) for seen, blank in upper]).mean(dim=0)
        return [mean_of_frames(mean, valid, round(encoder.block_rate / encoder.frame_rate))[:, : branch.mask.shape[1]]]

    def loss(self, branch: Frames, targets: list[Tensor]) -> Tensor:
        """Mean square error of the masked frames."""
        return masked_mean_square(branch.predictions, targets[0], branch.mask)

    def features(self, branch: Frames) -> Tensor:
        """Features of the masked frames, which also show a collapse: the others include padding."""
        return branch.features[branch.mask]

    embeddings = features


class Hidden(nn.Module):
    """Log-mels with a learned value for each mel band where they are hidden.

    Args:
        n_mels: mel bands.
    """

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(n_mels))

    def forward(self, log_mel: Tensor, hidden: Tensor) -> Tensor:
        """Both shape (batch, n_mels, frames); `hidden` is bool and may be broadcast."""
        return torch.where(hidden, self.value.unsqueeze(1).to(log_mel.dtype), log_mel)


def random_spans(frames: Tensor, share: float, span: int) -> Tensor:
    """Random spans of each clip's frames, at least one, each at most half of the clip.

    Args:
        frames: of each clip, shape (batch,), at least 1.
        share: share of the frames, divided by the length of a span, that begin one.
        span: frames.

    Returns:
        bool, shape (batch, longest clip), True inside a span.
    """
    width = (frames // 2).clamp(1, span).unsqueeze(1)
    position = torch.arange(int(frames.max()), device=frames.device).expand(len(frames), -1)
    starts = torch.rand(position.shape, device=frames.device) < share / width
    one = (torch.rand(len(frames), 1, device=frames.device) * (frames.unsqueeze(1) - width + 1)).long()
    started = (starts | (position == one)).cumsum(dim=1)
    before = started.gather(1, (position - width).clamp_min(0)).masked_fill(position < width, 0)
    return (started > before) & (position < frames.unsqueeze(1))


def normalized_over_clip(x: Tensor, valid: Tensor) -> Tensor:
    """Zero mean and unit variance over each clip's frames: x (batch, time, width), valid (batch, time, 1)."""
    count = valid.sum(dim=1, keepdim=True)
    x = (x - (x * valid).sum(dim=1, keepdim=True) / count) * valid
    return x * ((x.square().sum(dim=1, keepdim=True) / count) + 1e-5).rsqrt()


def mean_of_frames(x: Tensor, valid: Tensor, ratio: int) -> Tensor:
    """Means of `ratio` neighbouring frames, over the valid ones: x (batch, time, width), valid (batch, time, 1)."""
    if ratio == 1:
        return x
    pooled, share = (
        F.avg_pool1d(values.transpose(1, 2), ratio, ceil_mode=True).transpose(1, 2)
        for values in (x * valid, valid.float())
    )
    return pooled / share.clamp_min(1e-6)
