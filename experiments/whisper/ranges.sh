#!/bin/sh
# Whisper's encoder at 8 and 4 bits: ranges of tensors, ranges of tokens, attention on integers; read by its own decoder.
# usage: ranges.sh WEIGHTS DECODER LIBRISPEECH OUTPUT
#   WEIGHTS      folder of openai/whisper-base with model.safetensors and config.json
#   DECODER      the same model as ct2-transformers-converter writes it
#   LIBRISPEECH  folder with train-clean-100/, test-other/ and transcripts.tsv (lines of path, tab, text)
#   OUTPUT       new folder
set -eu
weights=$1 decoder=$2 speech=$(cd "$3" && pwd) output=$4
mkdir -p "$output/calibration" "$output/clips"

# Calibration: every fifth recording of train-clean-100 without a text. Test: all of test-other with a text.
find "$speech/train-clean-100" -type f | LC_ALL=C sort | while read -r file; do
  grep -qF "${file#"$speech"/}" "$speech/transcripts.tsv" || echo "$file"
done | awk 'NR % 5 == 1' | while read -r file; do ln -sf "$file" "$output/calibration/"; done
grep '^test-other/' "$speech/transcripts.tsv" | while IFS="$(printf '\t')" read -r path text; do
  ln -sf "$speech/$path" "$output/clips/"
  printf '%s\t%s\n' "$(basename "$path")" "$text"
done > "$output/transcripts.tsv"

ssql import --weights "$weights" --layout whisper --output "$output/encoder"
calibrate() { # name, options
  name=$1; shift
  ssql calibrate --encoder "$output/encoder" --output "$output/$name" --data AudioFolder --data.root "$output/calibration" \
    --data.max_seconds 30 --data.batch_size 4 --batches 8 "$@"
}
calibrate static
calibrate tokens --policy.activation_range per_token
calibrate attention --policy.activation_range per_token --policy.attention true
calibrate corrected --policy.activation_range per_token --policy.attention true --bias_correction '[w4a8]'
calibrate groups --policy.activation_range per_token --policy.attention true --policy.granularity per_group_64 \
  --policy.layers '{"conv2": "/per_channel"}' --bias_correction '[w4a8]'

read_by_decoder() { # name, encoders, bit-widths
  ssql evaluate --encoders "$2" --bit_widths "$3" --reader WhisperDecoder --reader.folder "$decoder" \
    --data AudioFolder --data.root "$output/clips" --data.labels null --data.texts "$output/transcripts.tsv" \
    --data.test_pattern . --data.max_seconds 40 --data.batch_size 4 --output "$output/$1"
}
read_by_decoder w8a8 "{\"static\": \"$output/static\", \"tokens\": \"$output/tokens\", \"attention\": \"$output/attention\"}" '[fp, w8a8]'
read_by_decoder w4a8 "{\"static\": \"$output/static\", \"attention\": \"$output/attention\", \"corrected\": \"$output/corrected\", \"groups\": \"$output/groups\"}" '[w4a8]'
