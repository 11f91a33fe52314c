SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# A target of the second environment sets VENV for itself.
VENV := .venv
BIN = $(CURDIR)/$(VENV)/bin
# What starts workers looks for horovodrun and python by name.
IN_VENV = PATH="$(BIN):$$PATH"

JOBS := $(shell nproc)
# -P: tests import the installed package, which is the tree's in .venv only.
PYTEST = $(IN_VENV) $(BIN)/python -P -m pytest --instafail --durations=25 --timeout=300
# The two lengths; tests/README.md says what is in which.
SHORT = $(PYTEST) -m "not long"
LONG = $(PYTEST) -m long

# Not for tests that start a worker on each core themselves.
EACH_ON_A_CORE = --numprocesses=$(JOBS)

comma := ,

# What the compilers have made before, in every checkout, where ccache is installed.
export HOROVOD_DGC_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/horovod_dgc
export CCACHE_DIR ?= $(HOROVOD_DGC_CACHE)/ccache
# Whatever folder a checkout is in.
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1

# $(1) name, $(2) files and folders it depends on: runs the target run-$(1), unless it has passed with the same ones.
# `make test FORCE=1`, `make test-all` and CI run everything.
unless_unchanged = @tools/unless_unchanged.sh $(1) $(2) -- $(MAKE) --no-print-directory run-$(1)

# $(1) folder under build/, $(2) options of csrc/CMakeLists.txt
define cpp_build
	$(BIN)/cmake -S csrc -B build/$(1) -G Ninja --log-level=WARNING $(2)
	$(BIN)/cmake --build build/$(1) --parallel $(JOBS)
endef
define cpp_tests
	$(cpp_build)
	$(BIN)/ctest --test-dir build/$(1) --output-on-failure --timeout 600 --parallel $(JOBS)
endef

# One build for the tests and the fuzz targets.
SANITIZED = -DCMAKE_CXX_COMPILER=clang++ -DDGC_FUZZERS=ON -DDGC_SANITIZE=address$(comma)undefined

# Seconds for each of the two fuzz targets; what they find to be new is kept in build/fuzz for the next run.
FUZZ_SECONDS := 600
FUZZ_OPTIONS = -max_total_time=$(1) -timeout=20 -verbosity=0 -print_final_stats=1

# $(1) seconds
define fuzz
	$(call cpp_build,cpp-sanitized,$(SANITIZED))
	mkdir -p build/fuzz/payload/seeds build/fuzz/payload/corpus build/fuzz/checkpoint
	build/cpp-sanitized/seeds build/fuzz/payload/seeds
	build/cpp-sanitized/payload_fuzz $(FUZZ_OPTIONS) -max_len=65536 -artifact_prefix=build/fuzz/payload/ \
	  build/fuzz/payload/corpus build/fuzz/payload/seeds
	$(BIN)/python -P tests/fuzz/checkpoint_reader.py build/fuzz/checkpoint $(FUZZ_OPTIONS) \
	  -artifact_prefix=build/fuzz/checkpoint/
endef

.PHONY: help env env-demo env-lab env-tf215 demo demo-tensorflow test test-all test-python test-rest test-long-torch \
  test-long-packaging test-long-tensorflow test-cluster test-quick test-tf215 check ranks lint cpp cpp-test \
  cpp-test-asan run-cpp-test-asan cpp-test-tsan run-cpp-test-tsan fuzz fuzz-quick run-fuzz-quick test-packaging \
  run-test-packaging sdist wheel release-check docker-test env-containers soak bench bench-smallest bench-family convergence convergence-quick clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env-demo: ## Set up .venv with no more than the demo needs: PyTorch, and Horovod for PyTorch alone
	@tools/env.sh --demo

env: ## Set up .venv with all that the other targets need; they call it themselves
	@tools/env.sh

env-lab: ## The same, and the Debian packages that the network lab needs
	@tools/env.sh --lab

env-containers: ## The same, and what the image of docker/ is built and run with
	@tools/env.sh --containers

