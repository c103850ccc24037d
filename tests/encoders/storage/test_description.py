"""What a stranger may have written into config.json, head.json and tokenizer.json."""

import functools
import json
import os
import urllib.request

import huggingface_hub
import pytest
import timm
import torch

import quant
from encoders import (
    ArtifactError,
    Head,
    MelCNN,
    SpeechTransformer,
    Tokenizer,
    VisionEncoder,
    load_encoder,
    load_head,
    load_tokenizer,
    save_encoder,
)
from encoders.models.vision import READING
from encoders.storage.description import described


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a speech encoder with a head and a tokenizer."""
    folder = tmp_path_factory.mktemp("description") / "encoder"
    encoder = quant.prepare(SpeechTransformer(width=8, depth=1, heads=2), quant.Policy(layers={"*.mlp.2": "w8"}))
    quant.calibrate(encoder, [torch.randn(2, 80, 30)])
    save_encoder(encoder, folder, head=Head("classification", 8, ["a", "b"]), tokenizer=Tokenizer(8, 50.0, 4, 4, 2))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy whose files are links, so that one can be replaced."""
    copy = tmp_path / "encoder"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


def rewrite(folder, name, change):
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    change(values)
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["arguments"].update(heads=0),
            "heads must be a whole number from 1 to 1,048,576, not 0",
        ),
        (lambda c: c["arguments"].update(width=10**9), "arguments: width must be a whole number .*, not 1000000000"),
        (lambda c: c["arguments"].update(width="8"), "arguments: width must be a whole number .*, not '8'"),
        (lambda c: c["arguments"].update(width=True), "arguments: width must be a whole number .*, not True"),
        (lambda c: c["arguments"].update(depth=-1), "arguments: depth must be a whole number .*, not -1"),
        (lambda c: c["arguments"].update(depth=2.0), "arguments: depth must be a whole number .*, not 2.0"),
        (lambda c: c["arguments"].update(positions=[1]), "arguments: positions must be a whole number .* or null, not"),
        (
            lambda c: c["arguments"].update(log_mel="loud"),
            "log_mel must be one of causal, whisper, whisper_filled, not 'loud'",
        ),
        (
            lambda c: c["arguments"].update(log_mel=[]),
            r"arguments: log_mel must be one of causal, whisper, whisper_filled, not \[\]",
        ),
        (lambda c: c["arguments"].update(n_mels=81), "n_mels must be 80 or 128, got 81"),
        (
            lambda c: c["arguments"].update(wide=3),
            "arguments has the unknown key 'wide'; known are n_mels, width",
        ),
        (lambda c: c.update(arguments=[1]), r"arguments must be an object of arguments, not \[1\]"),
        (lambda c: c.update(policy=[1]), r"policy must be an object of arguments, not \[1\]"),
        (
            lambda c: c["policy"].update(layers={"*": 5}),
            r"layers\.\* must be a word of at most 1000 characters, not 5",
        ),
        (lambda c: c["policy"].update(attention="no"), "policy: attention must be true or false, not 'no'"),
        (lambda c: c["policy"].update(speed=1), "policy has the unknown key 'speed'"),
        (lambda c: c.update(learned_steps=5), "learned_steps must be a bit-width such as 'w4a8', not 5"),
        (lambda c: c.update(bias_corrections="w8a8"), "bias_corrections must be a list of bit-widths, not 'w8a8'"),
        (lambda c: c.update(bias_corrections=[None]), "bias_corrections must be a bit-width such as 'w4a8', not None"),
        (lambda c: c.update(encoder=["vision"]), r"names encoder \['vision'\]; known are"),
        (lambda c: c.update(format_version=[1]), r"has format_version \[1\]; this version reads"),
        (lambda c: c.update(format_version=True), "has format_version True; this version reads"),
    ],
)
def test_a_config_that_describes_no_encoder_is_said_with_file_and_key(folder, change, message):
    rewrite(folder, "config.json", change)
    with pytest.raises(ArtifactError, match=rf"config\.json .*{message}"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("name", "load", "change", "message"),
    [
        ("head.json", load_head, lambda c: c.update(classes=["a", "a"]), "needs names, all different"),
        (
            "head.json",
            load_head,
            lambda c: c.update(classes=[1, 2]),
            "classes must be a list whose values are each",
        ),
        ("head.json", load_head, lambda c: c.update(classes="ab"), "classes must be a list, not 'ab'"),
        ("head.json", load_head, lambda c: c.update(feature_dim=-8), "feature_dim must be a whole number"),
        ("head.json", load_head, lambda c: c.update(colour=1), "has the unknown key 'colour'"),
        ("head.json", load_head, lambda c: c.update(task=[]), "task must be one of classification, ctc, regression"),
        (
            "tokenizer.json",
            load_tokenizer,
            lambda c: c.update(semantic_codes=0),
            "semantic_codes must be a whole number",
        ),
        ("tokenizer.json", load_tokenizer, lambda c: c.update(code_dim=None), "code_dim must be a whole number"),
        ("tokenizer.json", load_tokenizer, lambda c: c.update(frame_rate="fast"), "frame_rate must be a number"),
        (
            "tokenizer.json",
            load_tokenizer,
            lambda c: c.update(frame_rate=1e18),
            "above 0 Hz and at most 1,000 Hz",
        ),
    ],
)
def test_heads_and_tokenizers_too(folder, name, load, change, message):
    rewrite(folder, name, change)
    with pytest.raises(ArtifactError, match=rf"{name} does not describe a {name[:-5]}: .*{message}"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "head.json", "tokenizer.json", "model.safetensors", "head.safetensors"]
)
@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe{}", b"[]", b"5", b'{"a": NaN}', None])
def test_files_of_another_kind(folder, name, content):
    (folder / name).unlink()
    if content is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_bytes(content)
    load = load_encoder if name.startswith(("config", "model")) else load_head if "head" in name else load_tokenizer
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load(folder)


