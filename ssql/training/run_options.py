"""What a run was started with, kept beside its checkpoints, and compared when it is resumed."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from encoders.storage.files import json_bytes, write_together
from encoders.storage.folder import HEAD_WEIGHTS, WEIGHTS, file_sha256
from ssql.training.run_folder import CONFIG, INPUTS, RunFolder

# Options that leave the trained weights as they are: where things are written and shown, how fast they are computed.
_HARMLESS = re.compile(
    r"config|output|resume|overwrite|checkpoint_steps|activation_checkpointing|(.+\.)?num_workers"
    r"|trainer\.(logger|profiler)(\..*)?"
    r"|trainer\.(accelerator|enable_progress_bar|enable_model_summary|log_every_n_steps|default_root_dir|max_time"
    r"|detect_anomaly)(\..*)?"
)
_LENGTH = ("trainer.max_epochs", "trainer.max_steps")


def input_hashes(options: str, command: str, output: Path) -> dict[str, Any]:
    """What the options name, so that another thing of the same name is seen.

    Args:
        options: YAML of the run.
        command: as the user types it: `ssql pretrain`.
        output: folder of the run, which may lie in a folder of data.

    Returns:
        command, hashes of encoders' weights and of the names in folders of data, by option.
    """
    weights, names = {}, {}
    for option, value in flattened(yaml.safe_load(options)).items():
        path = Path(value)
        if option == "output" or not os.path.isdir(value):
            continue
        if (path / WEIGHTS).is_file():
            files = [file for file in (path / WEIGHTS, path / HEAD_WEIGHTS) if file.is_file()]
            weights[option] = " ".join(map(file_sha256, files))
        elif option.startswith("data."):
            names[option] = _hash_of_names(path, output)
    return {"command": command, "weights": weights, "names": names}


def save_options(folder: RunFolder, options: str, inputs: Mapping[str, Any]) -> None:
    """Write both beside the checkpoints; the options get their name last, since with them a run has begun."""
    for name, content in ((INPUTS, json_bytes(inputs)), (CONFIG, options.encode())):
        write_together({folder.checkpoints / name: content})


def check_same_run(folder: RunFolder, options: str, inputs: Mapping[str, Any], harmless: tuple[str, ...] = ()) -> None:
    """Refuse to go on from checkpoints of a run with other options or other inputs.

    Args:
        folder: of the run.
        options: YAML of the run that wants to go on.
        inputs: of `input_hashes`.
        harmless: more options that may differ.

    Raises:
        ValueError: names what differs, with both values.
    """
    saved = _read(folder.checkpoints / INPUTS)
    before = flattened(_read(folder.checkpoints / CONFIG))
    if before and not inputs.keys() <= saved.keys():
        raise ValueError(
            f"{folder.checkpoints / INPUTS} does not say what the run was started on: put it back as the run wrote it, "
            "or start anew in another --output"
        )
    if saved.get("command", inputs["command"]) != inputs["command"]:
        raise ValueError(f"{folder.path} is a run of {saved['command']}, not of {inputs['command']}")
    now = flattened(yaml.safe_load(options))
    compared = [key for key in dict.fromkeys([*now, *before]) if key not in harmless and not _HARMLESS.fullmatch(key)]
    different = [key for key in compared if before and _differ(before.get(key), now.get(key))]
    if different:
        said = [f"{key} is {before.get(key, 'not set')} there and {now.get(key, 'not set')} here" for key in different]
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        length = "; the learning rate follows the length of the whole run" if set(different) & set(_LENGTH) else ""
        raise ValueError(
            f"the run in {folder.path} was started with other options: {'; '.join(said[:3])}{more}{length}: "
            f"go on with --config {folder.checkpoints / CONFIG} --resume true, or start anew in another --output"
        )
    for kind, thing in (("weights", "other weights"), ("names", "other files")):
        for option, found in (saved[kind] if isinstance(saved.get(kind), dict) else {}).items():
            if inputs[kind].get(option) != found:
                where = now.get(option) or before.get(option)
                raise ValueError(
                    f"{option} {where} holds {thing} than when the run in {folder.path} was started: put them back, "
                    "or start anew in another --output"
                )


def check_same_items(folder: RunFolder, items: int) -> None:
    """Refuse to go on with another number of training items, with ValueError."""
    before = _read(folder.checkpoints / INPUTS).get("train_items", items)
    if before != items:
        raise ValueError(
            f"the run in {folder.path} was started with {before} training items, now there are {items}: put the data "
            "back, or start anew in another --output"
        )


def _differ(before: str | None, now: str | None) -> bool:
    """Whether two values mean different things; one that is not there is like one that is off."""
    if before is None or now is None:
        return not {before, now} <= {None, "None", "False", "{}", "[]"}
    if before == now:
        return False
    try:
        return not Path(before).samefile(now)
    except (OSError, ValueError):  # not two paths
        return True


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def _hash_of_names(folder: Path, output: Path) -> str:
    """Of the names below a folder, without hidden ones and the run's own."""
    digest = hashlib.sha256()
    for place, folders, files in os.walk(folder):
        own = [name for name in folders if name.startswith(".") or Path(place, name).resolve() == output.resolve()]
        folders[:] = sorted(set(folders) - set(own))
        for name in sorted(files):
            if not name.startswith("."):
                digest.update(os.fsencode(os.path.relpath(os.path.join(place, name), folder)) + b"\0")
    return digest.hexdigest()


def flattened(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as dotted name to value."""
    if not isinstance(value, dict):
        return {name: str(value)}
    return {key: text for inner in value for key, text in flattened(value[inner], f"{name}.{inner}".strip(".")).items()}
