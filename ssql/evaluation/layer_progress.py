"""Layers that are rounded, kept in files until the whole encoder is: an interrupted command goes on where it was."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import safetensors
import safetensors.torch
from torch import Tensor

from encoders.base import Encoder
from encoders.fingerprint import weights_sha256
from encoders.storage.files import plain, sole_writer, staged_file
from encoders.storage.folder import check_folder_target
from quant import BitWidth, RoundedLayer, parse_bit_width, quant_layers

ENDING = ".ssql-layers"
log = logging.getLogger(__name__)


class LayerProgress:
    """The folder `OUTPUT.ssql-layers`, with a safetensors file for each group of layers that is done.

    Entering it gives the encoder the layers that are there at the bit-widths that are asked for; leaving it without an
    exception deletes these. Layers at other bit-widths stay where they are, for a command that asks for them.

    Args:
        output: that the encoder is going to be written to.
        encoder: prepared and calibrated, no bit-width corrected yet.
        inputs: what its layers are rounded for.
        bit_widths: whose integers are being chosen.
        overwrite: delete layers of another encoder, policy or data.

    Attributes:
        rows: of the layers that were done, by bit-width.

    Raises:
        ValueError: on entering: layers of another encoder, policy or data, or a file that cannot be read.
        BlockingIOError: on entering: another process is at it.
        FileExistsError: on entering: the output may not be replaced.
    """

    def __init__(
        self,
        output: str,
        encoder: Encoder,
        inputs: Sequence[tuple[Tensor, Tensor | None]],
        bit_widths: Sequence[str],
        overwrite: bool,
    ) -> None:
        self.output = plain(output)
        self.folder = self.output.with_name(self.output.name + ENDING)
        self.encoder, self.overwrite = encoder, overwrite
        self.runs = {parse_bit_width(bit_width) for bit_width in bit_widths}
        self.signature = _signature(encoder, inputs)
        self.rows: dict[BitWidth, list[RoundedLayer]] = {}
        self._lock = sole_writer(self.folder)

    def __enter__(self) -> Self:
        """Give the encoder what is there."""
        with sole_writer(self.output):  # said now, not when all is done
            pass
        self._lock.__enter__()
        try:
            check_folder_target(self.output, self.overwrite)  # another process may have written it since
            for file in self._files():
                self._load(file)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        for run, rows in self.rows.items():
            log.info("%d layers at %s are done already, in %s", len(rows), run, self.folder)
        names = {str(run) for run in self.runs}
        if others := sorted({file.name.partition(".")[0] for file in self.folder.glob("w*a*.*.safetensors")} - names):
            log.info("%s has layers at %s, which are not asked for: they stay there", self.folder, " and ".join(others))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the layers when all is done; say where they are when not."""
        if error is None:
            for file in self._files():
                file.unlink()
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()
        elif self._files():
            log.warning("layers that are done are kept in %s: the same command goes on there", self.folder)
        self._lock.__exit__(None, None, None)

    def save(self, rows: Sequence[RoundedLayer], bit_width: str) -> None:
        """Keep what was chosen for some layers at a bit-width."""
        run, named = parse_bit_width(bit_width), quant_layers(self.encoder)
        values: dict[str, Tensor] = {}
        for name in (row.layer for row in rows):
            values[f"{name}.correction"] = named[name].correction(run)
            if run in named[name].rounded:
                values[f"{name}.integers"], values[f"{name}.scale"] = named[name].weight_integers(run)
        about = json.dumps([asdict(row) for row in rows])
        metadata = {"signature": self.signature, "bit_width": str(run), "rows": about}
        with staged_file(self.folder / f"{run}.{rows[0].layer}.safetensors") as staging:
            safetensors.torch.save_file({name: value.contiguous() for name, value in values.items()}, staging, metadata)

    def _files(self) -> list[Path]:
        return sorted(file for run in self.runs for file in self.folder.glob(f"{run}.*.safetensors"))

    def _load(self, file: Path) -> None:
        try:
            with safetensors.safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                values = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{file} cannot be read ({error}): delete it, and its layers are rounded anew") from None
        if metadata.get("signature") != self.signature:
            if not self.overwrite:
                raise ValueError(
                    f"{self.folder} has layers of another encoder, policy or data: give the options they were made "
                    "with, or --overwrite true to begin anew"
                )
            file.unlink()
            return
        layers, run = quant_layers(self.encoder), parse_bit_width(metadata["bit_width"])
        device = next(self.encoder.parameters()).device
        self.rows.setdefault(run, []).extend(RoundedLayer(**row) for row in json.loads(metadata["rows"]))
        for name in {name.rpartition(".")[0] for name in values}:
            layers[name].add_correction(run, values[f"{name}.correction"].to(device))
            if f"{name}.integers" in values:
                layers[name].add_rounding(run, values[f"{name}.integers"], values[f"{name}.scale"].to(device))


def _signature(encoder: Encoder, inputs: Sequence[tuple[Tensor, Tensor | None]]) -> str:
    digest = hashlib.sha256(weights_sha256(encoder).encode())
    for each in inputs:
        for tensor in each:
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