@pytest.mark.parametrize("change", [{"width": 2**20}, {"depth": 2**20}, {"positions": 2**20}, {"depth": 3}])
def test_nothing_is_allocated_for_a_config_that_the_weights_do_not_fit(folder, change, monkeypatch):
    rewrite(folder, "config.json", lambda c: c["arguments"].update(change))
    built = []
    real = SpeechTransformer.__init__

    @functools.wraps(real)
    def counted(self, *args, **arguments):
        built.append(torch.empty(0).device.type)
        real(self, *args, **arguments)

    monkeypatch.setattr(SpeechTransformer, "__init__", counted)
    with pytest.raises(ArtifactError, match=r"model\.safetensors holds weights of another architecture"):
        load_encoder(folder)
    assert built == ["meta"]


def test_integers_are_no_weights(saved, folder):
    import safetensors.torch

    state = safetensors.torch.load_file(saved / "model.safetensors")
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file(state | {"conv1.bias": torch.ones(8, dtype=torch.int64)}, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.safetensors .*conv1\.bias is I64, not floating point"):
        load_encoder(folder)


def test_comparing_first_leaves_the_random_numbers_as_they_were(saved):
    torch.manual_seed(3)
    quant.prepare(SpeechTransformer(width=8, depth=1, heads=2))
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_encoder(saved)
    assert torch.equal(torch.rand(1), expected)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    save_encoder(VisionEncoder("resnet10t", model_arguments={"stem_width": 8, "channels": [8, 8, 8, 8]}), folder / "a")
    return folder / "a"


@pytest.fixture
def sealed(monkeypatch):
    """Whatever would read weights from somewhere fails the test."""

    def opened(*args, **kwargs):
        pytest.fail(f"opened {args}")

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", opened)
    monkeypatch.setattr(torch.hub, "download_url_to_file", opened)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", opened)
    readers = ("state_dict_from_hf", "state_dict_from_url", "state_dict", "checkpoint", "pretrained")
    readers += ("model_config_from_hf", "model_config_from_path")
    for place in (timm.models._builder, timm.models._hub, timm.models._helpers, timm.models._factory):
        for name in ("hf_hub_download", *(f"load_{reader}" for reader in readers)):
            monkeypatch.setattr(place, name, opened, raising=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrained", True),
        ("checkpoint_path", "/etc/passwd"),
        ("pretrained_cfg", {"url": "http://127.0.0.1:9/weights.pth"}),
        ("pretrained_cfg", {"hf_hub_id": "owner/name"}),
        ("pretrained_cfg", {"file": "weights.pth"}),
        ("pretrained_cfg_overlay", {"file": "weights.pth"}),
        ("cache_dir", "/tmp"),
        ("scriptable", True),
        ("features_only", True),
        ("kwargs_filter", ["a"]),
        ("pretrained_filter_fn", "os.system"),
        ("num_classes", 10),
        ("in_chans", 1),
        ("block", {"class_path": "os.system"}),
        ("drop_rate", {"a": 1}),
        ("channels", [[[[1]]]]),
        ("stem_width", 10**9),
    ],
)
@pytest.mark.parametrize("name", ["vision", "mel_cnn"])
def test_a_timm_description_has_nothing_read_or_run(vision, tmp_path, sealed, name, key, value):
    description = {"model_name": "resnet10t", "model_arguments": {key: value}}
    (tmp_path / "config.json").write_text(
        json.dumps({"format_version": 3, "encoder": name, "arguments": description, "weights_file_sha256": ""}),
        encoding="utf-8",
    )
    (tmp_path / "model.safetensors").symlink_to(vision / "model.safetensors")
    with pytest.raises(
        ArtifactError, match=rf"config\.json does not describe a {name} encoder: .*model_arguments.*{key}"
    ):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("channels", -1, "cannot be built with model_arguments {.*channels.*: -1}, a value does not fit"),
        ("channels", [-1, 8, 8, 8], "a value does not fit"),
        ("channels", [], "a value does not fit"),
        ("layers", 1, "a value does not fit"),
        ("layers", ["a"], "a value does not fit"),
        ("act_layer", "loud", "a value does not fit"),
        ("block", "x", "a value does not fit"),
        ("stem_width", "a", "a value does not fit"),
        ("output_stride", 7, "a value does not fit"),
        ("drop_rate", "x", "model_arguments: drop_rate must be a number from 0 to below 1, not 'x'"),
        ("drop_path_rate", 5, "model_arguments: drop_path_rate must be a number from 0 to below 1, not 5"),
        # timm's own sentences are kept.
        ("cardinality", 3, "cannot be built with model_arguments {.*}: BasicBlock only supports cardinality of 1"),
    ],
)
def test_values_that_timm_refuses_are_said_in_our_words(vision, tmp_path, key, value, why):
    for file in vision.iterdir():
        (tmp_path / file.name).symlink_to(file)
    rewrite(tmp_path, "config.json", lambda c: c["arguments"]["model_arguments"].update({key: value}))
    with pytest.raises(ArtifactError, match=r"config\.json does not describe a vision encoder: .*" + why + "$"):
        load_encoder(tmp_path)
    if key != "output_stride":  # without pooling, timm takes any
        with pytest.raises(ValueError, match=why + "$"):
            MelCNN("resnet10t", model_arguments={key: value})


