import math

import pytest
import torch
import torch.nn.functional as F

import quant
from encoders import LogMel, Stream, StreamingTransformer, WhisperLogMel
from encoders.models.sample_stream import LogMelStream

SHAPES = [{}, {"pooling": 2}, {"pooling": 2, "adaptor_dim": 24}]


def build(**arguments) -> StreamingTransformer:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 2, "chunk": 8, "left_chunks": 2}
    return StreamingTransformer(**(sizes | arguments)).eval()


def clip(samples: int) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1


@pytest.mark.parametrize("arguments", SHAPES)
@pytest.mark.parametrize("bit_width", ["fp", "w4a8"])
def test_streamed_features_are_those_of_the_whole_clip(arguments, bit_width):
    encoder = quant.prepare(build(**arguments))
    waveform = clip(33_333)
    log_mel, lengths = encoder.front_end(waveform.unsqueeze(0))
    quant.calibrate(encoder, [None], lambda _: encoder(log_mel, lengths))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), quant.at(encoder, bit_width):
        offline, feature_lengths = encoder(log_mel, lengths)
        stream, pieces, position = Stream(encoder), [], 0
        while position < len(waveform):
            count = int(torch.randint(1, 4_000, (1,), generator=generator))
            pieces.append(stream.push(waveform[position : position + count]))
            position += count
        pieces.append(stream.finish())
    streamed = torch.cat(pieces)
    assert len(streamed) == feature_lengths[0] == offline.shape[1]
    if bit_width == "fp":
        assert torch.allclose(streamed, offline[0], atol=1e-4)
    # A value at the edge of two integers falls to either with another order of summation.
    assert F.cosine_similarity(streamed.flatten(), offline.flatten(), dim=0) > 0.9999


def test_the_whole_clip_is_attention_under_the_chunks_mask():
    """Against dense attention over all frames with a mask and rotary positions counted from the clip's start."""
    encoder = build()
    log_mel, lengths = encoder.front_end(clip(20_000).unsqueeze(0))
    with torch.no_grad():
        features, _ = encoder(log_mel, lengths)
        x = F.gelu(F.conv1d(F.pad(log_mel, (2, 0)), encoder.conv1.weight, encoder.conv1.bias))
        x = F.gelu(F.conv1d(F.pad(x, (1, 1)), encoder.conv2.weight, encoder.conv2.bias, stride=2))
        x = x[:, :, : (int(lengths) + 1) // 2].transpose(1, 2)
        frame = torch.arange(x.shape[1])
        chunk = frame // 8
        allowed = (chunk[None, :] <= chunk[:, None]) & (chunk[None, :] >= chunk[:, None] - 2)
        turns = torch.polar(torch.ones(1), torch.outer(frame.double(), 10_000.0 ** (-torch.arange(8.0) / 8)).float())
        for block in encoder.blocks:
            y = block.attn_ln(x)
            query, key, value = (
                layer(y).view(1, -1, 2, 16).transpose(1, 2)
                for layer in (block.attn.query, block.attn.key, block.attn.value)
            )
            query, key = (
                torch.cat(torch.view_as_real(torch.complex(*part.chunk(2, -1)) * turns).unbind(-1), dim=-1)
                for part in (query, key)
            )
            scores = (query @ key.transpose(2, 3) / math.sqrt(16)).masked_fill(~allowed, -torch.inf)
            x = x + block.attn.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.mlp_ln(x))
    assert torch.allclose(features, encoder.after_norm(x), atol=1e-4)


def test_the_state_does_not_grow_and_streams_of_a_batch_may_begin_at_any_time():
    encoder = build(pooling=2)
    log_mel = torch.randn(2, 80, 16 * 40)
    whole = torch.tensor([16, 16])
    with torch.no_grad():
        state = encoder.start(2)
        sizes = [part.shape for part in state]
        late = encoder.start(1)
        for n in range(40):
            if n == 3:  # the second stream begins anew
                state = type(state)(
                    *(
                        torch.cat([old.narrow(axis, 0, 1), new], dim=axis)
                        for old, new, axis in zip(state, late, (0, 0, 1, 1, 0, 0), strict=True)
                    )
                )
            features, _, state = encoder.stream(log_mel[:, :, 16 * n : 16 * (n + 1)], whole, state)
        assert [part.shape for part in state] == sizes
        expected, _ = encoder(log_mel[:1])
        assert torch.allclose(features[0], expected[0, -4:], atol=1e-4)
        expected, _ = encoder(log_mel[1:, :, 48:])
        assert torch.allclose(features[1], expected[0, -4:], atol=1e-4)


def test_a_frame_never_sees_beyond_its_chunk_or_before_its_past():
    encoder = build()
    log_mel = torch.randn(1, 80, 16 * 8)
    later, earlier = log_mel.clone(), log_mel.clone()
    later[:, :, 64:] += 1
    earlier[:, :, :13] += 1  # the first chunk; two blocks look back two chunks each
    with torch.no_grad():
        features, _ = encoder(log_mel)
        assert torch.equal(encoder(later)[0][:, :32], features[:, :32])
        assert not torch.equal(encoder(later)[0][:, 32:], features[:, 32:])
        assert torch.equal(encoder(earlier)[0][:, 40:], features[:, 40:])
        assert not torch.equal(encoder(earlier)[0][:, 32:40], features[:, 32:40])


def test_bad_sizes_and_pieces_are_errors():
    with pytest.raises(ValueError, match="chunk 10 must be a multiple of 4"):
        build(pooling=2, adaptor_dim=8, chunk=10)
    with pytest.raises(ValueError, match="needs pooling 2"):
        build(adaptor_dim=8)
    encoder = build()
    with pytest.raises(ValueError, match="a piece of 17 mel frames is not whole chunks of 16"):
        encoder.stream(torch.zeros(1, 80, 17), torch.tensor([17]), encoder.start())
    with pytest.raises(ValueError, match="a stream without a sample"):
        Stream(encoder).finish()


@pytest.mark.parametrize("samples", [400, 15_999, 16_079])
def test_log_mel_of_pieces_is_that_of_the_whole(samples):
    front_end, stream = LogMel(), LogMelStream(LogMel())
    waveform = clip(samples).unsqueeze(0)
    pieces = [stream.push(piece) for piece in waveform.split(313, dim=1)]
    assert stream.kept.shape[1] < 640
    whole, _ = front_end(waveform)
    assert torch.allclose(torch.cat([*pieces, stream.finish()], dim=2), whole, atol=1e-6)
    with pytest.raises(ValueError, match="WhisperLogMel needs the whole clip"):
        LogMelStream(WhisperLogMel())
