"""The weights of a published model: which of its files they are in, and their tensors, one by one."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from encoders.storage.description import ArtifactError, listed
from encoders.storage.paths import check_regular, shown
from encoders.storage.strict_json import read_strict_json

# The first of these that a folder has is taken: transformers' own names, in its own order.
STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PICKLED = (".bin", ".pt", ".pth")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
UNREADABLE = {".msgpack": "Flax", ".h5": "TensorFlow", ".onnx": "ONNX", ".gguf": "GGUF", ".nemo": "NeMo"}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INDEX = re.compile(
    r".*\.index(\.\w+)?\.json"
)  # a variant's name stands before .json: model.safetensors.index.fp32.json


@dataclass(frozen=True)
class Published:
    """Tensors of a published model.

    Attributes:
        folder: where its other files are.
        files: the file of each key.
        loaded: the tensors of files that are pickles, by file; those of safetensors files are read when asked for.
        dims: what OpenAI's files say of the model's sizes; None in all others.
    """

    folder: Path
    files: Mapping[str, Path]
    loaded: Mapping[Path, Mapping[str, Tensor]]
    dims: Mapping[str, Any] | None = None

    def tensor(self, key: str) -> Tensor:
        """The tensor of a key, as it is stored.

        Raises:
            ArtifactError: quantized, or NaN or infinite.
        """
        file, name = self.files[key], f"{shown(self.files[key])}: {key}"
        if file in self.loaded:
            value = self.loaded[file][key].detach()
            _check_tensor(value, name)
            return value.clone(memory_format=torch.contiguous_format)  # it is mapped from the file, which may go
        with safe_open(file, framework="pt") as tensors:
            value = tensors.get_tensor(key)
        _check_tensor(value, name)
        return value


def open_published(weights: Path) -> Published:
    """Find the files of a model's weights, and the keys in them.

    Args:
        weights: a file of weights, an index of shards, or a folder with one of these.

    Raises:
        ArtifactError: no such file, several that may be meant, damaged, none that can be read, or an adapter that is
            not merged into its model.
    """
    files = _found(weights)
    keys: dict[str, Path] = {}
    loaded: dict[Path, Mapping[str, Tensor]] = {}
    dims = None
    for file in files:
        if file.suffix in PICKLED:
            loaded[file], dims = _unpickled(file)
            own = list(loaded[file])
        else:
            own = _keys(file)
        for key in own:
            if key in keys:
                raise ArtifactError(f"{shown(file)} and {shown(keys[key])} both have {key}: one of them is a stray")
            keys[key] = file
    adapted = [key for key in keys if ".lora_" in key or key.startswith("base_model.model.")]
    if adapted:
        raise ArtifactError(_unmerged(weights, f"it has {listed(adapted, 1)}"))
    return Published(files[0].parent, keys, loaded, dims)


def _found(weights: Path) -> list[Path]:
    """The files of the weights: one, or shards."""
    if weights.is_file():
        if weights.suffix in UNREADABLE:
            raise ArtifactError(f"{shown(weights)} is a file of {UNREADABLE[weights.suffix]}: {_READABLE}")
        return _shards(weights) if _INDEX.fullmatch(weights.name) else [weights]
    if not weights.is_dir():
        raise ArtifactError(f"no weights at {shown(weights)}: no such file or folder")
    adapter = next((name for name in ADAPTERS if (weights / name).is_file()), None)
    if adapter:
        whole = next((name for name in STANDARD if (weights / name).is_file()), None)
        hint = f"; to leave the adapter out, name {shown(weights / whole)} itself" if whole else ""
        raise ArtifactError(_unmerged(weights, f"there is {adapter}") + hint)
    for name in STANDARD:
        if (weights / name).is_file():
            return _shards(weights / name) if _INDEX.fullmatch(name) else [weights / name]
    return _only_one(weights)


_READABLE = "name its safetensors files, or PyTorch's .bin or .pt"


def _only_one(folder: Path) -> list[Path]:
    """The files of a folder without a standard name, where only one set can be meant."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for suffixes in ((".safetensors",), PICKLED):
        indices = {name: _shards(folder / name) for name in names if _is_index(name, suffixes)}
        sharded = {shard.name for shards in indices.values() for shard in shards}
        single = [name for name in names if Path(name).suffix in suffixes and name not in sharded]
        if len(single) + len(indices) == 1:
            return [folder / single[0]] if single else next(iter(indices.values()))
        if single or indices:
            sets = [*(f"{name} ({len(shards)} shards)" for name, shards in indices.items()), *single]
            raise ArtifactError(
                f"{shown(folder)} has no {STANDARD[0]} and no {STANDARD[1]}, but {listed(sets)}: name the one you "
                f"want, such as {shown(folder / next(iter([*indices, *single])))}"
            )
    others = [name for name in names if Path(name).suffix in UNREADABLE]
    if others:
        kinds = ", ".join(f"{name} ({UNREADABLE[Path(name).suffix]})" for name in others[:3])
        raise ArtifactError(f"{shown(folder)} has {kinds}, which cannot be imported: {_READABLE}")
    raise ArtifactError(
        f"{shown(folder)} has no weights: {STANDARD[0]}, or {STANDARD[1]} and its shards, must be there"
    )


