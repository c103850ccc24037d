import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from written import to_file

import export
import quant
from encoders import Head, Tokenizer
from export.graph.tokenizer import OUTPUTS, stored_tokenizer
from export.runtime.session import open_session


@pytest.fixture(scope="module")
def tokenizer(encoder) -> Tokenizer:
    """Codes are frames of the encoder."""
    torch.manual_seed(1)
    tokenizer = Tokenizer(32, 50.0, linguistic_codes=16, semantic_codes=24, code_dim=8).eval().requires_grad_(False)
    features, lengths = encoder(torch.randn(1, 80, 200))
    tokenizer.mean.copy_(features.detach().mean(dim=(0, 1)))
    for name, (vectors, _) in tokenizer.vectors(features.detach(), lengths).items():
        stream = tokenizer.streams[name]
        stream.codebook.copy_(vectors[0, : len(stream.codebook)])
    return tokenizer


@pytest.fixture(scope="module")
def exported(encoder, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "encoder.onnx"
    head = Head("classification", 32, ["yes", "no"]).eval()
    return to_file(encoder, path, "w4a8", head=head, tokenizer=tokenizer)


def test_a_files_tokens_are_torchs_for_long_short_and_empty_clips(encoder, tokenizer, exported):
    session = open_session(exported)
    names = [output.name for output in session.get_outputs()]
    assert names == ["features", "feature_lengths", "logits", *OUTPUTS]
    for frames, counts in ((50, [50, 23, 0]), (49, [49, 3, 1]), (3, [3, 2, 1])):
        log_mel, lengths = torch.randn(3, 80, frames), torch.tensor(counts)
        found = session.run(names[3:], {"log_mel": log_mel.numpy(), "lengths": lengths.numpy()})
        with torch.no_grad(), quant.at(encoder, "w4a8"):
            expected = tokenizer(*encoder(log_mel, lengths))
        for name, value, wanted in zip(OUTPUTS, found, expected, strict=True):
            assert (value.dtype, value.shape) == (np.int64, tuple(wanted.shape)), name
            assert np.array_equal(value, wanted), name


def test_verification_reports_agreement(encoder, tokenizer, exported):
    report = json.loads(exported.with_suffix(".verification.json").read_text())
    assert (report["passed"], report["tokens_equal"], report["first_difference"]) == (True, True, None)
    assert report["token_agreement"] > 99
    assert "tokens: 100.00 % equal" in str(export.verify(exported, encoder, tokenizer=tokenizer))


def test_the_tokenizer_in_a_file_is_read_back(tokenizer, exported):
    stored = stored_tokenizer(onnx.load(exported))
    assert stored.arguments == tokenizer.arguments
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(stored.state_dict()[name], value), name


def test_a_changed_codebook_fails_verification(encoder, tokenizer, exported, tmp_path):
    proto = onnx.load(exported)
    codes = next(tensor for tensor in proto.graph.initializer if tensor.name == "tokenizer.semantic.codes")
    codes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(codes)[:, ::-1].copy(), codes.name))
    onnx.save(proto, tmp_path / "changed.onnx")
    result = export.verify(tmp_path / "changed.onnx", encoder, tokenizer=tokenizer)
    assert (result.passed, result.first_difference) == (False, "the tokenizer's semantic.codebook")


def test_an_operation_of_the_search_that_is_not_torchs_fails_verification(encoder, exported, tmp_path):
    proto = onnx.load(exported)
    search = [node for node in proto.graph.node if node.op_type == "ArgMin"]
    assert len(search) == 2
    search[0].op_type = "ArgMax"
    onnx.save(proto, tmp_path / "changed.onnx")
    result = export.verify(tmp_path / "changed.onnx", encoder)
    assert (result.passed, result.tokens_equal, result.first_difference) == (False, False, None)
    assert "tokens are not those of the nearest codes" in str(result)


def test_the_codebook_stays_float32_in_a_float16_file(encoder, tokenizer, tmp_path):
    path = to_file(encoder, tmp_path / "encoder.onnx", float16=True, tokenizer=tokenizer, check=False)
    proto = onnx.load(path)
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert stored["tokenizer.semantic.codes"] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT16 in stored.values()
    assert torch.equal(stored_tokenizer(proto).semantic.codebook, tokenizer.semantic.codebook)


def test_the_card_names_the_tokens(encoder, tokenizer, exported, tmp_path):
    card = export.describe([exported], encoder)
    assert card["tokenizer"] == tokenizer.arguments
    assert card["outputs"]["semantic_tokens"] == {
        "shape": ["batch", "semantic_frames"],
        "dtype": "int64",
        "unit": "codes, 25 a second; -1 beyond a clip's length",
    }
    export.write_card(card, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "tokens of 16 linguistic (50/3 a second) and 24 semantic codes" in text
    assert "two linguistic tokens, then three semantic ones plus 16" in text
    assert 'print(outputs["linguistic_tokens"][0]' in text
    with pytest.raises(FileExistsError, match="of another tokenizer"):
        export.entries_to_keep(tmp_path, encoder, None, Head("classification", 32, ["yes", "no"]), False, None)


def test_the_tokenizer_of_another_encoder(encoder, tmp_path):
    with pytest.raises(ValueError, match="the tokenizer takes 16 features at 50 Hz"):
        to_file(encoder, tmp_path / "encoder.onnx", tokenizer=Tokenizer(16, 50.0))
    assert list(tmp_path.iterdir()) == []
