#!/usr/bin/env bash
# Prints the manifest of a helloworld of any version: gen-helloworld.sh --version v3 | kubectl apply -f -
set -euo pipefail

usage() {
  echo "USAGE: ./gen-helloworld.sh [--version v1] [--includeService true] [--includeDeployment true]"
  echo "    --version: what the server says of itself, and its label"
  echo "    --includeService, --includeDeployment: whether each is printed"
}

version=${SERVICE_VERSION:-v1} service=${INCLUDE_SERVICE:-true} deployment=${INCLUDE_DEPLOYMENT:-true}
while (($#)); do
  case $1 in
  -h | --help) usage && exit ;;
  --version | --includeService | --includeDeployment)
    if (($# < 2)); then
      echo "Error: $1 wants a value" >&2
      exit 1
    fi
    case $1 in
    --version) version=$2 ;;
    --includeService) service=$2 ;;
    --includeDeployment) deployment=$2 ;;
    esac
    shift 2
    ;;
  *)
    echo "Error: Unsupported flag $1" >&2
    usage >&2
    exit 1
    ;;
  esac
done

[[ $service != true ]] || cat <<YAML
apiVersion: v1
kind: Service
metadata:
  name: helloworld
  labels:
    app: helloworld
    service: helloworld
spec:
  ports:
  - name: http
    port: 5000
  selector:
    app: helloworld
YAML
[[ $service != true || $deployment != true ]] || echo ---
[[ $deployment != true ]] || cat <<YAML
apiVersion: apps/v1
kind: Deployment
metadata:
  name: helloworld-$version
  labels:
    app: helloworld
    version: $version
spec:
  replicas: 1
  selector:
    matchLabels:
      app: helloworld
      version: $version
  template:
    metadata:
      labels:
        app: helloworld
        version: $version
    spec:
      containers:
      - name: helloworld
        image: docker.io/istio/examples-helloworld-v1
        imagePullPolicy: IfNotPresent
        env:
        - name: SERVICE_VERSION
          value: $version
        ports:
        - containerPort: 5000
        resources:
          requests:
            cpu: 100m
YAML
