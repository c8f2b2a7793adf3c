# Targets are described by what follows "##". They call plain go: nothing here is needed to work on the code.

.DEFAULT_GOAL := help
.PHONY: help build test fuzz worlds mutants lint govulncheck e2e test-observe test-failover test-takeover test-large test-ship bench bench-compare bench-memory bench-overhead sizing soak reach torture demo demo-picture image image-demo push-image push-chart test-matrix test-containers dashboards shipped snapshot reproducible clean

E2E      := ./test/e2e
FUZZTIME ?= 20s
DURATION ?= 10m
VERSIONS ?= 14 16 17 18
SINKS    ?= kafka
AWAY     ?= 10m
LASTS    ?= 20m
KILLS    ?= 1000
CRASHES  ?= 100
LOSSES   ?= 20
PAIRS    ?= 5
GORELEASER ?= go tool -modfile=tools/goreleaser/go.mod goreleaser

# What "outbox-cdc version" says. Without a tag, the Go command makes the version of the commit.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell TZ=UTC git show -s --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ HEAD 2>/dev/null)
BUILD   := github.com/pyairtable-compose/outbox-cdc/internal/buildinfo
LDFLAGS  = -s -w -X $(BUILD).version=$(VERSION) -X $(BUILD).commit=$(COMMIT) -X $(BUILD).date=$(DATE)

GO_TEST := go test -race -shuffle=on

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/outbox-cdc
	CGO_ENABLED=0 go build -trimpath -ldflags='$(LDFLAGS)' -o bin/outbox-cdc ./cmd/outbox-cdc

# The end-to-end tests come after the others and alone: they time out when they have to share the processors with compilers. They mostly
# wait, so four run at a time.
test: ## vet and test everything against real servers, as CI does
	scripts/deps
	go vet ./...
	$(GO_TEST) -timeout 15m $$(go list ./... | grep -v '/test/e2e$$')
	$(GO_TEST) -parallel 4 -timeout 25m $(E2E)

e2e: ## run the end-to-end tests only
	$(GO_TEST) -parallel 4 -timeout 25m -count=1 $(E2E)

test-observe: ## scrape a connector in trouble with Prometheus, ask all that the dashboard asks, see alerts fire and be silent, 20 minutes, on a machine that does nothing else
	scripts/deps
	go test ./test/observe -count=1 -v -parallel 1 -timeout 90m -args -full -out $(CURDIR)/bin/observe

test-failover: ## promote standbys of several versions of PostgreSQL under a connector, 3 minutes
	go test $(E2E) -run '^TestFailover' -count=1 -v -timeout 20m -args -failover

test-takeover: ## measure takeovers, freeze a process through one, and lock the ledger for 20 s, 2 minutes, on a machine that does nothing else
	go test $(E2E) -run '^TestTakeover$$|^TestFrozenThroughATakeover$$|^TestLedgerLockedForLong$$' -count=1 -v -parallel 8 -timeout 20m -args -takeover

ENGINE ?= docker
ARCH   ?= $(shell go env GOARCH)

image: ## build the image outbox-cdc around a binary that go build makes here, with ENGINE (docker), for ARCH (that of this machine)
	mkdir -p bin/image/linux/$(ARCH)
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) go build -trimpath -ldflags='$(LDFLAGS)' -o bin/image/linux/$(ARCH)/outbox-cdc ./cmd/outbox-cdc
	cp -L /etc/ssl/certs/ca-certificates.crt bin/image/
	$(ENGINE) build -f deploy/image/Dockerfile --platform linux/$(ARCH) --build-arg FROM=given --build-arg TARGETPLATFORM=linux/$(ARCH) --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg CREATED=$(DATE) -t outbox-cdc bin/image

image-demo: ## build the image outbox-demo from source, with ENGINE (docker); the engine pulls images of Go and Debian
	$(ENGINE) build -f deploy/image/Dockerfile.demo --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) -t outbox-demo .

REGISTRY ?= ghcr.io/pyairtable-compose

push-image: ## make the image for amd64 and arm64 from the archives in dist, and push it to REGISTRY with the tag VERSION, as the release workflow does; it needs buildah, and root
	scripts/push-image $(REGISTRY) $(VERSION)

