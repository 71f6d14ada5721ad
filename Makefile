# One entry point: `make help` lists the words. Continuous integration (.ci/run) uses the same ones.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# What users import; everything else may change.
PDOC := --docformat google virtiofs '!virtiofs\.' $(addprefix virtiofs.,audit cache errors fsspecfs memory paths sandbox testing xattrmap)
SOURCES := pyproject.toml Cargo.toml Cargo.lock README.md LICENSE \
	$(shell find rust python -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.py' -o -name '*.pyi' -o -name py.typed \))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/installed ## Serve a directory to a guest in this process and show what happens
	@$(BIN)/virtiofs demo

.PHONY: demo-vm
demo-vm: $(VENV)/installed guests ## The same with a stock Debian kernel under QEMU
	@$(BIN)/python -m tests.vm.demo_vm

.PHONY: test
test: check test-rust test-fuzz test-python ## All checks and all tests, those in virtual machines too

.PHONY: check
check: check-rust check-python ## Formatting, lints, types

.PHONY: check-rust
check-rust: rust-components ## Formatting and lints of the Rust side
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

.PHONY: check-python
check-python: $(VENV)/tools ## Formatting, lints, types and stubs of the Python side
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest virtiofs --mypy-config-file pyproject.toml --allowlist tools/stubtest-allowlist

.PHONY: test-rust
test-rust: ## Tests of the Rust side
	cargo test --quiet

.PHONY: guests
guests: ## Fetch what the virtual machines of the tests need into .cache/vm (no root)
	@$(PYTHON) -m tests.vm.provision || echo "tests in virtual machines will be skipped"

.PHONY: test-python
test-python: $(VENV)/tools guests ## Tests of the package, as it is installed, and of guests
	$(BIN)/python -m pytest --durations=10 $(PYTEST)

.PHONY: posix
posix: ## Try hundreds of POSIX promises on any mount: make posix DIR=/mnt/share
	@$(PYTHON) -m tests.posix $(DIR)

.PHONY: conformance
conformance: $(VENV)/tools guests ## Suites of others against a local disk, into docs/conformance.md (PJDFSTEST=DIR XFSTESTS=DIR; root)
	$(BIN)/python -m tests.conformance $(if $(PJDFSTEST),--pjdfstest $(PJDFSTEST)) $(if $(XFSTESTS),--xfstests $(XFSTESTS)) $(CONFORMANCE)

.PHONY: storm
storm: ## A million hostile messages beside honest guests (VIRTIOFS_MESSAGES, VIRTIOFS_SEED)
	VIRTIOFS_MESSAGES=$${VIRTIOFS_MESSAGES:-1000000} cargo test --release -p virtiofs-device --test storm -- --nocapture

.PHONY: fuzz
fuzz: ## Fuzz what guests and VMMs send, SECONDS=300 for each target, with AddressSanitizer (TARGETS="chains requests ...")
	tools/fuzz $(or $(SECONDS),300) $(TARGETS)

.PHONY: test-fuzz
test-fuzz: ## The same for SECONDS=12 each, beginning with what was found to be of a kind of its own (fuzz/seeds)
	tools/fuzz $(or $(SECONDS),12) $(TARGETS)

.PHONY: soak
soak: $(VENV)/tools ## Three guests for MINUTES=30, one killed every 20 s: what the daemon holds stays flat
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),30)

.PHONY: coherence
coherence: ## Look for a stale answer among a million of guests that change files together, for each way to watch the host
	VIRTIOFS_OPERATIONS=$${VIRTIOFS_OPERATIONS:-1000000} cargo test --release -p virtiofs-device --test coherence -- --nocapture

.PHONY: bench
bench: $(VENV)/tools guests ## All benchmarks, into docs/benchmarks (let the machine be idle)
	$(BIN)/python benches/vs/run.py --queues 1,2 --driver blocking,polling --out docs/benchmarks/daemons $(BENCH)
	taskset -c 0 $(BIN)/python benches/vs/run.py --inodes 0 --out docs/benchmarks/one-processor $(BENCH)
	$(BIN)/python benches/guest/run.py --out docs/benchmarks/guest
	$(BIN)/python benches/scaling/run.py --out docs/benchmarks/scaling.json
	$(BIN)/python -m pytest --benchmark-enable --benchmark-only benches/python $(PYTEST)
	cargo bench -p virtiofs-micro

.PHONY: bench-guest
bench-guest: $(VENV)/tools guests ## Against virtio-9p and virtiofsd in one guest under QEMU (BENCH="--out FILE --rounds N ..."; root for DAX)
	$(BIN)/python benches/guest/run.py $(BENCH)

.PHONY: api
api: $(VENV)/tools ## The API reference from the docstrings, as HTML in docs/api
	$(BIN)/pdoc $(PDOC) --output-directory docs/api

.PHONY: format
format: rust-components $(VENV)/tools ## Format everything
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: develop
develop: $(VENV)/tools ## Make the environment follow the Python sources as they are edited
	$(BIN)/maturin develop --release --quiet

.PHONY: wheel
wheel: $(BIN)/python ## Build a wheel into dist/
	$(PIP) wheel --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(VENV) dist docs/api .mypy_cache .pytest_cache .ruff_cache .hypothesis
	cargo clean --quiet

.PHONY: rust-components
rust-components:
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || rustup component add rustfmt clippy

$(BIN)/python:
	@tools/make-venv $(PYTHON) $(VENV)

$(VENV)/installed: $(BIN)/python $(SOURCES)
	@echo "building and installing into $(VENV)"
	@$(PIP) install --force-reinstall --no-deps .
	@touch $@

$(VENV)/tools: $(VENV)/installed
	@$(PIP) install $$($(BIN)/python tools/requirements.py dev)
	@touch $@
