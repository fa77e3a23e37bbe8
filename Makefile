# All builds share one target folder outside the checkout.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/cairn/target

.DEFAULT_GOAL := help
.PHONY: help demo test interop build install setup bench fuzz

help: ## These lines.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## A guest loses its disk, then its host, and gets the disk back; a sandbox is wrecked and restored (sets up first).
	@scripts/setup demo
	@scripts/demo

test: ## Set-up, formatting, lints, every test, every NBD client, the demo. STAGES="fmt units" picks.
	@scripts/test $(STAGES)

interop: ## Every NBD client against a fresh daemon.
	@scripts/setup test
	@scripts/interop/run

build: ## The release binary, and the agent that goes into guests beside it.
	cargo build --release --locked -p cairn
	install -m755 "$$(scripts/agent)" "$(CARGO_TARGET_DIR)/release/cairn-agent"

# Where `make build` puts the binary; where `make install` puts things, below DESTDIR for packages.
BIN ?= $(CARGO_TARGET_DIR)/release/cairn
PREFIX ?= /usr/local
AGENT ?= $(dir $(BIN))cairn-agent
SHARE = $(DESTDIR)$(PREFIX)/share

install: ## The release binary with man pages and completions below PREFIX (/usr/local); make build comes first.
	@test -x "$(BIN)" || { echo "make: there is no $(BIN): run make build first, or give BIN=" >&2; exit 1; }
	install -Dm755 "$(BIN)" "$(DESTDIR)$(PREFIX)/bin/cairn"
	@test -x "$(AGENT)" || echo "make: there is no $(AGENT): images cannot be built without --agent" >&2
	test ! -x "$(AGENT)" || install -Dm755 "$(AGENT)" "$(DESTDIR)$(PREFIX)/lib/cairn/cairn-agent"
	"$(BIN)" man "$(SHARE)/man/man1"
	install -d "$(SHARE)/bash-completion/completions" "$(SHARE)/zsh/site-functions" "$(SHARE)/fish/vendor_completions.d"
	"$(BIN)" completions bash >"$(SHARE)/bash-completion/completions/cairn"
	"$(BIN)" completions zsh >"$(SHARE)/zsh/site-functions/_cairn"
	"$(BIN)" completions fish >"$(SHARE)/fish/vendor_completions.d/cairn.fish"

setup: ## Installs what demo and tests need and this machine lacks.
	@scripts/setup test

bench: ## Every figure of docs/PERFORMANCE.md (half an hour; QUICK=1 for a first look).
	@scripts/setup test
	@benches/run $(if $(QUICK),--quick)

fuzz: ## MINUTES (default 15) of fuzzing per target; needs a nightly toolchain and cargo-fuzz.
	@cd fuzz && for target in agent_frames nbd_handshake nbd_transmission store_format bucket_format ext4_image vhost_user; do mkdir -p found/$$target; \
		cargo +nightly fuzz run $$target found/$$target corpus/$$target -- \
			-max_total_time=$$(( $${MINUTES:-15} * 60 )) || exit 1; done
