"""A torch encoder becomes an ONNX graph: the exporter's call, axis names, and nothing that is not needed."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import onnx
import torch
from torch import Tensor, nn

from export.graph.attention import TRANSLATIONS
from export.graph.batch_norm import fold_batch_norms
from export.graph.convolution import lower_convolutions
from export.graph.signature import Signature
from export.graph.transposes import join_transposes
from export.graph.unsupported import unsupported
from export.metadata import OPSET
from export.onnx_file import Weights, set_apart


def trace(
    model: nn.Module, names: Signature, examples: tuple[Tensor, ...], opset: int = OPSET, image_windows: bool = True,
    weights: Weights | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """The model's graph, with dynamic batch (and time) axes, without doc strings and traces.

    Args:
        model: takes positional tensors; in evaluation mode, its quantized layers replaced by their export forms.
        names: of inputs and outputs, and their dynamic axes.
        examples: inputs to trace with.
        opset: of the file.
        image_windows: see `lower_convolutions`.
        weights: gets the large ones, of which the graph then has a name and a shape only; it keeps all when None.

    Raises:
        ValueError: a layer or operation that ONNX or the exporter does not know.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({axis: dynamic for axis, name in enumerate(axes) if name} for axes in names.inputs.values())
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model, examples, dynamo=True, opset_version=opset, verbose=False,
                input_names=list(names.inputs), output_names=list(names.outputs), dynamic_shapes={"inputs": shapes},
                custom_translation_table=TRANSLATIONS, optimize=True,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            raise unsupported(error, model, examples, shapes) from error
    assert program is not None
    fold_batch_norms(program.model.graph)
    lower_convolutions(program.model.graph, image_windows)
    join_transposes(program.model.graph)
    if weights is not None:
        set_apart(program.model.graph, weights)
    proto: onnx.ModelProto = program.model_proto
    _name_axes(proto, names)
    _strip(proto)
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs its progress, warns of its own deprecated calls and prints the graph it fails on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _name_axes(proto: onnx.ModelProto, names: Signature) -> None:
    axes = names.inputs | names.outputs
    for value in [*proto.graph.input, *proto.graph.output]:
        for axis, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if name and not axis.dim_value:  # filled clips all have the same number of frames
                axis.dim_param = name


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter adds for debugging: it can outweigh 4-bit weights."""
    proto.doc_string = proto.graph.doc_string = ""
    del proto.graph.value_info[:]
    for part in [proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        part.doc_string = ""
        del part.metadata_props[:]
