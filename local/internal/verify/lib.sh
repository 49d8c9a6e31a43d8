# What lines of scripts and controls may call; the names are filled in.

# restarted NS… restarts all that runs in namespaces and waits until nothing of before is left.
restarted() {
  local n d
  for n in "$@"; do oc -n $n rollout restart deploy >/dev/null || return; done
  for n in "$@"; do
    for d in $(oc -n $n get deploy -o name); do oc -n $n rollout status $d --timeout=90s || return; done
    until [ $(oc -n $n get pods --no-headers | wc -l) = $(oc -n $n get deploy --no-headers | wc -l) ]; do sleep 0.2; done
  done
}

# root prints whom the second mesh trusts.
root() { oc -n {{.App2}} get cm istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}'; }

# pid PROGRAM NS APP prints the process of a program in the only pod of an app: those of all nodes are this machine's.
pid() {
  local p ip
  ip=$(oc -n $2 get pod -l app=$3 -o jsonpath='{.items[0].status.podIP}')
  [ -n "$ip" ] || return
  for p in $(pgrep -x $1); do
    if nsenter -t $p -n ip -o -4 addr show eth0 2>/dev/null | grep -qF " $ip/"; then echo $p; return; fi
  done
  echo "no $1 in the pod of $3 in $2" >&2
  return 1
}

# forms NS… prints by which form of ADS each sidecar of namespaces takes its configuration.
forms() {
  local n p
  for n in "$@"; do
    for p in $(oc -n $n get pods -o name); do
      oc -n $n exec $p -c istio-proxy -- pilot-agent request GET config_dump | grep '"api_type"' | head -1
    done
  done
}
