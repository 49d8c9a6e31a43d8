# Two commands are enough: `make demo` to see Heddle work, `make test` to prove it.
# Both want Debian 12 on amd64, root, Go and make; everything else is installed by scripts/deps.sh.

VERSION   := $(shell sed -n 's/^version: *//p' local/images.yaml)
# grpcnotrace leaves golang.org/x/net/trace out of every binary, and with it html/template: 3 MB of each process.
GO_FLAGS  := -trimpath -tags grpcnotrace
GO_BUILD  := CGO_ENABLED=0 go build $(GO_FLAGS)
LDFLAGS   := -s -w -X github.com/heddle-mesh/heddle/internal/obs.Version=$(VERSION)
KUBE      := v1.35.4
KUBE_PKG  := k8s.io/component-base/version
KUBE_LD   := -X $(KUBE_PKG).gitVersion=$(KUBE) -X $(KUBE_PKG).gitMajor=1 -X $(KUBE_PKG).gitMinor=35 \
             -X $(KUBE_PKG).gitTreeState=clean -X $(KUBE_PKG).gitCommit=unknown -X $(KUBE_PKG).buildDate=1970-01-01T00:00:00Z
TOOL      := go tool -modfile=tools/go.mod
INSTANCE  ?= demo

.PHONY: all deps build demo down test unit lint fmt fuzz generate e2e bench-istiod peers dev clean

all: build

deps: ## install the Debian packages that Heddle's local cluster and tests need
	@scripts/deps.sh

build: bin/heddle-local ## bin/heddle, bin/heddle-node, bin/heddle-local and the names they also answer to
	@mkdir -p bin
	$(GO_BUILD) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/heddle ./cmd/heddle-node
	@ln -sf heddle bin/istioctl
	@ln -sf heddle-local bin/oc && ln -sf heddle-local bin/kubectl

.PHONY: bin/heddle-local
bin/heddle-local: # the first build compiles Kubernetes: about five minutes on two cores, seconds after that
	@mkdir -p bin
	@echo "building heddle-local (a whole Kubernetes; some minutes the first time)"
	cd local && $(GO_BUILD) -ldflags '$(LDFLAGS) $(KUBE_LD)' -o ../bin/heddle-local ./cmd/heddle-local

demo: deps build ## two meshes on one machine: boots a cluster, runs the walkthrough, leaves it running
	bin/heddle-local up --instance demo
	bin/heddle-local verify s0 --instance demo
	@cat docs/next-steps.txt

down: ## take everything of `make demo` away again; the download and build cache stays
	bin/heddle-local down --instance demo

test: deps build lint unit fuzz e2e ## everything, the end-to-end tests on a real local cluster

unit: ## no root, no cluster, at most three minutes warm; every rendered message is loaded by the pinned Envoy
	HEDDLE_ENVOY=$$(go -C local run ./cmd/image -envoy) go test -race ./...
	cd local && CGO_ENABLED=0 go test $(GO_FLAGS) ./... # as it is built: another form compiles Kubernetes once more

fuzz: ## ten seconds for everything that parses
	scripts/fuzz.sh

generate: ## deep copies, our CRDs, and Istio's CRDs from the pinned istio.io/api
	go generate ./...

lint: ## formatting, vet, staticcheck, and whether what is generated is up to date
	@test -z "$$($(TOOL) gofumpt -l cmd internal api samples local/cmd local/internal 2>/dev/null | tee /dev/stderr)" || { echo "run: make fmt"; exit 1; }
	go vet -tags e2e ./...
	$(TOOL) staticcheck -tags e2e ./...
	@go generate ./... && git diff --exit-code --stat -- api internal/operator/crds || { echo "generated files were stale; commit what make generate wrote"; exit 1; }

fmt:
	$(TOOL) gofumpt -w cmd internal api samples local/cmd local/internal

e2e: build peers ## needs root: network namespaces, Envoy, a cluster of the instance `test`
	scripts/e2e.sh

dev: build ## after a change: new images, new operator, new control planes, and their logs
	bin/heddle-local load --instance $(INSTANCE)
	KUBECONFIG=$$(bin/heddle-local kubeconfig --instance $(INSTANCE)) bin/heddle install operator
	bin/heddle-local kubectl --instance $(INSTANCE) logs -A -l app=istiod -f --prefix --tail=20

bench-istiod: deps build ## Heddle and an unmodified istiod side by side, on a cluster of its own: about 15 minutes; writes docs/bench-istiod.md
	scripts/bench-istiod.sh $(BENCH_FLAGS)

peers: ## unmodified Istio tools, built for tests and comparisons only
	@scripts/peers.sh

clean:
	rm -rf bin
