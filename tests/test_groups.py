"""What each group of dependencies is for, what is said where one is missing, and that pyproject.toml agrees."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import encoders
import export
import quant
import ssql
from export.group import GROUPS as OF_EXPORT
from ssql.terminal.groups import GROUPS, check_installed, missing_in, missing_sentence

HOME = Path(__file__).resolve().parents[1]
PACKAGES = (quant, encoders, export, ssql)
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]

# Modules whose distribution has another name.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# What a part of the source may import: the longest path that it begins with counts.
PLACES = {
    "quant": (),
    "encoders": (),
    "export": ("export",),
    "export/runtime/openvino_session.py": ("export", "openvino"),
    "ssql": ("train",),
    "ssql/evaluation/whisper_decoder.py": ("train", "reader"),
    "ssql/finetuning/adapters.py": ("train", "adapters"),
    "ssql/reports": ("train", "report"),
    "ssql/commands/results.py": ("train", "report"),
    "ssql/commands/demo.py": ("web",),
    "ssql/terminal/console.py": ("web",),
    "ssql/terminal/parsing.py": ("web",),
}
NOT_DECLARED = {
    "triton": "comes with torch where a GPU can run it, and is asked for only there",
    "packaging": "`ssql doctor` compares versions with it, and does without it",
}
NOT_IMPORTED = {"tensorboard": "Lightning's logger writes with it"}
# They come with torch, timm and torchvision whatever is asked for.
WITH_THE_BASE = {"jinja2", "markupsafe", "yaml", "PIL"}

# Modules and distributions are hidden from every finder, as if they were not installed.
HIDING = f"""
import contextlib, io, sys

GROUPS = {GROUPS!r}
hidden = set()

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)
    def find_distributions(self, context):  # torchmetrics and others ask whether a distribution is there
        module = (context.name or "").replace("-", "_")
        return [] if module in hidden else getattr(self.finder, "find_distributions", lambda context: [])(context)

def hide(*groups):
    kept = set().union(*(GROUPS[group] for group in GROUPS if group not in groups))
    hidden.clear()
    hidden.update(set().union(*(GROUPS[group] for group in groups)) - kept - {WITH_THE_BASE!r})

sys.meta_path[:] = map(Hiding, sys.meta_path)

def said(*words):
    from ssql import cli
    sys.argv = ["ssql", *words]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, str) else f"{{stop.code}} {{errors.getvalue()}}"
    return "0"
"""

SCRIPT = """
hide("train", "export", "adapters", "report", "web", "reader", "openvino")
import torch
import encoders, quant

encoder = encoders.SpeechTransformer(width=32, depth=1, heads=2).eval()
log_mels = torch.randn(2, 80, 60)
quant.prepare(encoder)
quant.calibrate(encoder, [log_mels])
with torch.no_grad(), quant.at(encoder, "w4a8"):
    print("features", encoder(log_mels)[0].isfinite().all().item())
hidden.discard("onnx")
try:
    import export
    export.FileStream  # imported by its first use, or before
except ModuleNotFoundError as error:
    print("python", error)
print("demo", said("demo", "--files", "runs/a"))
print("pretrain", said("pretrain", "--config", "recipe.yaml"))

hide("export", "adapters", "report", "reader", "openvino")
import importlib
for command in ("quantize", "features", "finetune", "import_weights", "pretrain", "tokenizer"):
    importlib.import_module(f"ssql.commands.{command}")
print("runtime", said("features", "a.wav", "--encoder", "runs/a.onnx", "--output", "runs/a", "--runtime", "openvino"))
print("evaluate", said("evaluate", "--encoders.a", "runs/a", "--output", "runs/a"))
print("optimizer", said("finetune", "--encoder", "runs/a", "--output", "runs/b", "--data", "SpokenWords",
                        "--model.optimizer", "bitsandbytes.optim.AdamW8bit", "--model.optimizer.lr", "0.1"))

from torch import nn
from ssql.finetuning.adapters import Adapters, add_adapters
from ssql.terminal.errors import sentence_of
try:
    add_adapters(nn.Sequential(nn.Linear(2, 2)), Adapters())
except ModuleNotFoundError as error:
    print("adapters", sentence_of(error))

