#!/bin/sh
# Starts Triton on the model repository at TRITON_MODELS, with its control protocols closed.
#
# Loading models, shared memory, tracing and the log's settings need TRITON_CONTROL_KEY in a header; where none is given, one
# is drawn that nobody knows. Left open over gRPC: inference, health, metadata, and the model's configuration, by which a
# gateway tells what it speaks to. Over HTTP: health alone, for probes. Arguments are added to Triton's.
set -eu

models=${TRITON_MODELS:-/models}
set -- --load-model=listing_vision "$@"
# A canary and a shadow may lie beside the model that most are answered by.
for name in listing_vision_canary listing_vision_shadow; do
    if [ -d "$models/$name" ]; then set -- --load-model="$name" "$@"; fi
done
# What a bundle calls fp32 is computed in fp32: TensorRT and CUDA's libraries else round products to TF32, of ten bits, on most
# cards. For speed there are bundles in fp16, judged and certified as such.
export NVIDIA_TF32_OVERRIDE="${NVIDIA_TF32_OVERRIDE:-0}"
key=${TRITON_CONTROL_KEY:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
control=model-repository,shared-memory,trace,logging,statistics

exec tritonserver \
    --model-repository="$models" \
    --model-control-mode=explicit \
    --disable-auto-complete-config \
    --grpc-restricted-protocol="$control:listing-vision-control=$key" \
    --http-restricted-api="$control,inference,metadata,model-config:listing-vision-control=$key" \
    --grpc-max-connection-age="${TRITON_CONNECTION_AGE_S:-300}" \
    --grpc-max-connection-age-grace=30 \
    --exit-timeout-secs=30 \
    "$@"
