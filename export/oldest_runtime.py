"""The oldest ONNX Runtime that opens a file, by what the file holds.

Tried on 2026-11-29 with the wheels for Python 3.11 on Linux x86-64, versions 1.16.3, 1.17.3, 1.18.0, 1.19.0, 1.20.0,
1.21.0, 1.22.0, 1.22.1, 1.23.0 and 1.32.0: files of each kind (fp, fp16, 8 to 2 weight bits, weights in groups, float
activations, quantized attention, shifted inputs, waveform front end, Step-Audio 2's form, tokens, streams, ResNet, ViT)
were opened and run on the same inputs. A version counts when features have a cosine of 0.999 or more to 1.32.0's.
"""

import onnx
from onnx import TensorProto

OPSET, IR_VERSION = 21, 10
OLDEST = (1, 18)  # opset 21 and IR version 10; 1.17 opens neither
# Version of the first runtime that has an operator of the default domain for numbers of a type.
FIRST_WITH = {
    ("Cast", TensorProto.INT4): (1, 23),  # weights of 4 bits that are multiplied as int8, or by convolutions
    ("DequantizeLinear", TensorProto.INT4): (1, 19),  # weights of 4 bits beside activations in float
    ("Add", TensorProto.INT8): (1, 21),  # fields of weights of 3, 5, 6 or 7 bits
}


def oldest_runtime(proto: onnx.ModelProto) -> str | None:
    """The oldest version that opens and runs a file, such as `1.18`; None where none was tried: other opsets."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if set(opsets) - {"", "ai.onnx"} or max(opsets.values()) > OPSET or proto.ir_version > IR_VERSION:
        return None
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    needed = [OLDEST]
    for node in proto.graph.node:  # in topological order
        taken = types.get(node.input[0]) if node.input else None
        if taken is not None:
            needed.append(FIRST_WITH.get((node.op_type, taken), OLDEST))
            if node.op_type in ("Gather", "Reshape", "Add"):  # how packed weights are unpacked: the type stays
                types[node.output[0]] = taken
    return ".".join(map(str, max(needed)))
