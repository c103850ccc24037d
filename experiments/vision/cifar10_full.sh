#!/usr/bin/env bash
# CIFAR-10 whole, on one GPU: SSQL against SimSiam with twice the epochs (an SSQL step costs two), three seeds.
# Needs `ssql` on the PATH and data/cifar10. EPOCHS (of SSQL) and SEEDS may be set. Both methods of a seed share the GPU.
set -euo pipefail
pretrain="ssql pretrain --config experiments/vision/resnet18_ssql_cifar10_full.yaml"
runs=runs/cifar10_full
epochs=${EPOCHS:-16}
seeds=${SEEDS:-0 1 2}

for seed in $seeds; do
  all="--seed_everything $seed --model.seed $seed --data.seed $seed"
  $pretrain $all --output $runs/ssql-$seed --trainer.max_epochs $epochs &
  $pretrain $all --output $runs/simsiam-$seed --model.ssql false --trainer.max_epochs $((2 * epochs)) &
  wait -n && wait -n
  ssql evaluate --config experiments/vision/evaluate_cifar10_full.yaml --output $runs/seed-$seed --encoders "{
    \"SSQL\": \"$runs/ssql-$seed/encoder\", \"SimSiam\": \"$runs/simsiam-$seed/encoder\"}" &
done
wait
rows=$(for seed in $seeds; do echo "$runs/seed-$seed/accuracy.json"; done | paste -sd,)
ssql compare --output $runs/all --rows "[$rows]"
