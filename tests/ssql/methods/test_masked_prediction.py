import pytest
import torch
import torch.nn.functional as F

from encoders import Conformer, SpeechTransformer, StreamingTransformer, VisionEncoder
from ssql.augment import SpeechAugmentation
from ssql.methods import MaskedPrediction, SSQLOptions
from ssql.methods.masked_prediction import MaskedClips, mean_of_frames, normalized_over_clip, random_spans
from ssql.training.draw import draw_bit_width


def clips(batch, frames, stride=2):
    """Random log-mels of 20 frames and less, with every third output frame hidden."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor(frames)
    log_mel = torch.randn(batch, 80, int(lengths.max()), generator=generator)
    mask = (torch.arange(int(lengths.max()) // stride) % 3 == 1).expand(batch, -1)
    return MaskedClips(log_mel, lengths, mask & (torch.arange(mask.shape[1]) < lengths.unsqueeze(1) // stride))


def one(model, views):
    """Loss of both branches of a step on given views."""
    model.random_views = lambda batch: views
    return model.training_step({}, 0)


def test_step_equals_a_naive_masked_prediction(build, naive, assert_same_gradients):
    views = clips(2, [20, 20])
    model = build(MaskedPrediction, seed=5)
    loss = one(model, views)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model = build(MaskedPrediction, seed=5)
    masked = views.log_mel.clone()
    for clip in range(2):
        for frame in views.mask[clip].nonzero().flatten().tolist():
            masked[clip, :, 2 * frame : 2 * frame + 2] = model.hide.value.unsqueeze(1)
    # Two blocks: the upper one (two thirds, rounded) is the target.
    seen, blank = (
        model.teacher.encoder.block_outputs(log_mel)[0][1].detach() for log_mel in (views.log_mel, 0 * views.log_mel)
    )
    difference = seen - blank
    target = difference - difference.mean(1, keepdim=True)
    target = target / (difference.var(1, keepdim=True, correction=0) + 1e-5).sqrt()

    def loss_of(features):
        errors = [
            F.mse_loss(model.predictor(features[clip, frame]), target[clip, frame])
            for clip, frame in views.mask.nonzero().tolist()
        ]
        return torch.stack(errors).mean()

    plain = naive(model, draw_bit_width(5, 0), frames=True)
    expected = (loss_of(plain.full([masked])[0]) + loss_of(plain.quantized([masked])[0])) / 2
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5)
    assert_same_gradients(gradients, model)


@pytest.mark.parametrize("shape", [{}, {"pooling": 2}, {"pooling": 2, "adaptor_dim": 24}])
def test_a_clip_has_the_same_loss_whatever_it_is_batched_with(shape):
    torch.manual_seed(0)
    model = MaskedPrediction(SpeechTransformer(width=16, depth=2, heads=2, **shape), torch.nn.Identity(), ssql=False)
    with torch.no_grad():
        model.hide.value += torch.randn(80)
    views = clips(3, [50, 23, 37], model.stride)
    together = model.loss(model.branch(views), model.targets(views, model.branch(views)))
    alone = []
    for clip, length in enumerate(views.lengths.tolist()):
        mine = MaskedClips(
            views.log_mel[clip : clip + 1, :, :length],
            views.lengths[clip : clip + 1],
            views.mask[clip : clip + 1, : max(1, length // model.stride)],
        )
        branch = model.branch(mine)
        alone.append(model.loss(branch, model.targets(mine, branch)))
    assert torch.allclose(together, torch.stack(alone).mean(), atol=1e-6)


def test_teacher_sees_what_the_student_does_not():
    torch.manual_seed(0)
    model = MaskedPrediction(SpeechTransformer(width=16, depth=2, heads=2), torch.nn.Identity(), ssql=False)
    views = clips(2, [20, 20])
    hidden = views.mask.repeat_interleave(2, dim=1).unsqueeze(1)
    other = views._replace(log_mel=torch.where(hidden, torch.randn(2, 80, 20), views.log_mel))
    assert torch.equal(model.branch(views).predictions, model.branch(other).predictions)
    assert not torch.allclose(
        model.targets(views, model.branch(views))[0], model.targets(other, model.branch(other))[0]
    )


def test_targets_are_what_is_said_and_not_where():
    torch.manual_seed(0)
    model = MaskedPrediction(SpeechTransformer(width=64, depth=3, heads=2), torch.nn.Identity(), ssql=False)
    views = clips(64, [60] * 64)
    targets = model.targets(views, model.branch(views))[0]
    outputs, _ = model.teacher.encoder.block_outputs(views.log_mel)
    valid = torch.ones(64, 30, 1, dtype=torch.bool)
    with_positions = normalized_over_clip(outputs[-1], valid)

    def share_of_position(x):
        return x.mean(0).square().sum() / x.square().mean(0).sum()

    assert share_of_position(with_positions) > 0.5
    assert share_of_position(targets) < 0.15


def test_spans_hide_about_half_and_never_a_padded_frame():
    torch.manual_seed(0)
    frames = torch.tensor([400] * 50 + [7, 1, 2])
    mask = random_spans(frames, share=0.65, span=10)
    assert mask.shape == (53, 400)
    assert 0.4 < mask[:50].float().mean() < 0.55
    assert not mask[50, 7:].any()
    assert mask.any(dim=1).all()
    starts = mask[:50, 1:] & ~mask[:50, :-1]
    assert mask[:50].sum() / starts.sum() >= 9


def test_normalization_and_pooling_leave_padded_frames_out():
    x = torch.randn(2, 6, 4)
    valid = (torch.arange(6) < torch.tensor([[6], [3]])).unsqueeze(2)
    normalized = normalized_over_clip(x, valid)
    assert torch.allclose(normalized[1, :3].mean(0), torch.zeros(4), atol=1e-6)
    assert torch.allclose(normalized[1, :3].var(0, correction=0), torch.ones(4), atol=1e-3)
    pooled = mean_of_frames(x, valid, 2)
    assert torch.allclose(pooled[0], x[0].view(3, 2, 4).mean(1))
    assert torch.allclose(pooled[1, 1], x[1, 2])


def test_impossible_settings_are_errors():
    with pytest.raises(ValueError, match="masked prediction needs an encoder of frames in blocks .*, not vision"):
        MaskedPrediction(VisionEncoder("resnet10t", in_channels=1), torch.nn.Identity())
    encoder = SpeechTransformer(width=16, depth=2, heads=2)
    with pytest.raises(ValueError, match="target_blocks must be from 1 to the encoder's depth 2, got 3"):
        MaskedPrediction(encoder, torch.nn.Identity(), target_blocks=3)
    with pytest.raises(ValueError, match="mask_share"):
        MaskedPrediction(encoder, torch.nn.Identity(), mask_share=0)


def test_reversed_targets_come_from_a_quantized_teacher(build):
    targets = {}
    for kind in ("full_precision", "quantized"):
        options = SSQLOptions(targets=kind, weight_bits=(2, 2), activation_bits=(4, 4))
        model = build(MaskedPrediction, ssql=options)
        model.after_step = lambda found, kind=kind: targets.update({kind: found[0]})
        assert torch.isfinite(one(model, clips(2, [20, 20])))
    assert not torch.allclose(targets["full_precision"], targets["quantized"], atol=1e-2)


@pytest.mark.parametrize(
    "encoder",
    [
        StreamingTransformer(width=16, depth=2, heads=2, pooling=2, chunk=8, left_chunks=2),
        Conformer(width=16, depth=2, heads=2, kernel=5),
        SpeechTransformer(width=16, depth=2, heads=2, n_mels=80, pooling=2, positions=200, log_mel="whisper"),
    ],
    ids=lambda encoder: encoder.name,
)
def test_every_encoder_in_blocks_is_taught(encoder):
    torch.manual_seed(0)
    model = MaskedPrediction(encoder, SpeechAugmentation(), ssql=True)
    model.log = model.log_dict = lambda *_, **__: None
    lengths = torch.tensor([16_000, 8_960, 12_320])
    waveforms = torch.randn(3, 16_000) * 0.1 * (torch.arange(16_000) < lengths[:, None])
    model.training_step({"inputs": waveforms, "lengths": lengths}, 0).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in encoder.parameters())
    outputs, frames = encoder.eval().block_outputs(*encoder.front_end(waveforms, lengths))
    assert len(outputs) == 2
    assert {output.shape[2] for output in outputs} == {16}
    assert frames.tolist() == ([50, 28, 39] if encoder.block_rate == 50 else [25, 14, 20])
