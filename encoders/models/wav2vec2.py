"""wav2vec 2.0, HuBERT and WavLM, built by torchaudio, made safe for batches and for few bits."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchaudio.models import Wav2Vec2Model, wav2vec2_model, wavlm_model
from torchaudio.models.wav2vec2.components import ConvLayerBlock, FeatureExtractor, FeatureProjection, Transformer
from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention

from encoders.base import register_encoder
from encoders.models.attention import MaskedAttention, separated
from encoders.speech.frames import FrameEncoder, frame_mask
from encoders.speech.log_mel import SAMPLE_RATE, checked_waveform
from quant import valid_frames
from quant.attention import MASKED
from quant.checks import check_above, check_at_least, check_choice

RECEPTIVE_FIELD, STRIDE = 400, 320  # samples of one frame, and from frame to frame, of the seven convolutions
BUCKETS, FARTHEST = 320, 800  # relative positions of WavLM


@register_encoder("wav2vec2")
class Wav2Vec2(FrameEncoder):
    """Waveform to 50 Hz: seven convolutions without padding, a convolution for positions, transformer blocks.

    By default the network of wav2vec 2.0 Large (Baevski et al. 2020). Four things differ from torchaudio's: attention
    has a mask made of lengths and products that can be quantized; the group norm of the Base networks takes its
    statistics over each clip's own frames; the weight norm of the positions is folded into their weight, a Parameter
    as all others; there is no dropout.

    Args:
        width: features of a frame.
        depth: number of blocks.
        heads: attention heads; divides width.
        extractor_width: channels of the seven convolutions; 512 is published.
        position_kernel: frames that the convolution for positions sees; 128 is published.
        position_groups: its groups; 16 is published.
        extractor_norm: `layer`: a norm over channels in each convolution, as in Large; `group`: one over time in the
            first, as in Base.
        extractor_bias: the seven convolutions have a bias.
        norm_first: blocks norm what they take, as in Large, not what they give, as in Base.
        normalize_epsilon: added to a clip's variance before its samples are divided by the root of it: 1e-5 in the
            original code, 1e-7 in transformers; null where the network takes samples as they are.

    Raises:
        ValueError: a size below 1, an unknown norm, or sizes that do not go together.
    """

    front_end: "NormalizedWaveform"
    feature_extractor: FeatureExtractor
    feature_projection: FeatureProjection
    transformer: Transformer
    frame_rate = SAMPLE_RATE / STRIDE

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        extractor_width: int = 128,
        position_kernel: int = 128,
        position_groups: int = 16,
        extractor_norm: Literal["layer", "group"] = "layer",
        extractor_bias: bool = True,
        norm_first: bool = True,
        normalize_epsilon: float | None = 1e-5,
    ) -> None:
        super().__init__()
        check_at_least(1, width=width, depth=depth, heads=heads, extractor_width=extractor_width)
        check_at_least(1, position_kernel=position_kernel, position_groups=position_groups)
        check_choice("extractor_norm", extractor_norm, ("layer", "group"))
        if width % heads or width % position_groups:
            raise ValueError(f"width {width} must be divisible by heads {heads} and position_groups {position_groups}")
        self.feature_dim = width
        self.front_end = NormalizedWaveform(normalize_epsilon)
        strides = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]
        model: Any = self._build(
            extractor_mode=f"{extractor_norm}_norm",
            extractor_conv_layer_config=[(extractor_width, kernel, stride) for kernel, stride in strides],
            extractor_conv_bias=extractor_bias,
            encoder_embed_dim=width,
            encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=position_kernel,
            encoder_pos_conv_groups=position_groups,
            encoder_num_layers=depth,
            encoder_num_heads=heads,
            encoder_attention_dropout=0.0,
            encoder_ff_interm_features=4 * width,
            encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0,
            encoder_layer_norm_first=norm_first,
            encoder_layer_drop=0.0,
            aux_num_out=None,
        )
        self.feature_extractor = model.feature_extractor
        if extractor_norm == "group":
            self.feature_extractor.conv_layers[0].__class__ = ClipNormBlock
        self.feature_projection = model.encoder.feature_projection
        self.transformer = model.encoder.transformer
        with torch.enable_grad():  # in a `torch.no_grad()` torch would leave a tensor that is no Parameter
            parametrize.remove_parametrizations(self.transformer.pos_conv_embed.conv, "weight")
        for layer in self.transformer.layers:
            layer.attention = self._attention(layer.attention)

    def _build(self, **arguments: Any) -> Wav2Vec2Model:
        return wav2vec2_model(**arguments)

    def _attention(self, attention: Any) -> nn.Module:
        return MaskedAttention(attention)

    @property
    def stages(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return list(self.transformer.layers)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frame features.

        Args:
            waveform: what `front_end` returns, shape (batch, samples), 16,000 Hz.
            lengths: samples of each clip, shape (batch,); all of them when None.

        Returns:
            features, shape (batch, frames, width), zero beyond each clip's length, at 50 Hz; frames of each
            clip, (samples - 80) // 320, shape (batch,).

        Raises:
            ValueError: not (batch, samples), or shorter than the 400 samples of one frame.
        """
        if lengths is None or not torch.compiler.is_exporting():
            waveform, lengths = checked_waveform(waveform, lengths, RECEPTIVE_FIELD)
        x = waveform.unsqueeze(1)
        for layer in self.feature_extractor.conv_layers:
            with valid_frames(frame_mask(lengths, x.shape[2])):
                x, lengths = layer(x, lengths)
        mask = frame_mask(lengths, x.shape[2])
        with valid_frames(mask):
            x = self.feature_projection(x.transpose(1, 2)) * mask.unsqueeze(2)
            x = self.transformer(x, attention_mask=mask[:, None, None, :])
        return x * mask.unsqueeze(2), lengths


