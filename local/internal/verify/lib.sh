# What lines of scripts and controls may call; the names are filled in.

# restarted NS… restarts all that runs in namespaces and waits until nothing of before is left.
restarted() {
  local n
  for n in "$@"; do oc -n $n rollout restart deploy >/dev/null || return; done
  settled "$@"
}

# settled NS… waits until each Deployment of namespaces is as it should be and its former pods are gone.
settled() {
  local n d
  for n in "$@"; do
    for d in $(oc -n $n get deploy -o name); do oc -n $n rollout status $d --timeout=90s || return; done
    until [ $(oc -n $n get pods --no-headers | wc -l) = $(oc -n $n get deploy --no-headers | wc -l) ]; do sleep 0.2; done
  done
}

# typed TEXT COMMAND… runs a command on a terminal, on which TEXT is typed.
typed() { script --quiet --return --command "${*:2}" /dev/null <<<"$1"; }

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

# busy SECONDS leaves the rest of the machine half of its processors' time until `idle`, for so long at most, and no longer than
# the run: with that $W goes. `idle` fails if it was not busy to its end.
busy() {
  local i
  : >$W/busy
  for i in $(seq $(nproc)); do
    { timeout $1 sh -c "while [ -e $W/busy ]; do :; done" || rm -f $W/busy; } </dev/null >/dev/null 2>&1 &
  done
}
idle() { rm $W/busy; }

# forms NS… prints by which form of ADS each sidecar of namespaces takes its configuration.
forms() {
  local n p
  for n in "$@"; do
    for p in $(oc -n $n get pods -o name); do
      oc -n $n exec $p -c istio-proxy -- pilot-agent request GET config_dump | grep '"api_type"' | head -1
    done
  done
}

# asked SINCE prints who of planes, operator and workloads asked the API server for what since a time (RFC 3339), but for
# watches, which last, and leases.
asked() {
  heddle-local logs audit |
    awk -v since="$1" 'match($0, /"requestReceivedTimestamp":"[^"]*"/) && substr($0, RSTART+28, RLENGTH-29) > since' |
    grep -E '"username":"system:serviceaccount:({{.Sys1}}|{{.Sys2}}|heddle-system|{{.App1}}|{{.App2}}|{{.App3}}):' |
    grep -v -e '"verb":"watch"' -e '"resource":"leases"' |
    sed -E 's/.*"requestURI":"([^"]*)","verb":"([^"]*)","user":\{"username":"([^"]*)".*/\3 \2 \1/'
  echo since "$1"
}

# responses prints how many discovery responses each plane has sent.
responses() {
  local n
  for n in {{.Sys1}} {{.Sys2}}; do
    oc get --raw /api/v1/namespaces/$n/pods/$(oc -n $n get pod -l app=istiod -o 'jsonpath={.items[0].metadata.name}'):15014/proxy/metrics | grep ^heddle_xds_responses_total
  done
}

# resident prints the resident memory of each plane and agent, in MB.
resident() {
  local n a
  for n in {{.Sys1}} {{.Sys2}}; do echo "plane $n $(rss $(pid heddle $n istiod))"; done
  for n in {{.App1}} {{.App2}} {{.App3}}; do
    for a in {{.Sleep}} {{.Httpbin}}; do echo "agent $n/$a $(rss $(pid heddle-node $n $a))"; done
  done
}
rss() { awk '/^VmRSS|^RssAnon/ { printf "%s %.1f MB ", $1, $2 / 1024 }' /proc/$1/status; }

# shuffled FILE SEED runs the lines of a file in a random order, refused ones again and again, and kills the API
# server in the middle of it. It prints the lines as they succeed.
shuffled() {
  local lines line left done=0 half
  mapfile -t lines < <(grep . $1 | shuf --random-source=<(yes $2))
  half=$((${#lines[@]} / 2))
  for _ in $(seq 60); do
    left=()
    for line in "${lines[@]}"; do
      if said=$(eval "$line" 2>&1); then
        echo "$line" | cut -c-100
        [ $((++done)) = $half ] && kill -9 $(heddle-local status | awk '$1 == "kube-apiserver" { print $3 }') && echo "-- the API server is killed"
      else
        echo "refused: $(echo "$said" | tail -1 | cut -c-200)"
        left+=("$line")
      fi
    done
    lines=("${left[@]}")
    [ ${#lines[@]} = 0 ] && return
    sleep 1
  done
  return 1
}
