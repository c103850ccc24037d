"""The optional groups of what the toolkit needs: which module is in which, and what to say where one is missing.

Only the standard library is imported here: it is read where nothing else loads.
"""

import importlib.util
import re

# Modules by the group of pyproject.toml that installs them; of two groups the first is the one to install.
GROUPS = {
    "train": (
        "lightning", "jsonargparse", "docstring_parser", "kornia", "vector_quantize_pytorch", "torchmetrics",
        "tensorboard", "sklearn", "scipy", "espeakng_loader", "PIL", "yaml", "rich",
    ),
    "export": ("onnx", "onnxscript", "onnx_ir", "onnxruntime", "jinja2", "scipy"),
    "adapters": ("bitsandbytes", "peft"),
    "report": ("jinja2", "markupsafe", "matplotlib"),
    "web": ("jsonargparse", "docstring_parser", "rich"),
    "reader": ("ctranslate2", "whisper_normalizer"),
    "openvino": ("openvino",),
}  # fmt: skip


def groups_of(module: str) -> list[str]:
    """The groups that install a module; none for one that everything needs, or that is not ours."""
    return [group for group, modules in GROUPS.items() if module in modules]


def install_command(group: str) -> str:
    """What a user types to have a group."""
    return f"pip install 'ssql-toolkit[{group}]'"


def missing_sentence(module: str) -> str | None:
    """One sentence for a module of a group that is not installed, with the command that installs it; None for others.

    `export.group` says it in the same words: it must not import this package.
    """
    groups = groups_of(module)
    if not groups:
        return None
    named = f"group{'s' if groups[1:] else ''} {' and '.join(groups)}"
    return f"{module} is not installed, which belongs to the {named}: {install_command(groups[0])}"


def missing_in(text: str) -> str | None:
    """The same for Python's own words within the message of another library."""
    named = re.search(r"No module named '(\w+)'", text)
    return missing_sentence(named[1]) if named else None


def check_installed(*modules: str) -> None:
    """Refuse to begin with work whose last step needs what is not there.

    Args:
        modules: top-level names.

    Raises:
        ModuleNotFoundError: says which is missing, and what installs it.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(missing_sentence(module) or f"No module named {module!r}", name=module)
