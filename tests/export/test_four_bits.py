import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.four_bits import pack_four_bits, store_four_bits


def test_pairs_share_a_byte_with_the_first_in_the_low_half():
    assert pack_four_bits(np.array([1, 2, -1], np.int8)).tolist() == [0x21, 0x0F]


def test_packing_is_onnxs():
    integers = np.random.default_rng(0).integers(-8, 8, (5, 7), dtype=np.int8)
    tensor = helper.make_tensor("w", TensorProto.INT4, integers.shape, pack_four_bits(integers).tobytes(), raw=True)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), integers)


def test_a_lost_initializer_is_named():
    with pytest.raises(RuntimeError, match="lost the integers of encoder.conv1"):
        store_four_bits(onnx.ModelProto(), ["encoder.conv1"])
