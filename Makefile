# `make help` says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CARGO_TARGET_DIR ?= $(HOME)/.cache/rehost/target
# The installed toolchain is the only one: it must never fetch another or a target.
export RUSTUP_AUTO_INSTALL := 0
export CARGO_TERM_PROGRESS_WHEN ?= never

RELEASE := $(CARGO_TARGET_DIR)/x86_64-unknown-linux-gnu/release
# Alone, never with the workspace: the feature would be built into everything else too.
FAULTS := -p rehost-faults --features planted
FUNCTION_ZIPS := $(CARGO_TARGET_DIR)/lambda/zips
# The programs that tests start: none of them is built on the SDK of EC2, which takes minutes and 7 GiB.
STARTED := --workspace --exclude rehost-aws --exclude rehost-ec2 --exclude rehost-functions
# What only `make aws-demo` and the zips are built with is linted, too.
EVERYTHING := --workspace --features rehost-tests/aws,rehost-functions/lambda
PRODUCT := -p rehost -p rehost-agent -p rehost-replicator -p rehost-converter

.PHONY: help build demo aws-demo test test-guest faults bench check-infra deploy fmt lint clean

help: ## Shows this
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo
	@echo '  make demo DISK=/path/to.img PROBE=http:80|tcp:22|boot   migrates a disk of your own (it is only read)'

build: ## Builds the command, the agent, the replicator and the converter (release, static)
	scripts/install-deps build
	cargo build --release $(PRODUCT)
	@echo 'built: $(RELEASE)/{rehost,rehost-agent,rehost-replicator,rehost-converter}'

demo: ## Migrates a running Debian server, from the agent's installation to the archive
	scripts/install-deps build demo
	cargo build --release $(PRODUCT) -p rehost-tests --bins
	DISK='$(DISK)' PROBE='$(PROBE)' $(RELEASE)/demo

aws-demo: ## Migrates a server through the AWS region, on two emulators (FUNCTIONS=/path/to/zips instead of building them)
	scripts/install-deps build test aws
	cargo build --release $(PRODUCT)
	cargo build --release -p rehost-tests --features aws --bin aws-demo
	$(if $(FUNCTIONS),,scripts/build-functions $(FUNCTION_ZIPS))
	AWS_DEMO_FUNCTIONS='$(or $(FUNCTIONS),$(FUNCTION_ZIPS))' $(RELEASE)/aws-demo

test: ## Unit, property, contract, fault and end-to-end tests; the AWS region's against emulators
	scripts/install-deps build test aws
	cargo build $(STARTED)
	@if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run --workspace; \
	else \
	  echo 'cargo-nextest is not installed: cargo test instead, one test at a time'; \
	  cargo test --workspace --lib --bins --tests -- --test-threads=1; \
	fi
	cargo test --workspace --doc
	@if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run --profile faults $(FAULTS); \
	else \
	  cargo test $(FAULTS) -- --test-threads=8; \
	fi

test-guest: ## The tests on whole Debian servers, with another release of Debian in them, for its kernel (SUITE=bullseye)
	scripts/install-deps build test
	cargo build $(STARTED)
	REHOST_TEST_SUITE='$(or $(SUITE),bullseye)' cargo nextest run -p rehost-tests -E 'binary(live_nvme) or binary(live_vm)'

faults: ## Kills and cuts what replicates, and checks the volumes (ROW=name RUNS=n SEED=s; PLANTED=1 plants each row's bugs)
	scripts/install-deps build test
	cargo build $(FAULTS) --bins
	$(CARGO_TARGET_DIR)/x86_64-unknown-linux-gnu/debug/faults $(if $(ROW),--row '$(ROW)') $(if $(RUNS),--runs '$(RUNS)') \
	  $(if $(SEED),--seed '$(SEED)') $(if $(PLANTED),--planted) $(if $(BUG),--bug '$(BUG)') $(if $(JSON),--json '$(JSON)')

bench: ## Full sync against nbdcopy over TLS, deltas against rsync (WHAT=delta: only these; WHAT=idle: an idle agent, 1 TiB; WHAT=freeze: blocked writers)
	scripts/install-deps build bench
	cargo build --release $(PRODUCT) -p rehost-bench
	cargo run --release -p rehost-bench -- $(WHAT)

check-infra: ## Checks the AWS template, its policies, the state machines and the user data; needs no account
	scripts/check-infra

deploy: ## Deploys the AWS region (STACK=rehost PARAMETERS='Network=PRIVATE …' YES=1); costs money, docs/aws.md
	scripts/install-deps build
	scripts/deploy --stack '$(or $(STACK),rehost)' $(if $(YES),--yes) $(PARAMETERS)

fmt: ## Formats the code
	cargo fmt --all

lint: ## Formatting and clippy, warnings as errors
	cargo fmt --all --check
	cargo clippy $(EVERYTHING) --all-targets -- -D warnings
	cargo clippy $(FAULTS) --all-targets -- -D warnings

clean: ## Removes what was built; the cache of images and tools stays
	cargo clean
