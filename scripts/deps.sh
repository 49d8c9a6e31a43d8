#!/usr/bin/env bash
# Installs the Debian packages that the local cluster, the images and the tests need. Idempotent; does nothing when all are there.
set -euo pipefail

packages=(containerd runc containernetworking-plugins nftables iproute2 gcc libc6-dev python3-pip ca-certificates)

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
if [ "$(id -u)" -ne 0 ]; then
  echo "these Debian packages are missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Services must not start by themselves: each node of the local cluster runs its own containerd.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.heddle && chmod +x /usr/sbin/policy-rc.d.heddle
if [ ! -e /usr/sbin/policy-rc.d ]; then
  ln -s policy-rc.d.heddle /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d /usr/sbin/policy-rc.d.heddle' EXIT
else
  trap 'rm -f /usr/sbin/policy-rc.d.heddle' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
