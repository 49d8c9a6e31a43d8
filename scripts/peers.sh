#!/usr/bin/env bash
# Builds unmodified Istio programs that peers/ pins into bin/peer/: those named, or the one that tests need. Minutes the first
# time, seconds after that.
set -euo pipefail
cd "$(dirname "$0")/../peers"

version=1.29.1 # of the commit that go.mod names
pkg=istio.io/istio/pkg/version
mkdir -p ../bin/peer

build() { # PROGRAM PACKAGE [TAGS]
  CGO_ENABLED=0 go build -mod=readonly -trimpath -tags "${3:-}" \
    -ldflags "-s -w -X $pkg.buildVersion=$version -X $pkg.buildStatus=Clean" -o "../bin/peer/$1" "istio.io/istio/$2"
}

for program in "${@:-istioctl}"; do
  case $program in
  istioctl) build istioctl istioctl/cmd/istioctl ;;
  # With the tags of Istio's own releases: without vtprotobuf it is slower than what its users run.
  pilot-discovery) build pilot-discovery pilot/cmd/pilot-discovery vtprotobuf,disable_pgv ;;
  *) echo "peers.sh: no program $program; there are istioctl and pilot-discovery" >&2 && exit 1 ;;
  esac
done
