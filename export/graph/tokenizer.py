"""A tokenizer inside a file: of each stream a product with the codes and an ArgMin, written by name to be read back."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from encoders import Tokenizer, Tokens
from encoders.speech.frames import frame_mask
from encoders.speech.tokenizer import PADDING, TokenStream
from export.graph.head import difference, stored_part

OUTPUTS = ("linguistic_tokens", "linguistic_lengths", "semantic_tokens", "semantic_lengths")
TOLERANCE = 1e-4  # of the largest distance


class ExportedStream(nn.Module):
    """A token stream with its codes as a product takes them, in float.

    Args:
        stream: left untouched.

    Attributes:
        projection: shape (feature_dim, code_dim), or None.
        codes: codebook times -2, shape (code_dim, codes); exact, and exact to undo.
        squares: of each code, shape (codes,).
    """

    projection: Tensor | None
    codes: Tensor
    squares: Tensor

    def __init__(self, stream: TokenStream) -> None:
        super().__init__()
        self.resampling = stream.resampling
        projection = None if stream.projection is None else stream.projection.weight.detach().T.contiguous()
        self.register_buffer("projection", projection)
        self.register_buffer("codes", -2 * stream.codebook.T.contiguous())
        self.register_buffer("squares", stream.codebook.square().sum(dim=1))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As the stream it came from."""
        vectors, lengths = self.resampling(features, lengths)
        if self.projection is not None:
            vectors = vectors @ self.projection
        tokens = (vectors @ self.codes + self.squares).argmin(dim=-1)
        return tokens.where(frame_mask(lengths, tokens.shape[1]), PADDING), lengths


class ExportedTokenizer(nn.Module):
    """Both streams of a tokenizer in their export form.

    Args:
        tokenizer: left untouched.
    """

    mean: Tensor

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.register_buffer("mean", tokenizer.mean.clone())
        self.linguistic = ExportedStream(tokenizer.linguistic)
        self.semantic = ExportedStream(tokenizer.semantic)

    def forward(self, features: Tensor, lengths: Tensor) -> Tokens:
        """As the tokenizer it came from."""
        centred = features - self.mean
        return Tokens(*self.linguistic(centred, lengths), *self.semantic(centred, lengths))


def stored_tokenizer(proto: onnx.ModelProto, path: str | Path = "the file") -> Tokenizer | None:
    """The tokenizer in a file written by `to_onnx`; None when it has none.

    Args:
        proto: the file.
        path: its name, for errors.

    Raises:
        VerificationError: a tokenizer that the file describes and does not hold.
    """

    def fill(tokenizer: Tokenizer, stored: Mapping[str, Tensor]) -> None:
        # The exporter leaves a mean of zeros out.
        tokenizer.mean.copy_(stored.get("tokenizer.mean", torch.zeros_like(tokenizer.mean)))
        for name, stream in tokenizer.streams.items():
            stream.codebook.copy_(stored[f"tokenizer.{name}.codes"].T / -2)
            if stream.projection is not None:
                stream.projection.weight.copy_(stored[f"tokenizer.{name}.projection"].T)

    return stored_part(proto, path, "tokenizer", Tokenizer, fill)


def tokenizer_difference(tokenizer: Tokenizer, other: Tokenizer) -> str | None:
    """What two tokenizers differ in, a size or numbers; None when in nothing."""
    return difference("tokenizer", tokenizer.arguments, other.arguments, tokenizer.state_dict(), other.state_dict())


def are_nearest(tokenizer: Tokenizer, features: Tensor, lengths: Tensor, tokens: Tokens) -> bool:
    """Whether tokens are those of the nearest codes, but for codes that are equally near up to float rounding.

    Args:
        tokenizer: in torch.
        features: that the tokens were made from, shape (batch, frames, feature_dim).
        lengths: frames of each clip, shape (batch,).
        tokens: of a file.
    """
    expected = tokenizer(features, lengths)
    for found, wanted in zip(tokens, expected, strict=True):
        if found.shape != wanted.shape:
            return False
    for name, (vectors, wanted) in tokenizer.vectors(features, lengths).items():
        found, counts = getattr(tokens, name), getattr(tokens, f"{name}_lengths")
        mask = frame_mask(wanted, found.shape[1])
        if not torch.equal(counts, wanted) or not torch.equal(found != PADDING, mask):
            return False
        distances = tokenizer.streams[name].distances(vectors)[mask]
        if not len(distances):
            continue
        given = distances.gather(1, found[mask].unsqueeze(1)).squeeze(1)
        if (given - distances.amin(dim=1)).max() > TOLERANCE * distances.abs().max():
            return False
    return True


def equal_tokens(tokens: Tokens, others: Tokens) -> tuple[int, int]:
    """Tokens of both streams that are equal, and tokens in all."""
    equal = all_tokens = 0
    for found, wanted in ((tokens.linguistic, others.linguistic), (tokens.semantic, others.semantic)):
        real = wanted != PADDING
        equal += int(((found == wanted) & real).sum())
        all_tokens += int(real.sum())
    return equal, all_tokens
