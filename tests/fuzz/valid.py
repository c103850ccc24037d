"""Commands that work in the sandbox: what they read, what they write, and what kind of value each option takes."""

import re
from dataclasses import dataclass, field

# Options of data modules, with kinds of `options.VALUES`.
WORDS = {
    "data": ("SpokenWords", "class"),
    "data.languages": ("[en-us]", "languages"),
    "data.train_size": ("40", "data_size"),
    "data.test_size": ("20", "data_size"),
    "data.batch_size": ("8", "batch_size"),
}
FOLDER = {
    "data": ("AudioFolder", "class"),
    "data.root": ("audio", "input_folder"),
    "data.test_pattern": ("[37]\\.wav", "pattern"),
    "data.batch_size": ("4", "batch_size"),
}
MANIFEST = FOLDER | {"data.labels": ("manifest.csv", "labels")}
SHARDS_DATA = {
    "data": ("AudioShards", "class"),
    "data.root": ("shards/audio", "input_folder"),
    "data.batch_size": ("4", "batch_size"),
}
TEXTS = MANIFEST | {"data.texts": ("transcripts.tsv", "input_file")}
IMAGES = {
    "data": ("ImageFolder", "class"),
    "data.root": ("images", "input_folder"),
    "data.image_size": ("8", "count"),
    "data.grey": ("true", "bool"),
    "data.batch_size": ("4", "batch_size"),
}
MORE_DATA = {"data.num_workers": "workers", "data.seed": "integer"}
TRAINER = {
    "trainer.max_steps": ("2", "steps"),
    "trainer.enable_progress_bar": ("false", "bool"),
    "trainer.enable_model_summary": ("false", "bool"),
    "trainer.accelerator": ("cpu", "accelerator"),
}
MORE_TRAINER = {
    "trainer.devices": "devices",
    "trainer.precision": "choice",
    "trainer.max_time": "time",
    "trainer.log_every_n_steps": "count",
    "trainer.accumulate_grad_batches": "count",
    "trainer.gradient_clip_val": "rate",
    "trainer.limit_train_batches": "count",
    "trainer.strategy": "choice",
    "seed_everything": "integer",
    "checkpoint_steps": "count",
    "resume": "resume",
    "activation_checkpointing": "bool",
}
SMALL = {"calibration_batches": ("1", "counts")}
BITS = {"bit_widths": ("[fp, w4a8]", "bits_list")}


@dataclass(frozen=True)
class Valid:
    """A command that works.

    Attributes:
        name: of the command.
        options: option to value and kind, in the order they are typed.
        more: options that it could have beside these, to their kinds.
        positional: words before the options.
        reads: files and folders it reads: what may be damaged.
        existing: an output of this command that is there already, which --overwrite true may replace.
        products: pattern of the paths below the output (empty: the output itself) that are the command's to replace.
        weight: how often it is drawn; slow commands less.
    """

    name: str
    options: dict[str, tuple[str, str]]
    more: dict[str, str] = field(default_factory=dict)
    positional: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    existing: str | None = None
    products: str = ""
    weight: int = 4

    def is_product(self, path: str) -> bool:
        """Whether a path, relative to the output, is one that the command itself writes."""
        return re.fullmatch(self.products, path) is not None


