# All builds share one target folder outside the checkout.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/cairn/target

.PHONY: test
test: ## Formatting, lints and every test.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked
