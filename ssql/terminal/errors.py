"""What went wrong, in one sentence: what a user can cause, and what is a bug."""

import dis
import errno
import re
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

from ssql.terminal.groups import missing_in, missing_sentence

HOME = Path(__file__).resolve().parents[2]
OUR_PACKAGES = tuple(str(HOME / name) + "/" for name in ("quant", "encoders", "export", "ssql"))
# What our own code raises to be read; an AssertionError or a KeyError is a bug wherever it comes from.
FOR_USERS = (ValueError, OSError, RuntimeError, TypeError, ImportError)
# Errors of other libraries about a file or the machine, by how their names start: the libraries are not imported here.
OF_FILES = {
    "json.decoder.JSONDecodeError": "a file is not JSON",
    "builtins.UnicodeDecodeError": "a file is not UTF-8 text",
    "yaml.": "a file is not YAML",
    "safetensors": "a safetensors file cannot be read or written",
    "onnxruntime.": "ONNX Runtime",
    "onnx.": "an ONNX file is not valid",
    "google.protobuf.message.DecodeError": "a file is not ONNX",
    "soundfile.": "an audio file cannot be read",
    "PIL.UnidentifiedImageError": "an image cannot be read",
    "zipfile.BadZipFile": "a file is damaged",
    "lightning.pytorch.utilities.exceptions.MisconfigurationException": "",
    "lightning.fabric.utilities.exceptions.MisconfigurationException": "",
    "binascii.Error": "a file is damaged",
    "_pickle.UnpicklingError": "a checkpoint is damaged, or is none",
    "builtins.EOFError": "a file ends too early",
}
# Sentences of others that say it in their own terms: a pattern of theirs, and ours.
KNOWN = (
    (r"No supported gpu backend found|CUDAAccelerator.*can not run|MPSAccelerator.*can not run|TPU.*can not run",
     "this machine has no accelerator of that kind that torch can use: leave --trainer.accelerator out, or write cpu"),
    (r"selected with `?CPUAccelerator`? should be an int > 0|devices.*should be.*> 0|Trainer\(devices=",
     "--trainer.devices is the number of processes, 1 or more"),
    (r"You requested gpu: .*But your machine only has",
     "--trainer.devices asks for more accelerators than this machine has"),
    (r"[Nn]o space left on device|os error 28|StorageFull", "no space left on the disk"),
    (r"PytorchStreamWriter failed|unexpected pos \d+ vs", "a checkpoint cannot be written: is the disk full?"),
    (r"PytorchStreamReader failed", "a checkpoint is damaged, or is none"),
    (r"can't allocate memory|not enough memory", "out of memory: lower the batch size, or take less data"),
    (r"`Timer\(duration=", "--trainer.max_time is written DD:HH:MM:SS"),
    (r"is not available.*FSDP|FSDP.*requires.*accelerator", "this strategy needs a GPU"),
)  # fmt: skip
# Of jsonargparse's nested lists: the lines that say where, not what.
WRAPPING = ("Problem with given class_path", "Does not validate", "Subtypes:", "Errors:", "Given value",
            "Expected a path but", "Failed to instantiate", "Subclass types expect", "a class path (str)",
            "a dict with")  # fmt: skip
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word", "NoneType": "null",
         "list": "a list such as '[a, b]'", "List": "a list such as '[a, b]'", "dict": "names and values: {a: b}",
         "Path": "a path"}  # fmt: skip
