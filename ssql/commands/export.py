"""`ssql export`: ONNX files of an encoder, verified, measured and described."""

import json
from pathlib import Path

import export as onnx_export
import quant
from encoders import SpeechTransformer, load_encoder, load_head, load_tokenizer, state_sha256, weights_sha256
from encoders.storage.ownership import LATENCIES, ONNX_DATA, REPORT, refuse_foreign
from export import external_data
from export.runtime.runtimes import DEFAULT, Runtime
from ssql.commands.exported_files import file_paths, in_turn, labelled_of_head, verification_clips
from ssql.commands.unquantized import note_unquantized
from ssql.data import DataModule
from ssql.evaluation.probe_head import probe_head
from ssql.reports.result_files import refuse_existing, reserved, save
from ssql.reports.rows import results_of
from ssql.reports.tables import latency_tables
from ssql.terminal.checks import not_empty
from ssql.terminal.console import say
from ssql.terminal.inputs import check_inputs


def export(
    encoder: str,
    output: str,
    bit_width: list[str] | str = "w8a8",
    input: onnx_export.SpeechInput | None = None,
    data: DataModule | None = None,
    task: str | None = None,
    accuracy: str | None = None,
    trained_on: str = "unspecified",
    licence: str = "unspecified",
    float16: bool = False,
    runtime: Runtime = DEFAULT,
    bench: bool = True,
    margin: float | None = None,
    overwrite: bool = False,
) -> None:
    """Write an encoder as ONNX at one or more bit-widths, verify each file against torch, measure them, describe them.

    Leaves the files, a report of each verification, latency.json (unless --bench false) and a model card (README.md,
    config.json). A head (ssql finetune) and a tokenizer (ssql tokenizer) beside the encoder go into the files. With
    data and task a linear probe does, trained at each bit-width, unless the encoder has a head for the task; for 99.5 %
    of the test clips it has to say in ONNX Runtime what it says in torch. Files are verified on clips of data, or on
    real speech that comes with the package.

    Example: ssql export --encoder runs/a/encoder --output runs/a --bit_width '[fp, w8a8, w4a8]' --input waveform
    --data SpokenWords --task word

    Args:
        encoder: encoder folder.
        output: folder for encoder-fp32.onnx (fp), encoder-int8.onnx (w8a8), encoder-int4.onnx (w4a8),
            encoder-<bit-width>.onnx for others. Over 2 GB a file has its weights beside it, <file>.data.
        bit_width: one, or a list: fp, w8a8, w4a8, w2a8, ...; w7a8 where a processor without VNNI would saturate the
            sums of w8a8; w4a32 where there are no integer kernels.
        input: waveform puts the front end into the files; log_mel by default, where the encoder takes that.
        data: clips or images to verify the files with; labelled, for what the encoder's own head says of its test
            split, or with task for a head.
        task: the label to predict; `text` for a recognizer's own head.
        accuracy: JSON file that ssql evaluate, suite or finetune wrote of this encoder as it is saved, for the model
            card; results of other weights, ranges or heads are refused.
        trained_on: the encoder's training data, for the model card.
        licence: of the weights, for the model card.
        float16: store weights that stay in float in 16 bits; fp becomes encoder-fp16.onnx.
        runtime: that the files are to be fastest in; they run in all. It matters for convolutions of images alone.
        bench: measure start, memory and latency of the files; without, an export takes less time.
        margin: seconds of silence after each clip in the files, for an encoder that fills its clips to 30 s otherwise
            (Whisper's): a clip of 3 s then costs a fraction. Its decoder may repeat itself: see docs/quantize.md.
        overwrite: replace existing files.
    """
    if data is None and task is not None:
        raise ValueError("a task needs data to learn it from: --data SpokenWords --task word")
    bit_widths = [bit_width] if isinstance(bit_width, str) else bit_width
    not_empty(bit_width=bit_widths, accuracy=accuracy)
    check_inputs(data=data)
    loaded, own_head, tokenizer = load_encoder(encoder), load_head(encoder), load_tokenizer(encoder)
    if margin is not None:
        if not isinstance(loaded, SpeechTransformer):
            raise ValueError(f"--margin is for encoders that fill their clips, such as Whisper's, not {loaded.name}")
        loaded.fill(margin)
    head_sha256 = state_sha256(own_head) if own_head else None
    known = results_of(Path(accuracy), weights_sha256(loaded), head_sha256, encoder) if accuracy is not None else {}
    paths = file_paths(output, "encoder", bit_widths, float16)
    if not quant.is_prepared(loaded) and set(paths) != {"fp"}:
        raise ValueError(f"{encoder} was never quantized: run ssql quantize first, or export it at fp")
    note_unquantized(loaded, bit_widths, encoder)
    refuse_existing(paths.values(), overwrite)
    latency_file = Path(output) / "latency.json"
    refuse_foreign(latency_file, LATENCIES)
    for path in paths.values():
        refuse_foreign(path.with_suffix(".verification.json"), REPORT)
        refuse_foreign(external_data.beside(path), ONNX_DATA)
    onnx_export.refuse_foreign_card(Path(output))
    heads = {b: own_head for b in bit_widths}
    if data is not None and task is not None and (own_head is None or own_head.label != task):
        heads = {b: probe_head(loaded, data, task, b) for b in bit_widths}
    clips = verification_clips(data, loaded)
    with reserved(Path(output) / "export", paths.values(), overwrite):
        kept = onnx_export.entries_to_keep(Path(output), loaded, input, heads[bit_widths[0]], overwrite, tokenizer)
        for b, path in in_turn(paths):
            labelled = labelled_of_head(data, heads[b], task)
            onnx_export.to_onnx(
                loaded, path, bit_width=b, float16=float16, input=input, head=heads[b], tokenizer=tokenizer,
                clips=clips, labelled=labelled, overwrite=overwrite, runtime=runtime,
            )  # fmt: skip
        card = onnx_export.describe(list(paths.values()), loaded, licence, trained_on)
        del loaded  # the files alone are measured
        latencies = onnx_export.measure_files(list(paths.values())) if bench else []
        # After those that the file has of other ONNX files beside it.
        earlier = (
            json.loads(latency_file.read_text(encoding="utf-8"))
            if latency_file.exists() and latency_file.stat().st_size
            else []
        )
        names = {path.name for path in paths.values()}
        others = [row for row in earlier if row["file"] not in names and (Path(output) / row["file"]).is_file()]
        if others or latencies:
            save({latency_file: others + latencies})
        else:
            latency_file.unlink(missing_ok=True)  # it told of the files that were replaced
        say(*(latency_tables(latencies) if bench else ()))
        for entry in card["files"]:
            if not float16:  # the weights are others than those in torch
                entry["accuracy_in_torch"] = known.get(entry["bit_width"], {})
            entry["latency_ms"] = {
                f"{row['seconds']:g}": row["latency_ms"] for row in latencies if row["file"] == entry["file"]
            }
        onnx_export.write_card(card, Path(output), kept)
        say(f"model card: {Path(output) / 'README.md'}")
