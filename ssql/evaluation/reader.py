"""What reads an encoder's features and was trained once, never again: a decoder, or a language model by an adaptor."""

from abc import ABC, abstractmethod

from torch import Tensor


class Reader(ABC):
    """Base of the frozen readers of features: `ssql evaluate --reader my_module.MyReader` takes any of them.

    A reader has a `read`, and says with `width` and `frames` what it takes. Whatever is large is best loaded when it is
    first needed, so that a mistyped option is told at once.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the features that it was trained on."""

    def check(self, width: int | None = None) -> None:  # noqa: B027  most readers have no files
        """Raise FileNotFoundError, before any work, where files that are loaded later are not there.

        Args:
            width: of the features that are to be read, for a sentence that says what would fit; None if not known.
        """

    def fitting(self, width: int | None) -> str:
        """What reads features of this width, for a sentence; None where the width is not known."""
        return "the model that this encoder is from"

    @property
    def frames(self) -> int | None:
        """Frames that it takes of every clip; None where it takes any number."""
        return None

    @abstractmethod
    def read(self, features: Tensor, frames: Tensor) -> list[str]:
        """What is said in each clip.

        Args:
            features: shape (batch, frames, width), float32, on the CPU.
            frames: of each clip, shape (batch,).
        """

    def normalized(self, text: str) -> str:
        """A text as it is compared, what was read and what was said alike: words between single spaces."""
        return " ".join(text.lower().split())
