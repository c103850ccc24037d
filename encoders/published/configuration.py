"""What a published model says of itself in the JSON files beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.published.files import Published
from encoders.published.layouts import Layout
from encoders.speech.log_mel import SAMPLE_RATE
from encoders.storage.description import ArtifactError
from encoders.storage.paths import shown
from encoders.storage.strict_json import read_strict_json

CONFIG = "config.json"
# Where transformers keeps the settings of its feature extractor: in older models, and in newer ones.
EXTRACTORS: Mapping[str, tuple[str, ...]] = {
    "preprocessor_config.json": (),
    "processor_config.json": ("feature_extractor",),
}


def read_configuration(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None without the file.

    Raises:
        ArtifactError: not JSON, or no object.
    """
    if not path.is_file():
        return None
    try:
        values = read_strict_json(path)
    except ValueError as error:
        raise ArtifactError(str(error)) from error  # names the file
    if not isinstance(values, dict):
        raise ArtifactError(f"{shown(path)} is not a model's configuration: it is no object but {values!r:.40}")
    return values


@dataclass(frozen=True)
class Stated:
    """What a model's configuration states.

    Attributes:
        arguments: of the encoder; empty where there is no configuration.
        name: of the configuration, short.
        source: the same, with its path.
    """

    arguments: Mapping[str, Any]
    name: str
    source: str


def stated_arguments(published: Published, configuration: Mapping[str, Any] | None, layout: Layout) -> Stated:
    """Arguments of an encoder as a model's configuration states them.

    Args:
        published: the model.
        configuration: the whole of it; None without one.
        layout: which of its keys is which argument.

    Raises:
        ArtifactError: no section of the encoder, or something that encoders here do not have.
    """
    if published.dims is None:
        name, source = CONFIG, shown(published.folder / CONFIG)
    else:
        name, source = "dims", f"dims in {shown(next(iter(published.loaded)))}"
    if configuration is None:
        return Stated({}, name, source)
    section: Any = configuration
    for part in layout.config:
        section = section.get(part) if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping):
        raise ArtifactError(f"{source} has no section {'.'.join(layout.config)} that is an object")
    for key, value in layout.fixed.items():
        if section.get(key, value) != value:
            raise ArtifactError(f"{source} says {key} {section[key]!r:.60}: this toolkit's encoder has {value!r}")
    return Stated({argument: section[key] for argument, key in layout.sizes.items() if key in section}, name, source)


def normalizes_waveforms(folder: Path) -> bool:
    """Whether a model takes each clip with zero mean and unit variance, as its feature extractor says.

    Raises:
        ArtifactError: no file says it, or it takes another sample rate.
    """
    for name, parts in EXTRACTORS.items():
        settings: Any = read_configuration(folder / name)
        for part in parts:
            settings = settings.get(part) if isinstance(settings, Mapping) else None
        if not isinstance(settings, Mapping) or "do_normalize" not in settings:
            continue
        normalize, rate = settings["do_normalize"], settings.get("sampling_rate", SAMPLE_RATE)
        if not isinstance(normalize, bool):
            raise ArtifactError(f"{shown(folder / name)} says do_normalize {normalize!r:.60}: write true or false")
        if rate != SAMPLE_RATE:
            raise ArtifactError(f"{shown(folder / name)} says sampling_rate {rate!r:.60}: it must be {SAMPLE_RATE}")
        return normalize
    raise ArtifactError(
        f"{shown(folder / next(iter(EXTRACTORS)))} is missing, or lacks do_normalize, which says whether the model "
        'takes normalized clips: put the file of the model there (or write {"do_normalize": true} or false into it)'
    )
