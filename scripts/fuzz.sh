#!/usr/bin/env bash
# Runs every fuzz target of the main module for a while (default 10 s each). A found input is written beside its test: commit it.
set -euo pipefail
cd "$(dirname "$0")/.."
for file in $(grep -rl '^func Fuzz' --include='*_test.go' internal); do
  for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
    go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-10s}" "./$(dirname "$file")"
  done
done