def test_a_network_without_its_last_stage():
    with pytest.raises(ValueError, match="'resnet10t' cannot run: a value of its model_arguments does not fit"):
        MelCNN("resnet10t", model_arguments={"channels": [8, 8, 8]})


@pytest.mark.parametrize(
    ("fail", "why"),
    [
        (lambda: len(5), "nothing can be built from its values"),
        (lambda: int("x"), "nothing can be built from its values"),
        (lambda: {}["a"], "nothing can be built from its values"),
        (lambda: torch.empty(-1), "nothing can be built from its values"),
        (lambda: quant.parse_bit_width("w9a9"), "unknown bit-width 'w9a9'.*"),
    ],
)
def test_only_sentences_that_someone_wrote_are_passed_on(tmp_path, fail, why):
    expected = pytest.raises(ArtifactError, match=rf"head\.json does not describe a head: {why}$")
    with expected, described(tmp_path / "head.json", "head"):
        fail()


@pytest.mark.parametrize(
    "name", ["hf-hub:owner/resnet10t", "hf_hub:owner/x", "local-dir:/tmp/x", "owner/x", "../x", ""]
)
@pytest.mark.parametrize("form", [VisionEncoder, MelCNN])
def test_names_of_hubs_and_folders_are_no_models(sealed, form, name):
    with pytest.raises(ValueError, match="timm has no model"):
        form(name)


def test_arguments_of_the_architecture_come_back(vision, sealed):
    again = load_encoder(vision)
    assert again.arguments["model_arguments"] == {"stem_width": 8, "channels": [8, 8, 8, 8]}
    assert again.feature_dim == 8


def test_weights_that_the_user_starts_from_are_not_part_of_the_description(monkeypatch):
    real, given = timm.create_model, []

    def without_hub(*args, **arguments):
        given.append(arguments)
        return real(*args, **{key: value for key, value in arguments.items() if key not in READING})

    monkeypatch.setattr(timm, "create_model", without_hub)
    encoder = VisionEncoder("resnet10t", model_arguments={"pretrained": True, "stem_width": 8})
    assert given[-1]["pretrained"]
    assert encoder.arguments["model_arguments"] == {"stem_width": 8}
    with pytest.raises(ValueError, match="model_arguments has 'stem_wide', which resnet10t does not take; it takes: "):
        VisionEncoder("resnet10t", model_arguments={"stem_wide": 8})
