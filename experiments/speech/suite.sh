#!/usr/bin/env bash
# Every number of suite.md. Needs `ssql` on the PATH; recordings as suite.md says, parts without them are left out.
set -euo pipefail
runs=runs/suite
pretrain="ssql pretrain --config experiments/speech/transformer_ssql_words.yaml"

# An SSQL step costs two SimSiam steps: SimSiam trains twice the epochs.
$pretrain --output $runs/ssql
$pretrain --output $runs/simsiam --model.ssql false --trainer.max_epochs 12
ssql suite --config experiments/speech/suite.yaml --output $runs --encoders "{
  \"SSQL\": \"$runs/ssql/encoder\", \"SimSiam\": \"$runs/simsiam/encoder\"}"

# All of it as one page, and the page as docs/report.png.
ssql report --runs "[$runs, $runs/ssql, $runs/simsiam]" --data SpokenWords --output $runs/report.html
chromium --headless --disable-gpu --hide-scrollbars --window-size=1280,1420 \
  --screenshot=docs/report.png "file://$PWD/$runs/report.html"
