import pytest
import torch
from torchaudio.models import Conformer as Torchaudio

from encoders import Conformer
from encoders.models.conformer import norm_of_real_frames


def test_blocks_are_torchaudios():
    torch.manual_seed(0)
    encoder = Conformer(width=32, depth=2, heads=2, kernel=7).eval()
    reference = Torchaudio(32, 2, 128, 2, 7).eval()
    for ours, theirs in zip(encoder.blocks, reference.conformer_layers, strict=True):
        for name in ("ffn1", "ffn2", "conv_module", "self_attn_layer_norm", "final_layer_norm"):
            getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
        attention = ours.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.self_attn.out_proj.load_state_dict(attention.out_proj.state_dict())
    x = torch.randn(2, 20, 32)
    with torch.no_grad():
        expected, _ = reference(x, torch.tensor([20, 20]))
        found = x
        for block in encoder.blocks:
            found = block(found, torch.ones(2, 20, dtype=torch.bool))
    assert torch.allclose(found, expected, atol=1e-5)


def test_one_second_is_25_frames():
    encoder = Conformer(width=32, depth=1, heads=2).eval()
    features, lengths = encoder(*encoder.front_end(torch.randn(2, 16_000), torch.tensor([16_000, 4_960])))
    assert features.shape == (2, 25, 32)
    assert lengths.tolist() == [25, 8]
    assert encoder.frame_rate == 25


def test_batch_norm_in_training_takes_statistics_of_real_frames():
    norm = torch.nn.BatchNorm1d(3, momentum=1.0)
    x = torch.randn(2, 3, 10)
    mask = torch.arange(10) < torch.tensor([[10], [4]])
    real = torch.cat([x[0], x[1, :, :4]], dim=1)
    out = norm_of_real_frames(norm, x, mask)
    assert torch.allclose(norm.running_mean, real.mean(dim=1), atol=1e-6)
    mean, deviation = real.mean(dim=1, keepdim=True), real.std(dim=1, keepdim=True, correction=0)
    assert torch.allclose(out[1, :, :4], (x[1, :, :4] - mean) / deviation, atol=1e-4)
    assert not out[1, :, 4:].any()


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="divisible by heads 5"):
        Conformer(heads=5)
    with pytest.raises(ValueError, match=r"log_mel must be \(batch, 80, frames\)"):
        Conformer(depth=1)(torch.zeros(1, 128, 50))
