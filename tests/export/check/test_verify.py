import copy
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from written import to_file

import export
import quant
from encoders import Head, SpeechTransformer, Tokenizer
from export.check.agreement import Features, agreement
from export.graph.head import head_difference

CLIPS = [0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples)) for samples in (4_000, 9_999)]


@pytest.fixture(scope="module")
def encoder() -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), quant.Policy(shift=True))
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(2, 16_000))], lambda batch: encoder(*batch))
    return encoder.eval()


@pytest.fixture(scope="module")
def head() -> Head:
    torch.manual_seed(1)
    return Head("classification", 32, ["yes", "no", "perhaps"], label="answer").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(encoder) -> Tokenizer:
    torch.manual_seed(2)
    tokenizer = Tokenizer(32, 50.0, linguistic_codes=8, semantic_codes=8, code_dim=4).eval().requires_grad_(False)
    for stream in tokenizer.streams.values():
        torch.nn.init.normal_(stream.codebook)
    return tokenizer


@pytest.fixture(scope="module")
def file(encoder, head, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    return to_file(encoder, path, "w4a8", input="waveform", head=head, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def plain(encoder, tmp_path_factory):
    return to_file(encoder, tmp_path_factory.mktemp("plain") / "encoder.onnx", "fp", check=False)


def stored(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def set_values(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), tensor.name))


def numbers(name: str, change):
    """Damage: other numbers in an initializer."""

    def damage(proto):
        tensor = stored(proto, name)
        set_values(tensor, change(numpy_helper.to_array(tensor)))

    return damage


def after(output: str, *steps):
    """Damage: operators (kind, constants, attributes) between what made an output and the output."""

    def damage(proto):
        made = next(place for place, node in enumerate(proto.graph.node) if output in node.output)
        node, name = proto.graph.node[made], f"{output}.honest"
        node.output[list(node.output).index(output)] = name
        for number, (kind, constants, attributes) in enumerate(steps):
            names = [f"damage.{number}.{place}" for place in range(len(constants))]
            values = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, constants, strict=True)]
            proto.graph.initializer.extend(values)
            given = output if number == len(steps) - 1 else f"damage.{number}.out"
            proto.graph.node.insert(made + 1 + number, helper.make_node(kind, [name, *names], [given], **attributes))
            name = given

    return damage


def one_frame(proto):
    """The fifth frame of every clip is 5 % larger."""
    after("features", ("Identity", [], {}))(proto)
    place = next(place for place, node in enumerate(proto.graph.node) if "features" in node.output)
    proto.graph.node.remove(proto.graph.node[place])
    sizes = numpy_helper.from_array(np.array([4, 1]), "damage.first")
    proto.graph.initializer.extend([sizes, numpy_helper.from_array(np.float32(1.05), "damage.factor")])
    nodes = [
        helper.make_node("Shape", ["features.honest"], ["damage.frames"], start=1, end=2),
        helper.make_node("ReduceSum", ["damage.first"], ["damage.sum"], keepdims=1),
        helper.make_node("Sub", ["damage.frames", "damage.sum"], ["damage.rest"]),
        helper.make_node("Concat", ["damage.first", "damage.rest"], ["damage.sizes"], axis=0),
        helper.make_node("Split", ["features.honest", "damage.sizes"], ["damage.a", "damage.b", "damage.c"], axis=1),
        helper.make_node("Mul", ["damage.b", "damage.factor"], ["damage.wrong"]),
        helper.make_node("Concat", ["damage.a", "damage.wrong", "damage.c"], ["features"], axis=1),
    ]
    for node in reversed(nodes):
        proto.graph.node.insert(place, node)


def padding(proto):
    """Features that are exactly zero are not."""
    after("features", ("Identity", [], {}))(proto)
    place = next(place for place, node in enumerate(proto.graph.node) if "features" in node.output)
    proto.graph.node.remove(proto.graph.node[place])
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0), "damage.zero"))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "damage.little"))
    proto.graph.node.insert(
        place, helper.make_node("Where", ["damage.is", "damage.little", "features.honest"], ["features"])
    )
    proto.graph.node.insert(place, helper.make_node("Equal", ["features.honest", "damage.zero"], ["damage.is"]))


def described(key: str, **values):
    """Damage: other values in the file's description of its head or tokenizer."""

    def damage(proto):
        prop = next(prop for prop in proto.metadata_props if prop.key == key)
        prop.value = json.dumps(json.loads(prop.value) | values)

    return damage


def one_integer(proto):
    tensor = stored(proto, "encoder.blocks.0.mlp.0.weight_integers.int4")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