push-chart: ## package the chart as VERSION, and push it to REGISTRY/charts, as the release workflow does; the first run builds Helm, which takes minutes
	scripts/push-chart $(REGISTRY) $(VERSION)

test-ship: ## try what is installed: render the chart, run the compose file's services as processes, build, push and run images, install and remove the packages of dist (after make snapshot), measure sizes and the start, run the demo's chaos; the first run builds Helm, which takes minutes
	scripts/deps ship
	go test ./test/ship -count=1 -v -timeout 60m -args -ship
	go test ./cmd/outbox-demo -run '^TestDemoChaos$$' -count=1 -v -args -everything

fuzz: ## run each fuzz test for FUZZTIME (20s)
	scripts/fuzz $(FUZZTIME)

worlds: ## run the delivery rules through random worlds for DURATION (10m)
	go test ./connector -run '^TestWorlds$$' -worlds $(DURATION) -count=1 -timeout 0 -v

mutants: ## break each LSN rule on purpose and see a test turn red; ONLY='3-* 9-storm' for some
	go run ./test/mutants $(ONLY)

lint: ## run golangci-lint, and actionlint over the workflows; they are built on first use
	go tool -modfile=tools/go.mod golangci-lint run ./...
	go tool -modfile=tools/actionlint/go.mod actionlint

govulncheck: ## look for known vulnerabilities in code that is called; it asks https://vuln.go.dev
	go tool -modfile=tools/govulncheck/go.mod govulncheck ./...

test-matrix: ## test against the other versions of PostgreSQL: VERSIONS (14 16 17 18)
	x=0; for version in $(VERSIONS); do OUTBOX_TEST_PG_VERSION=$$version $(MAKE) test || x=1; done; exit $$x

test-containers: ## test against servers in containers of the images OUTBOX_TEST_POSTGRES_IMAGE and OUTBOX_TEST_KAFKA_IMAGE; it needs Docker
	$(GO_TEST) -tags containers -count=1 -timeout 15m $$(go list ./... | grep -v '/test/e2e$$')
	$(GO_TEST) -tags containers -count=1 -timeout 25m $(E2E)

bench: ## measure beside pg_recvlogical, on a machine that does nothing else; SINKS='kafka redis_stream webhook event_bus', ONLY=latency
	go run ./test/bench -sink '$(SINKS)' -only '$(ONLY)'
	test -n '$(ONLY)' || $(MAKE) bench-overhead

# The benchmark is a process of make's own: "go run" would not hand on the signal that ends it.
bench-compare: ## measure two revisions in turn, OLD=<revision> and the working tree; PAIRS=5, ONLY=latency, SINKS=webhook
	go build -o bin/bench ./test/bench
	exec bin/bench -compare '$(OLD)' -pairs '$(PAIRS)' -sink '$(SINKS)' -only '$(ONLY)'

bench-overhead: ## measure what the library adds to a transaction, beside the same written by hand
	go test ./outbox -run '^$$' -bench Overhead -benchtime 2s -count 3

bench-memory: ## measure memory with much unread WAL, with one huge transaction and with large rows
	go run ./test/bench -only memory
	go test ./test/e2e -run '^TestMemoryOf' -count=1 -v -timeout 30m -args -large

test-large: ## deliver a backlog of a million rows whose sink goes away in the middle, and check the plans of queries over so many rows, minutes
	go test ./ledger -run '^TestPlansOfAWalk$$' -count=1 -timeout 1h -args -walk-large
	go test $(E2E) -run '^TestBacklogWhileASinkIsAway$$' -count=1 -v -timeout 2h -args -large

sizing: ## measure what an event takes up and costs, 4 minutes, on a machine that does nothing else; PAGE=docs/sizing.md puts the tables there
	go run ./test/bench -only sizing -page '$(PAGE)'

soak: ## live through what lasts long, on a machine that does nothing else; ONLY='kafka redis snapshot memory idle refused retention cleanup', AWAY=2m, LASTS=5m (retention)
	go run ./test/soak -away $(AWAY) -duration $(LASTS) -only '$(ONLY)'

