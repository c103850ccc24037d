#!/usr/bin/env bash
# Fine-tuning at w4a4 from SSQL, from SimSiam and from scratch, the same budget: every number of finetune.md.
# Needs `ssql` on the PATH and data/fsdd/recordings; LABELS may be set; encoders that fsdd.sh has left in runs/fsdd are taken as they are.
set -euo pipefail
pretrain="ssql pretrain --config experiments/speech/transformer_ssql_fsdd.yaml"
finetune="ssql finetune --config experiments/speech/finetune_digit_w4a4_fsdd.yaml --model.precision.policy.shift true"
fsdd=runs/fsdd runs=runs/finetune
fresh='{"class_path": "SpeechTransformer", "init_args": {"width": 144, "depth": 4, "heads": 4}}'

rows=()
for seed in 0 1 2; do
  seeds="--seed_everything $seed --model.seed $seed --data.seed $seed"
  # An SSQL step costs two SimSiam steps: SimSiam trains twice the epochs.
  [ -d $fsdd/shift-$seed/encoder ] || $pretrain $seeds --output $fsdd/shift-$seed --model.policy.shift true
  [ -d $fsdd/simsiam-$seed/encoder ] ||
    $pretrain $seeds --output $fsdd/simsiam-$seed --model.ssql false --trainer.max_epochs 16
  for labels in ${LABELS:-100 2700}; do
    # About 500 steps for each number of labels: the same steps, and one validation of ten in that time.
    case $labels in
      100) epochs=100 every=10 batch=16 ;;
      2700) epochs=13 every=1 batch=64 ;;
    esac
    for start in "SSQL=$fsdd/shift-$seed/encoder" "SimSiam=$fsdd/simsiam-$seed/encoder" "scratch=$fresh"; do
      name=${start%%=*}
      output=$runs/$labels/$name-$seed
      [ -f $output/results.json ] || $finetune $seeds --encoder "${start#*=}" --output $output --overwrite true \
        --name "$name, $labels labels" --train_limit $labels --data.batch_size $batch \
        --trainer.max_epochs $epochs --trainer.check_val_every_n_epoch $every
      rows+=("$output/results.json")
    done
  done
done
ssql compare --output $runs/all --overwrite true --rows "[$(IFS=,; echo "${rows[*]}")]"