env-tf215: ## Set up .venv-tf215, with TensorFlow 2.15 and Keras 2
	@tools/env.sh tf215

demo: env-demo ## Train with 2 workers for three minutes, dense and with DGC at 0.1 %, and compare (DEMO_ARGS="--help")
	$(IN_VENV) $(BIN)/python examples/demo.py $(DEMO_ARGS)

demo-tensorflow: env ## The same with TensorFlow and Keras
	$(IN_VENV) $(BIN)/python examples/demo.py --framework tensorflow --output demo/tensorflow $(DEMO_ARGS)

test: env lint cpp-test cpp-test-asan fuzz-quick test-python test-packaging ## Every check once: lint, C++, fuzzing, Python, ranks; 20 minutes

test-all: export FORCE := 1
test-all: test test-rest ## The same, and all that repeats or goes on for long; 50 minutes

test-python: env ## The Python tests of `make test`
	$(SHORT) $(EACH_ON_A_CORE) tests/unit tests/docs
	$(SHORT) tests/jobs tests/benchmarks tests/distributed tests/tensorflow tests/gpu

# What .ci/run calls one by one, as far as its time goes.
test-rest: cpp-test-tsan bench-smallest test-long-torch test-long-packaging test-long-tensorflow test-tf215 test-cluster docker-test ## What `make test` leaves out

test-long-torch: env ## PyTorch with every launcher and number of ranks, all faults, elastic jobs, soak
	$(LONG) tests/distributed

test-long-packaging: env ## A wheel for every Python that is found, each tried where nothing else is
	$(LONG) tests/packaging

test-long-tensorflow: env ## TensorFlow under both launchers and with tf_keras, all faults, elastic jobs, examples
	$(LONG) tests/tensorflow tests/jobs tests/benchmarks

test-quick: env ## Python unit tests only
	$(SHORT) $(EACH_ON_A_CORE) tests/unit

check: env ## Some Python tests: make check T=tests/unit/test_core.py K=pack (names of tests, as in pytest -k)
	$(PYTEST) $(or $(T),tests/unit) $(if $(K),-k "$(K)")

# F: torch or tensorflow. N, L: ranks and launcher, mpirun, horovodrun or nodes. C: a module of checks, or one check of it.
F := torch
N := 2
L := mpirun
ranks: env ## One check on N ranks, with what they print: make ranks C=dense::check_momentum N=2 L=mpirun F=torch
	$(IN_VENV) $(BIN)/python -P tests/support/ranks.py --framework $(F) --launcher $(L) --ranks $(N) $(C)

test-tf215: VENV := .venv-tf215
test-tf215: env-tf215 ## TensorFlow tests with TensorFlow 2.15 and Keras 2
	$(PYTEST) tests/tensorflow

test-cluster: env-lab ## The network lab of benchmarks/cluster, and jobs across its hosts; needs root
	$(PYTEST) tests/cluster

docker-test: env-containers ## Build the image of docker/ and train in two containers, without a Docker engine; needs root
	$(PYTEST) tests/docker

lint: env ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy horovod_dgc
	MYPYPATH=benchmarks $(BIN)/mypy --explicit-package-bases --disable-error-code=import-untyped benchmarks/cluster
	$(BIN)/hadolint docker/Dockerfile

cpp-test: env ## C++ unit tests
	$(call cpp_tests,cpp,)

cpp: env ## One unit's C++ tests: make cpp T=layout K='Layout.*' (a unit of csrc/tests, a filter of GoogleTest)
	@[[ -e csrc/tests/$(T)_test.cc ]] || { echo "T is one of: $(patsubst csrc/tests/%_test.cc,%,$(wildcard csrc/tests/*_test.cc))"; exit 2; }
	$(BIN)/cmake -S csrc -B build/cpp -G Ninja --log-level=WARNING
	$(BIN)/cmake --build build/cpp --parallel $(JOBS) --target $(T)_test
	build/cpp/$(T)_test $(if $(K),--gtest_filter='$(K)')

cpp-test-asan: env ## C++ unit tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call unless_unchanged,cpp-test-asan,csrc)

