#!/usr/bin/env bash
# Measures Heddle beside an unmodified istiod, on a local cluster of the instance `bench`, which is made for it and taken away
# at the end, and writes docs/bench-istiod.md. Arguments go to bin/bench: --help lists sizes. Wants a machine that does nothing
# else: both planes, the API server and 500 clients share its processors.
set -euo pipefail
cd "$(dirname "$0")/.."
export HEDDLE_INSTANCE=bench

local() { bin/heddle-local "$@"; }
kubectl() { bin/kubectl "$@"; }
step() { printf '\n== %s (%(%H:%M:%S)T)\n' "$1" -1; }
trap '[ -n "${KEEP:-}" ] || local down' EXIT # KEEP=1 leaves it, to look at what went wrong

step "istiod, its istioctl, and the load"
scripts/peers.sh istioctl pilot-discovery
(cd local && CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -o ../bin/bench ./cmd/bench) # as heddle-local is built: another form compiles client-go once more

step "a cluster"
local down && local up --nodes 1
local load istiod
KUBECONFIG="$(local kubeconfig)" && export KUBECONFIG

step "Heddle"
bin/heddle install operator
kubectl create namespace istio-bench
kubectl apply -f - <<YAML
apiVersion: sailoperator.io/v1
kind: Istio
metadata: {name: bench}
spec:
  namespace: istio-bench
  values:
    meshConfig:
      discoverySelectors:
      - matchLabels: {istio-discovery: bench}
YAML
kubectl wait istio/bench --for=condition=Ready --timeout=2m

step "istiod"
kubectl create namespace istio-peer
bin/peer/istioctl manifest generate -f peers/istiod.yaml | kubectl apply -f -
kubectl -n istio-peer rollout status deployment/istiod-peer --timeout=2m

step "measuring"
model="$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)"
bin/bench -kubeconfig "$KUBECONFIG" -heddle istio-bench/bench -istiod istio-peer/peer -o docs/bench-istiod.md \
  -about "Of Heddle $(git describe --always --dirty) and istiod $(bin/peer/pilot-discovery version -s 2>/dev/null | sed "s,.*: ,,"), on $(nproc) cores ($model), on $(date -u +%F)." "$@"
