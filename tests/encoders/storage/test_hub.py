import time
from types import SimpleNamespace

import pytest

from encoders import ArtifactError, SpeechTransformer, load_encoder, save_encoder
from encoders.storage import hub


@pytest.fixture
def no_hub(monkeypatch):
    """Whatever asks the hub fails the test."""

    def asked(*args, **kwargs):
        pytest.fail("asked the hub")

    for name in ("HfApi", "hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(hub, name, asked)


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub that serves a folder, and the names it was asked for."""
    folder = tmp_path / "served"
    save_encoder(SpeechTransformer(width=8, depth=1, heads=2), folder)
    (folder / "evil.py").write_text("")
    asked = []

    class Api:
        def model_info(self, repository, revision, timeout):
            asked.append((repository, revision))
            return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=p.name) for p in folder.iterdir()])

    def download(repository, file, revision, etag_timeout):
        asked.append((file, revision))
        return str(folder / file)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return asked


def test_a_mistyped_folder_is_said_at_once_with_the_nearest_one(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "words").mkdir(parents=True)
    with pytest.raises(
        ArtifactError, match=r"no such folder; the nearest is runs/words; for the hub write hf-hub:runs/word$"
    ):
        load_encoder("runs/word")
    with pytest.raises(ArtifactError, match=r"no encoder at runs/a/b/c: no such folder$"):
        load_encoder("runs/a/b/c")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="no encoder at file: it is a file, an encoder is a folder"):
        load_encoder("file")


def test_the_folder_above_an_encoder_names_it(tmp_path):
    save_encoder(SpeechTransformer(width=8, depth=1, heads=2), tmp_path / "run" / "encoder")
    with pytest.raises(ArtifactError, match=r"run/config\.json is missing: .*; .*run/encoder is one"):
        load_encoder(tmp_path / "run")


def test_a_name_on_the_hub_gives_known_files_of_one_revision(served):
    assert load_encoder("hf-hub:owner/name@v1").feature_dim == 8
    assert served == [("owner/name", "v1"), ("config.json", "abc"), ("model.safetensors", "abc")]


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:a/b?c", "hf-hub:a/b@"])
def test_no_name_on_the_hub(name, no_hub):
    with pytest.raises(ArtifactError, match="is no name on the hub: write hf-hub:owner/name"):
        load_encoder(name)


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch, served):
    class Slow:
        def model_info(self, *args, **kwargs):
            time.sleep(5)

    monkeypatch.setattr(hub, "HfApi", Slow)
    monkeypatch.setattr(hub, "LISTING_SECONDS", 0.1)
    copies = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: copies.append(options) or 1 / 0)
    started = time.monotonic()
    with pytest.raises(ArtifactError, match=r"no encoder at hf-hub:owner/name: the hub did not answer within 0\.1 s"):
        load_encoder("hf-hub:owner/name")
    assert time.monotonic() - started < 3
    assert copies[0]["local_files_only"]


def test_an_earlier_copy_serves_where_the_hub_cannot_be_reached(monkeypatch, tmp_path, caplog):
    save_encoder(SpeechTransformer(width=8, depth=1, heads=2), tmp_path / "copy")

    def down(*args, **kwargs):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=down))
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: str(tmp_path / "copy"))
    assert load_encoder("hf-hub:owner/name").feature_dim == 8
    assert "hf-hub:owner/name: the hub did not give it (no route); an earlier copy is used" in caplog.text


def test_a_repository_of_something_else(monkeypatch):
    info = SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename="pytorch_model.bin")])
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *args, **options: info))
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: 1 / 0)
    with pytest.raises(ArtifactError, match=r"no encoder at hf-hub:owner/name: it has none of config\.json"):
        load_encoder("hf-hub:owner/name")
