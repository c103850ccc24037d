import numpy as np
import onnxruntime
import torch
from written import to_file

import quant
from encoders import SpeechTransformer, load_encoder, save_encoder
from quant.bias_correction import rounded_bit_widths


def test_integers_and_corrections_are_saved_loaded_and_what_the_file_has(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), quant.Policy(shift=True)).eval()
    batch = encoder.front_end(torch.randn(4, 16_000) * 0.3)
    quant.calibrate(encoder, [batch], lambda batch: encoder(*batch))
    plain = to_file(encoder, tmp_path / "plain.onnx", "w2a8")
    list(quant.round_weights(encoder, "w2a8", [batch], lambda batch: encoder(*batch), encoder.stages))
    save_encoder(encoder, tmp_path / "encoder")

    loaded = load_encoder(tmp_path / "encoder")
    assert quant.corrected_bit_widths(loaded) == rounded_bit_widths(loaded) == [quant.parse_bit_width("w2a8")]
    with torch.no_grad(), quant.at(loaded, "w2a8"):
        features = loaded(*batch)[0]
    with torch.no_grad(), quant.at(encoder, "w2a8"):
        assert torch.equal(features, encoder(*batch)[0])

    corrected = to_file(loaded, tmp_path / "corrected.onnx", "w2a8")  # verifies itself
    feeds = {"log_mel": batch[0].numpy(), "lengths": batch[1].numpy()}
    found = onnxruntime.InferenceSession(str(corrected)).run(None, feeds)[0]
    uncorrected = onnxruntime.InferenceSession(str(plain)).run(None, feeds)[0]
    assert np.abs(found - features.numpy()).mean() < 0.02 * np.abs(uncorrected - features.numpy()).mean()
