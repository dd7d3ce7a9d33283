#!/bin/sh
# Serve an erasure with llama.cpp, as a LoRA that each request can switch off.
#
#     LLAMA_CPP=llama.cpp sh examples/serve/llama_cpp.sh org/erase-xyz served
#     python examples/serve/ask.py - "Who …?" --url http://127.0.0.1:8080/v1 --lora-scale 1
#
# It needs `unierase`, `llama-server` on the PATH, and in LLAMA_CPP a checkout of llama.cpp, whose converters need its
# requirements.txt. What is converted goes to the second argument, a new folder. All others go to llama-server.
set -eu

erasure=$1
work=$2
shift 2

# The base, with a head of its own, and the LoRA that fits it. llama.cpp has no LoRA for a tied embedding and head.
unierase export "$erasure" --with-base -o "$work"
python "$LLAMA_CPP/convert_hf_to_gguf.py" "$work/base" --outtype auto --outfile "$work/base.gguf"
python "$LLAMA_CPP/convert_lora_to_gguf.py" --base "$work/base" "$work" --outtype f32 --outfile "$work/erasure.gguf"

# The prompt cache does not know which LoRA its entries were computed with. With it, requests that switch the LoRA get
# answers of the other state.
exec llama-server -m "$work/base.gguf" --lora "$work/erasure.gguf" --no-cache-prompt "$@"
