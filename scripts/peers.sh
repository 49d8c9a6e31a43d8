#!/usr/bin/env bash
# Builds the unmodified Istio tools that peers/ pins into bin/peer/; minutes the first time, seconds after that.
set -euo pipefail
cd "$(dirname "$0")/../peers"

version=1.29.1 # of the commit that go.mod names
pkg=istio.io/istio/pkg/version
mkdir -p ../bin/peer
CGO_ENABLED=0 go build -mod=readonly -trimpath \
  -ldflags "-s -w -X $pkg.buildVersion=$version -X $pkg.buildStatus=Clean" \
  -o ../bin/peer/istioctl istio.io/istio/istioctl/cmd/istioctl
