"""Views that are what they are made of."""

from typing import Any

from torch import Tensor

from encoders.base import Encoder
from ssql.augment.base import Augmentation


class Unchanged(Augmentation):
    """Clips or images as the data module gives them: for a distillation whose student meets what will be met."""

    def forward(self, inputs: Tensor, lengths: Any, encoder: Encoder) -> tuple[Tensor, Tensor | None]:
        """One view of a batch, through the front end alone; shapes are those of `Augmentation`."""
        view: tuple[Tensor, Tensor | None] = encoder.front_end(inputs, lengths)
        return view
