#!/usr/bin/env bash
# Every number of masked.md. Needs `ssql` on the PATH and data/fsdd/recordings.
set -euo pipefail
pretrain="ssql pretrain --config experiments/speech/transformer_masked_fsdd.yaml"
runs=runs/masked

# An SSQL step costs two plain ones: the plain method trains twice the epochs.
for seed in 0 1 2; do
  seeds="--seed_everything $seed --model.seed $seed --data.seed $seed"
  $pretrain $seeds --output $runs/ssql-$seed --model.policy.shift true --trainer.max_epochs 6
  $pretrain $seeds --output $runs/plain-$seed --model.ssql false --trainer.max_epochs 12
  ssql evaluate --config experiments/speech/evaluate_fsdd.yaml --output $runs/seed-$seed --encoders "{
    \"SSQL, shift\": \"$runs/ssql-$seed/encoder\", \"plain\": \"$runs/plain-$seed/encoder\"}"
done
ssql compare --output $runs/all \
  --rows "[$runs/seed-0/accuracy.json, $runs/seed-1/accuracy.json, $runs/seed-2/accuracy.json]"
