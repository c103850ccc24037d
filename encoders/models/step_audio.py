"""The encoder of Step-Audio 2 in its sizes, from tiny to the released one."""

from typing import Any, Literal

from encoders.models.speech_transformer import SpeechTransformer
from quant.checks import check_choice

Size = Literal["tiny", "small", "base", "mini", "r1"]
# `base` is the published configuration class's default, `mini` and `r1` are what was released.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "depth": 4, "heads": 3, "adaptor_dim": None},
    "small": {"width": 384, "depth": 4, "heads": 6, "adaptor_dim": None},
    "base": {"width": 512, "depth": 6, "heads": 8, "adaptor_dim": 4096},
    "mini": {"width": 1280, "depth": 32, "heads": 20, "adaptor_dim": 3584},
    "r1": {"width": 1280, "depth": 32, "heads": 20, "adaptor_dim": 5120},
}


def step_audio_2(size: Size = "tiny", log_mel: Literal["causal", "whisper"] = "whisper") -> SpeechTransformer:
    """A new encoder of Step-Audio 2's contract: 128 mels, learned positions for 30 s, 25 Hz, the adaptor's 12.5 Hz.

    One second gives 13 features with the adaptor, 25 seconds 313, its longest segment.

    Args:
        size: `tiny` and `small` end at 25 Hz without an adaptor; `base` is 512 wide with 6 blocks, `mini` and `r1`
            1280 wide with 32 blocks and the language model's width (3584, 5120).
        log_mel: `whisper` as published, or `causal` where no old weights have to be met.

    Raises:
        ValueError: an unknown size.

    Example:
        >>> import encoders
        >>> encoders.step_audio_2("tiny").frame_rate
        25.0
    """
    check_choice("size", size, SIZES)
    return SpeechTransformer(n_mels=128, pooling=2, positions=1500, log_mel=log_mel, **SIZES[size])
