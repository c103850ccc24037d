"""The arithmetic of low bits: one set of weights, seen at any bit-width."""

from quant.activation import QuantActivation, valid_frames
from quant.attention import AttentionProducts
from quant.bias_correction import check_correctable, correct_bias, corrected_bit_widths, drop_corrections
from quant.bits import FULL_PRECISION, BitWidth, parse_bit_width
from quant.grid.affine import activation_qparams, dequantize, fake_quantize_activation, integer_range, quantize
from quant.grid.weights import best_clip_ratio, fake_quantize_weight, quantize_weight, weight_scale
from quant.layers import QuantConv1d, QuantConv2d, QuantLayer, QuantLinear
from quant.learned_steps import learn_steps, learned_bit_width
from quant.policy import Policy
from quant.prepare import NotCalibratedError, at, policy_of, prepare, quant_activations, quant_layers, unprepare
from quant.ranges.calibration import calibrate, observe
from quant.ranges.observers import MeanSquaredError, MinMax, MovingAverage, Observer
from quant.sensitivity import Sensitivity, model_bytes, policy_within, sensitivities

__all__ = [
    "FULL_PRECISION",
    "AttentionProducts",
    "BitWidth",
    "MeanSquaredError",
    "MinMax",
    "MovingAverage",
    "NotCalibratedError",
    "Observer",
    "Policy",
    "QuantActivation",
    "QuantConv1d",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "Sensitivity",
    "activation_qparams",
    "at",
    "best_clip_ratio",
    "calibrate",
    "check_correctable",
    "correct_bias",
    "corrected_bit_widths",
    "dequantize",
    "drop_corrections",
    "fake_quantize_activation",
    "fake_quantize_weight",
    "integer_range",
    "learn_steps",
    "learned_bit_width",
    "model_bytes",
    "observe",
    "parse_bit_width",
    "policy_within",
    "policy_of",
    "prepare",
    "quant_activations",
    "quant_layers",
    "quantize",
    "quantize_weight",
    "sensitivities",
    "unprepare",
    "valid_frames",
    "weight_scale",
]
