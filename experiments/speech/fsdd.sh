#!/usr/bin/env bash
# Every number of fsdd.md: about two hours on 2 cores. Needs `ssql` on the PATH and data/fsdd/recordings.
set -euo pipefail
pretrain="ssql pretrain --config experiments/speech/transformer_ssql_fsdd.yaml"
runs=runs/fsdd

# An SSQL step costs two SimSiam steps: SimSiam trains twice the epochs.
for seed in 0 1 2; do
  seeds="--seed_everything $seed --model.seed $seed --data.seed $seed"
  $pretrain $seeds --output $runs/ssql-$seed
  $pretrain $seeds --output $runs/shift-$seed --model.policy.shift true
  $pretrain $seeds --output $runs/simsiam-$seed --model.ssql false --trainer.max_epochs 16
  ssql evaluate --config experiments/speech/evaluate_fsdd.yaml --output $runs/seed-$seed --encoders "{
    \"SSQL\": \"$runs/ssql-$seed/encoder\", \"SimSiam\": \"$runs/simsiam-$seed/encoder\",
    \"SSQL, shift\": \"$runs/shift-$seed/encoder\"}"
done
ssql compare --output $runs/all \
  --rows "[$runs/seed-0/accuracy.json, $runs/seed-1/accuracy.json, $runs/seed-2/accuracy.json]"

# Consistency, an option beside the paper, seed 0.
$pretrain --output $runs/consistent-0 --model.ssql.consistency 1
$pretrain --output $runs/both-0 --model.ssql.consistency 1 --model.policy.shift true
ssql evaluate --config experiments/speech/evaluate_fsdd.yaml --output $runs/consistency --encoders "{
  \"SSQL, consistent\": \"$runs/consistent-0/encoder\", \"SSQL, shift, consistent\": \"$runs/both-0/encoder\"}"

# Leave one speaker out, of pretraining and of the probe.
rows=()
for speaker in george jackson lucas nicolas theo yweweler; do
  fold=$runs/loso-$speaker
  $pretrain --data.test_pattern _${speaker}_ --output $fold/ssql --trainer.max_epochs 4 --model.policy.shift true
  $pretrain --data.test_pattern _${speaker}_ --output $fold/simsiam --trainer.max_epochs 8 --model.ssql false
  ssql evaluate --config experiments/speech/evaluate_fsdd_speaker.yaml --data.test_pattern _${speaker}_ --output $fold \
    --encoders "{\"SSQL, shift\": \"$fold/ssql/encoder\", \"SimSiam\": \"$fold/simsiam/encoder\"}"
  rows+=("$fold/accuracy.json")
done
ssql compare --output $runs/loso --rows "[$(IFS=,; echo "${rows[*]}")]"
