# All builds share one target folder outside the checkout.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/cairn/target

.DEFAULT_GOAL := help
.PHONY: help demo test interop build setup

help: ## These lines.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## A guest loses its disk and gets it back: the main job, end to end (sets up first).
	@scripts/setup demo
	@scripts/demo

test: ## Set-up, formatting, lints, every test, every NBD client, the demo. STAGES="fmt units" picks.
	@scripts/test $(STAGES)

interop: ## Every NBD client against a fresh daemon.
	@scripts/setup test
	@scripts/interop/run

build: ## The release binary.
	cargo build --release --locked -p cairn

setup: ## Installs what demo and tests need and this machine lacks.
	@scripts/setup test
