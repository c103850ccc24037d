import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import external_data
from export.onnx_file import LARGE, PAGE, Weights, add, array_of, check, load, rename, save, store

FLOATS = np.linspace(-1, 1, LARGE, dtype=np.float32).reshape(256, -1)
FOURS = (np.arange(2 * LARGE + 1) % 15 - 7).astype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4))


def model(weights: Weights, apart: bool) -> onnx.ModelProto:
    """Two large weights and a small one; the transposed one does not lie row by row in memory."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "encoder.a"], ["y"]), helper.make_node("Add", ["y", "encoder.bias"], ["z"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 256])],
    )
    proto = helper.make_model(graph, producer_name="tests", opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    add(proto, FLOATS.T, "encoder.a", weights, apart)
    add(proto, FOURS, "encoder.b", weights, apart)
    add(proto, np.ones(256, np.float32), "encoder.bias", weights, False)
    helper.set_model_props(proto, {"key": "value"})
    check(proto, weights)
    return proto


@pytest.fixture
def whole() -> onnx.ModelProto:
    return model({}, apart=False)


@pytest.fixture(params=[False, True], ids=["one file", "two files"])
def path(request, tmp_path, monkeypatch):
    if request.param:
        monkeypatch.setattr("export.onnx_file.LARGEST_FILE", 1000)
    weights: Weights = {}
    proto = model(weights, apart=True)
    assert weights.keys() == {"encoder.a", "encoder.b"}
    save(proto, tmp_path / "a.onnx", weights)
    assert not weights
    return tmp_path / "a.onnx"


def test_the_file_is_the_one_that_protobuf_would_write_or_two(path, whole):
    data = external_data.data_file(path)
    if data is None:
        assert path.read_bytes() == whole.SerializeToString()
        assert external_data.size_of(path) == path.stat().st_size
        return
    assert data.path == path.with_name("a.onnx.data")
    assert data.size == data.path.stat().st_size
    assert external_data.size_of(path) == path.stat().st_size + data.size
    assert path.stat().st_size < 2000
    proto = onnx.load(path, load_external_data=False)
    places = [int(entry.value) for tensor in proto.graph.initializer for entry in tensor.external_data[1:2]]
    assert places == [PAGE, 65 * PAGE]
    assert [prop.key for prop in proto.metadata_props] == ["key", "data_sha256"]


def test_numbers_are_read_back_by_onnx_and_by_us(path, whole):
    expected = [numpy_helper.to_array(tensor) for tensor in whole.graph.initializer]
    ours = [numpy_helper.to_array(tensor, str(path.parent)) for tensor in load(path).graph.initializer]
    onnxs = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    for others in (ours, onnxs):
        assert all(np.array_equal(a, b) for a, b in zip(others, expected, strict=True))


def test_large_weights_stay_in_the_file_until_they_are_asked_for(path, whole):
    proto = load(path)
    assert proto.ByteSize() < 2000 < whole.ByteSize()
    assert proto.graph.node == whole.graph.node
    assert [tensor.dims for tensor in proto.graph.initializer] == [t.dims for t in whole.graph.initializer]


def test_another_name_of_the_file_of_weights(path):
    before = path.read_bytes()
    rename(path, "b.onnx.data")
    data = external_data.data_file(path)
    assert (path.read_bytes() == before) if data is None else (data.path == path.with_name("b.onnx.data"))


def test_a_weight_gets_other_numbers_where_it_is(whole):
    weights: Weights = {}
    for proto in (whole, model(weights, apart=True)):
        tensor = proto.graph.initializer[0]
        store(tensor, FLOATS.astype(np.float16), "encoder.a.half", weights)
        assert (tensor.name, tensor.data_type) == ("encoder.a.half", TensorProto.FLOAT16)
        assert np.array_equal(array_of(tensor, weights), FLOATS.astype(np.float16))
    assert weights.keys() == {"encoder.a.half", "encoder.b"}


def test_what_is_no_onnx_file_is_no_message(tmp_path):
    for name, content in (("a", b"\xff" * 100), ("b", b"\x3a\x7f" + b"\0" * 10), ("c", b"\x0f"), ("d", b"\x0a" * 3)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="byte"):
            load(path)
        assert external_data.data_file(path) is None
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ValueError, match="empty"):
        load(tmp_path / "empty.onnx")