# Python's own words within a sentence, and what they say to those who do not write Python; in this order.
PLAIN = (
    (r"UnicodeDecodeError\('[\w-]+', b['\"].*\)$|'[\w-]+' codec can't (?:de|en)code .*?: [\w -]+", "not UTF-8 text"),
    (r"KeyError\('([^']*)'\)$", r"it has no \1"),
    (r"\b(?:\w+\.)*[A-Z]\w*Error\((['\"])(.*)\1\)$", r"\2"),
    (r"could not convert string to float: (.*)", r"\1 is no number"),
    (r"invalid literal for int\(\) with base \d+: (.*)", r"\1 is no whole number"),
    (r"'\w+' object has no attribute 'keys'|argument of type '\w+' is not iterable|unhashable type: '\w+'",
     "a class is written as its class_path, a name, and its init_args, names and values"),
    (r"'(\w+)' object has no attribute '(\w+)'", r"\1 has no \2"),
    (r"(?:\w+\.)*onnxruntime_pybind11_state\.\w+: ", ""),
    (r"\[ONNXRuntimeError\] : \d+ : \w+ : ", ""),
    (r": run quant\.calibrate\(model, batches\) first", ": ssql quantize finds it on recordings or images"),
    (r"Type typing\.Callable\[.*?expects a function or a callable class: Expected '([\w.]+)' to be a subclass of "
     r"<class '(\w+)'>.*", r"\1 makes no \2"),
    (r"Not a valid subclass of ([AEIOU]\w*)(?:\. Got value: [^;]*)?", r"not the name of an \1"),
    (r"Not a valid subclass of (\w+)(?:\. Got value: [^;]*)?", r"not the name of a \1"),
)  # fmt: skip
LONGEST = 1500  # characters of a sentence
DOCTOR = "`ssql doctor` says what does not load, and the command that mends it"


def sentence_of(error: BaseException) -> str | None:
    """One sentence for what a user can cause; None for a bug."""
    sentence = _whole_sentence(error)
    return None if sentence is None else plain(sentence)


def plain(sentence: str) -> str:
    """Without Python's own words, and cut where another library says more than anyone reads."""
    for words, ours in PLAIN:
        sentence = re.sub(words, ours, sentence)
    return sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]} ..."


def _whole_sentence(error: BaseException) -> str | None:
    text = _joined(str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            f"out of memory: lower the batch size, or take less data ({text.partition('.')[0] or 'no more to be had'})"
        )
    missing = isinstance(error, ModuleNotFoundError) and (missing_sentence(error.name or "") or missing_in(text))
    if missing:
        return missing
    if isinstance(error, ImportError) or _while_importing(error):
        return f"{text.rstrip('.')}: {DOCTOR}"
    if isinstance(error, OSError) and error.strerror:
        return _of_system(error)
    raised_here = _innermost(error)[1].startswith(OUR_PACKAGES) and _raised(error)
    if raised_here and isinstance(error, OSError):  # it names the file
        return text
    known = next((ours for pattern, ours in KNOWN if re.search(pattern, text, re.DOTALL)), None)
    if known:
        return known
    if raised_here:
        return nested_sentence(str(error)) if isinstance(error, FOR_USERS) else None
    places = re.findall(r'File "([^"]+)", line', text) if "Original Traceback" in text else []
    if places and places[-1].startswith(OUR_PACKAGES):  # our own error in a process of a data loader
        return str(error).strip().splitlines()[-1].partition(": ")[2]
    names = [f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__]
    about = next((about for start, about in OF_FILES.items() if any(name.startswith(start) for name in names)), None)
    if about is not None:
        return f"{about}: {text}" if about else text
    if isinstance(error, OSError):
        return text or type(error).__name__
    if isinstance(error, ValueError | TypeError) and _innermost(error)[0].startswith(("jsonargparse", "lightning")):
        return nested_sentence(str(error)) if _raised(error) else None
    return None


