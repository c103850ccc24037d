"""`ssql COMMAND --help` at once: read out of the command's source, so that nothing heavy is imported.

Importing torch and Lightning takes longer than reading a help text. What a command takes is written in its source
anyway: in the signature and docstring of a typed function, or in the OPTIONS of a Lightning CLI.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
WIDTH = 110

# Commands around a Lightning CLI, and the most used options of their model where it is always the same.
RUNS = {
    "pretrain": "",
    "finetune": """
model, of which these are the most used beside those above:
  --model.optimizer CLASS, --model.augmentation CLASS, --model.new_head true, --model.seed N
  --model.precision.policy '{shift: true}', --model.precision.test_at '[w8a8, w4a8]'
  --model.adapters.base nf4 | int8, --model.adapters.rank N, --model.adapters.alpha X
what these have: ssql finetune --model.precision.policy.help, --model.adapters.help, --model.optimizer.help AdamW,
  --model.augmentation.help SpeechAugmentation
""",
    "tokenizer": """
model, of which these are the most used beside those above:
  --model.optimizer CLASS, --model.codebooks.code_dim N, --model.seed N
what an optimizer has: ssql tokenizer --model.optimizer.help AdamW
""",
}
# Options that are objects, and where their class is.
OBJECTS = {"Policy": "quant.policy", "Quantizer": "ssql.evaluation.quantizers"}
TRAINER = """
trainer, of which these are the most used:
  --trainer.max_epochs N, --trainer.max_steps N, --trainer.max_time DD:HH:MM:SS
      how long; -1 is without end
  --trainer.accelerator cpu | gpu | mps, --trainer.devices N, --trainer.num_nodes N
  --trainer.strategy ddp | fsdp2 | ...
  --trainer.precision 32-true | bf16-mixed | 16-mixed
  --trainer.accumulate_grad_batches N, --trainer.gradient_clip_val X
  --trainer.sync_batchnorm true | false
"""


@dataclass(frozen=True)
class Option:
    """One line of a help: name without dashes, type, default (None: required), what it is."""

    name: str
    kind: str
    default: str | None
    text: str

    def __str__(self) -> str:
        """As it stands in the help."""
        head = f"  --{self.name} {self.kind}" + (" (required)" if self.default is None else f" = {self.default}")
        indents = {"initial_indent": "      ", "subsequent_indent": "      ", "break_on_hyphens": False}
        return "\n".join([head, *textwrap.wrap(self.text, WIDTH, **indents)])  # type: ignore[arg-type]


def command_help(name: str, function: str) -> str:
    """The help of a command.

    Args:
        name: of the command.
        function: what runs it, in the module of `ssql.commands` that has the same name.
    """
    tree = _tree(f"ssql.commands.{function}")
    if name in RUNS:
        about, options = ast.literal_eval(_assigned(tree, "HELP")), list(_run_options(tree))
    else:
        definition = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
        about = _with_examples(ast.get_docstring(definition) or "")
        options = list(_options(tree, definition))
    listed = {option.name for option in options}
    parts = [f"usage: ssql {name} [options]\n", about.rstrip() + "\n", "options:", *map(str, options)]
    if not listed & {"config"}:
        parts.append("  --config FILE.yaml\n      options from a file; --print_config writes them all")
    if name in RUNS:
        parts += ["  --seed_everything int = 0", RUNS[name] + TRAINER.rstrip()]
    return "\n".join([*parts, *_more(name, tree, options)]) + "\n"


def _more(name: str, tree: ast.Module, options: list[Option]) -> Iterator[str]:
    """The last lines: where the rest is said."""
    kinds = {option.name: option.kind for option in options}
    yield ""
    if name == "pretrain":
        methods = ", ".join(_exported("ssql.methods", "Method"))
        yield f"--model METHOD is one of {methods}; its options: ssql pretrain --model.help SimSiam"
    if name in RUNS or "DataModule" in kinds.get("data", ""):
        modules = ", ".join(_exported("ssql.data", "DataModule", "Spelling"))
        yield f"--data DATA is one of {modules}; its options: ssql {name} --data.help AudioFolder"
    for option, kind in kinds.items():
        for word, module in OBJECTS.items():
            if any(each.endswith(word) for each in re.findall(r"\w+", kind)):
                yield f"--{option} has {', '.join(_fields(module, word))}: ssql {name} --{option}.help"
    if "Reader" in kinds.get("reader", ""):
        known = "WhisperDecoder"
        yield f"--reader READER is {known}, or a class of yours; its options: ssql {name} --reader.help {known}"
    if "Encoder" in kinds.get("encoder", ""):
        yield f"--encoder CLASS is a fresh encoder; its options: ssql {name} --encoder.help SpeechTransformer"
    yield f"all options, and those within options: ssql {name} --help_all; as YAML: ssql {name} ... --print_config"


def _fields(module: str, name: str) -> list[str]:
    """Options of a dataclass."""
    owner = next(node for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == name)
    return [ast.unparse(node.target) for node in owner.body if isinstance(node, ast.AnnAssign)]


def _tree(module: str) -> ast.Module:
    path = HOME.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _assigned(tree: ast.Module, name: str) -> ast.expr:
    """The expression that a module's constant is."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value
    raise LookupError(name)


