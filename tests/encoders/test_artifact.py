import hashlib
import json

import pytest
import safetensors.torch
import torch

import quant
from encoders import (
    ArtifactError,
    Head,
    SpeechTransformer,
    Tokenizer,
    VisionEncoder,
    init_from,
    load_encoder,
    load_head,
    load_tokenizer,
    save_encoder,
)


def listing(folder):
    """Every name below a folder, and the content of every file."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), quant.Policy(layers={"*.mlp.2": "w8"}))
    quant.calibrate(encoder, [torch.randn(2, 80, 30)])
    save_encoder(encoder, tmp_path / "encoder")
    return encoder.eval(), tmp_path / "encoder"


def test_comes_back_with_weights_policy_and_ranges(saved):
    encoder, folder = saved
    again = load_encoder(folder)
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
    save_encoder(encoder.eval(), tmp_path / "learned")
    again = load_encoder(tmp_path / "learned")
    assert quant.learned_bit_width(again) == quant.parse_bit_width("w4a4")
    with torch.no_grad(), quant.at(encoder, "w4a4"), quant.at(again, "w4a4"):
        assert torch.equal(again(mel)[0], encoder(mel)[0])


def test_one_flipped_byte_of_any_weights_file_is_noticed(saved):
    encoder, folder = saved
    head, tokenizer = Head("classification", 32, ["yes", "no"]), Tokenizer(32, encoder.frame_rate, 8, 8)
    save_encoder(encoder, folder, overwrite=True, head=head, tokenizer=tokenizer)
    loaders = {"model": load_encoder, "head": load_head, "tokenizer": load_tokenizer}
    for name, load in loaders.items():
        load(folder)
        path = folder / f"{name}.safetensors"
        content = path.read_bytes()
        described = json.loads((folder / ("config.json" if name == "model" else f"{name}.json")).read_text())
        assert described["weights_file_sha256"] == hashlib.sha256(content).hexdigest()
        for place in (9, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(ArtifactError, match=rf"{name}\.safetensors is damaged: "):
                load(folder)
        path.write_bytes(content)


def test_an_artifact_without_its_checksum_or_with_another_is_refused(saved):
    _, folder = saved
    load_encoder(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["weights_file_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="must have the key weights_file_sha256"):
        load_encoder(folder)
    config = json.loads((folder / "config.json").read_text()) | {"weights_file_sha256": 64 * "0"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_encoder(folder)


def test_only_an_encoders_own_folder_is_replaced(saved, tmp_path):
    encoder, folder = saved

    def refused(target, message):
        before = listing(tmp_path)
        with pytest.raises(OSError, match=message):
            save_encoder(encoder, target, overwrite=True)
        assert listing(tmp_path) == before

    (folder / "notes.txt").write_text("mine")
    refused(folder, r"encoder holds what is not of an encoder \(notes.txt\): choose another folder")
    refused(tmp_path, r"holds what is not of an encoder \(encoder\)")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "file is a file: a folder is to be written there")
    refused(tmp_path / "file" / "encoder", "cannot be written: .*file is not a folder")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "link", "link is a symbolic link")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "config.json").write_text('{"model_type": "whisper"}')
    (tmp_path / "published" / "model.safetensors").write_bytes(b"weights")
    refused(tmp_path / "published", "has no config.json of an encoder that ssql saved")
    save_encoder(encoder, tmp_path / "elsewhere")
    assert load_encoder(tmp_path / "elsewhere").feature_dim == 32


def test_unprepared_encoder_stays_unprepared(tmp_path):
    save_encoder(VisionEncoder("resnet10t"), tmp_path / "e")
    with pytest.raises(ValueError, match="not prepared"):
        quant.quant_layers(load_encoder(tmp_path / "e"))


def test_existing_folder_is_kept_unless_overwritten(saved):
    encoder, folder = saved
    with pytest.raises(FileExistsError, match="exists already"):
        save_encoder(encoder, folder)
    save_encoder(encoder, folder, overwrite=True)
    load_encoder(folder)


def test_nan_weights_are_refused_and_the_good_folder_stays(saved):
    encoder, folder = saved
    with torch.no_grad():
        encoder.conv1.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"'conv1.bias' is NaN"):
        save_encoder(encoder, folder, overwrite=True)
    assert load_encoder(folder).conv1.bias.isfinite().all()


def test_integers_that_are_none_of_their_bit_width(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2)).eval()
    batches = [torch.randn(2, 80, 30)]
    quant.calibrate(encoder, batches)
    list(quant.round_weights(encoder, "w4a8", batches, blocks=encoder.stages))
    save_encoder(encoder, tmp_path / "fine")
    load_encoder(tmp_path / "fine")
    encoder.blocks[0].mlp[2].weight_integers(quant.parse_bit_width("w4a8"))[0][0, 0] = 9
    save_encoder(encoder, tmp_path / "odd")
    with pytest.raises(ArtifactError, match=r"integers of layer blocks\.0\.mlp\.2 at w4a8 are not -8 to 7"):
        load_encoder(tmp_path / "odd")


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
        ({"format_version": 9}, "format_version 9; this version reads 3"),
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


def test_a_bit_width_that_only_some_layers_have_is_not_saved(tmp_path):
    encoder = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2))
    next(iter(quant.quant_layers(encoder).values())).add_correction(quant.parse_bit_width("w4a8"))
    with pytest.raises(ValueError, match="w4a8 was not found for all layers: conv2 has no correction"):
        save_encoder(encoder, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
