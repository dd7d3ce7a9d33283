#!/bin/sh
# Serve a model with llama.cpp that an erasure was merged into. Nothing switches it off, and any base works.
#
#     LLAMA_CPP=llama.cpp sh examples/serve/llama_cpp_merged.sh org/erase-xyz merged
#     python examples/serve/ask.py - "Who …?" --url http://127.0.0.1:8080/v1
#
# It needs what llama_cpp.sh needs.
set -eu

erasure=$1
work=$2
shift 2

unierase merge "$erasure" -o "$work"
python "$LLAMA_CPP/convert_hf_to_gguf.py" "$work" --outtype auto --outfile "$work.gguf"
exec llama-server -m "$work.gguf" "$@"
