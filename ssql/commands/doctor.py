"""`ssql doctor`: is all that the toolkit needs on this machine, does it load, and what mends it where not.

It imports nothing that does not come with Python; what may not load is tried in a process of its own.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ssql.terminal.groups import GROUPS, groups_of, install_command

HOME = Path(__file__).resolve().parents[2]
NAME = "ssql-toolkit"
LOCK = "requirements.lock"
MEND = "make --always-make install"  # in a checkout: also where make thinks that all is there
PAGE = Path(__file__).parents[1] / "page" / "index.html"
FREE_GB = 5

# Modules that have to load, of distributions of their name; one of a group may be missing, which is said of its group.
NEEDED = (
    "torch", "torchvision", "torchaudio", "lightning", "jsonargparse", "timm", "safetensors.torch", "soundfile", "onnx",
    "onnxruntime",
)  # fmt: skip
# What some commands use: spoken words, nf4 bases and 8-bit optimizers, adapters, a second runtime.
OPTIONAL = ("espeakng_loader", "bitsandbytes", "peft", "openvino")
# Features that matter for low bits, as Linux and macOS name them.
FEATURES = r"\b(?:avx2|avx512f|avx\w*_vnni|\w+_bf16|amx_int8|asimddp|i8mm|bf16|sve)\b|FEAT_(?:DotProd|I8MM|BF16)(?=: 1)"
PROBE = """
import importlib, json, sys
sys.modules["openvino_telemetry"] = None  # with it, importing OpenVINO sends word of that over the network
for module in sys.argv[1:]:
    found = {}
    try:
        loaded = importlib.import_module(module)
        if module == "torch":
            count = loaded.cuda.device_count() if loaded.cuda.is_available() else 0
            found["devices"] = [loaded.cuda.get_device_name(i) for i in range(count)]
            if getattr(loaded.backends, "mps", None) and loaded.backends.mps.is_available():
                found["devices"].append("Apple MPS")
        if module == "onnxruntime":
            found["providers"] = loaded.get_available_providers()
        if module == "openvino":
            found["precision"] = loaded.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        if module == "espeakng_loader":
            loaded.get_library_path()
    except BaseException as error:
        found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps([module, found]), flush=True)
"""


@dataclass
class Finding:
    """A line of the report: what, how it is, whether that is a fault, and what mends it."""

    what: str
    how: str
    fault: bool = False
    mend: str = ""

    def __str__(self) -> str:
        """As it is printed."""
        mend = f"\n{'':18}{'mend' if self.fault else 'to have it'}: {self.mend}" if self.mend else ""
        return f"{'!' if self.fault else ' '} {self.what:<16}{self.how}{mend}"


def version() -> str:
    """`ssql-toolkit 0.1.0`, with the commit in a git checkout."""
    describe = ("git", "-C", str(HOME), "describe", "--always", "--dirty", "--abbrev=12")
    commit = _output(*describe) if (HOME / ".git").exists() else ""
    return f"{NAME} {_installed(NAME) or 'not installed'}{f' ({commit})' if commit else ''}"


def doctor(args: Sequence[str]) -> int:
    """Print the report; 1 where something needed is missing or does not load, 2 for options, of which there are none.

    Args:
        args: words after the command.
    """
    if args:
        asked = args[0] in ("-h", "--help")
        sys.stdout.write("usage: ssql doctor\n\nVersions, runtimes, processor, and what is missing, with the command "
                         "that mends it.\nExit code 1 where something needed is missing or does not load.\n\n"
                         "example:\n  ssql doctor\n")  # fmt: skip
        return 0 if asked else 2
    faults = 0
    for finding in findings():
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()
        faults += finding.fault
    sys.stdout.write(f"\n{faults or 'no'} fault{'' if faults == 1 else 's'} found\n")
    return 1 if faults else 0


def findings() -> Iterator[Finding]:
    """All lines of the report."""
    yield Finding("toolkit", f"{version()} in {HOME}")
    yield Finding("Python", f"{platform.python_version()} in {sys.prefix}", sys.version_info < (3, 11))
    yield Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    model, features = processor()
    # How many this process may use, as a container or Slurm has it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor", f"{model}, {cores} cores; {', '.join(features) or 'no features known here'}")
    with suppress(ValueError, OSError, AttributeError):
        yield Finding("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB")
    yield from _libraries()
    node = _output("node", "--version") or "not there"
    if PAGE.exists():
        yield Finding("ssql demo", f"its page is built (Node.js {node})")
    else:
        yield Finding("ssql demo", f"its page is not built (Node.js {node}; 20 or newer builds it)", mend="make web")
    yield from _folders()
    yield from _against_lock()


def processor() -> tuple[str, list[str]]:
    """The processor's name, and which of the features that matter for low bits it has."""
    text = _output("sysctl", "hw.optional.arm", "machdep.cpu.brand_string")
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = re.search(r"^(?:model name\s*|machdep\.cpu\.brand_string): (.*)$", text, re.MULTILINE)
    name = model[1] if model else platform.processor() or platform.machine()
    return name, sorted(set(re.findall(FEATURES, text)))