def bug_report(error: BaseException) -> str:
    """What to say of a bug; its traceback is left in a file of the temporary folder."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(OUR_PACKAGES)] or list(frames)
    place = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ssql-traceback-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        where = f"the traceback in {file.name}"
    except OSError:
        where = f"this traceback:\n{text}"
    return (
        f"internal error: {type(error).__name__}: {_joined(str(error))}{place}\n"
        "This is a fault of the toolkit, not of your input: please report it with the output of `ssql doctor` and "
        f"{where}"
    )


def nested_sentence(message: str) -> str:
    """What was wrong, out of the nested lists that jsonargparse makes of it.

    The innermost reasons are kept, with the option that they are about; where every type was refused, the value.
    """
    if not any(text in message for text in ("Parser key", "Does not validate", "Problem with given", "Got value")):
        return _joined(message)
    keys = re.findall(r'[Pp]arser key "([^"]+)"', message)
    missing = missing_in(message)
    if missing:
        return f"{_option(*keys)}: {missing}" if keys else missing
    inner = re.search(r"NestedArg\(key='([^']+)', val='?(.*?)'?\)$", message, re.MULTILINE)
    required = re.search(r"arguments are required: ([\w., ]+)", message)
    if required:
        names = required[1].split(", ")
        return f"{' and '.join(_option(*keys, name) for name in names)} must be given"
    value = re.findall(r"(?:Given value|Got value): (.*)$", message, re.MULTILINE)
    missing_class = re.search(r"Expected a dot import path string: (\S+)", message)
    lines = [line.strip().removeprefix("- ") for line in re.sub(r"  - ", "\n- ", message).splitlines()]
    reasons = [re.sub(r'^Parser key "[^"]+"( element \d+)?:\s*', "", line) for line in lines]
    reasons = [reason for reason in reasons if reason and not reason.startswith(WRAPPING)]
    others = [reason for reason in reasons if not reason.startswith(("Expected", "Not of type", "Unexpected import"))]
    if others:
        said = _joined("; ".join(dict.fromkeys(others)))
        return f"{_option(*keys)}: {said}" if keys else said
    if value and value[0] == "None":
        return f"{_option(*keys)} must be given"
    if missing_class:
        return f"{_option(*keys)}: there is no class {missing_class[1]}"
    deepest = len(keys) > 1  # the type of the option within, rather than those of the whole
    kinds = [_kind(reason) for reason in (reasons[:1] if deepest else reasons)]
    shown = value[0] if value else ""
    if inner:
        keys, shown = [*keys[: None if inner[1] not in keys else -1], inner[1]], inner[2]
    allowed = " or ".join(dict.fromkeys(kind for kind in kinds if kind not in ("", "null")))
    return f"{_option(*keys)} takes {allowed or 'something else'}, not {shown}"


def _option(*keys: str) -> str:
    return "--" + ".".join(keys).replace("init_args.", "")


def _kind(reason: str) -> str:
    """What a type is called by those who type it."""
    literal = re.search(r"Literal\[(.*?)\]", reason)
    if literal:
        return literal[1].replace("'", "").replace(", ", " or ")
    name = re.search(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|(\w+))", reason)
    return KINDS.get(name[1] or name[2], "") if name else ""


def _of_system(error: OSError) -> str:
    name = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    said = "no space left on the disk" if error.errno == errno.ENOSPC else (error.strerror or "").lower()
    # Our own errors say more than the system's words.
    return f"{name}: {said}" if name else said


def _joined(text: str) -> str:
    return " ".join(text.split())


def _innermost(error: BaseException) -> tuple[str, str, TracebackType | None]:
    """Module and file of the frame that raised it."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return "", "", None
    return str(place.tb_frame.f_globals.get("__name__", "")), place.tb_frame.f_code.co_filename, place


def _raised(error: BaseException) -> bool:
    """Whether a `raise` statement made it, rather than an operation that failed."""
    place = _innermost(error)[2]
    return place is not None and dis.opname[place.tb_frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"


def _while_importing(error: BaseException) -> bool:
    """Whether another's module was being loaded, as where a library does not fit the others."""
    ours = _innermost(error)[1].startswith(OUR_PACKAGES)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    loading = any(
        frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__" for frame in frames
    )
    return loading and not ours and isinstance(error, OSError | RuntimeError | AttributeError)
