import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph.unused import drop_unused
from export.oldest_runtime import oldest_runtime


def model(nodes, tensors, opset=21, ir_version=10):
    output = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph(nodes, "g", [], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


INT8 = numpy_helper.from_array(np.zeros((2, 2), np.int8), "x")
INT4 = helper.make_tensor("x", TensorProto.INT4, [2, 2], b"\0\0", raw=True)
INDEX = numpy_helper.from_array(np.zeros(2, np.int64), "index")
CAST = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
UNPACKED = [
    helper.make_node("Gather", ["x", "index"], ["part"]),
    helper.make_node("Reshape", ["part", "index"], ["shaped"]),
    helper.make_node("Add", ["shaped", "shaped"], ["y"]),
]


@pytest.mark.parametrize(
    ("proto", "version"),
    [
        (model([CAST], [INT8]), "1.18"),
        (model([CAST], [INT4]), "1.23"),
        (model([helper.make_node("DequantizeLinear", ["x", "scale"], ["y"])], [INT4]), "1.19"),
        (model(UNPACKED, [INT8, INDEX]), "1.21"),
        (model(UNPACKED[:2], [INT8, INDEX]), "1.18"),
        (model([CAST], [INT8], opset=23), None),
        (model([CAST], [INT8], ir_version=11), None),
    ],
)
def test_what_a_file_holds_decides(proto, version):
    assert oldest_runtime(proto) == version


def test_only_what_no_node_subgraph_or_output_takes_is_dropped():
    names = ["node", "inside", "given", "output", "unused"]
    tensors = [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in names]
    taken = helper.make_node("Neg", ["inside"], ["negative"])
    branches = [
        helper.make_graph([taken], "then", [], [helper.make_empty_tensor_value_info("negative")]),
        helper.make_graph([], "else", [], [helper.make_empty_tensor_value_info("given")]),
    ]
    choice = helper.make_node("If", ["node"], ["y"], then_branch=branches[0], else_branch=branches[1])
    proto = model([choice], tensors)
    proto.graph.output.append(helper.make_empty_tensor_value_info("output"))
    drop_unused(proto)
    assert [tensor.name for tensor in proto.graph.initializer] == names[:-1]
