# Everything that people and CI do with this project.  Each target installs what it lacks: Debian packages when it runs
# as root (else it names the one line that does), Python packages into .venv.  The second time it is quick.

.DELETE_ON_ERROR:
.PHONY: help setup check unit test vm interop bench demo fmt clean
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEED := tests/setup/need
COMPILED := $(wildcard composefsd/compiled/*.c)
CODE := composefsd tests bench
TYPED_TESTS := tests/conftest.py tests/demo tests/integration/*.py tests/interop/*.py tests/real tests/vm bench
PYTEST_FLAGS ?=
INTEROP_FLAGS ?=
PARALLEL := --numprocesses=2 --dist=loadfile
DEMO_FLAGS ?=
BENCH_FLAGS ?=

BUILD_PACKAGES := python3-venv python3-dev gcc libc6-dev pkg-config libsystemd-dev libattr1-dev libpcre2-8-0
ROOT_PACKAGES := mmdebstrap newuidmap:uidmap debian-archive-keyring unshare:util-linux
DEMO_PACKAGES := dbus-daemon:dbus-daemon busctl:systemd $(ROOT_PACKAGES)
TEST_PACKAGES := $(DEMO_PACKAGES) polkitd umoci fsck.erofs:erofs-utils fsverity mount openssl
VM_PACKAGES := qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs $(ROOT_PACKAGES)
INTEROP_PACKAGES := $(TEST_PACKAGES) skopeo gcc libc6-dev pkg-config libssl-dev

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY) ## .venv with composefsd and composefsctl in it
	@echo "$(BIN)/composefsd and $(BIN)/composefsctl are ready."

$(READY): pyproject.toml $(COMPILED)
	@$(NEED) $(BUILD_PACKAGES)
	@echo "Installing the Python packages into $(VENV) …"
	@test -x $(BIN)/python || "$$(tests/setup/python)" -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev]'
	@touch $@

check: $(READY) ## format, lint, types and unit tests: what to run before a commit
	@echo "ruff …"
	@$(BIN)/ruff format --quiet --check $(CODE) || { echo "'make fmt' formats these files."; exit 1; }
	@$(BIN)/ruff check --quiet $(CODE)
	@echo "mypy …"
	@$(BIN)/mypy --no-error-summary
	@MYPYPATH=tests $(BIN)/mypy --no-error-summary --explicit-package-bases $(TYPED_TESTS)
	@$(MAKE) unit

unit: $(READY)
	@echo "unit tests …"
	@$(BIN)/pytest --quiet $(PARALLEL) $(PYTEST_FLAGS) tests/unit

test: check ## all tests: check, then the daemon on a bus and real images
	@$(NEED) $(TEST_PACKAGES)
	@echo "bus and integration tests …"
	@$(BIN)/pytest $(PARALLEL) $(PYTEST_FLAGS) tests/bus tests/integration

interop: $(READY) ## against composefs-rs and C composefs, built once; writes docs/interop.md (INTEROP_FLAGS=--sweep=10)
	@$(NEED) $(INTEROP_PACKAGES)
	@$(BIN)/pytest $(PARALLEL) --write-table=docs/interop.md $(INTEROP_FLAGS) tests/interop

bench: $(READY) ## what labelling costs beside composefs-rs, in the same run; no test (BENCH_FLAGS=--rounds=3)
	@$(NEED) $(INTEROP_PACKAGES)
	@PYTHONPATH=tests $(BIN)/python -m bench.labels $(BENCH_FLAGS)

vm: $(READY) ## on a real kernel with fs-verity, in an emulated machine: secure repositories, and making one secure
	@$(NEED) $(VM_PACKAGES)
	@echo "checks in a virtual machine …"
	@$(BIN)/pytest --durations=1 $(PYTEST_FLAGS) tests/vm

demo: $(READY) ## the whole way once: from an OCI image to a bootable ESP (DEMO_FLAGS=--keep leaves the daemon running)
	@$(NEED) $(DEMO_PACKAGES)
	@PYTHONPATH=tests $(BIN)/python -m demo $(DEMO_FLAGS)

fmt: $(READY) ## format the code
	@$(BIN)/ruff check --quiet --fix-only $(CODE)
	@$(BIN)/ruff format $(CODE)

clean: ## remove what was built here (the cache of images stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find composefsd tests -name __pycache__ -type d -exec rm -rf {} +
