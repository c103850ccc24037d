"""From a published file to a distilled, quantization-friendly encoder, by the commands a user types."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from written import unmeasured

from encoders import load_encoder
from ssql.cli import main

sys.path.insert(0, str(Path(__file__).parents[2] / "encoders"))
import published_reference as published
import wav2vec2_reference

RECIPE = """
trainer: {max_steps: 2, enable_progress_bar: false, enable_model_summary: false, logger: false}
model:
  class_path: Distillation
  init_args:
    encoder: {class_path: encoders.init_from, init_args: {folder: FOLDER}}
    augmentation: {class_path: ssql.augment.SpeechAugmentation}
data: {class_path: ssql.data.AudioFolder, init_args: {root: CLIPS, batch_size: 2, num_workers: 0}}
calibration_batches: 1
"""


def ssql(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["ssql", *map(str, words)])
    main()


@pytest.mark.filterwarnings("ignore")
def test_imported_weights_are_distilled_at_random_bits(tmp_path, monkeypatch, capsys):
    folder = published.write(tmp_path / "published", "step_audio_2", published.random_weights(adaptor=True), shards=2)
    start = tmp_path / "imported"
    ssql(monkeypatch, "import", "--weights", folder, "--layout", "step_audio_2", "--output", start)
    printed = capsys.readouterr().out
    said = " ".join(printed.split())
    assert "73 tensors imported, none missing; attention heads read from config.json" in said
    assert "left out, since they are not the encoder's: 1 named lm_head.*, 1 named model.layers.*" in said

    clips = tmp_path / "clips"
    _write_clips(clips)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("FOLDER", str(start)).replace("CLIPS", str(clips)))
    ssql(monkeypatch, "pretrain", "--config", recipe, "--output", tmp_path / "run")
    trained, before = load_encoder(tmp_path / "run" / "encoder"), load_encoder(start)
    assert trained.arguments == before.arguments
    change = (trained.blocks[0].mlp[0].weight - before.blocks[0].mlp[0].weight).abs().max()
    assert 0 < change < 1e-2


def _write_clips(folder):
    import soundfile

    folder.mkdir()
    for n in range(6):
        wave = torch.randn(8_000, generator=torch.Generator().manual_seed(n)) * 0.1
        soundfile.write(folder / f"clip-{n}.wav", wave.numpy(), 16_000)


def test_bad_files_end_with_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    folder = published.write(tmp_path / "published", "whisper", published.random_weights(adaptor=False))
    with pytest.raises(SystemExit, match="error: .* has no encoder in layout 'step_audio_2'; its keys"):
        ssql(monkeypatch, "import", "--weights", folder, "--layout", "step_audio_2", "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_layout_is_recognized_and_a_pickle_is_named(tmp_path, monkeypatch, capsys):
    config = wav2vec2_reference.configuration("wavlm", "base")
    folder = wav2vec2_reference.write(tmp_path / "published", wav2vec2_reference.random_weights(config), config)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    ssql(monkeypatch, "import", "--weights", folder, "--output", tmp_path / "new")
    printed = " ".join(capsys.readouterr().out.split())
    assert "layout wavlm, by config.json's model_type 57 tensors imported, none missing;" in printed
    assert "1 named masked_spec_embed.* warning: pytorch_model.bin is a pickle;" in printed
    assert load_encoder(tmp_path / "new").name == "wavlm"
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(SystemExit, match=r"error: .*preprocessor_config\.json is missing, or lacks do_normalize"):
        ssql(monkeypatch, "import", "--weights", folder, "--output", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_margin_of_silence_is_imported_or_exported(tmp_path, monkeypatch, capsys):
    """The same file either way, which verifies against the folder that fills its clips."""
    monkeypatch.setattr("export.measure_files", unmeasured)
    folder = published.write(tmp_path / "published", "whisper", published.random_weights(adaptor=False))
    for name, margin in (("filled", []), ("short", ["--margin", "0.1"])):
        ssql(monkeypatch, "import", "--weights", folder, "--output", tmp_path / name, *margin)
    for name, margin in (("filled", ["--margin", "0.1"]), ("short", [])):
        words = ["--encoder", tmp_path / name, "--output", tmp_path / f"{name}-files", "--bit_width", "fp"]
        ssql(monkeypatch, "export", *words, *margin)
    files = [tmp_path / f"{name}-files" / "encoder-fp32.onnx" for name in ("filled", "short")]
    assert files[0].read_bytes() == files[1].read_bytes()
    ssql(monkeypatch, "verify", "--file", files[0], "--encoder", tmp_path / "filled")
    assert "verified" in capsys.readouterr().out
    ssql(monkeypatch, "import", "--weights", folder, "--fill", "false", "--output", tmp_path / "own")
    with pytest.raises(SystemExit, match="a margin of silence needs clips that are filled, .* not whisper"):
        ssql(monkeypatch, "export", "--encoder", tmp_path / "own", "--margin", "1", "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()