demo: ## show events arriving, with nothing installed but Go; CHAOS=--chaos breaks things
	go build -trimpath -o bin/outbox-demo ./cmd/outbox-demo
	exec bin/outbox-demo $(CHAOS)

SHOWN = bin/outbox-demo --chaos=redis --outage 3s --rate 3 --duration 7s

# script(1) is a terminal, so the demo prints as it does for a person.
demo-picture: ## draw docs/img/demo.svg, what the demo prints while Redis goes away and comes back
	go build -trimpath -o bin/outbox-demo ./cmd/outbox-demo
	go build -C tools -o ../bin/demopicture ./demopicture
	script --quiet --return --command 'stty columns 100; $(SHOWN)' bin/demo.txt > /dev/null
	bin/demopicture '$(SHOWN)' 'A shop writes events' 'arrived.*after.*topic' < bin/demo.txt > bin/demo.svg
	mv bin/demo.svg docs/img/demo.svg

reach: ## run the tests of the failure rules, of the truth and of retention at their full length, an hour, on a machine that does nothing else; ONLY=Poisoned for some
	go test $(E2E) -run '^TestReach$(ONLY)' -count=1 -v -parallel 1 -timeout 90m -args -reach

# Without VERSIONS it runs once, against what the tests use. One version that fails does not end the others.
torture: ## kill the connector KILLS (1000) times and let PostgreSQL crash CRASHES (100) times, and lose the slot LOSSES (20) times, on one database under load, an hour; VERSIONS='14 16 17 18' KILLS=200 CRASHES=20 for other versions
	rm -rf bin/torture && mkdir -p bin/torture
	x=0; for version in $(if $(filter file,$(origin VERSIONS)),"$$OUTBOX_TEST_PG_VERSION",$(VERSIONS)); do mkdir -p "bin/torture/$$version"; OUTBOX_TEST_PG_VERSION=$$version \
		go test $(E2E) -run '^TestTorture$$' -count=1 -v -timeout 0 -artifacts -outputdir "$(CURDIR)/bin/torture/$$version" -args -kills $(KILLS) -crashes $(CRASHES) -losses $(LOSSES) || x=1; done; exit $$x

# It is complete before it replaces the file.
dashboards: ## make the dashboard for Grafana
	mkdir -p bin
	go run -C tools/dashboards . > bin/dashboard.json
	mv bin/dashboard.json monitoring/grafana/dashboards/outbox/outbox-monitoring.json

# What goes into packages and archives beside the binary. Dates are those of the commit.
shipped:
	rm -rf bin/shipped && mkdir -p bin/shipped
	go test ./cmd/outbox-cdc -run '^TestShipped$$' -count=1 -args -shipped $(CURDIR)/bin/shipped -shipped-date $(DATE)
	go build -C tools -o ../bin/notices ./notices
	bin/notices ./cmd/outbox-cdc > bin/shipped/NOTICES.txt
	scripts/sbom bin/shipped/outbox-cdc.cdx.json $(VERSION)
	mkdir bin/shipped/scripts && cp deploy/package/*.sh bin/shipped/scripts/ && touch -d $(DATE) bin/shipped/scripts/*

# goreleaser asks git for the remote, and takes no commit from a repository that has none.
snapshot: export GIT_CONFIG_COUNT = 1
snapshot: export GIT_CONFIG_KEY_0 = remote.origin.url
snapshot: export GIT_CONFIG_VALUE_0 = https://github.com/pyairtable-compose/outbox-cdc
snapshot: ## build all that a release has into dist, without publishing: archives, packages, checksums, SBOM; of the version whose tag the commit has, or of none; the first run builds goreleaser, which takes minutes
	$(GORELEASER) release --clean --skip=publish,sign $(if $(shell git diff --quiet HEAD && git describe --exact-match --tags --match='v*' 2>/dev/null),,--snapshot)

reproducible: ## build all that a release has twice from the commit, and compare the bytes; DIST=dir compares one build with what is there; many minutes
	scripts/reproducible $(DIST)

clean: ## remove what was built
	rm -rf bin dist
