#!/usr/bin/env bash
# Every mode of fine-tuning on real recordings and on the embedded default, exported with its head: the last tables of
# finetune.md. Needs `ssql` on the PATH, data/fsdd/recordings, and the encoders of fsdd.sh and `make quickstart`.
# RECIPES chooses: "fsdd", "words" or both.
set -euo pipefail
runs=runs/finetune/modes
fsdd="--data AudioFolder --data.root data/fsdd/recordings --data.labels (?P<digit>\d)_(?P<speaker>[a-z]+)_
  --data.test_pattern _[0-4]\.wav$"

for recipe in ${RECIPES:-fsdd words}; do
  for file in experiments/speech/finetune_*_"$recipe".yaml; do
    name=$(basename "$file" .yaml)
    # The bit-width of the run; full precision, adapters and random bits are exported at another than they end with.
    case $name in
      *_w4a4_*) bits=w4a4 ;;
      *_fp_* | *_int8_* | *_nf4_*) bits=w8a8 ;;
      *) bits=w4a8 ;;
    esac
    [ -f "$runs/$name/results.json" ] || ssql finetune --config "$file" --output "$runs/$name" --overwrite true
    case $recipe in
      fsdd) data=$fsdd ;;
      words) data="--data SpokenWords" ;;
    esac
    case $name in
      *_prosody_*) data= task= ;; # numbers: the head's outputs are compared on their own
      *_text_*_fsdd) data="$data --data.texts.task digit --data.texts.words {\"0\":zero,\"1\":one,\"2\":two,\"3\":three,\"4\":four,\"5\":five,\"6\":six,\"7\":seven,\"8\":eight,\"9\":nine}" task="--task text" ;;
      *_text_*) task="--task text" ;;
      *_word_*) task="--task word" ;;
      *) task="--task digit" ;;
    esac
    # shellcheck disable=SC2086
    ssql export --encoder "$runs/$name/model" --output "$runs/$name/onnx" --bit_width $bits --overwrite true $data $task
  done
done
python experiments/speech/finetune_modes.py $runs
