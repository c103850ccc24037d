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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssql.terminal.groups import GROUPS, groups_of, install_command

HOME = Path(__file__).resolve().parents[2]
NAME = "ssql-toolkit"
LOCK = "requirements.lock"
MEND = "make --always-make install"  # in a checkout: also where make thinks that all is there
PAGE = Path(__file__).parents[1] / "page" / "index.html"
FREE_GB = 5

# Distribution and the module that has to load; one of a group may be missing, which is said of its group.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "lightning": "lightning",
    "jsonargparse": "jsonargparse",
    "timm": "timm",
    "safetensors": "safetensors.torch",
    "soundfile": "soundfile",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
}
# What some commands use, and what for.
OPTIONAL = {
    "espeakng-loader": ("espeakng_loader", "spoken words and prosody made on the spot"),
    "bitsandbytes": ("bitsandbytes", "nf4 bases of adapters, 8-bit optimizers"),
    "peft": ("peft", "adapters"),
    "openvino": ("openvino", "exported files in another runtime"),
}
FEATURES = {
    "avx2": "avx2", "avx512f": "avx512", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16",
    "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
}  # fmt: skip
PROBE = """
import importlib, json, sys
for module in sys.argv[1:]:
    print(json.dumps({"module": module, "starts": True}), flush=True)
    found = {"module": module}
    try:
        loaded = importlib.import_module(module)
        if module == "torch":
            count = loaded.cuda.device_count() if loaded.cuda.is_available() else 0
            found["devices"] = [loaded.cuda.get_device_name(i) for i in range(count)]
            if getattr(loaded.backends, "mps", None) and loaded.backends.mps.is_available():
                found["devices"].append("Apple MPS")
        if module == "onnxruntime":
            found["providers"] = loaded.get_available_providers()
        if module == "espeakng_loader":
            found["library"] = str(loaded.get_library_path())
    except BaseException as error:
        found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(json.dumps(found), flush=True)
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
    return f"{NAME} {_installed(NAME) or 'not installed'}{_commit()}"


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
    yield Finding("processor", f"{model}, {_cores()} cores; {', '.join(features) or 'no features known here'}")
    yield Finding("memory", _memory())
    yield from _libraries()
    yield _node()
    yield from _folders()
    yield from _against_lock()


def processor() -> tuple[str, list[str]]:
    """The processor's name, and which of the features that matter for low bits it has."""
    if platform.system() == "Darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
        arm = {"FEAT_DotProd": "dotprod", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}
        return name, [
            ours for feature, ours in arm.items() if _output("sysctl", "-n", f"hw.optional.arm.{feature}") == "1"
        ]
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), []
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [ours for flag, ours in FEATURES.items() if flag in flags]


def _libraries() -> Iterator[Finding]:
    modules = [*NEEDED.values(), *(module for module, _ in OPTIONAL.values())]
    found = _probe(modules)
    for name, module in NEEDED.items():
        installed, loaded = _installed(name), found[module]
        if installed is None:
            if not groups_of(module):
                yield Finding(name, "is missing", True, _mend(name))
        elif "error" in loaded:
            yield Finding(name, f"{installed} does not load: {loaded['error']}", True, _mend(name))
        else:
            wanted = _refused_by_us(name, installed)
            more = f"; providers: {', '.join(loaded['providers'])}" if "providers" in loaded else ""
            if wanted:
                yield Finding(name, f"{installed}, but {NAME} needs {wanted}", True, _mend(name))
            else:
                yield Finding(name, installed + more)
    for name, (module, purpose) in OPTIONAL.items():
        installed, loaded = _installed(name), found[module]
        if installed is None:
            if not groups_of(module):
                yield Finding(name, f"not there ({purpose})", mend=f"pip install {name}")
        else:
            error = loaded.get("error")
            how = f"{installed} does not load ({purpose}): {error}" if error else f"{installed} ({purpose})"
            yield Finding(name, how, mend=_mend(name) if error else "")
    yield from _groups()
    yield Finding("accelerators", ", ".join(found.get("torch", {}).get("devices", [])) or "none that torch can use")