FEATURES = {
    "twice the features": after("features", ("Mul", [np.float32(2)], {})),
    "a thousandth of the features": after("features", ("Mul", [np.float32(0.001)], {})),
    "half a percent more": after("features", ("Mul", [np.float32(1.005)], {})),
    "a constant added": after("features", ("Add", [np.float32(0.05)], {})),
    "constant features": after("features", ("Mul", [np.float32(0)], {}), ("Add", [np.float32(1000)], {})),
    "dimensions in another order": after("features", ("Gather", [np.arange(32)[::-1].copy()], {"axis": 2})),
    "one frame": one_frame,
    "another mel table": numbers("front_end.inner.filters.values", lambda values: 1.1 * values),
    "another bias": numbers(
        "encoder.blocks.0.mlp.2.bias", lambda values: values + 0.1 * np.linspace(-1, 1, len(values))
    ),
}
REASONS = {
    "padding": (padding, "features beyond a clip's length are not zero"),
    "lengths off by one": (after("feature_lengths", ("Sub", [np.array(1)], {})), "feature lengths differ"),
    "negated head": (numbers("head.weight", np.negative), "first difference in the head's weight"),
    "other bias of the head": (numbers("head.bias", lambda v: v + 0.01), "first difference in the head's bias"),
    "reversed names": (described("head", classes=["perhaps", "no", "yes"]), "in the head's classes"),
    "another label": (described("head", label="word"), "in the head's label"),
    "swapped codes": (
        numbers("tokenizer.semantic.codes", lambda values: values[:, ::-1].copy()),
        "first difference in the tokenizer's semantic.codebook",
    ),
    "a scale": (
        numbers("encoder.blocks.0.mlp.2.weight_scale", lambda values: 1.01 * values),
        "first difference in layer blocks.0.mlp.2",
    ),
    "one integer": (one_integer, "first difference in layer blocks.0.mlp.0"),
}


def verified(damage, file, encoder, head, tokenizer, tmp_path) -> export.Verification:
    proto = onnx.load(file)
    damage(proto)
    onnx.save(proto, tmp_path / "damaged.onnx")
    return export.verify(tmp_path / "damaged.onnx", encoder, "w4a8", CLIPS, head, tokenizer=tokenizer)


def test_a_good_file_passes_on_shipped_speech(encoder, file):
    report = json.loads(file.with_suffix(".verification.json").read_text(encoding="utf-8"))
    assert (report["passed"], report["layers"], report["inputs"]) == (True, 8, "shipped speech")
    assert report["features"]["frames"] > 1_000
    assert report["features"]["worst"]["clip"].startswith("speech from ")
    assert 0 < report["roundings"]["error_over_variance"] < 1e-8
    assert report["roundings"]["at_edge"] < 1e-4 * report["roundings"]["values"]
    assert report["error_over_variance"] == report["features"]["error_over_variance"]


@pytest.mark.parametrize("damage", FEATURES)
def test_other_features_fail_with_the_worst_frame(damage, file, encoder, head, tokenizer, tmp_path):
    result = verified(FEATURES[damage], file, encoder, head, tokenizer, tmp_path)
    assert (result.passed, result.first_difference, result.features_agree) == (False, None, False)
    assert "features depart" in str(result)
    assert result.features.worst.error_over_variance > result.limit
    if damage == "one frame":
        assert result.roundings.worst.seconds == 4 / encoder.frame_rate
    if damage == "another mel table":
        assert "features depart in the front end and before layer conv2" in str(result)
    if damage == "another bias":
        assert "features depart after layer blocks.0.mlp.2" in str(result)


@pytest.mark.parametrize("damage", REASONS)
def test_what_is_wrong_is_named(damage, file, encoder, head, tokenizer, tmp_path):
    result = verified(REASONS[damage][0], file, encoder, head, tokenizer, tmp_path)
    assert not result.passed
    assert REASONS[damage][1] in str(result)


@pytest.mark.parametrize("damage", ["twice the features", "a constant added", "one frame"])
def test_full_precision_files_fail_as_well(damage, plain, encoder, tmp_path):
    proto = onnx.load(plain)
    FEATURES[damage](proto)
    onnx.save(proto, tmp_path / "damaged.onnx")
    result = export.verify(tmp_path / "damaged.onnx", encoder, clips=CLIPS)
    assert (result.passed, result.roundings) == (False, None)
    assert export.verify(plain, encoder, clips=CLIPS).passed


# Products of two 8-bit activations are left out: without VNNI the runtime has no exact form of them.
@pytest.mark.parametrize(
    ("policy", "bit_width"),
    [("attention", "fp"), ("attention", "w4a4"), ("shift", "w4a32"), ("shift", "w2a8")],
)
def test_honest_files_pass(bit_width, policy, tmp_path):
    torch.manual_seed(3)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), quant.Policy(**{policy: True})).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(2, 16_000))], lambda batch: encoder(*batch))
    form = "waveform" if policy == "attention" else "log_mel"
    path = to_file(encoder, tmp_path / "encoder.onnx", bit_width, input=form, float16=bit_width == "fp", check=False)
    result = export.verify(path, encoder, clips=CLIPS)
    assert result.passed, result
    assert (result.inputs, result.clips) == ("given data", 5)
    assert (result.roundings is None) == (bit_width in ("fp", "w4a32"))