def _options(*parts: dict[str, tuple[str, str]], **own: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """Own options first; `__` stands for a dot."""
    return {name.replace("__", "."): value for name, value in own.items()} | {
        k: v for part in parts for k, v in part.items()
    }


ENCODER_FILES = r"config\.json|model\.safetensors|head\.json|head\.safetensors|tokenizer\.json|tokenizer\.safetensors|"
RUN = r"checkpoints(/.*)?|logs(/.*)?|\.?lock|"
SHARDS = r"index\.json|(train|test)-\d{6}\.(tar|jsonl)"
EXPORTED = r"(encoder-[^/]+|latency|config)\.(onnx|json)|README\.md"
OVERWRITE = {"overwrite": "bool"}
ENCODER = ("models/speech", "artifact")
FINETUNE_MORE = OVERWRITE | MORE_TRAINER | MORE_DATA | {
    "validation": "share", "train_limit": "count_or_null", "patience": "count_or_null", "name": "text",
    "model.seed": "integer", "model.new_head": "bool",
    "model.optimizer.lr": "rate",
    "model.precision.test_at": "bits_list", "freeze": "bool", "quantizer": "choice", "bit_width": "bits",
}  # fmt: skip
TOKENIZER_MORE = OVERWRITE | MORE_TRAINER | MORE_DATA | {
    "validation": "share", "model.seed": "integer", "model.optimizer.lr": "rate",
    "model.codebooks.code_dim": "count", "ssql": "bool", "freeze": "bool",
}  # fmt: skip
PRETRAIN_MORE = OVERWRITE | MORE_TRAINER | MORE_DATA | {
    "calibration_batches": "count", "calibration_observer": "choice", "bias_correction": "bits_list",
    "model.optimizer.lr": "rate", "model.warmup_steps": "count_or_zero", "model.dim": "count", "model.ssql": "bool",
    "model.encoder.width": "count", "model.encoder.depth": "count", "model.encoder.heads": "count",
    "model.seed": "integer", "data.train_size": "data_size", "data.batch_size": "batch_size",
}  # fmt: skip

COMMANDS = [
    Valid("import", _options(weights=("published", "input_folder"), layout=("whisper", "choice"),
                             output=("out/new", "output")),
          OVERWRITE | {"heads": "count_or_null", "fill": "bool", "margin": "margin"}, reads=("published",),
          existing="models/imported", products=ENCODER_FILES),
    Valid("pretrain", _options(config=("configs/pretrain.yaml", "input_file"), output=("out/new", "output")),
          PRETRAIN_MORE, reads=("configs/pretrain.yaml",), existing="runs/pretrain", products=RUN + "encoder(/.*)?"),
    Valid("pretrain", _options(config=("runs/pretrain/logs/version_0/config.yaml", "input_file"),
                               resume=("true", "resume")),
          PRETRAIN_MORE, reads=("runs/pretrain/checkpoints", "runs/pretrain/logs"), existing=None,
          products=RUN + "encoder(/.*)?", weight=3),
    Valid("finetune", _options(WORDS, TRAINER, SMALL, encoder=ENCODER, task=("word", "task"),
                               output=("out/new", "output")),
          FINETUNE_MORE, reads=("models/speech",), existing="runs/finetune",
          products=RUN + r"model(/.*)?|results\.json"),
    Valid("finetune", _options(TEXTS, TRAINER, SMALL, encoder=("models/cnn", "artifact"), task=("text", "task"),
                               output=("out/new", "output")),
          FINETUNE_MORE, reads=("models/cnn", "audio", "manifest.csv", "transcripts.tsv"), existing="runs/finetune",
          products=RUN + r"model(/.*)?|results\.json", weight=3),
    Valid("finetune", _options(IMAGES, TRAINER, SMALL, encoder=("models/vision", "artifact"), task=("class", "task"),
                               output=("out/new", "output"), bit_width=("w4a4", "bits")),
          FINETUNE_MORE, reads=("models/vision", "images"), existing="runs/finetune",
          products=RUN + r"model(/.*)?|results\.json", weight=3),
    Valid("finetune", _options(config=("runs/finetune/logs/version_0/config.yaml", "input_file"),
                               resume=("true", "resume")),
          FINETUNE_MORE, reads=("runs/finetune/checkpoints", "runs/finetune/logs", "models/speech"), existing=None,
          products=RUN + r"model(/.*)?|results\.json", weight=2),
    Valid("tokenizer", _options(WORDS, TRAINER, encoder=ENCODER, output=("out/new", "output"),
                                linguistic_codes=("8", "codes"), semantic_codes=("12", "codes"),
                                start_batches=("1", "count")),
          TOKENIZER_MORE, reads=("models/speech",), existing="runs/tokens", products=RUN + "model(/.*)?"),
    Valid("tokenizer", _options(config=("runs/tokens/logs/version_0/config.yaml", "input_file"),
                                resume=("true", "resume")),
          TOKENIZER_MORE, reads=("runs/tokens/checkpoints", "runs/tokens/logs", "models/speech"), existing=None,
          products=RUN + "model(/.*)?", weight=2),
    Valid("quantize", _options(WORDS, encoder=ENCODER, output=("out/new", "output"), examples=("4", "count")),
          OVERWRITE | MORE_DATA | {"observer": "choice", "average_bits": "rate", "bit_width": "bits_list",
                                   "rounding": "choice",
                                   "policy.shift": "bool", "policy.smooth": "bool", "policy.first_layer": "bits",
                                   "policy.granularity": "choice", "policy.layers": "mapping"},
          reads=("models/speech",), existing="models/speech", products=ENCODER_FILES),
    Valid("quantize", _options(FOLDER, encoder=("runs/finetune/model", "artifact"), output=("out/new", "output"),
                                examples=("4", "count")),
          OVERWRITE | MORE_DATA | {"data.max_seconds": "rate", "data.labels": "labels"},
          reads=("runs/finetune/model", "audio"), existing="models/imported", products=ENCODER_FILES, weight=3),
    Valid("pack", _options(data=("AudioFolder", "class"), data__root=("audio", "input_folder"),
                           data__labels=("manifest.csv", "labels"), output=("out/new", "output")),
          {"shard_mb": "rate", "data.test_pattern": "pattern", "data.layout": "choice", "data.texts": "input_file"},
          reads=("audio", "manifest.csv"), products=SHARDS),
    Valid("pack", _options(data=("ImageFolder", "class"), data__root=("images", "input_folder"),
                           output=("out/new", "output")),
          {"shard_mb": "rate"}, reads=("images",), products=SHARDS, weight=2),
    Valid("finetune", _options(SHARDS_DATA, TRAINER, SMALL, encoder=ENCODER, task=("speaker", "task"),
                               output=("out/new", "output")),
          FINETUNE_MORE | {"data.batch_seconds": "rate"}, reads=("models/speech", "shards/audio"),
          existing="runs/finetune", products=RUN + r"model(/.*)?|results\.json", weight=3),
    Valid("evaluate", _options(MANIFEST, BITS, SMALL, encoders__a=ENCODER, output=("out/new", "output"),
                               tasks=("[speaker]", "tasks")),
          OVERWRITE | MORE_DATA | {"data.max_seconds": "rate", "quantizers": "mapping", "reader": "class"},
          reads=("models/speech", "audio", "manifest.csv"), existing="results/a", products=r"accuracy\.\w+"),
    Valid("evaluate", _options(IMAGES, BITS, SMALL, encoders__a=("models/vision", "artifact"),
                               output=("out/new", "output")),
          OVERWRITE | MORE_DATA | {"data.train_limit": "count_or_null"}, reads=("models/vision", "images"),
          existing="results/a", products=r"accuracy\.\w+", weight=3),
    Valid("evaluate_tokenizer", _options(WORDS, BITS, SMALL, tokenizers__a=("runs/tokens/model", "artifact"),
                                         output=("out/new", "output")),
          OVERWRITE | MORE_DATA | {"quantizers": "mapping"}, reads=("runs/tokens/model",), existing="results/tokens",
          products=r"tokens\.\w+"),
    Valid("suite", _options(encoders=("{}", "mapping"), parts=("[]", "parts"),
                            rows=("[results/a/accuracy.json]", "input_files"), output=("out/new", "output")),
          OVERWRITE | {"seed": "integer"}, reads=("results/a/accuracy.json",), existing="results/suite",
          products=r"suite\.\w+", weight=2),
    Valid("compare", _options(rows=("[results/a/accuracy.json, results/tokens/tokens.json]", "input_files"),
                              output=("out/new", "output")),
          OVERWRITE, reads=("results/a/accuracy.json", "results/tokens/tokens.json"), existing="results/b",
          products=r"accuracy\.\w+"),
    Valid("report", _options(runs=("[runs/finetune, results/a]", "input_files"), output=("out/new.html", "output")),
          OVERWRITE | {"batches": "count"}, reads=("runs/finetune", "results/a"), existing="report.html"),
    Valid("export", _options(encoder=("runs/finetune/model", "artifact"), output=("out/new", "output"),
                             bit_width=("[w7a8]", "bits_list")),
          OVERWRITE | {"input": "choice", "task": "task", "accuracy": "input_file", "licence": "text",
                       "trained_on": "text"},
          reads=("runs/finetune/model",), existing="files", products=EXPORTED, weight=2),
    Valid("export", _options(encoder=("models/speech", "artifact"), output=("files_mel", "output"),
                             bit_width=("[w7a8]", "bits_list"), accuracy=("results/a/accuracy.json", "input_file")),
          OVERWRITE, reads=("models/speech", "results/a/accuracy.json", "files_mel"), existing="files_mel",
          products=EXPORTED, weight=1),
    Valid("stream", _options(encoder=("models/stream", "artifact"), output=("out/new", "output"),
                             bit_width=("[w7a8]", "bits_list")),
          OVERWRITE, reads=("models/stream",), existing="files_stream", weight=1,
          products=r"stream-[^/]+\.(onnx|json)"),
    Valid("verify", _options(file=("files/encoder-int4.onnx", "input_file"),
                             encoder=("runs/finetune/model", "artifact")),
          {"bit_width": "bits"} | MORE_DATA, reads=("files/encoder-int4.onnx", "runs/finetune/model"), weight=6),
    Valid("verify", _options(file=("files_mel/encoder-int4.onnx", "input_file"), encoder=ENCODER),
          {"bit_width": "bits"}, reads=("files_mel/encoder-int4.onnx", "models/speech"), weight=4),
    Valid("features", _options(encoder=ENCODER, output=("out/new", "output")),
          OVERWRITE | {"bit_width": "bits", "window": "rate", "overlap": "overlap", "batch_size": "batch_size"},
          ("talk.wav", "audio/two/02.wav"), reads=("talk.wav", "models/speech"), existing="features",
          products=r"(talk|02)\.safetensors"),
    Valid("features", _options(encoder=("files/encoder-int4.onnx", "artifact"),
                               output=("out/new.safetensors", "output")),
          OVERWRITE | {"window": "rate", "overlap": "overlap", "batch_size": "batch_size"}, ("talk.wav",),
          reads=("talk.wav", "files/encoder-int4.onnx"), existing="features/talk.safetensors"),
    Valid("bench", _options(output=("out/new", "output"), seconds=("[0.2]", "lengths"), threads=("[1]", "threads"),
                            repeats=("1", "repeats")),
          {}, ("files_mel/encoder-int4.onnx",), reads=("files_mel/encoder-int4.onnx",), existing=None,
          products="", weight=2),
    Valid("demo", _options(files=("files", "input_folder"), port=("0", "port")), {"clips": "input_files"},
          reads=("files",), weight=1),
]  # fmt: skip
