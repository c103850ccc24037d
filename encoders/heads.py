"""Task heads: one float linear layer on an encoder's features, saved beside the encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from encoders.base import recorded
from encoders.storage.folder import HEAD_CONFIG, HEAD_WEIGHTS, load_beside
from quant.checks import check_at_least, check_choice

HeadTask = Literal["classification", "ctc", "regression"]
HEAD_TASKS: tuple[HeadTask, ...] = get_args(HeadTask)
FORMAT_VERSION = 3
# Of CTC's logits, the one that is no token.
BLANK = 0


class Head(nn.Module):
    """A linear layer, never quantized, from features to the answers of one task.

    | task | features | answers |
    | --- | --- | --- |
    | `classification` | `encoder.embed(...)`, (batch, feature_dim) | logits (batch, classes) |
    | `ctc` | `encoder(...)[0]`, (batch, frames, feature_dim) | logits (batch, frames, 1 + tokens), blank 0 |
    | `regression` | `encoder.embed(...)`, (batch, feature_dim) | values (batch, targets) in their units |

    Args:
        task: `classification`, `ctc` or `regression`.
        feature_dim: width of the features.
        classes: names of the classes, tokens (without the blank) or targets.
        units: of each target, for regression only: `Hz`, `dB`, ...
        label: name of what is predicted in the data: `digit`, `word`, `text`, ...

    Attributes:
        arguments: the constructor's, plain values: enough to build the head again.
        linear: the layer.
        mean: buffer, shape (targets,), in units; regression's layer predicts (value - mean) / std.
        std: buffer, shape (targets,), in units.

    Raises:
        ValueError: an unknown task, no or repeated classes, units that do not go with them, or no feature.
    """

    arguments: dict[str, Any]
    mean: Tensor | None
    std: Tensor | None

    @recorded
    def __init__(
        self,
        task: HeadTask,
        feature_dim: int,
        classes: Sequence[str],
        units: Sequence[str] | None = None,
        label: str = "class",
    ) -> None:
        super().__init__()
        check_choice("task of a head", task, HEAD_TASKS)
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"a {task} head needs names, all different, of what it tells apart; got {list(classes)}")
        if (task == "regression") != (units is not None) or len(units or classes) != len(classes):
            raise ValueError(f"a regression head needs one unit a target, others none; got units {units}")
        check_at_least(1, feature_dim=feature_dim)
        self.task, self.feature_dim, self.label = task, feature_dim, label
        self.classes, self.units = list(classes), None if units is None else list(units)
        self.linear = nn.Linear(feature_dim, len(self.classes) + (task == "ctc"))
        self.register_buffer("mean", torch.zeros(len(self.classes)) if units else None)
        self.register_buffer("std", torch.ones(len(self.classes)) if units else None)

    def forward(self, features: Tensor) -> Tensor:
        """Logits, or values in their units: see the class."""
        outputs: Tensor = self.linear(features)
        if self.mean is None or self.std is None:
            return outputs
        return outputs * self.std + self.mean

    def answers(self, outputs: Tensor, lengths: Tensor | None = None) -> list[str]:
        """What the head says of each clip or image: its class's name, or its text by greedy decoding.

        Args:
            outputs: logits as `forward` gives them.
            lengths: frames of each clip, shape (batch,); for ctc.

        Raises:
            ValueError: a regression, whose values are its answers.
        """
        if self.task == "regression":
            raise ValueError("a regression head answers with numbers, not with names")
        if self.task == "classification":
            return [self.classes[index] for index in outputs.argmax(dim=1).tolist()]
        assert lengths is not None
        return greedy_texts(outputs, lengths, self.classes)


def greedy_texts(logits: Tensor, lengths: Tensor, tokens: Sequence[str]) -> list[str]:
    """The likeliest token of each frame, repeats merged, blanks dropped.

    Args:
        logits: shape (batch, frames, 1 + tokens), blank 0.
        lengths: frames of each clip, shape (batch,).
        tokens: without the blank.
    """
    best = logits.argmax(dim=-1).cpu()
    paths = [path[:length].unique_consecutive().tolist() for path, length in zip(best, lengths.tolist(), strict=True)]
    return ["".join(tokens[index - 1] for index in path if index != BLANK) for path in paths]


def load_head(folder: str | Path) -> Head | None:
    """The head beside an encoder, in evaluation mode; None when there is none.

    Args:
        folder: a local folder, or `hf-hub:owner/name` for a model on the Hugging Face hub.

    Raises:
        ArtifactError: no such folder, a damaged file, or weights of another head.

    Example:
        >>> import encoders
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> head = encoders.Head("classification", encoder.feature_dim, ["yes", "no"])
        >>> encoders.save_encoder(encoder, "small", overwrite=True, head=head)
        >>> encoders.load_head("small").classes
        ['yes', 'no']
    """
    return load_beside(Head, folder, HEAD_CONFIG, HEAD_WEIGHTS, FORMAT_VERSION)
