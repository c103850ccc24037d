"""The parsers of the commands: an error is one sentence, with the nearest option where one was mistyped."""

import difflib
import importlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from encoders.storage.paths import kind_of
from ssql.terminal.errors import nested_sentence, plain

MOST_CLASSES = 12
# Classes of options that jsonargparse builds where a class_path is left out, though nothing is made of them alone.
BASES = (
    "encoders.base.Encoder", "encoders.base.FrameEncoder", "ssql.methods.method.Method",
    "lightning.pytorch.callbacks.callback.Callback",
)  # fmt: skip


class Sentences(ArgumentParser):
    """Errors in one sentence and exit code 2; long lists of known classes are cut in the help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A mistyped option is none: by default the beginning of a name stands for it.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong with the command line and end."""
        if not self.exit_on_error:  # asked by jsonargparse, which tries types one after another
            super().error(message, ex)
        sys.stderr.write(f"{self.prog}: error: {plain(self._sentence(message))}\n")
        self.exit(2)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help, without lists of all classes that torch happens to have."""
        return re.sub(r"known\s+subclasses:\s+([\w.,\s]+)", _first_classes, super().format_help(*args, **kwargs))

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse's; a configuration that is not text, or null for a number, is an error as well."""
        for word in sys.argv[1:]:  # jsonargparse opens whatever may be a configuration, and would wait for ever
            file = word.partition("=")[2] if word.startswith("-") else word
            if not file.startswith("/dev/") and kind_of(Path(file)) == "a named pipe":  # `<(...)` is in /dev
                self.error(f"{file} is a named pipe: give a file or a folder")
        try:
            parsed = super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            self.error("Problems parsing config: not UTF-8 text", error)
        if not self.exit_on_error:  # jsonargparse tries out a class: its options may not be filled in yet
            return parsed
        if isinstance(parsed.get("output"), str):
            parsed.output = os.path.normpath(parsed.output) if parsed.output else parsed.output
        own = {
            action.dest: (getattr(action, "_typehint", None), action.default)
            for action in self._actions
            if action.nargs != 0 and not action.dest.endswith(".help")
        }
        given = parsed.as_dict()
        wrong = [name for name, option in own.items() if _is_wrong_null(parsed.get(name), *option)]
        for name in [*wrong, *(found for key, value in given.items() for found in _nulls(value, key))]:
            self.error(f"{name} must have a value: null is none")
        for name, value in (found for key, inner in given.items() for found in _too_large(inner, key)):
            self.error(f"--{name} must be from {-sys.maxsize} to {sys.maxsize}, not {value}")
        for name, base in (found for key, inner in given.items() for found in _bases(inner, key)):
            self.error(f"--{name}: {_only_a_base(base.__name__)}")
        return parsed

    def _sentence(self, message: str) -> str:
        options = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        abstract = re.search(r"but [\w.]*?(\w+) is abstract", message)
        if abstract:
            return _only_a_base(abstract[1])
        unknown = re.search(r"[Uu]nrecognized arguments: (.*)", message, re.DOTALL)
        if unknown:
            word = unknown[1].split()[0].partition("=")[0]
            kind = "option" if word.startswith("-") else "argument"
            return f"unknown {kind} {word}{did_you_mean(word.removeprefix('--'), options, '--')}"
        if "Problems parsing config" in message:
            why = nested_sentence(message.partition("config: ")[2])
            return f"{' or '.join(_configs()) or 'the configuration'} is not YAML: {why}"
        linked = re.search(r'Linked "([\w.]+)" must be given via "([\w.]+)"', message)
        if linked:
            return f"write --{linked[2]} instead of --{linked[1]}"
        key = re.search(r"(?:Key|key) ['\"]([\w.]+)['\"] is not expected|No action for key \"([\w.]+)\"", message)
        if key:
            name = key[1] or key[2]
            return f"unknown option {name} in the configuration{did_you_mean(name, options)}"
        required = re.search(
            r"[Kk]ey ['\"]([\w.]+)['\"] is required|^[^\n]*arguments? (?:is|are) required: (.+)", message
        )
        if required:
            names = (required[1] or required[2]).replace("--", "").split(", ")
            return f"{' and '.join('--' + name for name in names)} must be given; see {self.prog} --help"
        sentence = nested_sentence(message)
        refused = re.search(r"Option '(\w+)' is not accepted", sentence)
        owner = re.findall(r"given class_path '([\w.]+)'", message)
        if refused and owner:
            named = _class_at(owner[-1])
            if _is_base(named):
                return f"{sentence.partition(': ')[0]}: {_only_a_base(named.__name__)}"
            name, parameters = named.__name__, inspect.signature(named).parameters
            return f"{sentence} by {name}{did_you_mean(refused[1], parameters)}"
        if refused:
            return f"unknown option {refused[1]}{did_you_mean(refused[1], options)}"
        missing = re.search(r"there is no class (\w+)$", sentence)
        if missing and missing[1] in _classes():
            return f"{sentence.replace('there is no class ', '')} is a class, but of another kind than is needed here"
        if missing:
            return sentence + did_you_mean(missing[1], _classes())
        sentence = plain(sentence)  # a value that was shown would hide what follows it
        base = re.search(r"(?:the name of an?|to a subclass of) (\w+)", sentence)
        return sentence + _one_of(base[1]) if base else sentence


