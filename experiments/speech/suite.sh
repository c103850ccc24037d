#!/usr/bin/env bash
# Every number of suite.md. Needs `ssql` on the PATH, the encoders of fsdd.sh, and recordings as suite.md says: parts
# without them are left out.
set -euo pipefail
fsdd=runs/fsdd runs=runs/suite
bits="[fp, w8a8, w4a8, w4a4, w3a3, w2a4]"

rows=()
for seed in ${SEEDS:-0 1 2}; do
  ssql suite --config experiments/speech/suite.yaml --parts '[fsdd, prompts, prosody]' --output $runs/seed-$seed --encoders "{
    \"SSQL\": \"$fsdd/shift-$seed/encoder\", \"SimSiam\": \"$fsdd/simsiam-$seed/encoder\"}"
  rows+=("$runs/seed-$seed/suite.json")
  # Recognizers of digits as characters, trained at full precision, quantized afterwards.
  for start in "SSQL=shift" "SimSiam=simsiam"; do
    name=${start%=*}
    ssql finetune --config experiments/speech/finetune_text_w4a8_fsdd.yaml --bit_width fp --name $name \
      --model.precision.policy.shift true --model.precision.test_at "$bits" --data.batch_size 16 --trainer.max_epochs 12 \
      --seed_everything $seed --model.seed $seed --data.seed $seed \
      --encoder $fsdd/${start#*=}-$seed/encoder --output $runs/text-$name-$seed
    rows+=("$runs/text-$name-$seed/results.json")
  done
done
# The tables, mean and deviation of the seeds.
ssql suite --parts '[]' --encoders '{}' --output $runs/all --overwrite true --rows "[$(IFS=,; echo "${rows[*]}")]"

# Seed 0 as one page, and the page as docs/report.png.
ssql report --runs "[$runs/seed-0, $fsdd/shift-0, $fsdd/simsiam-0]" --output $runs/report.html --overwrite true \
  --data AudioFolder --data.root data/fsdd/recordings --data.labels null
chromium --headless --disable-gpu --hide-scrollbars --window-size=1280,1420 \
  --screenshot=docs/report.png "file://$PWD/$runs/report.html"