def _groups() -> Iterator[Finding]:
    """What is missing of each group: none has to be there."""
    missing = {
        group: [module for module in modules if importlib.util.find_spec(module) is None]
        for group, modules in GROUPS.items()
    }
    yield Finding("whole groups", ", ".join(group for group, modules in missing.items() if not modules) or "none")
    for group, modules in missing.items():
        if modules:
            mend = MEND if (HOME / LOCK).is_file() else install_command(group)
            yield Finding(f"group {group}", f"not installed: {', '.join(modules)}", mend=mend)


def _probe(modules: Sequence[str]) -> dict[str, dict]:
    """What came of loading each module; one that ends the process does not end the report."""
    found: dict[str, dict] = {}
    left = list(modules)
    while left:
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE, *left], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        started = ""
        for line in ran.stdout.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a library's own words
            if row.get("starts"):
                started = row["module"]
            else:
                found[row["module"]] = row
        if started and started not in found:
            found[started] = {"error": f"Python ended with code {ran.returncode} while it loaded"}
        elif not started:
            found |= {module: {"error": f"Python ended with code {ran.returncode}"} for module in left}
        left = [module for module in left if module not in found]
    return found


def _node() -> Finding:
    node = shutil.which("node")
    said = _output(node, "--version") if node else "not there"
    if PAGE.exists():
        return Finding("ssql demo", f"its page is built (Node.js {said})")
    return Finding("ssql demo", f"its page is not built (Node.js {said}; 20 or newer builds it)", mend="make web")


def _folders() -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"ssql")
        temporary = tempfile.gettempdir()
    except OSError as error:
        yield Finding("temporary files", f"cannot be written: {error}", True, "export TMPDIR=FOLDER")
    else:
        yield Finding("temporary files", f"{temporary}, {_free(temporary)}")
    yield Finding("disk here", f"{os.getcwd()}, {_free(os.getcwd())}")


def _free(folder: str) -> str:
    free = shutil.disk_usage(folder).free / 1e9
    return f"{free:.1f} GB free" + (f": less than {FREE_GB} GB, a run may fill it" if free < FREE_GB else "")


def _against_lock() -> Iterator[Finding]:
    path = HOME / LOCK
    if not path.is_file():
        return
    different = []
    for name, wanted in locked(path.read_text(encoding="utf-8")):
        installed = _installed(name)
        # A build of another index says so after a plus sign; what is missing is not needed here, or said above.
        if installed is not None and installed.partition("+")[0] != wanted.partition("+")[0]:
            different.append(f"{name} {installed} (locked {wanted})")
    if different:
        yield Finding("lock", f"{len(different)} differ from {LOCK}: {', '.join(different)}", mend=MEND)
    else:
        yield Finding("lock", f"what is installed is what {LOCK} says")


def locked(text: str) -> Iterator[tuple[str, str]]:
    """Names and versions of a lock that are for this machine and this Python.

    Args:
        text: of the lock, lines of `name==version ; marker`.
    """
    try:
        from packaging.markers import Marker
    except ImportError:
        return
    for name, wanted, marker in re.findall(r"^([\w.-]+)==([^\s;\\]+)(?: ; ([^\\\n]+?))? ?\\?$", text, re.MULTILINE):
        if not marker or Marker(marker).evaluate():
            yield name, wanted


def _refused_by_us(name: str, installed: str) -> str | None:
    """What we ask for, where the installed version is not that."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in importlib.metadata.requires(NAME) or []]
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return None
    for requirement in requirements:
        if requirement.name == name and not requirement.specifier.contains(installed, prereleases=True):
            return str(requirement.specifier)
    return None


def _mend(name: str) -> str:
    if (HOME / LOCK).is_file():
        return MEND
    try:
        wanted = [line for line in importlib.metadata.requires(NAME) or [] if re.match(rf"{name}\b(?!-)", line)]
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    # The three are built for each other: one alone does not mend it.
    names = ["torch", "torchvision", "torchaudio"] if name.startswith("torch") else wanted or [name]
    names = [name.partition(";")[0].strip() for name in names]  # without the group that it belongs to
    return f"pip install --force-reinstall {' '.join(repr(part) for part in names)}"


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    if not (HOME / ".git").exists():
        return ""
    commit = _output("git", "-C", str(HOME), "describe", "--always", "--dirty", "--abbrev=12")
    return f" ({commit})" if commit else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _cores() -> int:
    # How many this process may use, as a container or Slurm has it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB"
    except (ValueError, OSError, AttributeError):
        return "not known here"
