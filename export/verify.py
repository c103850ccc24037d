"""An ONNX file against torch at the same bit-width: integers bit for bit, features at several lengths."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from encoders.encoder import Encoder
from encoders.log_mel import SAMPLE_RATE
from encoders.speech_transformer import SpeechTransformer
from export.onnx import example_inputs
from export.qdq import WEIGHT
from quant import QuantLayer, activation_qparams, at, parse_bit_width, quant_layers, quantize_weight
from quant.bits import FLOAT_BITS, FULL_PRECISION, BitWidth

SMALLEST_COSINE = 0.999


class VerificationError(RuntimeError):
    """A file that departs from torch, or that is not one of ours."""


@dataclass
class Verification:
    """What was compared and how far it agrees.

    Attributes:
        layers: quantized layers whose stored numbers were compared.
        first_difference: first layer whose integers, scales or zero point differ; None when none does.
        smallest_cosine: over clips, of the features of ONNX Runtime and torch.
        largest_difference: over all feature values.
        clips: clips or images compared.
    """

    file: str
    bit_width: str
    layers: int
    first_difference: str | None
    smallest_cosine: float
    largest_difference: float
    clips: int

    @property
    def passed(self) -> bool:
        """All integers equal and every clip's cosine at least 0.999."""
        return self.first_difference is None and self.smallest_cosine >= SMALLEST_COSINE

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        numbers = f"first difference in layer {self.first_difference}" if self.first_difference else "integers equal"
        return (
            f"{'verified' if self.passed else 'FAILED'} at {self.bit_width}: {numbers} ({self.layers} layers), "
            f"cosine to torch >= {self.smallest_cosine:.6f} over {self.clips} clips"
        )


def verify(
    path: str | Path, encoder: Encoder, bit_width: str | BitWidth, waveforms: Sequence[Tensor] | None = None
) -> Verification:
    """Compare a file with the encoder it was exported from.

    Args:
        path: file written by `to_onnx`.
        encoder: the same encoder, calibrated as it was then.
        bit_width: the same bit-width.
        waveforms: speech encoders only: clips (samples,) at 16,000 Hz; chirps in noise when None.

    Raises:
        VerificationError: not an ONNX file of ours, or one of another encoder or bit-width.
    """
    path, run = Path(path), parse_bit_width(bit_width)
    proto = _load(path)
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    if metadata.get("encoder") != encoder.name or metadata.get("bit_width") != str(run):
        raise VerificationError(
            f"{path} holds encoder {metadata.get('encoder')} at {metadata.get('bit_width')}, "
            f"not {encoder.name} at {run}"
        )
    layers = {} if run == FULL_PRECISION else quant_layers(encoder)
    graph = _Graph(proto)
    different = (name for name, layer in layers.items() if not _same_numbers(graph, name, layer, run))
    cosines, differences = _compare_features(path, encoder, run, waveforms)
    return Verification(
        str(path), str(run), len(layers), next(different, None), min(cosines), max(differences), len(cosines)
    )


def integer_operators(path: str | Path) -> dict[str, int]:
    """How often each operator type is in the graph as ONNX Runtime optimizes it for this machine."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        counts: dict[str, int] = {}
        for node in onnx.load(options.optimized_model_filepath).graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise VerificationError(f"{path} is not an ONNX file: {error}") from error


class _Graph:
    """A file's graph by name: which values it stores, which node makes or takes a tensor."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.makers = {output: node for node in proto.graph.node for output in node.output}
        self.takers = {(name, place): node for node in proto.graph.node for place, name in enumerate(node.input)}

    def value(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.stored[name]).astype(np.float64)

    def weight(self, layer: str) -> tuple[onnx.NodeProto, np.ndarray, np.ndarray]:
        """The product a layer's weight goes into, the weight's integers and its scale."""
        name = f"encoder.{layer}.{WEIGHT}"
        dequantize = self.takers[name, 0]
        stored_as = name if name in self.stored else self.makers[name].input[0]
        return self.takers[dequantize.output[0], 1], self.value(stored_as), self.value(dequantize.input[1])

    def activation(self, product: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of a product's input. The exporter shares equal ones between layers."""
        dequantize = self.makers[product.input[0]]
        quantize = self.makers[dequantize.input[0]]
        if dequantize.input[1:3] != quantize.input[1:3]:
            raise KeyError(f"{product.name} dequantizes with other numbers than it quantizes with")
        return self.value(quantize.input[1]), self.value(quantize.input[2])


def _same_numbers(graph: _Graph, name: str, layer: QuantLayer, run: BitWidth) -> bool:
    bits = layer.bits_at(run)
    try:
        if bits.weight == FLOAT_BITS:
            product = graph.takers[f"encoder.{name}.weight", 1]
            pairs: list[tuple[np.ndarray, Tensor]] = []
        else:
            product, file_integers, file_scale = graph.weight(name)
            integers, scale = quantize_weight(layer.weight, bits.weight)
            integers = integers.T if integers.dim() == 2 else integers
            pairs = [(file_integers, integers), (file_scale, scale.flatten())]
        if bits.activation != FLOAT_BITS:
            qparams = activation_qparams(layer.activation_min, layer.activation_max, bits.activation)
            pairs += zip(graph.activation(product), qparams, strict=True)
    except KeyError:
        return False
    return all(np.array_equal(found, expected.detach().double().numpy()) for found, expected in pairs)


@torch.no_grad()
def _compare_features(
    path: Path, encoder: Encoder, run: BitWidth, waveforms: Sequence[Tensor] | None
) -> tuple[list[float], list[float]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    training = encoder.training
    encoder.eval()
    cosines, differences = [], []
    for inputs in _batches(encoder, waveforms):
        feeds = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=True)}
        outputs = [torch.from_numpy(value) for value in session.run(None, feeds)]
        if run == FULL_PRECISION:
            expected = encoder(*inputs)
        else:
            with at(encoder, run):
                expected = encoder(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        if len(outputs) > 1 and not torch.equal(outputs[1], expected[1]):
            raise VerificationError(f"{path} gives feature lengths {outputs[1].tolist()}, not {expected[1].tolist()}")
        cosines += F.cosine_similarity(outputs[0].flatten(1), expected[0].flatten(1)).tolist()
        differences.append(float((outputs[0] - expected[0]).abs().max()))
    encoder.train(training)
    return cosines, differences


def _batches(encoder: Encoder, waveforms: Sequence[Tensor] | None) -> list[tuple[Tensor, ...]]:
    """Each clip alone, then all of them as one padded batch."""
    if not isinstance(encoder, SpeechTransformer):
        (example,) = example_inputs(encoder)
        generator = torch.Generator().manual_seed(0)
        return [(torch.randn(count, *example.shape[1:], generator=generator),) for count in (1, 4)]
    clips = list(waveforms or synthetic_clips())
    alone = [encoder.front_end(clip.unsqueeze(0)) for clip in clips]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return [*alone, encoder.front_end(padded, torch.tensor([len(clip) for clip in clips]))]


def synthetic_clips(seconds: Sequence[float] = (0.3, 1.0, 2.5, 7.0)) -> list[Tensor]:
    """Rising chirps in noise, 16,000 Hz, of several lengths in seconds."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for duration in seconds:
        time = torch.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
        tone = 0.3 * torch.sin(2 * torch.pi * (200 + 900 * time / duration) * time)
        clips.append(tone + 0.02 * torch.randn(len(time), generator=generator))
    return clips
