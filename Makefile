# What a user types is here; how it is done lies in scripts/.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Outside the checkout, so that a fresh clone need not build wasmtime again.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sampan/target
PREFIX ?= /usr/local

.PHONY: help demo test test-setup lint fmt samples build bench guards install uninstall

help:
	@echo 'make demo      build, start a cluster, deploy a Wasm microservice, call it, clean up'
	@echo 'make test      install what the tests need, then run every test'
	@echo 'make samples   build the sample workloads'
	@echo 'make bench     measure everything that is claimed, in release, with peers on this machine (half an hour)'
	@echo 'make guards    take the counts that must not rise (instructions, allocations, fsyncs) over as they are now'
	@echo 'make lint      formatting, clippy and cargo-deny'
	@echo 'make install   the program, the containerd shim, shell completions and a systemd unit, under PREFIX (now $(PREFIX))'

build:
	# The whole workspace, as the tests build it: one package alone resolves other features of what is
	# shared, and all of it would be built again.
	cargo build --locked --workspace

samples:
	@scripts/samples.sh

demo: build samples
	@scripts/demo.sh "$(CARGO_TARGET_DIR)/debug/sampan" "$(CARGO_TARGET_DIR)/samples"

test:
	@scripts/test.sh

bench:
	cargo build --locked --release --workspace
	@"$(CARGO_TARGET_DIR)/release/bench"

# Counted are the programs as the tests use them: their features are some more.
guards:
	cargo build --locked --workspace --tests
	@"$(CARGO_TARGET_DIR)/debug/guards" --write guards/counts.json

fmt:
	cargo fmt --all
	cargo fmt --all --manifest-path sample-workloads/Cargo.toml

lint:
	@scripts/lint.sh

install:
	cargo build --locked --release --package sampan --package sampan-shim
	@scripts/install.sh "$(CARGO_TARGET_DIR)/release/sampan" "$(DESTDIR)$(PREFIX)"

uninstall:
	@scripts/install.sh --remove "$(DESTDIR)$(PREFIX)"
