"""Published models where a saved encoder is expected: said in words, with the command that makes one of them."""

from pathlib import Path

from encoders.storage.description import ArtifactError
from encoders.storage.paths import shown
from encoders.storage.strict_json import read_strict_json

CONFIG = "config.json"
CTRANSLATE2 = "model.bin"
WEIGHTS_OF_OTHERS = (".safetensors", ".bin", ".pt", ".pth")


def refuse_file(path: Path) -> None:
    """Raise ArtifactError for a file in the place of an encoder's folder, with what would be right for its kind."""
    if path.suffix in WEIGHTS_OF_OTHERS:
        hint = f"whose weights become an encoder by `ssql import --weights {shown(path)} --output ENCODER`"
    elif path.suffix == ".onnx":
        hint = "and what is asked for is the folder that this ONNX file was exported from"
    else:
        hint = f"an encoder is a folder with {CONFIG}"
    raise ArtifactError(f"no encoder at {shown(path)}: it is a file, {hint}")


def refuse_published(folder: Path, name: str | Path) -> None:
    """Raise ArtifactError where a folder holds a model as it was published, or as CTranslate2 has it.

    Args:
        folder: to look into.
        name: as it was given.
    """
    if (folder / CTRANSLATE2).is_file():
        raise ArtifactError(
            f"{shown(name)} is a model of CTranslate2 ({CTRANSLATE2}), which is a reader's (--reader.folder): the "
            "encoder is imported from the folder that transformers or OpenAI published, by `ssql import "
            "--weights FOLDER --output ENCODER`"
        )
    try:
        config = read_strict_json(folder / CONFIG)
    except (OSError, ValueError):
        return  # whoever reads it says what is wrong
    if isinstance(config, dict) and isinstance(config.get("files"), list):
        raise ArtifactError(
            f"{shown(name)} has files of ssql export and their card, and what is asked for is the folder of the "
            "encoder that they were exported from"
        )
    kind = config.get("model_type") if isinstance(config, dict) and "encoder" not in config else None
    if isinstance(kind, str):
        raise ArtifactError(
            f"{shown(name)} is a published model ({kind:.40}), not an encoder that ssql saved: run `ssql import "
            f"--weights {shown(folder)} --output ENCODER` first, and give the folder ENCODER"
        )
