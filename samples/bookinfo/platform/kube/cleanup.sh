#!/usr/bin/env bash
# Takes bookinfo out of $NAMESPACE, and every route, rule, gateway and authorization policy with it.
set -euo pipefail
cd "$(dirname "$0")"
if [[ -z ${NAMESPACE:-} && -t 0 ]]; then read -rp 'namespace ? [default] ' NAMESPACE; fi
NAMESPACE=${NAMESPACE:-default}
echo "using NAMESPACE=$NAMESPACE"

kinds=(destinationrules virtualservices gateways.networking.istio.io authorizationpolicies)
if kubectl get crd gateways.gateway.networking.k8s.io >/dev/null 2>&1; then
  kinds+=(httproutes gateways.gateway.networking.k8s.io)
fi
for kind in "${kinds[@]}"; do kubectl delete -n "$NAMESPACE" "$kind" --all; done
kubectl delete -n "$NAMESPACE" --ignore-not-found --wait -f bookinfo-versions.yaml -f bookinfo.yaml
echo "Application cleanup successful"
