"""What every encoder offers: a front end, features, one embedding a clip or image, and its own description."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any, ClassVar

from torch import Tensor, nn

ENCODERS: dict[str, type["Encoder"]] = {}


def register_encoder(name: str) -> Callable[[type["Encoder"]], type["Encoder"]]:
    """Class decorator: the name under which an artifact's `config.json` knows this encoder."""

    def register(encoder: type["Encoder"]) -> type["Encoder"]:
        encoder.name = name
        ENCODERS[name] = encoder
        return encoder

    return register


def list_encoders(pattern: str = "*") -> list[str]:
    """Names for `create_encoder`, in alphabetical order.

    Args:
        pattern: as of file names.

    Example:
        >>> import encoders
        >>> encoders.list_encoders("*transformer")
        ['speech_transformer', 'streaming_transformer']
    """
    return [name for name in sorted(ENCODERS) if fnmatch(name, pattern)]


def create_encoder(name: str, **arguments: Any) -> "Encoder":
    """An encoder with fresh weights, in training mode.

    Args:
        name: one of `list_encoders`.
        arguments: of the encoder's constructor.

    Raises:
        ValueError: an unknown name, or a value that the encoder does not take.
        TypeError: an argument that the encoder does not have.

    Example:
        >>> import encoders
        >>> encoders.create_encoder("conformer", width=32, depth=1, heads=2).feature_dim
        32
    """
    if name not in ENCODERS:
        nearest = difflib.get_close_matches(name, ENCODERS, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(list_encoders())}"
        raise ValueError(f"unknown encoder {name!r}: {hint}")
    return ENCODERS[name](**arguments)


def recorded(init: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a constructor: its arguments become the object's `arguments`, in the signature's order.

    Where a subclass passes arguments on to its parent, those of the subclass are kept. Tuples become lists, as JSON has
    them.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def record(self: Any, *values: Any, **named: Any) -> None:
        if "arguments" not in vars(self):
            bound = signature.bind(self, *values, **named)
            bound.apply_defaults()
            plain = {
                name: list(value) if isinstance(value, tuple) else value for name, value in bound.arguments.items()
            }
            self.arguments = dict(list(plain.items())[1:])
        init(self, *values, **named)

    return record


class Encoder(nn.Module):
    """Base of all encoders.

    Attributes:
        name: as registered.
        modality: `audio` or `image`: what `front_end` takes.
        feature_dim: width of the features and of the embedding.
        arguments: the constructor's arguments, recorded as it is called, plain values: enough to build it again.
        front_end: module; (inputs, lengths) to (encoder inputs, lengths). Inputs are waveforms
            (batch, samples) at 16,000 Hz with lengths in samples, or images (batch, channels, height, width)
            in [0, 1] with lengths None.
    """

    name: ClassVar[str]
    modality: ClassVar[str]
    feature_dim: int
    arguments: dict[str, Any]
    front_end: nn.Module

    def __init__(self) -> None:
        super().__init__()
        if not hasattr(type(self), "name"):
            raise TypeError(f"{type(self).__name__} is only what others are made from: name one of them")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = recorded(cls.__init__)  # type: ignore[method-assign]

    @classmethod
    def check_description(cls, arguments: Mapping[str, Any]) -> None:
        """Raise ValueError for arguments that a saved description, maybe a stranger's, must not have; by default none.

        Args:
            arguments: of the constructor, of the right types.
        """

    @property
    def stages(self) -> list[nn.Module]:
        """Modules that run one after another, each on what the one before returned; none where there are no such."""
        return []

    def embed(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One embedding a clip or image, shape (batch, feature_dim), from what `front_end` returns."""
        raise NotImplementedError

    def pool(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One embedding a clip or image, shape (batch, feature_dim), from what `forward` returns."""
        raise NotImplementedError

    def embed_raw(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One embedding a clip or image, shape (batch, feature_dim), from waveforms or pixels."""
        embedding: Tensor = self.embed(*self.front_end(inputs, lengths))
        return embedding