def _is_index(name: str, suffixes: tuple[str, ...]) -> bool:
    return bool(_INDEX.fullmatch(name)) and any(f"{suffix}.index." in name for suffix in suffixes)


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        names = sorted(set(read_strict_json(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{shown(index)} is not an index of shards: {error!r}") from error
    strangers = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strangers:
        raise ArtifactError(f"{shown(index)} must name files of its own folder, not {strangers[0]!r}")
    if not names:
        raise ArtifactError(f"{shown(index)} names no file")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ArtifactError(f"{shown(index)} names {listed(missing, 3)}, which {shown(index.parent)} does not have")
    return [index.parent / name for name in names]


def _unmerged(weights: Path, why: str) -> str:
    folder = weights if weights.is_dir() else weights.parent
    return (
        f"{shown(weights)} is a LoRA adapter that is not merged into its model ({why}): merge it with peft, "
        f"PeftModel.from_pretrained(model, {shown(folder)!r}).merge_and_unload().save_pretrained('merged'), "
        "and import the folder 'merged'"
    )


def _keys(file: Path) -> list[str]:
    try:
        check_regular(file)
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{shown(file)} is not a safetensors file: {error}") from error


def _unpickled(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None]:
    """Tensors of a file that `torch.save` wrote, and the sizes in it if it is OpenAI's.

    OpenAI publishes Whisper in no other form, and many older models have none but pytorch_model.bin, so these files are
    read, and the report says that they are pickles. `weights_only=True` has the pickle read by torch's own restricted
    unpickler, which builds tensors and plain containers, and stops before it would call anything else.
    """
    try:
        check_regular(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file is old, or of a strange protocol
            # Mapped, the encoder of a large model is read without its decoder; the form before 2020 is no zip file.
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        # torch's own words advise to load the file unsafely.
        called = re.search(r"GLOBAL (\S+)", str(error))
        why = f"holds more than weights (its pickle calls for {called[1]})" if called else "holds no weights of PyTorch"
        of_ctranslate2 = "; a model.bin of CTranslate2 is for --reader.folder" if file.name == "model.bin" else ""
        raise ArtifactError(
            f"{shown(file)} {why}, so it is not loaded: such a file could run any program; take the model's safetensors"
            f"{of_ctranslate2}"
        ) from None
    except Exception as error:  # a damaged pickle may fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(f"{shown(file)} is not a file of PyTorch, or is damaged: {reason:.200}") from None
    dims = None
    if isinstance(content, dict) and content.keys() == {"dims", "model_state_dict"}:
        content, dims = content["model_state_dict"], content["dims"]
    if not isinstance(content, dict) or not content:
        raise ArtifactError(f"{shown(file)} must hold tensors by name, it holds {type(content).__name__}")
    strangers = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strangers:
        raise ArtifactError(
            f"{shown(file)} must hold tensors by name, or OpenAI's dims and model_state_dict; "
            f"{strangers[0]!r:.60} is {type(content[strangers[0]]).__name__}"
        )
    if dims is not None and not isinstance(dims, dict):
        raise ArtifactError(f"{shown(file)}: dims must be sizes by name, not {type(dims).__name__}")
    return content, dims


def _check_tensor(value: Tensor, name: str) -> None:
    if value.is_quantized or value.dtype not in FLOATS:
        raise ArtifactError(f"{name} is {value.dtype}, not floating point: quantized weights cannot be imported")
    # A pickle can make a tensor of any size out of a few numbers, or of none.
    if value.layout != torch.strided or value.device.type != "cpu":
        raise ArtifactError(f"{name} is no plain tensor")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise ArtifactError(f"{name} has shape {tuple(value.shape)}, but fewer numbers are stored")
    if not value.float().isfinite().all():  # as it will be used
        raise ArtifactError(f"{name} is NaN or infinite")
