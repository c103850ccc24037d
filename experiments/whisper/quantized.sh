#!/bin/sh
# Whisper's encoder quantized after training, by this toolkit and by others, read by Whisper's own decoder.
# usage: quantized.sh WEIGHTS DECODER LIBRISPEECH OUTPUT [PYTHON]
#   WEIGHTS      folder of openai/whisper-base with model.safetensors and config.json
#   DECODER      the same model as ct2-transformers-converter writes it
#   LIBRISPEECH  folder with train-clean-100/, test-other/ and transcripts.tsv (lines of path, tab, text)
#   OUTPUT       folder; what is there already is not made again
#   PYTHON       of an environment with nncf, openvino, onnx and onnxruntime, for the others' files; left out without it
set -eu
here=$(dirname "$0") weights=$1 decoder=$2 speech=$(cd "$3" && pwd) output=$4 python=${5:-}
mkdir -p "$output/calibration"

# Calibration: recordings of train-clean-100 without a text. Test: all of test-other, every third of train-clean-100 with a text.
find "$speech/train-clean-100" -type f | LC_ALL=C sort | while read -r file; do
  grep -qF "${file#"$speech"/}" "$speech/transcripts.tsv" || ln -sf "$file" "$output/calibration/"
done
clips() { # name, lines of the transcripts
  mkdir -p "$output/$1"
  while IFS="$(printf '\t')" read -r path text; do
    ln -sf "$speech/$path" "$output/$1/"
    printf '%s\t%s\n' "$(basename "$path")" "$text"
  done > "$output/$1.tsv"
}
grep '^test-other/' "$speech/transcripts.tsv" | clips test-other
grep '^train-clean-100/' "$speech/transcripts.tsv" | awk 'NR % 3 == 1' | clips train-clean

[ -e "$output/encoder" ] || ssql import --weights "$weights" --layout whisper --output "$output/encoder"
quantize() { # name, options
  name=$1; shift
  [ -e "$output/$name" ] || ssql quantize --encoder "$output/encoder" --output "$output/$name" \
    --data AudioFolder --data.root "$output/calibration" --data.labels null --data.max_seconds 30 "$@" | tee "$output/$name.txt"
}
groups='--policy.activation_range per_token --policy.granularity per_group_64 --policy.layers {"conv2":"/per_channel"}'
quantize tokens --bit_width '[w8a8, w4a8]'
quantize chosen --bit_width w8a8 --rounding outputs
quantize nearest --bit_width w4a8 --rounding nearest
# shellcheck disable=SC2086
quantize groups --bit_width w4a8 $groups
quantize low --bit_width '[w3a8, w2a8, w4a4]'
quantize attention --bit_width w8a8 --policy.activation_range per_token --policy.attention true
quantize static --bit_width '[w8a8, w4a8]' --policy.smooth true

read_by_decoder() { # name, encoders, bit-widths, runtime of files
  for set in test-other train-clean; do
    [ -e "$output/$1-$set/accuracy.json" ] || ssql evaluate --encoders "$2" --bit_widths "$3" \
      --reader WhisperDecoder --reader.folder "$decoder" --data AudioFolder --data.root "$output/$set" --data.labels null \
      --data.texts "$output/$set.tsv" --data.test_pattern . --data.max_seconds 40 --data.batch_size 4 --runtime "${4:-onnxruntime}" \
      --output "$output/$1-$set"
  done
}
read_by_decoder eight "{\"nearest\": \"$output/tokens\", \"chosen\": \"$output/chosen\", \"attention\": \"$output/attention\", \"static\": \"$output/static\"}" '[fp, w8a8]'
read_by_decoder four "{\"chosen\": \"$output/tokens\", \"nearest\": \"$output/nearest\", \"groups\": \"$output/groups\", \"static\": \"$output/static\"}" '[w4a8]'
read_by_decoder low "{\"chosen\": \"$output/low\"}" '[w3a8, w2a8, w4a4]'
for set in test-other train-clean; do
  [ -e "$output/ctranslate2-$set/accuracy.json" ] || python "$here/ctranslate2_int8.py" "$output/encoder" "$decoder" \
    "$output/$set" "$output/$set.tsv" "$output/ctranslate2-$set"
done

[ -n "$python" ] || exit 0
[ -e "$output/files/encoder-fp32.onnx" ] || ssql export --encoder "$output/encoder" --bit_width fp --output "$output/files"
[ -e "$output/calibration.npz" ] || python - "$output/encoder" "$output/calibration" "$output/calibration.npz" <<'END'
import sys
import numpy as np
import encoders
from ssql.data import AudioFolder
from ssql.evaluation.post_training import encoder_inputs
batches = encoder_inputs(encoders.load_encoder(sys.argv[1]), AudioFolder(sys.argv[2], labels=None, max_seconds=30))
arrays = [(f"{name}_{n}", value.numpy()) for n, batch in enumerate(batches) for name, value in zip(("log_mel", "lengths"), batch)]
np.savez(sys.argv[3], **dict(arrays))
END
"$python" "$here/others.py" "$output/files/encoder-fp32.onnx" "$output/calibration.npz" "$output/files"
# Each run reads the fp32 file first: what the others lose is counted from it. NNCF's files do not run in ONNX Runtime, and
# ONNX Runtime's static one not with the options that have it computed exactly: OpenVINO reads them.
fp="\"full precision\": \"$output/files/encoder-fp32.onnx\""
read_by_decoder dynamic "{$fp, \"ONNX Runtime dynamic\": \"$output/files/dynamic.onnx\"}" '[fp]'
read_by_decoder others "{$fp, \"NNCF int8\": \"$output/files/nncf-int8.onnx\", \"NNCF int4\": \"$output/files/nncf-int4.onnx\", \"ONNX Runtime static\": \"$output/files/static.onnx\"}" '[fp]' openvino_f32
