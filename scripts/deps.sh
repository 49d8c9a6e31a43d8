#!/usr/bin/env bash
# Installs the Debian packages that the local cluster, the images and the tests need. Idempotent; does nothing when all are there.
# A package that another one provides is there too: Docker's containerd.io is containerd and runc, and conflicts with Debian's.
# No package is ever removed: where apt could go on only so, nothing is installed and it is said why.
#
#   deps.sh            install what is missing
#   deps.sh --dry-run  say what would be installed; needs no root
set -euo pipefail

packages=(containerd runc containernetworking-plugins nftables iproute2 gcc libc6-dev python3-pip ca-certificates)

dry=
case "$*" in
  '') ;;
  --dry-run) dry=yes ;;
  *) echo "usage: deps.sh [--dry-run]" >&2; exit 2 ;;
esac

# Installed packages by every name that they answer to, one "name package" a line.
there=$(dpkg-query -W -f='${db:Status-Status}|${Package}|${Provides}\n' | awk -F'|' '
  $1 == "installed" {
    print $2, $2
    gsub(/\([^)]*\)/, "", $3)
    n = split($3, names, /[ ,]+/)
    for (i = 1; i <= n; i++) if (names[i] != "") print names[i], $2
  }')
missing=()
for p in "${packages[@]}"; do
  by=$(awk -v p="$p" '$1 == p && $2 == p { real = 1 } $1 == p { by = $2 } END { print real ? p : by }' <<< "$there")
  if [ -z "$by" ]; then
    missing+=("$p")
  elif [ "$by" != "$p" ]; then
    echo "using $by, which is installed, for $p"
  fi
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

install=(apt-get install -y -qq --no-install-recommends --no-remove)
# What cannot be done is said before anything is done.
blocked() {
  cat >&2 <<TEXT
nothing was installed: apt cannot install ${missing[*]} without removing packages of this machine, or not at all:
$1
See what stands in the way: apt-get -s install --no-install-recommends ${missing[*]}
TEXT
  exit 1
}
if [ -n "$dry" ]; then
  out=$("${install[@]}" -s "${missing[@]}" 2>&1) || blocked "$out"
  echo "would install ${missing[*]} and what they depend on:"
  grep -E '^(Inst|Remv) ' <<< "$out" || true
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "these Debian packages are missing: ${missing[*]}; run as root: apt-get install --no-remove ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
out=$("${install[@]}" -s "${missing[@]}" 2>&1) || blocked "$out"
echo "installing ${missing[*]}"
# Services must not start by themselves: each node of the local cluster runs its own containerd.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.heddle && chmod +x /usr/sbin/policy-rc.d.heddle
if [ ! -e /usr/sbin/policy-rc.d ]; then
  ln -s policy-rc.d.heddle /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d /usr/sbin/policy-rc.d.heddle' EXIT
else
  trap 'rm -f /usr/sbin/policy-rc.d.heddle' EXIT
fi
"${install[@]}" "${missing[@]}" > /dev/null
