"""Tokenizer heads: an encoder's frames become two streams of tokens, saved beside the encoder.

Step-Audio's dual codebook (StepFun 2025, arXiv:2502.11946, and its public tokenizer): a linguistic stream, the nearest
of 1,024 k-means centroids of an encoder's frames at 50/3 Hz, and a semantic stream, the nearest of 4,096 learned codes
at 25 Hz. Here both streams come from one encoder, so that one quantized encoder serves both.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from encoders.base import Encoder, recorded
from encoders.speech.frame_rates import Resampling
from encoders.speech.frames import frame_mask
from encoders.speech.interleaving import interleave
from encoders.storage.folder import TOKENIZER_CONFIG, TOKENIZER_WEIGHTS, load_beside

LINGUISTIC_RATE, SEMANTIC_RATE = 50 / 3, 25.0  # Hz
PADDING = -1
FORMAT_VERSION = 3


class Tokens(NamedTuple):
    """Tokens of a batch, int64, -1 beyond a clip's length, and how many each clip has.

    Attributes:
        linguistic: shape (batch, frames at 50/3 Hz).
        linguistic_lengths: shape (batch,).
        semantic: shape (batch, frames at 25 Hz).
        semantic_lengths: shape (batch,).
    """

    linguistic: Tensor
    linguistic_lengths: Tensor
    semantic: Tensor
    semantic_lengths: Tensor


class TokenStream(nn.Module):
    """Frames at a rate of their own, projected or as they are, and the index of the nearest code. In float.

    Args:
        feature_dim: width of the encoder's features.
        frame_rate: of the encoder, in Hz.
        rate: of the tokens, in Hz.
        codes: size of the codebook.
        code_dim: width of projection and codes; without a projection when None.

    Attributes:
        codebook: shape (codes, code_dim or feature_dim).
    """

    codebook: Tensor

    def __init__(
        self, feature_dim: int, frame_rate: float, rate: float, codes: int, code_dim: int | None = None
    ) -> None:
        super().__init__()
        self.resampling = Resampling(frame_rate, rate)
        self.projection = None if code_dim is None else nn.Linear(feature_dim, code_dim, bias=False)
        self.register_buffer("codebook", torch.randn(codes, code_dim or feature_dim))

    def vectors(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is compared with the codes, (batch, tokens, dim), from centred features (batch, frames, feature_dim)."""
        frames, lengths = self.resampling(features, lengths)
        return frames if self.projection is None else self.projection(frames), lengths

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared Euclidean distance to each code less the vector's own square: (..., dim) to (..., codes)."""
        return self.codebook.square().sum(dim=1) - 2 * (vectors @ self.codebook.T)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, tokens), -1 beyond a clip's length, and how many each clip has, (batch,)."""
        vectors, lengths = self.vectors(features, lengths)
        tokens = self.distances(vectors).argmin(dim=-1)
        return tokens.where(frame_mask(lengths, tokens.shape[1]), PADDING), lengths


class Tokenizer(nn.Module):
    """Two token streams on the features of one speech encoder.

    Args:
        feature_dim: width of the encoder's features.
        frame_rate: of the encoder, in Hz.
        linguistic_codes: size of the linguistic codebook.
        semantic_codes: size of the semantic codebook.
        code_dim: width of the semantic projection; linguistic codes are as wide as the features.

    Attributes:
        arguments: the constructor's, plain values: enough to build the tokenizer again.
        mean: of the training frames, shape (feature_dim,); taken off the features first, so that distances keep their
            digits where means are much larger than deviations.

    Raises:
        ValueError: a codebook of fewer than two codes, or a width that is not above 0.
    """

    arguments: dict[str, Any]
    mean: Tensor

    @recorded
    def __init__(
        self,
        feature_dim: int,
        frame_rate: float,
        linguistic_codes: int = 1024,
        semantic_codes: int = 4096,
        code_dim: int = 32,
    ) -> None:
        super().__init__()
        if min(linguistic_codes, semantic_codes) < 2 or min(feature_dim, code_dim) < 1:
            raise ValueError(
                f"codebooks need two codes or more, and a width above 0; got {linguistic_codes} linguistic codes of "
                f"width {feature_dim} and {semantic_codes} semantic codes of width {code_dim}"
            )
        self.feature_dim, self.frame_rate, self.code_dim = feature_dim, frame_rate, code_dim
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.linguistic = TokenStream(feature_dim, frame_rate, LINGUISTIC_RATE, linguistic_codes)
        self.semantic = TokenStream(feature_dim, frame_rate, SEMANTIC_RATE, semantic_codes, code_dim)

    @property
    def streams(self) -> dict[str, TokenStream]:
        """Both streams by name."""
        return {"linguistic": self.linguistic, "semantic": self.semantic}

    @property
    def offset(self) -> int:
        """What semantic codes are offset by in a sequence of both streams: the size of the linguistic codebook."""
        return len(self.linguistic.codebook)

    def forward(self, features: Tensor, lengths: Tensor) -> Tokens:
        """Tokens of features (batch, frames, feature_dim) and lengths in frames (batch,), as an encoder gives them."""
        centred = features - self.mean
        return Tokens(*self.linguistic(centred, lengths), *self.semantic(centred, lengths))

    def vectors(self, features: Tensor, lengths: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What each stream compares with its codes, (batch, tokens, dim), and tokens of each clip, (batch,)."""
        centred = features - self.mean
        return {name: stream.vectors(centred, lengths) for name, stream in self.streams.items()}

    def sequences(self, tokens: Tokens) -> list[Tensor]:
        """Both streams of each clip as one sequence (`interleave`); `deinterleave` is the way back."""
        clips = zip(*tokens, strict=True)
        return [interleave(a[:count_a], b[:count_b], self.offset) for a, count_a, b, count_b in clips]

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise ValueError where the tokenizer is for the features of another encoder."""
        rate = getattr(encoder, "frame_rate", None)
        if (encoder.feature_dim, rate) != (self.feature_dim, self.frame_rate):
            raise ValueError(
                f"the tokenizer takes {self.feature_dim} features at {self.frame_rate:g} Hz, the {encoder.name} "
                f"encoder gives {encoder.feature_dim}" + ("" if rate is None else f" at {rate:g} Hz")
            )


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer beside an encoder, in evaluation mode; None when there is none.

    Args:
        folder: a local folder, or `hf-hub:owner/name` for a model on the Hugging Face hub.

    Raises:
        ArtifactError: no such folder, a damaged file, or weights of another tokenizer.

    Example:
        >>> import encoders
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> tokenizer = encoders.Tokenizer(encoder.feature_dim, encoder.frame_rate, 8, 12)
        >>> encoders.save_encoder(encoder, "small", overwrite=True, tokenizer=tokenizer)
        >>> tokenizer = encoders.load_tokenizer("small")
    """
    return load_beside(Tokenizer, folder, TOKENIZER_CONFIG, TOKENIZER_WEIGHTS, FORMAT_VERSION)
