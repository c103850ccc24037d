"""Folders as people download them: which file is taken, what is read of a pickle, and what is refused."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders import ArtifactError, import_encoder

sys.path.insert(0, str(Path(__file__).parents[1]))
import published_reference as published

# What openai/whisper-large-v3 has on the hub, beside model.safetensors.
LARGE_V3 = (
    "flax_model.msgpack", "generation_config.json", "merges.txt", "model.fp32-00001-of-00002.safetensors",
    "model.fp32-00002-of-00002.safetensors", "model.safetensors.index.fp32.json", "normalizer.json",
    "preprocessor_config.json", "pytorch_model.bin", "pytorch_model.bin.index.fp32.json",
    "pytorch_model.fp32-00001-of-00002.bin", "pytorch_model.fp32-00002-of-00002.bin", "README.md", "vocab.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return published.random_weights(adaptor=False)


@pytest.fixture
def folder(tmp_path, weights):
    return published.write(tmp_path / "published", "whisper", weights)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder, which it then lacks."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return state


def sharded(folder: Path, state: dict[str, torch.Tensor], stem: str, index: str) -> None:
    names = [f"{stem}-0000{n}-of-00002{'.bin' if index.startswith('pytorch') else '.safetensors'}" for n in (1, 2)]
    where = {key: names[n % 2] for n, key in enumerate(sorted(state))}
    for name in names:
        part = {key: value for key, value in state.items() if where[key] == name}
        torch.save(part, folder / name) if name.endswith("bin") else save_file(part, folder / name)
    (folder / index).write_text(json.dumps({"weight_map": where}))


def is_imported(encoder, weights) -> bool:
    return torch.equal(encoder.blocks[3].mlp[2].weight, weights["blocks.3.mlp.2.weight"])


def test_model_safetensors_is_taken_before_all_others(folder, weights):
    for name in LARGE_V3:
        (folder / name).write_bytes(b"never opened")
    encoder, report = import_encoder(folder)
    assert is_imported(encoder, weights)
    assert str(report).splitlines()[0] == "layout whisper, by config.json's model_type"
    assert report.pickles == () and not report.converted


def test_a_variant_is_named_by_its_index(folder, weights):
    state = state_of(folder)
    index = "model.safetensors.index.fp32.json"
    sharded(folder, state, "model.fp32", index)
    assert is_imported(import_encoder(folder)[0], weights)  # it is the only one
    save_file(state, folder / "model.fp16.safetensors")
    with pytest.raises(ArtifactError, match=r"no model\.safetensors and .*, but model\.fp16\.safetensors; ") as refused:
        import_encoder(folder)
    assert f"{index} (2 shards): name the one you want, such as {folder / index}" in str(refused.value)
    assert is_imported(import_encoder(folder / index)[0], weights)


def test_half_precision_becomes_float_and_the_report_says_so(tmp_path, weights):
    half = {key: value.half() if "conv" in key else value.bfloat16() for key, value in weights.items()}
    encoder, report = import_encoder(published.write(tmp_path / "half", "whisper", half))
    assert torch.equal(encoder.conv1.weight, weights["conv1.weight"].half().float())
    assert torch.equal(encoder.after_norm.bias, weights["after_norm.bias"].bfloat16().float())
    assert "tensors that became float32: 63 of bfloat16, 4 of float16" in str(report)


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_model_bin_is_read_with_a_warning(folder, weights, zipped):
    state = {
        key: torch.nn.Parameter(value.T.contiguous().T if value.dim() == 2 else value)
        for key, value in state_of(folder).items()
    }
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    encoder, report = import_encoder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")  # what was read stays
    assert is_imported(encoder, weights)
    assert "warning: pytorch_model.bin is a pickle; only tensors were read" in str(report)


def test_shards_of_pickles(folder, weights):
    sharded(folder, state_of(folder), "pytorch_model", "pytorch_model.bin.index.json")
    assert is_imported(import_encoder(folder)[0], weights)


def openai_file(folder: Path, weights, **dims) -> Path:
    """As OpenAI publishes Whisper: one file in half precision, sizes and weights in it."""
    state = {published.published_key(key, "openai_whisper"): value.half() for key, value in weights.items()}
    sizes = published.published_config("openai_whisper") | {"n_vocab": 51865, "n_text_layer": 4} | dims
    folder.mkdir()
    torch.save({"dims": sizes, "model_state_dict": state | {"decoder.ln.weight": torch.ones(2)}}, folder / "tiny.pt")
    return folder / "tiny.pt"


def test_openais_own_file_tells_its_sizes(tmp_path, weights):
    file = openai_file(tmp_path / "openai", weights)
    encoder, report = import_encoder(file)
    assert encoder.arguments["heads"] == published.SIZES["heads"]  # not width / 64
    assert report.layout == "openai_whisper" and report.heads_from == "dims" and report.pickles
    assert is_imported(encoder, {key: value.half().float() for key, value in weights.items()})
    with pytest.raises(ArtifactError, match=r"dims in .*tiny\.pt says depth 3, the weights have 4"):
        import_encoder(openai_file(tmp_path / "other", weights, n_audio_layer=3).parent)


class Malicious:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_code_of_a_pickle_is_run(folder, tmp_path, name, form):
    state, place = state_of(folder), tmp_path / "made by the pickle"
    content = state | {"model.encoder.conv1.bias": Malicious(place)}
    if form == "pickle":
        (folder / name).write_bytes(pickle.dumps(Malicious(place)))
    else:
        torch.save(content, folder / name, _use_new_zipfile_serialization=form == "zip")
    named = (
        r"holds no weights of PyTorch"
        if form == "pickle"
        else r"holds more than weights \(its pickle calls for \w+\.mkdir"
    )
    with pytest.raises(
        ArtifactError, match=rf"{named}.*, so it is not loaded: such a file could run any program"
    ) as error:
        import_encoder(folder)
    assert not place.exists()
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "must hold tensors by name, it holds list"),
        ({}, "must hold tensors by name, it holds dict"),
        ({"epoch": 3, "state_dict": {}}, "'epoch' is int"),
        ({5: torch.zeros(2)}, "must hold tensors by name.*; 5 is Tensor"),
        ({"dims": 3, "model_state_dict": {"encoder.conv1.weight": torch.zeros(2)}}, "dims must be sizes by name"),
        ({"model.encoder.conv1.weight": torch.zeros(1).expand(10**9, 10**9)}, "but fewer numbers are stored"),
        ({"model.encoder.conv1.weight": torch.zeros(2, device="meta")}, "is no plain tensor"),
        ({"model.encoder.conv1.weight": torch.full((2,), 1e300, dtype=torch.float64)}, "is NaN or infinite"),
    ],
)
def test_strange_pickles_are_sentences(folder, content, message):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=message):
        import_encoder(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors.index.json": b"[1]"}, r"index\.json is not an index of shards"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": 5}}'}, "must name files of its own folder, not 5"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../a.bin"}}'}, r"not '\.\./a\.bin'"),
        ({"model.safetensors.index.json": b'{"weight_map": {}}'}, "names no file"),
        ({"flax_model.msgpack": b""}, r"has flax_model\.msgpack \(Flax\), which cannot be imported: name its safe"),
        ({"vocab.json": b"{}"}, r"has no weights: model\.safetensors, or .* must be there"),
        ({"model.bin": b"\x06\x00\x00\x00\x0c\x00WhisperSpec"}, r"model\.bin holds no weights of PyTorch, so"),
        ({"a.pt": b"", "b.pt": b""}, r"but a\.pt; b\.pt: name the one you want, such as .*a\.pt$"),
        ({"pytorch_model.bin": b""}, r"pytorch_model\.bin is not a file of PyTorch, or is damaged"),
        (
            {"model.safetensors": b"", "adapter_config.json": b"{}"},
            "to leave the adapter out, name .*model.safetensors",
        ),
    ],
)
def test_folders_without_weights_that_can_be_read(folder, files, message):
    (folder / "model.safetensors").unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        import_encoder(folder)


def test_a_file_of_another_library_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match=r"model\.gguf is a file of GGUF: name its safetensors files"):
        import_encoder(tmp_path / "model.gguf", "whisper")


def test_an_adapter_that_is_not_merged_says_how_to_merge_it(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    key = "base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({key: torch.zeros(2, 2)}, adapter / "adapter_model.safetensors")
    how = r"merge it with peft, PeftModel\.from_pretrained\(model, '.*adapter'\)\.merge_and_unload\(\)\.save_pretrained"
    for weights in (adapter, adapter / "adapter_model.safetensors"):
        with pytest.raises(ArtifactError, match=how):
            import_encoder(weights, "whisper")
    state = load_file(folder / "model.safetensors") | {
        "model.encoder.layers.0.fc1.lora_B.default.weight": torch.ones(2)
    }
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match="not merged into its model"):
        import_encoder(folder)


def test_layouts_that_cannot_be_told(folder):
    for text, message in (
        ('{"model_type": "sew"}', "model_type 'sew', which cannot be imported; known are step_audio_2, whisper"),
        ('{"model_type": 5}', "model_type 5, which cannot"),
        ("{}", "has no model_type, so the layout is not known: give it with --layout, one of step_audio_2"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(ArtifactError, match=message):
            import_encoder(folder)
    (folder / "config.json").write_text('{"model_type": {"a": 1}}')
    with pytest.raises(ArtifactError, match=r"says model_type \{'a': 1\}, which cannot be: it must be text"):
        import_encoder(folder, "whisper")
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json is missing, so the layout is not known"):
        import_encoder(folder)
