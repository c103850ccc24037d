import json

import pytest
import safetensors.torch
import torch

import quant
from encoders import ArtifactError, SpeechTransformer, VisionEncoder, init_from, load_encoder


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), quant.Policy(layers={"*.mlp.2": "w8"}))
    quant.calibrate(encoder, [torch.randn(2, 80, 30)])
    encoder.save_pretrained(tmp_path / "encoder")
    return encoder.eval(), tmp_path / "encoder"


def test_comes_back_with_weights_policy_and_ranges(saved):
    encoder, folder = saved
    again = SpeechTransformer.from_pretrained(folder)
    mel = torch.randn(1, 80, 40)
    for bit_width in ("fp", "w3a5"):
        with torch.no_grad(), quant.at(encoder, bit_width), quant.at(again, bit_width):
            assert torch.equal(again(mel)[0], encoder(mel)[0])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]


def test_grids_clipped_ranges_and_learned_steps_come_back(saved, tmp_path):
    torch.manual_seed(0)
    policy = quant.Policy(granularity="per_group_32", layers={"conv*": "/per_channel"}, weight_range="mse")
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), policy)
    mel = torch.randn(2, 80, 30)
    quant.calibrate(encoder, [mel], observer="mse")
    quant.learn_steps(encoder, "w4a4")
    with torch.no_grad():
        encoder.blocks[0].mlp[0].weight_step.mul_(0.9)
    encoder.eval().save_pretrained(tmp_path / "learned")
    again = load_encoder(tmp_path / "learned")
    assert quant.learned_bit_width(again) == quant.parse_bit_width("w4a4")
    with torch.no_grad(), quant.at(encoder, "w4a4"), quant.at(again, "w4a4"):
        assert torch.equal(again(mel)[0], encoder(mel)[0])


def test_an_artifact_of_format_1_has_one_range_for_all_bit_widths(saved):
    encoder, folder = saved
    config = json.loads((folder / "config.json").read_text()) | {"format_version": 1}
    for new in ("granularity", "weight_range", "attention"):
        del config["policy"][new]
    (folder / "config.json").write_text(json.dumps(config))
    state = safetensors.torch.load_file(folder / "model.safetensors")
    old = {key: value[0] if "activation_m" in key else value for key, value in state.items()}
    safetensors.torch.save_file(old, folder / "model.safetensors")
    again, mel = load_encoder(folder), torch.randn(1, 80, 40)
    with torch.no_grad(), quant.at(encoder, "w3a5"), quant.at(again, "w3a5"):
        assert torch.equal(again(mel)[0], encoder(mel)[0])


def test_unprepared_encoder_stays_unprepared(tmp_path):
    VisionEncoder("resnet10t").save_pretrained(tmp_path / "e")
    with pytest.raises(ValueError, match="not prepared"):
        quant.quant_layers(load_encoder(tmp_path / "e"))


def test_existing_folder_is_kept_unless_overwritten(saved):
    encoder, folder = saved
    with pytest.raises(FileExistsError, match="exists already"):
        encoder.save_pretrained(folder)
    encoder.save_pretrained(folder, overwrite=True)
    load_encoder(folder)


def test_nan_weights_are_refused_and_the_good_folder_stays(saved):
    encoder, folder = saved
    with torch.no_grad():
        encoder.conv1.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"'conv1.bias' is NaN"):
        encoder.save_pretrained(folder, overwrite=True)
    assert load_encoder(folder).conv1.bias.isfinite().all()


def test_weights_of_another_architecture_name_the_keys(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["depth"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"another architecture: missing blocks\.1\.attn"):
        load_encoder(folder)
    config["arguments"] |= {"depth": 1, "width": 64}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"has shape \(32,\), not \(64,\)"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder": "bat"},
            "encoder 'bat'; known are: conformer, .*vision",
        ),
        ({"arguments": {"wide": 3}}, "does not describe"),
        ({"format_version": 9}, "format_version 9; this version reads 1 and 2"),
        ({"policy": {"layers": {"nothing": "w8"}}}, "'nothing' matches no layer"),
    ],
)
def test_wrong_config_says_what_is_wrong(saved, change, message):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=message):
        load_encoder(folder)


def test_missing_and_damaged_files(saved, tmp_path):
    _, folder = saved
    with pytest.raises(ArtifactError, match="no such folder"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds a speech_transformer encoder, not a vision"):
        VisionEncoder.from_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ArtifactError, match="model.safetensors is damaged"):
        load_encoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="model.safetensors is missing"):
        load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="config.json is not JSON"):
        load_encoder(folder)


def test_loads_nothing_pickled(saved):
    _, folder = saved
    assert set(safetensors.torch.load_file(folder / "model.safetensors")) == set(load_encoder(folder).state_dict())


def test_a_run_starts_from_the_weights_alone(saved):
    encoder, folder = saved
    start = init_from(str(folder))
    assert start.training
    assert not any(isinstance(module, quant.QuantLayer) for module in start.modules())
    mel = torch.randn(1, 80, 40)
    with torch.no_grad():
        assert torch.equal(start.eval()(mel)[0], encoder(mel)[0])
    quant.prepare(start, quant.Policy(shift=True))
