"""ONNX files written and read without their weights in memory a second time, in one file or, over 2 GB, in two.

Protobuf holds at most 2 GB, and copies what it is given. So large weights stay out of the graph's message: as arrays
while a file is made (`Weights`), and where they lie in the file once it is read. A model that would be over the limit
has them in a file beside it, in the manner of ONNX's external data; there each starts at a page of memory.
"""

import hashlib
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from encoders.storage.ownership import ONNX_DATA_MARK
from export import external_data
from export.wire import DATA_LOCATION, EXTERNAL_DATA, GRAPH, INITIALIZER, NAME, RAW_DATA, field, fields

# Of the encoder's weights by name, those that are not in the graph's message.
Weights = dict[str, np.ndarray]

LARGEST_FILE = 2**31 - 2**20  # bytes; protobuf's limit, less a little room
LARGE = 2**16  # bytes from which a weight stays out of the message
# What is read back by name, and the numbers of which there are few, stay in it.
APART = "encoder."
PAGE = 4096
INT4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)


def set_apart(graph: ir.Graph, weights: Weights) -> None:
    """Move the large weights of a graph that is about to become a message out of it, in place.

    Args:
        graph: its weights get a name and a shape only.
        weights: gets their arrays, which share the memory of what they were traced from.
    """
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and _is_large(name, tensor.nbytes):
            weights[name] = tensor.numpy()
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor("", None, None, tensor.dtype, shape=shape, name=name)


def array_of(tensor: TensorProto, weights: Weights) -> np.ndarray:
    """The numbers of a weight, in its message or apart."""
    return weights[tensor.name] if tensor.name in weights else numpy_helper.to_array(tensor)


def store(tensor: TensorProto, values: np.ndarray, name: str, weights: Weights) -> None:
    """Give a weight other numbers and a name of its own, in its message or, if it was apart, apart."""
    if weights.pop(tensor.name, None) is None:
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        return
    weights[name] = values
    tensor.CopyFrom(_described(name, values))


def add(proto: onnx.ModelProto, values: np.ndarray, name: str, weights: Weights, apart: bool) -> None:
    """One more weight, in its message or apart."""
    if apart:
        weights[name] = values
    proto.graph.initializer.append(_described(name, values) if apart else numpy_helper.from_array(values, name))


def _described(name: str, values: np.ndarray) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    return TensorProto(name=name, data_type=kind, dims=values.shape, data_location=TensorProto.EXTERNAL)


def check(proto: onnx.ModelProto, weights: Weights) -> None:
    """`onnx.checker.check_model`, without the numbers of weights that are apart: they stand as inputs.

    Raises:
        onnx.checker.ValidationError: the graph is none.
    """
    checked = onnx.ModelProto()
    checked.CopyFrom(proto)
    del checked.graph.initializer[:]
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            checked.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            checked.graph.initializer.append(tensor)
    onnx.checker.check_model(checked)


def save(proto: onnx.ModelProto, path: Path, weights: Weights) -> None:
    """Write a model to `path`, or over `LARGEST_FILE` to that and to `<path>.data` beside it.

    Args:
        proto: of two files it gets the places of its weights, and the hash of their file among its metadata.
        path: of the file.
        weights: that are apart; each is let go of as it is written.

    Raises:
        OSError: the disk is full.
    """
    if proto.ByteSize() + sum(map(_size, weights.values())) > LARGEST_FILE:
        _save_apart(proto, external_data.beside(path), weights)
        path.write_bytes(proto.SerializeToString())
        return
    graph = proto.graph
    pieces = [_tensor_head(tensor, weights) for tensor in graph.initializer]
    before, after = (_some_fields(graph, keep) for keep in (INITIALIZER.__gt__, INITIALIZER.__lt__))
    sizes = [len(head) + _tensor_size(tensor, weights) for head, tensor in zip(pieces, graph.initializer, strict=True)]
    heads = [field(INITIALIZER, size) for size in sizes]
    with path.open("wb") as file:
        file.write(_some_fields(proto, GRAPH.__gt__))
        file.write(field(GRAPH, len(before) + len(after) + sum(sizes) + sum(map(len, heads))))
        file.write(before)
        for head, piece, tensor in zip(heads, pieces, graph.initializer, strict=True):
            file.write(head + piece)
            if tensor.name in weights:
                file.write(_bytes(weights.pop(tensor.name)))
        file.write(after)
        file.write(_some_fields(proto, GRAPH.__lt__))


def _save_apart(proto: onnx.ModelProto, path: Path, weights: Weights) -> None:
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def write(content: bytes | memoryview) -> None:
            file.write(content)
            digest.update(content)

        write(ONNX_DATA_MARK.ljust(PAGE, b"\0"))
        for tensor in proto.graph.initializer:
            if tensor.name not in weights:
                continue
            write(bytes(-file.tell() % PAGE))
            offset, content = file.tell(), _bytes(weights.pop(tensor.name))
            write(content)
            _place(tensor, path.name, offset, len(content))
    entry = next((prop for prop in proto.metadata_props if prop.key == external_data.SHA256), None)
    (entry or proto.metadata_props.add(key=external_data.SHA256)).value = digest.hexdigest()


