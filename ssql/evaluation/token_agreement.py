"""How many tokens stay what they are in full precision, at each bit-width and with each quantizer."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import quant
from encoders import Encoder, Tokenizer
from encoders.speech.tokenizer import PADDING
from ssql.data import DataModule
from ssql.evaluation.calibration import inputs_of
from ssql.evaluation.codebooks import code_counts, perplexity, use
from ssql.evaluation.embeddings import check_finite
from ssql.evaluation.evaluate import BIT_WIDTHS, check_measurable
from ssql.evaluation.quantizers import AS_SAVED, Quantizer, Row, in_full_precision, quantized

RESAMPLES = 1000


def token_agreement(
    tokenizers: Mapping[str, tuple[Encoder, Tokenizer]],
    data: DataModule,
    bit_widths: Sequence[str] = BIT_WIDTHS,
    calibration_batches: int = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> list[Row]:
    """Tokens of every split but `train`, against those of the same encoder at full precision.

    Args:
        tokenizers: method name to encoder and tokenizer; they are left as they are.
        data: audio; labels are not needed.
        bit_widths: `fp`, `w8a8`, ...
        calibration_batches: training batches that set the ranges of quantizers that calibrate.
        quantizers: name to how the encoders are quantized; as saved when None.

    Returns:
        rows as of `ssql.evaluation.evaluate`, of the tasks `linguistic` and `semantic` (of a split beside `test`:
        `linguistic, white 10 dB`) and the metrics `agreement` (% of tokens, with its interval of 95 % by bootstrap over
        clips, and `chance`: what tokens drawn independently in both runs' frequencies would have), `perplexity` and
        `use` (% of the codebook), all of the tokens at the bit-width. `tokens` is how many were compared.

    Raises:
        ValueError: unknown bit-width, data without audio, a tokenizer of another encoder.
        quant.NotCalibratedError: an encoder that cannot run at one of the bit-widths as it is.
    """
    quantizers = quantizers or {AS_SAVED: Quantizer()}
    for method, (encoder, tokenizer) in tokenizers.items():
        tokenizer.check_encoder(encoder)
        check_measurable(method, encoder, data, bit_widths, quantizers)
    rows: list[Row] = []
    for method, (encoder, tokenizer) in tokenizers.items():
        floating = in_full_precision(encoder)
        full = {split: tokenize_split(floating, tokenizer, data, split, "fp") for split in data.test_splits}
        for variant, common in quantized(method, encoder, data, bit_widths, calibration_batches, quantizers):
            for split, expected in full.items():
                found = tokenize_split(variant, tokenizer, data, split, common["bit_width"])
                for name, stream in tokenizer.streams.items():
                    task = {"task": name if split == "test" else f"{name}, {split}"}
                    scores = compare_tokens(expected[name], found[name], len(stream.codebook))
                    rows += [common | task | score for score in scores]
    return rows


@torch.no_grad()
def tokenize_split(
    encoder: Encoder, tokenizer: Tokenizer, data: DataModule, split: str, bit_width: str
) -> dict[str, list[Tensor]]:
    """Tokens of each clip of a whole split, by stream, each (tokens,), at a bit-width.

    Raises:
        ValueError: features that are NaN or infinite: their nearest code would be any.
    """
    device = next(encoder.parameters()).device
    encoder.eval()
    tokenizer.to(device).eval()
    found: dict[str, list[Tensor]] = {name: [] for name in tokenizer.streams}
    with quant.at(encoder, bit_width, reuse_weights=True):
        for batch in data.evaluation_dataloader(split):
            features, lengths = encoder(*encoder.front_end(*inputs_of(batch, device)))
            check_finite(features, f"features at {bit_width} in a batch of the split {split}")
            tokens = tokenizer(features, lengths)
            for name, clips in found.items():
                clips += [clip[clip != PADDING] for clip in getattr(tokens, name).cpu()]
    return found


def compare_tokens(expected: Sequence[Tensor], found: Sequence[Tensor], codes: int) -> list[Row]:
    """Agreement with what was expected, and how the codebook is used.

    Args:
        expected: tokens of each clip, (tokens,), at full precision.
        found: at a bit-width.
        codes: size of the codebook.

    Raises:
        ValueError: no tokens at all: every clip is shorter than a token.
    """
    counts = code_counts(torch.cat(list(found)), codes)
    tokens = int(counts.sum())
    if not tokens:
        raise ValueError("no clip is long enough for a token: a linguistic token is 60 ms")
    equal = np.array([int((a == b).sum()) for a, b in zip(expected, found, strict=True)])
    sizes = np.array([len(clip) for clip in found])
    # Over clips drawn with replacement: tokens of a clip are not independent.
    drawn = np.random.default_rng(0).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    shares = 100 * equal[drawn].sum(axis=1) / sizes[drawn].sum(axis=1).clip(1)
    low, high = map(float, np.percentile(shares, [2.5, 97.5]))
    chance = float((code_counts(torch.cat(list(expected)), codes) / tokens) @ (counts / tokens))
    common = {"clips": len(found), "tokens": tokens}
    agreement = {"value": 100 * equal.sum() / tokens, "low": low, "high": high, "unit": "%", "chance": 100 * chance}
    return [
        {"metric": "agreement", **agreement, **common},
        {"metric": "perplexity", "value": perplexity(counts), "unit": "codes", **common},
        {"metric": "use", "value": use(counts), "unit": "%", **common},
    ]
