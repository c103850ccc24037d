#!/usr/bin/env bash
# Every number of cifar10.md: about half an hour on 2 cores. Needs `ssql` on the PATH and data/cifar10.
set -euo pipefail
pretrain="ssql pretrain --config experiments/vision/resnet18_ssql_cifar10.yaml"
runs=runs/cifar10

$pretrain --output $runs/ssql
$pretrain --output $runs/simsiam --model.ssql false --trainer.max_epochs 8
ssql evaluate --config experiments/vision/evaluate_cifar10.yaml --output $runs \
  --encoders "{\"SSQL\": \"$runs/ssql/encoder\", \"SimSiam\": \"$runs/simsiam/encoder\"}"
