"""The arithmetic of low bits: one set of weights, seen at any bit-width."""

from quant.activation import QuantActivation, valid_frames
from quant.attention import AttentionProducts
from quant.bias_correction import check_correctable, correct_bias, corrected_bit_widths, drop_corrections
from quant.bits import FULL_PRECISION, BitWidth, parse_bit_width
from quant.grid.affine import activation_qparams, dequantize, fake_quantize_activation, integer_range
from quant.grid.weights import best_clip_ratio, fake_quantize_weight, quantize_weight, weight_scale
from quant.layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear
from quant.learned_bit_widths import learn_bit_widths, learning_bit_widths, own_parameters, settle_bit_widths
from quant.learned_steps import learn_steps, learned_bit_width
from quant.policy import Policy
from quant.prepare import (
    NotCalibratedError,
    at,
    is_prepared,
    policy_of,
    prepare,
    quant_activations,
    quant_layers,
    unprepare,
)
from quant.quantize import POST_TRAINING, quantize
from quant.ranges.calibration import calibrate, observe
from quant.ranges.observers import MeanSquaredError, MinMax, MovingAverage, Observer
from quant.rounding.walk import RoundedLayer, round_weights
from quant.sensitivity import Sensitivity, model_bytes, policy_within, sensitivities

# For users; the other packages take more.
__all__ = [
    "BitWidth",
    "NotCalibratedError",
    "Observer",
    "Policy",
    "at",
    "calibrate",
    "correct_bias",
    "learn_steps",
    "model_bytes",
    "observe",
    "parse_bit_width",
    "policy_within",
    "prepare",
    "quantize",
    "round_weights",
    "sensitivities",
    "unprepare",
]

__version__ = "0.1.0"
