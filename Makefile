# unionfs: "make" alone lists what can be made.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX  ?= /usr/local
BIN     := bin/unionfs
# unionfs, and the programs that it starts and finds beside itself.
PROGRAMS := unionfs unionfs-supervisor unionfs-init unionfs-holder unionfs-bench unionfs-uplink
# By the build ID, unionfs knows which unionfs-supervisor, unionfs-init and unionfs-holder are its own.
LDFLAGS := -s -w -X main.version=$(VERSION) -buildid=unionfs-$(VERSION)
# The library for command lines brings a Markdown parser for man pages along, which would slow every start.
TAGS    := urfave_cli_no_docs

# Debian packages. What a user needs: fuse3 for mounts outside a container by an ordinary user, uidmap for
# subordinate IDs. What the tests need besides: a compiler for the race detector, the peers that they compare with, a
# real registry, and what makes a real Debian root.
USER_PACKAGES := fuse3 uidmap
TEST_PACKAGES := $(USER_PACKAGES) acl attr buildah busybox-static ca-certificates catatonit chromium docker-registry e2fsprogs fish fuse-overlayfs gcc git groff libc6-dev mmdebstrap passt podman procps qemu-system-x86 runc slirp4netns sqlite3 strace stress-ng zsh zstd

# The peers that the benchmarks measure beside unionfs, and a browser that looks at their page.
BENCH_PACKAGES := bubblewrap busybox-static chromium containerd docker.io e2fsprogs fuse-overlayfs gcc git libc6-dev make mergerfs podman runc skopeo umoci unionfs-fuse

# One place says how long a package's tests may take: FUSE tests that hang must fail, not wait for CI's own limit.
TEST_TIMEOUT ?= 60m
FUZZTIME     ?= 20s

.PHONY: help
help: ## List what can be made
	@echo 'unionfs: make TARGET'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## Build bin/unionfs, a static program, and bin/unionfs-supervisor, -init, -holder, -bench and -uplink, which it starts
	@mkdir -p build/programs
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags $(TAGS) -ldflags '$(LDFLAGS)' -o build/programs/ $(addprefix ./cmd/,$(PROGRAMS))
	@scripts/place-programs bin $(addprefix build/programs/,$(PROGRAMS))

.PHONY: deps
deps: ## Install the Debian packages that unionfs uses, if any is missing
	@scripts/install-packages $(USER_PACKAGES)

.PHONY: test-deps
test-deps: ## Install the Debian packages that the tests use, if any is missing
	@scripts/install-packages $(TEST_PACKAGES) $(BENCH_PACKAGES)

.PHONY: quickstart
quickstart: deps build ## Try a command on a copy-on-write view of this machine, and see what it changed
	@scripts/quickstart $(BIN)

# Not from Go's cache: it doesn't know the programs that tests build and run.
.PHONY: test
test: test-deps lint build ## Check and test everything
	$(GO) test -race -count=1 -timeout $(TEST_TIMEOUT) ./...
	@echo "unionfs $(VERSION): everything is checked and every test passed."

.PHONY: bench
bench: build ## Measure unionfs beside its peers, and make a page of it: build/bench/index.html
	@scripts/install-packages $(USER_PACKAGES) $(BENCH_PACKAGES)
	$(BIN) bench full --out build/bench

.PHONY: bench-docs
bench-docs: build ## Make docs/benchmarks.md of what "make bench" measured last, or of REPORT=FILE
	$(BIN) bench show $(or $(REPORT),build/bench/report.json) --docs docs

.PHONY: vet
vet: ## Run go vet
	$(GO) vet ./...

.PHONY: staticcheck
staticcheck: ## Run staticcheck
	$(GO) tool staticcheck ./...

.PHONY: lint
lint: vet staticcheck ## Check formatting, go vet and staticcheck
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi

.PHONY: fuzz
fuzz: ## Run every fuzz test for FUZZTIME (20s) each
	@grep -rlE '^func Fuzz' --include='*_test.go' . | while read -r file; do \
	  for name in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$file"); do \
	    echo "== $$(dirname "$$file") $$name"; \
	    $(GO) test "$$(dirname "$$file")" -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME); \
	  done; \
	done

.PHONY: man
man: build ## Make manual pages of the commands in build/man
	rm -rf build/man
	$(BIN) man build/man
	$(BIN)-bench man build/man

.PHONY: install
install: build man ## Install programs, manual pages and completions to $(DESTDIR)$(PREFIX); with LINKS=1 also under the names that mount(8) and podman look for
	scripts/place-programs $(DESTDIR)$(PREFIX)/bin $(addprefix bin/,$(PROGRAMS))
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0644 build/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	$(BIN) completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/unionfs
	$(BIN) completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_unionfs
	$(BIN) completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/unionfs.fish
	@if [ -n "$(LINKS)" ]; then \
	  install -d $(DESTDIR)/sbin; \
	  ln -sf unionfs $(DESTDIR)$(PREFIX)/bin/fuse-overlayfs; \
	  ln -sf $(PREFIX)/bin/unionfs $(DESTDIR)/sbin/mount.unionfs; \
	  ln -sf $(PREFIX)/bin/unionfs $(DESTDIR)/sbin/mount.fuse.unionfs; \
	fi

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin build/man build/programs
