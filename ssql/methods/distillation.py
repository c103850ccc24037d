"""Distillation: an encoder keeps a frozen teacher's features at every bit-width."""

import copy
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

import quant
from encoders.base import Encoder
from encoders.speech.frames import FrameEncoder, unpadded
from ssql.augment import Augmentation
from ssql.methods.method import Method, SSQLOptions, View


class Rows(NamedTuple):
    """The student's features (count, feature_dim) of all real frames or images, and what is compared (count, dim)."""

    features: Tensor
    predictions: Tensor


class Distillation(Method):
    """The student's features become those of a frozen full-precision teacher, frame by frame.

    For an encoder whose features something trained already reads, such as a speech model's adaptor: with SSQL both
    branches, in full precision and at the random bit-width, are drawn to the teacher's features of the same view, by
    the squared distance of each feature in units of its variance over the batch (0 is equal, 1 is any other frame):
    a reader may look at features that hardly vary.
    There is nothing self-supervised in it: start from imported or pretrained weights (`encoders.init_from`).

    Args:
        encoder: the student.
        augmentation: makes the view both see.
        ssql: options of the quantized branch; `true` takes the published ones, `false` trains full precision only.
        teacher: the student's own weights at the start when None; one of other width is met through a linear layer
            that belongs to the training alone.
        optimizer: AdamW 1e-4.
        common: see `Method`.

    Raises:
        ValueError: a teacher of other inputs or another frame rate, or a request for quantized targets.
    """

    def __init__(
        self,
        encoder: Encoder,
        augmentation: Augmentation,
        ssql: SSQLOptions | bool = True,
        teacher: Encoder | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=1e-2),
        **common: Any,
    ) -> None:
        if isinstance(ssql, SSQLOptions) and ssql.targets == "quantized":
            raise ValueError("distillation has a teacher in full precision: ssql.targets must be full_precision")
        super().__init__(encoder, augmentation, ssql, optimizer=optimizer, **common)
        # With frozen weights the student's own full-precision pass is that of its teacher.
        self.teacher = None
        if teacher is not None or not self.keeps_ranges:
            teacher = _full_precision(encoder) if teacher is None else teacher
            _check_teacher(encoder, teacher)
            self.teacher = FrozenEncoder(teacher)
        dims = encoder.feature_dim, encoder.feature_dim if teacher is None else teacher.feature_dim
        self.matcher = nn.Identity() if dims[0] == dims[1] else nn.Linear(*dims)

    def random_views(self, batch: dict[str, Any]) -> View:
        """One random view of a batch."""
        view: View = self.augmentation(batch["inputs"], batch["lengths"], self.encoder)
        return view

    def branch(self, views: View) -> Rows:
        """The student's features of the view."""
        features = rows(self.encoder, views)
        return Rows(features, self.matcher(features))

    @torch.no_grad()
    def targets(self, views: View, branch: Rows) -> list[Tensor]:
        """The teacher's features of the view."""
        if self.teacher is None:
            return [branch.features]
        return [rows(self.teacher.encoder, views)]

    def loss(self, branch: Rows, targets: list[Tensor]) -> Tensor:
        """Distance to the teacher's features: see `distance_by_feature`."""
        return distance_by_feature(branch.predictions, targets[0])

    def features(self, branch: Rows) -> Tensor:
        """The features, which are also what shows a collapse."""
        return branch.features

    embeddings = features


class FrozenEncoder(nn.Module):
    """An encoder that neither learns nor updates statistics, whatever mode the whole is put in."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stays in evaluation mode."""
        return super().train(False)


def distance_by_feature(found: Tensor, reference: Tensor) -> Tensor:
    """Mean square distance of rows of features, each over its own variance across the reference's rows, shape ().

    A feature that hardly varies counts as if it had a hundredth of the mean variance.

    Args:
        found: shape (count, dim).
        reference: of the same shape; no gradient flows into it.
    """
    reference = reference.detach().float()
    variance = reference.var(dim=0, correction=0)
    variance = variance.clamp_min(float(torch.finfo(torch.float32).tiny)).maximum(variance.mean() / 100)
    return ((found.float() - reference).square() / variance).mean()


def rows(encoder: Encoder, view: View) -> Tensor:
    """Features (count, feature_dim) of all real frames of a batch of clips, or of all its images."""
    if not isinstance(encoder, FrameEncoder):
        return encoder.embed(*view)
    return unpadded(*encoder(*view))


def _full_precision(encoder: Encoder) -> Encoder:
    twin = copy.deepcopy(encoder)
    return quant.unprepare(twin) if quant.is_prepared(twin) else twin


def _check_teacher(student: Encoder, teacher: Encoder) -> None:
    if student.modality != teacher.modality:
        raise ValueError(f"a {teacher.modality} encoder cannot teach one of {student.modality}")
    if isinstance(student, FrameEncoder) and isinstance(teacher, FrameEncoder):
        if student.frame_rate != teacher.frame_rate:
            raise ValueError(
                f"the teacher gives features at {teacher.frame_rate} Hz, the student at {student.frame_rate} Hz: "
                "give the student the same frame rate"
            )
        student_mels, teacher_mels = (
            (type(encoder.front_end), encoder.arguments.get("n_mels")) for encoder in (student, teacher)
        )
        if student_mels != teacher_mels:
            raise ValueError(
                f"teacher and student see the same view, but the student's front end is {_named(student_mels)} and "
                f"the teacher's {_named(teacher_mels)}: give the student the teacher's"
            )


def _named(front_end: tuple[type, int | None]) -> str:
    return front_end[0].__name__ + (f" with {front_end[1]} mels" if front_end[1] else "")
