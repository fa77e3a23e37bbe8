# All builds share one target folder outside the checkout.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/cairn/target

.PHONY: help demo test

help: ## This list.
	@sed -n 's/^\([a-z]*\): ## /  make \1	/p' Makefile

demo: ## A guest loses its disk and gets it back: set-up, build, and the main job end to end.
	@scripts/setup demo
	@scripts/demo

test: ## Set-up and every test: formatting, lints, cargo test, NBD clients, the demo.
	@scripts/test