def _exported(module: str, *but: str) -> list[str]:
    return [
        name for name in ast.literal_eval(_assigned(_tree(module), "__all__")) if name not in but and name[0] != "_"
    ]


def _run_options(tree: ast.Module) -> Iterator[Option]:
    """Of a Lightning CLI: its own options, then those of all."""
    for source in (tree, _tree("ssql.training.launch")):
        options = _assigned(source, "OPTIONS")
        assert isinstance(options, ast.Dict)
        for key, value in zip(options.keys, options.values, strict=True):
            assert isinstance(key, ast.Constant) and isinstance(value, ast.Tuple)
            kind, default, text, *_ = value.elts
            shown = None if ast.unparse(default) == "..." else _shown(source, default)
            yield Option(str(key.value), _kind(kind), shown, ast.literal_eval(text))


def _options(tree: ast.Module, function: ast.FunctionDef) -> Iterator[Option]:
    texts = _arguments(ast.get_docstring(function) or "")
    arguments = function.args.args
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + list(function.args.defaults)
    for argument, default in zip(arguments, defaults, strict=True):
        shown = None if default is None else _shown(tree, default)
        yield Option(argument.arg, _kind(argument.annotation), shown, texts.get(argument.arg, ""))


def _kind(annotation: ast.expr | None) -> str:
    """A type as users would say it: `Literal['a', 'b'] | None` as `a | b | null`."""
    text = "" if annotation is None else ast.unparse(annotation)
    text = re.sub(r"Literal\[([^]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " | "), text)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)
    return text.replace(" | Path", "").replace("None", "null")


def _shown(tree: ast.Module, default: ast.expr | None) -> str:
    """A default as users would type it."""
    if default is None:
        return "null"
    if isinstance(default, ast.Call) and ast.unparse(default.func) in ("list", "dict") and len(default.args) == 1:
        return _shown(tree, default.args[0])
    if isinstance(default, ast.Dict):
        pairs = zip(default.keys, default.values, strict=True)
        return "{" + ", ".join(f"{_shown(tree, key)}: {_shown(tree, value)}" for key, value in pairs) + "}"
    if isinstance(default, ast.Call) and not default.args and not default.keywords:
        return f"{ast.unparse(default.func)} of its defaults"
    if isinstance(default, ast.Name):
        try:
            return _shown(tree, _assigned(tree, default.id))
        except LookupError:
            places = (node.module for node in tree.body if isinstance(node, ast.ImportFrom)
                      if any(alias.name == default.id for alias in node.names))  # fmt: skip
            place = next(places, None)
            return _shown(_tree(place), default) if place else default.id
    text = ast.unparse(default).replace("'", "")
    if isinstance(default, ast.Tuple):
        text = f"[{text[1:-1]}]"
    return {"None": "null", "True": "true", "False": "false", "": "''"}.get(text, text)


def _with_examples(docstring: str) -> str:
    """A docstring before its arguments; its examples stand together, on the lines that they have there."""
    about = re.split(r"\n\n?(?:Args|Raises|Returns):\n", inspect.cleandoc(docstring))[0]
    example = re.compile(r"^Example: ((?:.+\n?)(?:(?!Example: ).+\n?)*)", re.MULTILINE)
    shown = ["  " + " \\\n      ".join(text.splitlines()) for text in example.findall(about)]
    return "\n".join([example.sub("", about).strip(), *(["\nexamples:"] if shown else []), *shown])


def _arguments(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument."""
    import docstring_parser.google  # a command that finds its group missing gets this far without it

    found = docstring_parser.google.parse(docstring).params
    return {it.arg_name: " ".join((it.description or "").split()) for it in found if it.args[0] == "param"}