def _libraries() -> Iterator[Finding]:
    found = _probe([*NEEDED, *OPTIONAL])
    for module, loaded in found.items():
        name, fault = module.partition(".")[0].replace("_", "-"), module in NEEDED
        installed, wanted = _installed(name), _requirements().get(name)
        if installed is None:
            if not groups_of(module):
                yield Finding(name, "is missing", fault, _mend(name))
        elif "error" in loaded:
            yield Finding(name, f"{installed} does not load: {loaded['error']}", fault, _mend(name))
        elif wanted is not None and not wanted.specifier.contains(installed, prereleases=True):
            yield Finding(name, f"{installed}, but {NAME} needs {wanted.specifier}", True, _mend(name))
        else:
            more = f"; providers: {', '.join(loaded['providers'])}" if "providers" in loaded else ""
            more += f"; computes in {loaded['precision']} on this processor" if "precision" in loaded else ""
            yield Finding(name, installed + more)
    # None of a group has to be there.
    missing = {
        group: [module for module in modules if importlib.util.find_spec(module) is None]
        for group, modules in GROUPS.items()
    }
    yield Finding("whole groups", ", ".join(group for group, modules in missing.items() if not modules) or "none")
    for group, modules in missing.items():
        if modules:
            mend = MEND if (HOME / LOCK).is_file() else install_command(group)
            yield Finding(f"group {group}", f"not installed: {', '.join(modules)}", mend=mend)
    yield Finding("accelerators", ", ".join(found.get("torch", {}).get("devices", [])) or "none that torch can use")


def _probe(modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What came of loading each module; one that ends the process does not end the report."""
    found: dict[str, dict[str, Any]] = {}
    while left := [module for module in modules if module not in found]:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE, *left], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        lines = [line for line in ran.stdout.splitlines() if line.startswith('["')]  # others are a library's own words
        rows = dict(map(json.loads, lines))
        died = next((module for module in left if module not in rows), None)
        found |= rows | ({died: {"error": f"Python ended with code {ran.returncode} while it loaded"}} if died else {})
    return found


def _folders() -> Iterator[Finding]:
    folders = {"disk here": os.getcwd()}
    try:
        folders = {"temporary files": tempfile.gettempdir()} | folders  # the first folder in which a file can be made
    except OSError as error:
        yield Finding("temporary files", str(error), True, "export TMPDIR=FOLDER")
    for what, folder in folders.items():
        free = shutil.disk_usage(folder).free / 1e9
        few = f": less than {FREE_GB} GB, a run may fill it" if free < FREE_GB else ""
        yield Finding(what, f"{folder}, {free:.1f} GB free{few}")


def _against_lock() -> Iterator[Finding]:
    path = HOME / LOCK
    if not path.is_file():
        return
    different = []
    for requirement in _parsed(re.findall(r"^[\w.-]+==[^\\\n]+", path.read_text(encoding="utf-8"), re.MULTILINE)):
        installed = _installed(requirement.name)
        # What is missing is not needed here, or said above.
        if installed is not None and not requirement.specifier.contains(installed, prereleases=True):
            different.append(f"{requirement.name} {installed} (locked {requirement.specifier})")
    if different:
        yield Finding("lock", f"{len(different)} differ from {LOCK}: {', '.join(different)}", mend=MEND)
    else:
        yield Finding("lock", f"what is installed is what {LOCK} says")


def _parsed(lines: Iterable[str]) -> list[Any]:
    """Requirements for this machine and this Python; none where nothing can read them."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    found = [Requirement(line.strip()) for line in lines]
    return [one for one in found if one.marker is None or "extra" in str(one.marker) or one.marker.evaluate()]


@cache
def _requirements() -> dict[str, Any]:
    """What we ask for, by distribution."""
    try:
        return {one.name: one for one in _parsed(importlib.metadata.requires(NAME) or [])}
    except importlib.metadata.PackageNotFoundError:
        return {}


def _mend(name: str) -> str:
    if (HOME / LOCK).is_file():
        return MEND
    wanted = _requirements().get(name)
    names = [f"{name}{wanted.specifier if wanted else ''}"]
    if name.startswith("torch"):  # the three are built for each other: one alone does not mend it
        names = ["torch", "torchvision", "torchaudio"]
    return f"pip install --force-reinstall {' '.join(map(repr, names))}"


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
