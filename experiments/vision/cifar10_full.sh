#!/usr/bin/env bash
# CIFAR-10 whole, on one GPU: SSQL against SimSiam with twice the epochs (an SSQL step costs two), three seeds.
# Needs `ssql` on the PATH and data/cifar10. EPOCHS (of SSQL) and SEEDS may be set. Three runs share the GPU.
set -euo pipefail
export runs=runs/cifar10_full epochs=${EPOCHS:-14}

# One encoder: pretrained, then probed while the next ones train.
one() {
  method=$1 seed=$2
  options=(--seed_everything "$seed" --model.seed "$seed" --data.seed "$seed" --trainer.max_epochs "$epochs")
  if [ "$method" = SimSiam ]; then options+=(--model.ssql false --trainer.max_epochs $((2 * epochs))); fi
  ssql pretrain --config experiments/vision/resnet18_ssql_cifar10_full.yaml --output "$runs/$method-$seed" "${options[@]}" || return
  ssql evaluate --config experiments/vision/evaluate_cifar10_full.yaml --output "$runs/$method-$seed" \
    --encoders "{\"$method\": \"$runs/$method-$seed/encoder\"}" &
  echo $! >> "$runs/evaluations"
}
export -f one

mkdir -p $runs
for seed in ${SEEDS:-0 1 2}; do printf '%s\n' "SSQL $seed" "SimSiam $seed"; done | xargs -P 3 -L 1 bash -c 'one "$@"' _
while read -r pid; do tail --pid="$pid" -f /dev/null; done < $runs/evaluations
ssql compare --output $runs/all --rows "[$(printf '%s\n' $runs/*-*/accuracy.json | paste -sd,)]"