def _classes() -> dict[str, type]:
    """Names that options take: of data, methods, encoders, augmentations and readers."""
    modules = ("ssql.data", "ssql.methods", "ssql.augment", "ssql.evaluation.whisper_decoder", "encoders")
    loaded = [vars(sys.modules[module]) for module in modules if module in sys.modules]
    return {name: found for names in loaded for name, found in names.items() if inspect.isclass(found)}


def _one_of(base: str) -> str:
    """A hint to end a sentence with: our classes that are made from one of this name, where there are any."""
    made = [
        name
        for name, found in _classes().items()
        if base in (parent.__name__ for parent in found.__mro__[1:])
        and not (inspect.isabstract(found) or _is_base(found))
    ]
    return f": class_path must be one of {', '.join(sorted(made))}" if made else ""


def _class_at(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _is_base(owner: Any) -> bool:
    return f"{owner.__module__}.{owner.__qualname__}" in BASES


def _only_a_base(name: str) -> str:
    return f"{name} is only what others are made from{_one_of(name) or ': class_path must name one of them'}"


def _bases(value: Any, name: str) -> Iterator[tuple[str, type]]:
    """Options, at any depth, whose class is one that only others are made from."""
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str) and _is_base(owner := _class_at(value["class_path"])):
            yield name, owner
        for key, inner in value.items():
            yield from _bases(inner, name if key == "init_args" else f"{name}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _bases(inner, name)


def _configs() -> list[str]:
    """Files after `--config` on the command line."""
    return re.findall(r"--config[= ](\S+)", " ".join(sys.argv))


def _is_wrong_null(value: Any, hint: Any, default: Any) -> bool:
    """Whether null, which jsonargparse checks no type of, was given where only other values are right."""
    if value is not None or default is None or hint is None or hint is Any:
        return False
    return type(None) not in typing.get_args(hint)


def _nulls(value: Any, name: str) -> Iterator[str]:
    """Options of classes, at any depth, that are null and may not be."""
    if not isinstance(value, dict):
        return
    arguments = value.get("init_args")
    if isinstance(value.get("class_path"), str) and isinstance(arguments, dict):
        for key, option in _parameters(_class_at(value["class_path"])).items():
            if key in arguments and _is_wrong_null(arguments[key], *option):
                yield f"{name}.{key}"
        value = arguments
    for key, inner in value.items():
        yield from _nulls(inner, f"{name}.{key}")


def _too_large(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """Options, at any depth, with whole numbers that only Python can count to."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _too_large(inner, name if key == "init_args" or isinstance(value, list) else f"{name}.{key}")
    elif isinstance(value, int) and abs(value) > sys.maxsize:
        yield name, value


def _parameters(owner: Any) -> dict[str, tuple[Any, Any]]:
    """Type and default of each argument of a function or class, and of the classes that it hands arguments on to."""
    bases = reversed(inspect.getmro(owner)) if inspect.isclass(owner) else ()
    found: dict[str, tuple[Any, Any]] = {}
    for function in [vars(base)["__init__"] for base in bases if "__init__" in vars(base)] or [owner]:
        try:
            hints = typing.get_type_hints(function)
            parameters = inspect.signature(function).parameters
        except (NameError, TypeError, ValueError):  # types that only a type checker sees, or code that is not Python's
            continue
        found |= {key: (hints.get(key), parameter.default) for key, parameter in parameters.items()}
    return found


def did_you_mean(word: str, known: Iterable[str], dashes: str = "") -> str:
    """A hint to end a sentence with, where something is near.

    Args:
        word: as it was typed.
        known: what it could have been.
        dashes: in front of it.
    """
    nearest = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f": did you mean {dashes}{nearest[0]}?" if nearest else ""


def _first_classes(match: re.Match[str]) -> str:
    names = [name for name in re.split(r"[,\s]+", match[1]) if name]
    if len(names) <= MOST_CLASSES:
        return match[0]
    return f"known subclasses: {', '.join(names[:MOST_CLASSES])} and {len(names) - MOST_CLASSES} more"