sys.argv = ["ssql", "export", "--encoder", "runs/a", "--output", "runs/a"]
from ssql import cli
cli.main()
"""


@pytest.fixture(scope="module")
def ran() -> subprocess.CompletedProcess[str]:
    """All in one process: what it imports takes seconds."""
    environment = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", HIDING + SCRIPT]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HOME)


@pytest.fixture(scope="module")
def lines(ran) -> dict[str, str]:
    """What it printed, by the first word."""
    return dict(line.split(" ", 1) for line in ran.stdout.splitlines() if " " in line)


def sentence(module: str, group: str) -> str:
    return f"{module} is not installed, which belongs to the group {group}: pip install 'ssql-toolkit[{group}]'"


def test_encoders_need_the_base_alone(ran, lines):
    assert lines["features"] == "True", ran.stderr


def test_export_names_its_group_in_plain_python(lines):
    assert lines["python"] == sentence("onnxruntime", "export")


def test_a_command_without_its_group_names_it(ran, lines):
    assert lines["pretrain"] == f"ssql pretrain: error: {sentence('lightning', 'train')}"
    assert lines["runtime"] == f"ssql features: error: {sentence('openvino', 'openvino')}"
    assert lines["evaluate"] == f"ssql evaluate: error: {sentence('matplotlib', 'report')}", ran.stderr
    assert lines["demo"] == (
        "ssql demo: error: rich is not installed, which belongs to the groups train and web: "
        "pip install 'ssql-toolkit[train]'"
    )
    # The last line of the process: its exit code, and no traceback.
    assert ran.stderr in {f"ssql export: error: {sentence(module, 'export')}\n" for module in OF_EXPORT["export"]}
    assert ran.returncode == 1


def test_adapters_and_their_optimizers_name_their_group(lines):
    assert lines["optimizer"] == f"2 ssql finetune: error: --model.optimizer: {sentence('bitsandbytes', 'adapters')}"
    assert lines["adapters"] == sentence("peft", "adapters")


def test_only_what_is_missing_is_said_to_be():
    check_installed("json")
    with pytest.raises(ModuleNotFoundError, match="no_such"):
        check_installed("json", "no_such")
    assert missing_sentence("peft") == sentence("peft", "adapters")
    assert missing_sentence("torch") is None  # everything needs it
    assert missing_in("it said: No module named 'onnx'. Got value: x") == sentence("onnx", "export")
    assert missing_in("No module named 'onnx.reference'") is None  # onnx is there


def test_groups_are_those_of_the_project():
    extras = {name: set(map(distribution_of, wanted)) for name, wanted in PROJECT["optional-dependencies"].items()}
    everything, development = extras.pop("all"), extras.pop("dev")
    assert extras == {group: {named(module) for module in modules} for group, modules in GROUPS.items()}
    assert PROJECT["optional-dependencies"]["all"] == [f"ssql-toolkit[{','.join(GROUPS)}]"]
    assert everything == {"ssql-toolkit"} < development
    assert OF_EXPORT.items() <= GROUPS.items()  # it says the same without importing ssql


def test_imports_are_of_the_group_of_their_place_and_dependencies_are_imported():
    base = set(map(distribution_of, PROJECT["dependencies"]))
    groups = {group: {named(module) for module in modules} for group, modules in GROUPS.items()}
    seen = set()
    for path, module in imported():
        place = max((place for place in PLACES if (path + "/").startswith(place + "/")), key=len)
        allowed = base.union(*(groups[group] for group in PLACES[place]))
        assert named(module) in allowed | set(NOT_DECLARED), f"{path} imports {module}"
        seen.add(named(module))
    assert base.union(*groups.values()) - seen == set(NOT_IMPORTED)
    assert set(NOT_DECLARED) <= seen


def test_the_lock_holds_every_dependency():
    locked = set(re.findall(r"^([\w.-]+)==", (HOME / "requirements.lock").read_text(), re.MULTILINE))
    wanted = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    assert set(map(distribution_of, wanted)) - {"ssql-toolkit"} <= locked


def test_each_package_is_typed_and_says_its_version():
    builders = pytest.importorskip("hatchling.builders.wheel")
    packed = {file.distribution_path for file in builders.WheelBuilder(str(HOME)).recurse_included_files()}
    assert {f"{package.__name__}/py.typed" for package in PACKAGES} <= packed
    assert {package.__version__ for package in PACKAGES} == {importlib.metadata.version("ssql-toolkit")}
    with pytest.raises(AttributeError, match="module 'quant' has no attribute 'versoin'"):
        quant.versoin  # noqa: B018


def imported() -> list[tuple[str, str]]:
    """Every file of the packages with every top-level module of others that it imports."""
    ours = set(sys.stdlib_module_names) | {package.__name__ for package in PACKAGES}
    found = []
    for file in sorted(file for package in PACKAGES for file in Path(package.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            path = file.relative_to(Path(ssql.__file__).parents[1]).as_posix()
            found += [(path, name.split(".")[0]) for name in names if name.split(".")[0] not in ours]
    return found


def named(module: str) -> str:
    """The distribution that a module comes from."""
    return DISTRIBUTIONS.get(module, module.replace("_", "-"))


def distribution_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