def _place(tensor: TensorProto, name: str, offset: int, length: int) -> None:
    """Let a weight say where its numbers lie."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def rename(path: Path, name: str) -> None:
    """Let an ONNX file, in place, name another file of weights; one that has none stays as it is."""
    if external_data.data_file(path) is None:
        return
    proto = onnx.load(str(path), load_external_data=False)
    _relocate(proto, None, name)
    path.write_bytes(proto.SerializeToString())


def _relocate(proto: onnx.ModelProto, old: str | None, new: str) -> None:
    """Let weights that lie in one other file, or in any when None, say that it has another name."""
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and old in (None, entry.value):
                entry.value = new


def load(path: Path) -> onnx.ModelProto:
    """A file with its large weights as ONNX's external data: of one file they say where they lie in that very file.

    `stored_array(tensor, folder)` reads one of them, and a runtime that is given the folder all of them; the folder is
    that of `external_data.weights_of(path)`, as links are followed here: the runtime follows none.

    Raises:
        ValueError: not an ONNX file; from protobuf `google.protobuf.message.DecodeError`.
        OSError: it cannot be read.
    """
    data, real = external_data.data_file(path), external_data.weights_of(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        model = []
        for part in fields(content, 0, len(content)):  # type: ignore[arg-type]
            if part.number != GRAPH:
                model.append(content[part.start : part.end])
                continue
            graph = b"".join(_graph_parts(content, part.content, part.end, real.name))  # type: ignore[arg-type]
            model.append(field(GRAPH, len(graph)) + graph)
    proto: onnx.ModelProto = onnx.ModelProto.FromString(b"".join(model))
    if data is not None:
        _relocate(proto, data.path.name, real.name)
    return proto


def stored_array(tensor: TensorProto, folder: str | Path = "") -> np.ndarray:
    """The numbers of a weight of a file that `load` read.

    `numpy_helper.to_array` refuses weights behind a symbolic link, or in a file that has two names: caches of downloads
    and backups hold files in these ways.

    Args:
        tensor: one of the graph's weights.
        folder: of the file that holds it.

    Raises:
        ValueError: the weight says that it lies in another folder, or there are not as many numbers as it has.
        OSError: its file cannot be read.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    name = place.get("location", "")
    if Path(name).name != name:
        raise ValueError(
            f"{tensor.name} says that it lies in {name!r}: weights are beside their ONNX file, nowhere else"
        )
    with (Path(folder) / name).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        content = file.read(int(place.get("length", -1)))
    whole = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content)
    return np.asarray(numpy_helper.to_array(whole))


def _graph_parts(content: bytes, start: int, end: int, name: str) -> Iterator[bytes]:
    """A graph's fields, large weights without their numbers."""
    for part in fields(content, start, end):
        if part.number == INITIALIZER and part.end - part.content >= LARGE:
            parts = list(fields(content, part.content, part.end))
            raw = next((one for one in parts if one.number == RAW_DATA), None)
            named = b"".join(content[one.content : one.end] for one in parts if one.number == NAME)
            if raw is not None and _is_large(named.decode(), raw.end - raw.content):
                kept = (one for one in parts if one.number not in (RAW_DATA, EXTERNAL_DATA, DATA_LOCATION))
                tensor = TensorProto.FromString(b"".join(content[one.start : one.end] for one in kept))
                _place(tensor, name, raw.content, raw.end - raw.content)
                described = tensor.SerializeToString()
                yield field(INITIALIZER, len(described)) + described
                continue
        yield content[part.start : part.end]


def _is_large(name: str, size: int) -> bool:
    return name.startswith(APART) and size >= LARGE


def _some_fields(message: onnx.ModelProto | onnx.GraphProto, keep: Callable[[int], bool]) -> bytes:
    """A message without its graph and weights, of its other fields those whose numbers are to be kept."""
    part = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.number in (GRAPH, INITIALIZER) and descriptor.name in ("graph", "initializer"):
            continue
        if keep(descriptor.number):
            if hasattr(value, "extend"):
                getattr(part, descriptor.name).extend(value)
            elif descriptor.message_type is not None:
                getattr(part, descriptor.name).CopyFrom(value)
            else:
                setattr(part, descriptor.name, value)
    return bytes(part.SerializeToString())


def _tensor_head(tensor: TensorProto, weights: Weights) -> bytes:
    """A weight's message up to its numbers, if they are apart; else all of it."""
    if tensor.name not in weights:
        return bytes(tensor.SerializeToString())
    described = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return bytes(described.SerializeToString()) + field(RAW_DATA, _size(weights[tensor.name]))


def _tensor_size(tensor: TensorProto, weights: Weights) -> int:
    """Bytes that follow the head."""
    return _size(weights[tensor.name]) if tensor.name in weights else 0


def _size(values: np.ndarray) -> int:
    return -(-values.size // 2) if values.dtype == INT4 else values.nbytes


def _bytes(values: np.ndarray) -> bytes | memoryview:
    """The numbers as ONNX has them: row by row, two of 4 bits to a byte."""
    if values.dtype == INT4:
        return bytes(numpy_helper.from_array(values).raw_data)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
