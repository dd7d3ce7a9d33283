#!/bin/sh
# Serve an erasure with vLLM, as a LoRA. Requests for the model `erased` get it, those for `base` do not.
#
#     sh examples/serve/vllm.sh org/model org/erase-xyz served
#     python examples/serve/ask.py erased "Who …?"
#
# It needs `unierase` and `vllm` on the PATH. The LoRA goes to the third argument, a new folder. All others go to vLLM.
set -eu

base=$1
erasure=$2
work=$3
shift 3

unierase export "$erasure" --base "$base" --layout L -o "$work"

# A LoRA's rank must not be above --max-lora-rank. One place for LoRAs stays empty: on the CPU, requests without a LoRA
# use the last one.
exec vllm serve "$base" --served-model-name base --tokenizer "$work" \
    --enable-lora --lora-modules "erased=$work" --max-lora-rank 64 --max-loras 2 "$@"
