#!/bin/sh
# Two more shapes with random weights, quantized after training: distances of features only.
# usage: random_shapes.sh CALIBRATION HELD_OUT OUTPUT      (two folders of recordings, and one to write into)
set -eu
here=$(dirname "$0") calibration=$1 held_out=$2 output=$3
mkdir -p "$output"
python - "$output" <<'END'
import sys
from pathlib import Path
import torch
import encoders
shapes = {
    "wav2vec2": ("wav2vec2", {"width": 384, "depth": 6, "heads": 6, "extractor_width": 256}),
    "mels128": ("speech_transformer", {"n_mels": 128, "width": 384, "depth": 6, "heads": 6, "positions": 1500,
                                       "log_mel": "whisper_filled"}),
}
for folder, (name, arguments) in shapes.items():
    torch.manual_seed(0)
    if not (Path(sys.argv[1]) / folder).exists():
        encoders.save_encoder(encoders.create_encoder(name, **arguments), Path(sys.argv[1]) / folder)
END
for shape in wav2vec2 mels128; do
  [ -e "$output/$shape-quantized" ] || ssql quantize --encoder "$output/$shape" --output "$output/$shape-quantized" \
    --bit_width '[w8a8, w4a8, w2a8]' --examples 8 --data AudioFolder --data.root "$calibration" --data.labels null --data.max_seconds 30
  python "$here/distance.py" "$output/$shape" "$held_out" 15 "$output/$shape-quantized@w8a8" "$output/$shape-quantized@w4a8" \
    "$output/$shape-quantized@w2a8"
done
