"""Files as they come from full disks, bad copies, other programs and other people.

Each way of damaging a file says whether a command that reads this file must refuse it: True, or None where the damage
may be harmless, or be skipped with a warning (one bad wav in a folder).
"""

import csv
import io
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

# Does the damage to a file; returns what was done and whether it must be refused.
Damage = Callable[[Path, random.Random], tuple[str, bool | None]]
OTHER_KINDS = ("talk.wav", "notes.json", "results/latency.png", "files/encoder-int4.onnx", "models/speech/config.json",
               "models/vision/model.safetensors", "results/a/accuracy.csv",
               "runs/pretrain/checkpoints/last.ckpt")  # fmt: skip
ODD_VALUES: list[Any] = [None, "", "abc", -1, 0, 1.5, 10**30, [], [1], {}, {"a": 1}, True, float("nan"), "[/b]", "🦆"]


def targets(folder: Path, read: str) -> list[Path]:
    """The files at or below what a command reads, in a fixed order."""
    path = folder / read
    found = sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]
    return [path for path in found if path.suffix not in (".png", ".md") or "images" in path.parts]


def damage(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """Damage one file in a way that its kind knows."""
    ways = WAYS.get(path.suffix, []) + ANY
    way = random.choice(ways)
    done, must_fail = way(path, random)
    skipped = path.suffix in SKIPPED and path.name != "talk.wav"  # one of many
    left_out = done == "deleted" and (path.name in PARTS or "published" in path.parts)
    if must_fail and (skipped or left_out or path.name in OPTIONAL or "logs" in path.parts):
        must_fail = None
    return f"{path.name}: {done}", must_fail


def truncated(path: Path, random: random.Random) -> tuple[str, bool | None]:
    content = path.read_bytes()
    length = random.choice([1, len(content) // 2, len(content) - 1, random.randrange(len(content) + 1)])
    path.write_bytes(content[:length])
    # The last character of a text file is a line's end; tables, YAML and audio can be shorter.
    whole = length >= len(content) - 1 or path.suffix in (".csv", ".tsv", ".yaml", ".wav")
    return f"cut to {length} of {len(content)} bytes", None if whole else True


def emptied(path: Path, random: random.Random) -> tuple[str, bool | None]:
    path.write_bytes(b"")
    return "0 bytes", True


def flipped(path: Path, random: random.Random) -> tuple[str, bool | None]:
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 8])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    # Weights have a checksum. A flipped bit of text or metadata may say something that is right as well.
    return "bits flipped", True if path.suffix == ".safetensors" and "published" not in path.parts else None


def noise(path: Path, random: random.Random) -> tuple[str, bool | None]:
    path.write_bytes(random.randbytes(random.choice([3, 500, 5000])))
    return "noise instead", True


def appended(path: Path, random: random.Random) -> tuple[str, bool | None]:
    with path.open("ab") as file:
        file.write(random.choice([b"\0" * 100, b"garbage", b"\n}\n"]))
    return "something appended", None


def another_kind(path: Path, random: random.Random) -> tuple[str, bool | None]:
    others = [other for other in OTHER_KINDS if Path(other).suffix != path.suffix]
    root = next(parent for parent in path.parents if (parent / "notes.json").exists())
    other = random.choice(others)
    path.write_bytes((root / other).read_bytes())
    return f"{other} instead", True


def gone(path: Path, random: random.Random) -> tuple[str, bool | None]:
    path.unlink()
    return "deleted", True


def folder_instead(path: Path, random: random.Random) -> tuple[str, bool | None]:
    path.unlink()
    path.mkdir()
    return "a folder instead", True


def fifo_instead(path: Path, random: random.Random) -> tuple[str, bool | None]:
    path.unlink()
    os.mkfifo(path)
    return "a FIFO instead", True


def dangling_instead(path: Path, random: random.Random) -> tuple[str, bool | None]:
    path.unlink()
    path.symlink_to("nowhere")
    return "a dangling symlink instead", True


def odd_neighbour(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """Beside the file stands one that no program likes."""
    kind = random.choice(["fifo", "name", "dangling", "folder"])
    if kind == "fifo":
        os.mkfifo(path.with_name(f"zz{path.suffix}"))
    elif kind == "name":
        shutil.copy(path, os.fsencode(path.parent) + b"/z\xff" + os.fsencode(path.suffix))
    elif kind == "dangling":
        path.with_name(f"zz{path.suffix}").symlink_to("nowhere")
    else:
        path.with_name(f"zz{path.suffix}").mkdir()
    return f"an odd neighbour ({kind})", None


def json_edited(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """One key removed, renamed, added, or of another type, anywhere in the file."""
    content = json.loads(path.read_text())
    done, must_fail = edited(content, random)
    if not done:
        return noise(path, random)
    path.write_text(json.dumps(content))
    return done, must_fail


def edited(content: Any, random: random.Random) -> tuple[str, bool | None]:
    """Edit nested lists and mappings in place; an empty description when there is nothing to edit."""
    places = list(_places(content))
    if not places:
        return "", None
    holder, key, name = random.choice(places)
    ways = ["retyped"] * 3 + (["removed", "renamed", "added"] if isinstance(holder, dict) else ["removed"])
    way = random.choice(ways)
    before = holder[key]
    if way == "removed":
        del holder[key]
        return f"{name} removed", None
    if way == "renamed":
        holder[f"{key}x"] = holder.pop(key)
        return f"{name} renamed", None
    if way == "added":
        extra = random.choice(["nonsense", "pretrained", "checkpoint_path", "url", "__class__"])
        holder[extra] = random.choice(ODD_VALUES)
        return f"{extra} added beside {name}", None
    after = random.choice([value for value in ODD_VALUES if type(value) is not type(before)])
    holder[key] = after
    # A mapping for a number, a number for a name: never right. None, numbers and true may stand for each other.
    clear = isinstance(before, str | int | float) and isinstance(after, list | dict) and not isinstance(before, bool)
    return f"{name} = {after!r} instead of {str(before)[:30]!r}", True if clear else None


def _places(content: Any, name: str = ""):
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield content, key, f"{name}.{key}".strip(".")
        yield from _places(value, f"{name}.{key}")


def yaml_edited(path: Path, random: random.Random) -> tuple[str, bool | None]:
    content = yaml.safe_load(path.read_text())
    done, _ = edited(content, random)
    path.write_text(yaml.safe_dump(content))
    return done, None


def weights_edited(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """A whole and readable file with other numbers or other names in it."""
    with safe_open(path, "numpy") as file:
        about = file.metadata()
        state = {key: file.get_tensor(key).copy() for key in file.keys()}  # noqa: SIM118
    published = "published" in path.parts
    key = random.choice(sorted(state))
    before = path.read_bytes()
    way = random.choice(["scaled", "one", "nan", "removed", "renamed", "added", "reshaped", "half"])
    if way == "scaled":
        state[key] = (state[key] * 0.01 + 0.001).astype(state[key].dtype)
    elif way == "one" or (way == "nan" and state[key].dtype.kind in "iu"):
        state[key].reshape(-1)[:1] += 1
    elif way == "nan":
        state[key].reshape(-1)[:1] = np.nan
    elif way == "removed":
        del state[key]
    elif way == "renamed":
        state[f"{key}x"] = state.pop(key)
    elif way == "added":
        state["added"] = np.zeros(3, np.float32)
    elif way == "reshaped":
        state[key] = state[key].reshape(-1)[:-1]
    else:
        state[key] = state[key].astype(np.float16)
    save_file(state, path, about)
    if published:  # others' files have no checksum, and other parts of a model may lie in them
        return f"{key} {way}", True if way in ("nan", "removed", "reshaped") and key.startswith(
            "model.encoder"
        ) else None
    # A range that was never observed is infinite, and stays so.
    return f"{key} {way}", None if path.read_bytes() == before else True


def onnx_edited(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """One initializer, one operation or one line of metadata changed, in a file that still loads."""
    proto = onnx.load(path)
    way = random.choice(["initializer"] * 4 + ["metadata"] * 2 + ["operation"])
    used = {name for node in proto.graph.node for name in node.input}
    if way == "initializer":
        tensor = random.choice([t for t in proto.graph.initializer if t.name in used and _size(t)])
        # A key's bias adds the same to all scores of a query.
        same_softmax = _fills_a_mask(proto, tensor.name) or tensor.name.endswith(".attn.key.bias")
        done, must_fail = _changed(tensor, random)
        must_fail = None if same_softmax else must_fail
        done = f"initializer {tensor.name} {done}"
    elif way == "metadata":
        prop = random.choice(proto.metadata_props)
        before, prop.value = prop.value, random.choice(["", "null", "w2a2", "[]", "NaN", "-1", "{}"])
        done = f"metadata {prop.key} = {prop.value!r}"
        must_fail = None if prop.value == before or prop.key == "ssql_toolkit_version" else True
    else:
        floats = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
        swap = {"Add": "Sub", "Mul": "Add", "MatMul": "Add", "Relu": "Neg"}
        nodes = [node for node in proto.graph.node if node.op_type in swap and set(node.input) & floats]
        if not nodes:
            return noise(path, random)
        node = random.choice(nodes)
        done, must_fail = f"operation {node.name} {node.op_type} to {swap[node.op_type]}", True
        node.op_type = swap[node.op_type]
    path.write_bytes(proto.SerializeToString())
    return done, must_fail


def _fills_a_mask(proto: onnx.ModelProto, name: str) -> bool:
    """Whether a number is what a mask adds where a frame may be seen: a softmax is the same whichever it is."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if _size(tensor) == 1}
    others = [node.input[2] for node in proto.graph.node if node.op_type == "Where" and node.input[1] == name]
    users = sum(name in node.input for node in proto.graph.node)
    return users == len(others) > 0 and all(other in values and values[other].min() <= -1e30 for other in others)


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims))


def _changed(tensor: onnx.TensorProto, random: random.Random) -> tuple[str, bool | None]:
    values = numpy_helper.to_array(tensor)
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if values.dtype in (np.float32, np.float16):
        values = values.copy()
        place = random.randrange(values.size)
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
        way = random.choice(["one value", "all times 2", "all times 0.001"])
        if way == "one value":
            values.reshape(-1)[place] += max(1.0, 10 * largest)
        else:
            if not largest:
                values.reshape(-1)[:] = 1
            values *= 2 if way == "all times 2" else 0.001
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        unseen = values.size == 1 and values.max() <= -1e29  # as a mask's: no less than nothing comes of it
        return f"({name}): {way}", None if unseen else True
    if name in ("INT8", "UINT8"):
        values = values.copy()
        values.reshape(-1)[random.randrange(values.size)] ^= 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return f"({name}): one bit", True
    if tensor.raw_data:
        content = bytearray(tensor.raw_data)
        content[random.randrange(len(content))] ^= 1
        tensor.raw_data = bytes(content)
    return f"({name}): one bit", None


def wav_edited(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """One field of the header: channels, rate, bits, size."""
    content = bytearray(path.read_bytes())
    if len(content) < 44:
        return noise(path, random)
    name, place, form, value = random.choice([
        ("channels", 22, "<H", 0), ("channels", 22, "<H", 65535), ("rate", 24, "<I", 0),
        ("rate", 24, "<I", 2_000_000_000),
        ("rate", 24, "<I", 1), ("rate", 24, "<I", 44_101), ("bits", 34, "<H", 0), ("bits", 34, "<H", 7),
        ("size", 40, "<I", 0xFFFFFFFF), ("size", 40, "<I", 0), ("format", 20, "<H", 999), ("chunk", 16, "<I", 2**31),
    ])  # fmt: skip
    struct.pack_into(form, content, place, value)
    path.write_bytes(content)
    return f"{name} {value}", True if (name, value) == ("rate", 0) else None


def wav_odd(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """Whole audio that cannot be used: not finite, silent, short, none at all."""
    import soundfile

    values = {
        "NaN": np.full(8000, np.nan), "silence": np.zeros(8000), "one sample": np.full(1, 0.1), "nothing": np.zeros(0),
        "infinity": np.full(8000, np.inf), "1e30": np.full(8000, 1e30),
    }  # fmt: skip
    name = random.choice(list(values))
    soundfile.write(path, values[name].astype(np.float32), 16_000, subtype="FLOAT")
    return name, True if name in ("NaN", "nothing", "one sample", "infinity") else None


def table_edited(path: Path, random: random.Random) -> tuple[str, bool | None]:
    """A CSV or transcript file as spreadsheets and other systems write them."""
    content = path.read_bytes()
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows = list(csv.reader(io.StringIO(content.decode()), delimiter=delimiter))
    way = random.choice(["short row", "long row", "bom", "crlf", "latin-1", "nul", "empty cell", "bad number",
                         "twice", "blank", "outside", "header only", "no header", "utf-16", "quote"])  # fmt: skip
    row = rows[random.randrange(1, len(rows))]
    must_fail: bool | None = None
    if way == "bom":
        content = b"\xef\xbb\xbf" + content
    elif way == "crlf":
        content = content.replace(b"\n", b"\r\n")
    elif way == "utf-16":
        content, must_fail = content.decode().encode("utf-16"), True
    elif way == "nul":
        content = content.replace(b"one", b"o\0e", 1)
    elif way == "quote":
        content = content.replace(b"one", b'"one', 1)
    else:
        if way == "short row":
            del row[1:]
        elif way == "long row":
            row += ["x", "y"]
        elif way == "empty cell":
            row[random.randrange(len(row))] = ""
        elif way == "bad number":
            row[-1] = random.choice(["abc", "nan", "inf", "1e999"])
        elif way == "twice":
            rows.append(row)
        elif way == "blank":
            rows.insert(2, [])
        elif way == "outside":
            row[0] = random.choice(["../../../../etc/hostname", "/etc/passwd", "..", "one", "nowhere.wav"])
        elif way == "header only":
            rows, must_fail = rows[:1], True
        elif way == "no header":
            del rows[0]
        else:
            row[-1] += "é"
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
        content = text.getvalue().encode("latin-1")
    path.write_bytes(content)
    return way, must_fail


SKIPPED = (".wav", ".png")
PARTS = ("head.json", "tokenizer.json")  # an encoder is one without them
# Nobody has to read these: a report of an earlier verification, the results beside a run.
OPTIONAL = ("latency.json", "results.json", "README.md", "hparams.yaml")
ANY: list[Damage] = [truncated, emptied, flipped, noise, appended, another_kind, gone, folder_instead, fifo_instead,
                     dangling_instead, odd_neighbour]  # fmt: skip
WAYS: dict[str, list[Damage]] = {
    ".json": [json_edited] * 14,
    ".yaml": [yaml_edited] * 14,
    ".safetensors": [weights_edited] * 8,
    ".onnx": [onnx_edited] * 16,
    ".wav": [wav_edited] * 6 + [wav_odd] * 5,
    ".csv": [table_edited] * 14,
    ".tsv": [table_edited] * 14,
}
