#!/bin/sh
# Starts Triton on the model repository at TRITON_MODELS, with its control protocols closed.
#
# Loading models, shared memory, tracing and log settings need TRITON_CONTROL_KEY in a header; by default it is a random secret.
# Open over gRPC: inference, health, metadata, and the model's configuration, by which a gateway recognises the model. Open over
# HTTP: health alone, for probes. Arguments are passed to Triton.
#
# TRITON_KEY_FILE: a file of a line NAME=VALUE, a key that inference and model configuration need too (`serve --triton-key-file`).
# TRITON_TLS_CERTIFICATE, TRITON_TLS_KEY: PEM files for TLS over gRPC (`serve --triton-ca`). Probes then need HTTP.
set -eu

models=${TRITON_MODELS:-/models}
set -- --load-model=listing_vision "$@"
# The repository may also contain a canary and a shadow.
for name in listing_vision_canary listing_vision_shadow; do
    if [ -d "$models/$name" ]; then set -- --load-model="$name" "$@"; fi
done
# Compute fp32 in fp32: by default TensorRT and CUDA's libraries round products to TF32, of ten bits, on most GPUs. For speed,
# convert the bundle to fp16, which is evaluated and certified as such.
export NVIDIA_TF32_OVERRIDE="${NVIDIA_TF32_OVERRIDE:-0}"
key=${TRITON_CONTROL_KEY:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}
control=model-repository,shared-memory,trace,logging,statistics
if [ -n "${TRITON_KEY_FILE:-}" ]; then
    set -- --grpc-restricted-protocol="inference,metadata,model-config:$(cat "$TRITON_KEY_FILE")" "$@"
fi
if [ -n "${TRITON_TLS_CERTIFICATE:-}" ]; then
    set -- --grpc-use-ssl=true --grpc-server-cert="$TRITON_TLS_CERTIFICATE" --grpc-server-key="$TRITON_TLS_KEY" "$@"
fi

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