@register_encoder("hubert")
class HuBERT(Wav2Vec2):
    """HuBERT (Hsu et al. 2021): the network of wav2vec 2.0, another pretraining."""


@register_encoder("wavlm")
class WavLM(Wav2Vec2):
    """WavLM (Chen et al. 2022): wav2vec 2.0 whose attention has a gated bias of relative positions."""

    def _build(self, **arguments: Any) -> Wav2Vec2Model:
        return wavlm_model(encoder_num_buckets=BUCKETS, encoder_max_distance=FARTHEST, **arguments)

    def _attention(self, attention: Any) -> nn.Module:
        return RelativeAttention(attention)


class NormalizedWaveform(nn.Module):
    """Each clip's samples with zero mean and unit variance, or as they are.

    Args:
        epsilon: added to the variance; None where nothing is normalized.

    Raises:
        ValueError: epsilon is not above 0.
    """

    def __init__(self, epsilon: float | None = 1e-5) -> None:
        super().__init__()
        check_above(0, normalize_epsilon=epsilon)
        self.epsilon = epsilon

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Waveform (batch, samples), lengths in samples (batch,) or None; returns the same, zero beyond the lengths."""
        if lengths is None or not torch.compiler.is_exporting():
            waveform, lengths = checked_waveform(waveform, lengths, RECEPTIVE_FIELD)
        real = frame_mask(lengths, waveform.shape[1])
        if self.epsilon is None:
            return waveform * real, lengths
        return standardized(waveform, real, lengths.unsqueeze(1), self.epsilon), lengths


class ClipNormBlock(ConvLayerBlock):
    """torchaudio's block with a group norm for each channel, whose statistics are those of a clip's own frames."""

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """x: (batch, channels, time); length: frames of each clip, (batch,); to (batch, channels', time')."""
        x = self.conv(x)
        length = ((length - self.kernel_size) // self.stride + 1).clamp_min(0)
        norm: Any = self.layer_norm
        x = standardized(x, frame_mask(length, x.shape[2]).unsqueeze(1), length.view(-1, 1, 1), norm.eps)
        return F.gelu(x * norm.weight.unsqueeze(1) + norm.bias.unsqueeze(1)), length


def standardized(values: Tensor, real: Tensor, count: Tensor, epsilon: float) -> Tensor:
    """Values with zero mean and unit variance over the last axis, where real, and zero elsewhere.

    Args:
        values: shape (..., time).
        real: bool, broadcasts to the values.
        count: how many of the last axis are real, broadcasts to (..., 1).
        epsilon: added to the variance.
    """
    count = count.clamp_min(1)
    centred = (values - (values * real).sum(dim=-1, keepdim=True) / count) * real
    return centred / (centred.square().sum(dim=-1, keepdim=True) / count + epsilon).sqrt()


class RelativeAttention(MaskedAttention):
    """WavLM's attention: scores get a bias by distance, gated by the query (Chen et al. 2022, Eq. 5 to 8)."""

    def __init__(self, attention: WavLMSelfAttention) -> None:
        super().__init__(separated(attention.attention))
        del attention.attention
        self.gate = attention  # its positions and gate

    def _mask(self, x: Tensor, mask: Tensor, position_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if position_bias is None:  # in the first block, which hands it on
            position_bias = self.gate.compute_bias(x.shape[1], x.shape[1])  # (heads, time, time)
        heads = x.unflatten(-1, (self.heads, -1))
        gates = self.gate.gru_rel_pos_linear(heads).unflatten(-1, (2, 4)).sum(-1).sigmoid()  # (batch, time, heads, 2)
        first, second = gates.transpose(1, 2).unbind(-1)
        strength = first * (second * self.gate.gru_rel_pos_const.view(-1, 1) - 1) + 2
        bias = strength.unsqueeze(-1) * position_bias
        return bias.masked_fill(~mask, MASKED), position_bias
