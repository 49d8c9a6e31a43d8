#!/usr/bin/env bash
# End-to-end tests, on local clusters of the instance `test`, which is made for them and taken away by who calls this.
# Each walkthrough begins on an empty cluster: booting one takes seconds and is surer than cleaning one.
set -euo pipefail
cd "$(dirname "$0")/.."
export HEDDLE_INSTANCE=test

local() { bin/heddle-local "$@"; }
fresh() { local down && local up --nodes 1; }
step() { printf '\n== %s (%(%H:%M:%S)T)\n' "$1" -1; }

step "the local cluster itself: boot, kill, repair, take away"
(cd local && CGO_ENABLED=0 go test -trimpath -tags e2e,grpcnotrace -count=1 ./e2e) # as it is built: another form compiles Kubernetes once more

step "parts, with real Envoys, network namespaces and an API server"
local down && local up --nodes 0 --controllers
HEDDLE_ENVOY="$(go -C local run ./cmd/image -envoy)" KUBECONFIG="$(local kubeconfig)" go test -tags e2e -count=1 -p 1 ./...

step "where nothing was done every row of every script is red"
fresh
local verify --all-red

step "S1, with its clean-up"
local verify s1

step "S0, as its document has it"
fresh
local verify s0

step "status is true"
local verify status

step "what nothing to do costs"
local verify idle

step "negative controls"
local verify controls

step "a plane held away under traffic"
local verify faults

step "any order, and an API server that dies, come out as a fresh install"
fresh
local verify order

step "the documents' other items"
fresh
local verify s0
local verify items

step "the rows of S0 with state-of-the-world discovery"
fresh
local verify s0
local verify sotw

step "a default plane, alone on its cluster"
fresh
local verify default

step "S0 with names that no document uses, and selectors in other forms"
fresh
local verify s0 --random --selectors expressions
fresh
local verify s0 --random --selectors two

step "S1 with names that no document uses"
fresh
local verify s1 --random --document s1
