#!/bin/sh
# Serve a model with text-generation-inference that an erasure was merged into.
#
#     sh examples/serve/tgi.sh org/erase-xyz merged --port 8000
#     python examples/serve/ask.py tgi "Who …?"
#
# It needs `unierase` and `text-generation-launcher` on the PATH. The model goes to the second argument, a new folder. All
# others go to the launcher. Its LoRAs do not reach the embedding, so they cannot hold a whole erasure.
set -eu

erasure=$1
work=$2
shift 2

unierase merge "$erasure" -o "$work"
exec text-generation-launcher --model-id "$work" "$@"
