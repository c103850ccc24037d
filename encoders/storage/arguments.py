"""Arguments that strangers wrote into a JSON file, compared with the signature they are meant for."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**20  # of whole numbers: no width, depth or codebook is larger
LONGEST = 1000  # characters of a word


def check_arguments(form: Callable[..., Any], values: object, where: str) -> None:
    """Compare plain values with the parameters of a class.

    Args:
        form: the class, with annotated parameters.
        values: as a JSON file has them.
        where: what the values are, for the sentence; empty for a whole file.

    Raises:
        ValueError: no object, a key that the class does not take or needs and is missing, or a value of another type,
            below 1 or above 1,048,576; the sentence names the key.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'it'} must be an object of arguments, not {_brief(values)}")
    parameters = inspect.signature(form).parameters
    hints = get_type_hints(form.__init__)  # type: ignore[misc]
    unknown = sorted(str(key) for key in values if key not in parameters)
    if unknown:
        raise ValueError(f"{where or 'it'} has the unknown key {_brief(unknown[0])}; known are {', '.join(parameters)}")
    missing = [name for name, it in parameters.items() if it.default is it.empty and name not in values]
    if missing:
        raise ValueError(f"{where or 'it'} lacks {', '.join(missing)}")
    for key, value in values.items():
        default = parameters[key].default
        # Whatever is counted is there at least once, unless the class itself does without.
        least = min(1, default) if isinstance(default, int) else 1
        _check_value(value, hints.get(key, Any), f"{where and f'{where}: '}{key}", least)


def check_plain(values: Mapping[str, Any], where: str) -> None:
    """Raise ValueError where a value is not a number, word, truth value, null or list of those."""
    for key, value in values.items():
        _check_value(value, Any, f"{where}: {key}")


def _check_value(value: object, hint: Any, name: str, least: int = 0) -> None:
    wanted = _misfit(value, hint, least)
    if not wanted:
        return
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for choice in choices:
        if isinstance(value, Mapping) and _is_kind(choice, Mapping):
            for key, inner in value.items():
                _check_value(inner, get_args(choice)[1], f"{name}.{key}", least)
    raise ValueError(f"{name} must be {wanted}, not {_brief(value)}")


def _misfit(value: object, hint: Any, least: int = 0) -> str | None:
    """What a value had to be; None where it is that."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        wanted = [_misfit(value, choice, least) for choice in inner]
        return None if None in wanted else " or ".join(word for word in wanted if word)
    if origin is Literal:
        return None if value in inner and isinstance(value, str) else f"one of {', '.join(map(str, inner))}"
    if hint is type(None):
        return None if value is None else "null"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST
        return None if fits else f"a whole number from {least} to {LARGEST:,}"
    if hint is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if hint is str:
        return None if isinstance(value, str) and len(value) <= LONGEST else f"a word of at most {LONGEST} characters"
    if _is_kind(hint, Mapping):
        return _misfit_inside(value.values() if isinstance(value, Mapping) else None, inner[1:], "an object")
    if _is_kind(hint, Sequence):
        return _misfit_inside(value if isinstance(value, list) else None, inner, "a list")
    return None if _is_plain(value) else f"a number up to {LARGEST:,}, a word, true, false, null or a list of those"


def _is_kind(hint: Any, kind: type) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, kind)


def _misfit_inside(values: Any, hints: Sequence[Any], kind: str) -> str | None:
    hint = hints[0] if hints else Any
    if values is None:
        return kind
    wanted = next((word for value in values if (word := _misfit(value, hint))), None)
    return wanted and f"{kind} whose values are each {wanted}"


def _is_plain(value: object, depth: int = 3) -> bool:
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(inner, depth - 1) for inner in value)
    if isinstance(value, str):
        return len(value) <= LONGEST
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= LARGEST)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
