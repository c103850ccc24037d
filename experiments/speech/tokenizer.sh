#!/usr/bin/env bash
# Every number of tokenizer.md. Needs `ssql` on the PATH, data/fsdd/recordings, the encoders of fsdd.sh.
set -euo pipefail
train="ssql tokenizer --config experiments/speech/tokenizer_fsdd.yaml"
evaluate="ssql evaluate_tokenizer --config experiments/speech/evaluate_tokenizer_fsdd.yaml"
runs=runs/tokenizer

rows=()
for seed in ${SEEDS:-0 1 2}; do
  for method in shift simsiam; do
    $train --encoder runs/fsdd/$method-$seed/encoder --output $runs/$method-$seed --seed_everything $seed --model.seed $seed \
      --data.seed $seed
  done
  $evaluate --output $runs/seed-$seed --tokenizers "{
    \"SSQL, shift\": \"$runs/shift-$seed/model\", \"SimSiam\": \"$runs/simsiam-$seed/model\"}"
  rows+=("$runs/seed-$seed/tokens.json")
done
ssql compare --output $runs/all --overwrite true --rows "[$(IFS=,; echo "${rows[*]}")]"

# The tokenizer itself trained at drawn bits, the encoder frozen; and files. Seed 0.
$train --encoder runs/fsdd/shift-0/encoder --output $runs/shift-ssql-0 --ssql true
$train --encoder runs/fsdd/simsiam-0/encoder --output $runs/simsiam-ssql-0 --ssql true
$evaluate --output $runs/drawn-0 --tokenizers "{
  \"SSQL, shift\": \"$runs/shift-ssql-0/model\", \"SimSiam\": \"$runs/simsiam-ssql-0/model\"}"
ssql export --encoder $runs/shift-0/model --output $runs/onnx --bit_width '[fp, w8a8, w4a8]' --input waveform
python experiments/speech/tokenizer_content.py $runs/shift-{0,1,2}/model $runs/simsiam-{0,1,2}/model