run-cpp-test-asan:
	$(call cpp_tests,cpp-sanitized,$(SANITIZED))

cpp-test-tsan: env ## C++ unit tests of what runs on several threads, under ThreadSanitizer
	$(call unless_unchanged,cpp-test-tsan,csrc)

run-cpp-test-tsan:
	$(call cpp_tests,cpp-tsan,-DDGC_SANITIZE=thread)

fuzz-quick: env ## Fuzz the decoders and the checkpoint reader, 20 seconds each
	$(call unless_unchanged,fuzz-quick,csrc tests/fuzz horovod_dgc/__init__.py horovod_dgc/checkpoint.py)

run-fuzz-quick:
	$(call fuzz,20)

fuzz: env ## The same for FUZZ_SECONDS each (600)
	$(call fuzz,$(FUZZ_SECONDS))

test-packaging: env ## The sdist and a wheel: what is in them, and that they work where nothing else is
	$(call unless_unchanged,test-packaging,csrc horovod_dgc tests/packaging setup.py pyproject.toml MANIFEST.in README.md \
	  LICENSE tools/packages.py tools/check_release.py)

run-test-packaging:
	$(SHORT) tests/packaging

# Interpreters to make wheels for, paths or names on the PATH; those of 3.9 to 3.13 that are found, if empty.
PYTHONS :=

sdist: env ## dist/horovod_dgc-….tar.gz
	$(BIN)/python tools/packages.py --sdist-only

wheel: env ## The same, and wheels that install without a compiler (PYTHONS), each tried where nothing else is
	$(BIN)/python tools/packages.py --unit-tests $(PYTHONS)

release-check: env ## Whether version, tag, CHANGELOG.md and what lies in dist/ agree (docs/releasing.md)
	$(BIN)/python tools/check_release.py

# Steps of each of the two jobs; about 30 a second on two idle cores.
SOAK_STEPS := 5000

soak: env ## Thousands of steps with random sizes, gradients and densities (SOAK_STEPS): memory, losses, equality
	SOAK_STEPS=$(SOAK_STEPS) $(PYTEST) -s tests/distributed/test_soak.py

# $(1) options of Google Benchmark
define cpp_benchmarks
	$(BIN)/cmake -S csrc -B build/cpp-bench -G Ninja --log-level=WARNING -DDGC_BENCHMARKS=ON
	$(BIN)/cmake --build build/cpp-bench --parallel $(JOBS) --target passes_benchmark quantisers_benchmark
	@for benchmark in passes quantisers; do build/cpp-bench/$${benchmark}_benchmark $(1); done
endef

bench: env ## Every benchmark of benchmarks/, one after the other; wants an otherwise idle machine
	$(call cpp_benchmarks,--benchmark_repetitions=15 --benchmark_enable_random_interleaving=true \
	  --benchmark_report_aggregates_only=true)
	@for benchmark in benchmarks/[a-z]*.py; do $(IN_VENV) $(BIN)/python "$$benchmark"; done

bench-smallest: env ## The C++ micro benchmarks once each; tests/benchmarks runs the others at their smallest sizes
	$(call cpp_benchmarks,--benchmark_min_time=0.001)

bench-family: env ## Compare all methods and write table and plot into docs/methods; goes on where it was stopped
	$(IN_VENV) $(BIN)/python benchmarks/family.py --docs docs/methods

convergence: env ## Train dense and compressed with several seeds, hours in all, and write docs/convergence.md; resumable
	$(IN_VENV) $(BIN)/python benchmarks/convergence --jobs $(JOBS) $(CONVERGENCE_ARGS)

convergence-quick: env ## One short training: DGC at 1 % near dense, and not without its residuals; a minute, part of test
	$(PYTEST) -s tests/jobs/test_convergence_quick.py

clean: ## Remove what builds and tests leave in the tree, except .venv and .venv-tf215
	rm -rf build dist demo *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis horovod_dgc/*.so horovod_dgc/*/*.so horovod_dgc/built
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