def test_names_and_units_of_heads_are_compared():
    head = Head("regression", 4, ["pitch", "energy"], units=["Hz", "dB"], label="prosody")
    other = Head("regression", 4, ["pitch", "energy"], units=["kHz", "dB"], label="prosody")
    other.load_state_dict(head.state_dict())
    assert head_difference(head, copy.deepcopy(head)) is None
    assert head_difference(other, head) == 'the head\'s units: ["kHz", "dB"], not ["Hz", "dB"]'


def test_constant_features_are_compared_by_their_size():
    constant = torch.full((10, 4), 1000.0)

    def worst(found, expected):
        return agreement([Features("a", found, expected)], 1e-6, 50.0).worst.error_over_variance

    assert worst(constant * (1 + 1e-7), constant) < 1e-6
    assert worst(constant * 1.001, constant) > 0.1
    assert worst(constant, constant + torch.randn(10, 4)) > 0.1
    assert worst(0 * constant, 0 * constant) == 0
    assert worst(0 * constant + 1e-3, 0 * constant) == np.inf


def test_a_frame_that_is_nan_is_the_worst():
    found = torch.randn(10, 4)
    found[3, 2] = torch.nan
    result = agreement(
        [Features("a", torch.ones(2, 4), torch.ones(2, 4)), Features("b", found, torch.randn(10, 4))], 1e-6, 50.0
    )
    assert np.isnan(result.worst.error_over_variance)
    assert (result.worst.clip, result.worst.seconds) == ("b", 0.06)


def test_changed_ranges_fail(encoder, file):
    other = copy.deepcopy(encoder)
    other.blocks[0].attn.out.activation_max.mul_(1.5)
    assert export.verify(file, other, "w4a8", CLIPS).first_difference == "blocks.0.attn.out"


def test_another_clipping_range_fails(encoder, tmp_path):
    path = to_file(encoder, tmp_path / "encoder.onnx", "w4a4", check=False)
    proto = onnx.load(path)
    clip = next(node for node in proto.graph.node if node.op_type == "Clip")
    numbers(clip.input[2], lambda values: values * np.float32(1.01))(proto)
    onnx.save(proto, path)
    assert export.verify(path, encoder, "w4a4", CLIPS).first_difference is not None


def test_verifying_leaves_the_encoder_as_it_was(encoder, file):
    encoder.train()
    export.verify(file, encoder, "w4a8", CLIPS)
    assert encoder.training
    encoder.eval()


def test_weights_in_bfloat16_are_exported_as_what_they_are(encoder, tmp_path):
    short = copy.deepcopy(encoder).bfloat16()
    path = to_file(short, tmp_path / "encoder.onnx", "fp", clips=CLIPS)
    assert export.verify(path, short.float(), clips=CLIPS).passed


def test_files_of_something_else_are_named(encoder, file, tmp_path):
    with pytest.raises(export.VerificationError, match="at w4a8, not speech_transformer at w8a8"):
        export.verify(file, encoder, "w8a8")
    with pytest.raises(export.VerificationError, match='arguments .*"width": 32.*, not .*"width": 64'):
        export.verify(file, SpeechTransformer(width=64, depth=1, heads=2), "w4a8")
    with pytest.raises(FileNotFoundError, match="nowhere.onnx does not exist"):
        export.verify("nowhere.onnx", encoder, "w4a8")
    (tmp_path / "text.onnx").write_bytes(b"no graph")
    with pytest.raises(export.VerificationError, match=r"text\.onnx is not an ONNX file"):
        export.verify(tmp_path / "text.onnx", encoder, "w4a8")
    with pytest.raises(export.VerificationError, match=r"text\.onnx does not start in ONNX Runtime"):
        export.integer_operators(tmp_path / "text.onnx")
    proto = onnx.load(file)
    next(prop for prop in proto.metadata_props if prop.key == "policy").value = "null"
    onnx.save(proto, tmp_path / "policy.onnx")
    with pytest.raises(export.VerificationError, match="is of another encoder: .* not one of another policy"):
        export.verify(tmp_path / "policy.onnx", encoder)
    proto = onnx.load(file)
    next(prop for prop in proto.metadata_props if prop.key == "frame_rate_hz").value = "12.5"
    onnx.save(proto, tmp_path / "rate.onnx")
    with pytest.raises(export.VerificationError, match=r"holds an encoder with frame_rate_hz 12\.5, not 50"):
        export.verify(tmp_path / "rate.onnx", encoder)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    with pytest.raises(export.VerificationError, match=r"bare\.onnx was not written by export\.to_onnx"):
        export.verify(tmp_path / "bare.onnx", encoder, "w4a8")
