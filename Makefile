# Needs only make and Python 3.11 or newer. `make` alone lists the commands; see docs/install.md for Windows.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n 2

# What `make demo` compares, where it writes, and what it trains.
DEMO := softmax linear mamba2 gated_deltanet --html build/demo/report.html --json build/demo/report.json
TRAIN := demo --workers 2 --out build/demo/sweeps --html build/demo/recall.html

# What `make sanitize` adds to the compiler's flags, loads before Python (the runtime of the sanitizers, and the C++ one
# that it looks for at its start), and runs: the loops alone, decoding, and the contract of layers that together call
# the loops in every way there is. Tests of the compiler's own failures, of torch.compile and of very long texts say
# nothing more about the loops; a compiler that optimises such code takes longer than all tests.
SANITIZERS := -O0 -g -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all
RUNTIME = $(foreach name,libasan.so libstdc++.so,$(shell cc -print-file-name=$(name)))
LOOPS := tests/loops/test_loops.py tests/laws/test_decoding.py tests/contract/test_layer.py -m 'loops and not slow'
SANE := not torch_compile and not compiler and not written and not once and not thousand

.NOTPARALLEL:
.PHONY: help demo test test-all sanitize bench docs checks clean

help:
	@echo 'make demo      compare four layers on a text, train five on recall: build/demo/report.html, recall.html'
	@echo 'make test      format, style, types, documentation, tests'
	@echo 'make test-all  the same with the slow tests'
	@echo 'make sanitize  the compiled loops under the address and undefined-behaviour sanitizers; needs gcc'
	@echo 'make bench     measure; results go to build/bench'
	@echo 'make docs      build the documentation into build/docs'
	@echo 'make clean     remove what these commands wrote, but not the environment'
	@echo
	@echo 'The first use makes an environment in $(VENV); PYTHON=... chooses the Python for it.'

demo: $(VENV)/.has-demo
	@mkdir -p build/demo
	$(BIN)/stateform compare $(DEMO)
	$(BIN)/stateform sweep $(TRAIN)

test: checks
	$(BIN)/pytest $(PYTEST_ARGS)

test-all: checks
	$(BIN)/pytest -m '' $(PYTEST_ARGS)

# Torch's libgomp comes with torch, after the runtime. The compiler itself, which the loops call, goes without.
sanitize: $(VENV)/.has-test
	STATEFORM_CC='env -u LD_PRELOAD cc' STATEFORM_CFLAGS='$(SANITIZERS)' STATEFORM_CACHE=build/sanitize \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc LD_PRELOAD='$(RUNTIME)' \
	$(BIN)/python -m pytest -p no:xdist --capture=sys $(LOOPS) -k '$(SANE)'

checks: $(VENV)/.has-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.has-test
	@mkdir -p build/bench
	$(BIN)/python benchmarks/run.py
	$(BIN)/stateform bench --html build/bench/bench.html --json build/bench/bench.json

docs: $(VENV)/.has-test
	$(BIN)/mkdocs build --strict
	@echo 'Open build/docs/index.html'

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache

# The environment. `.unfinished` is there from the first step of an installation to the last: where one was interrupted,
# or where the environment's Python is gone or too old, the environment is made anew. A sound one is brought up to date.
$(VENV)/.has-demo: EXTRA := [train]
$(VENV)/.has-test: EXTRA := [test]
$(VENV)/.has-demo $(VENV)/.has-test: pyproject.toml constraints.txt
	@set -e; \
	new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ -e $(VENV)/.unfinished ] || ! $(BIN)/python -c "import pip; $$new_enough" >/dev/null 2>&1; then \
		python='$(PYTHON)'; \
		"$$python" -c "$$new_enough" 2>/dev/null || { \
			echo "Python 3.11 or newer is needed, which '$$python' is not." >&2; \
			echo "Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; }; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
			echo "'$$python' cannot make environments: its modules venv and ensurepip are missing." >&2; \
			echo "On Debian and Ubuntu the package python3-venv has them." >&2; exit 1; }; \
		echo "Making an environment in $(VENV) with $$("$$python" --version)"; \
		rm -rf $(VENV); mkdir -p $(VENV); touch $(VENV)/.unfinished; \
		"$$python" -m venv $(VENV); \
	fi; \
	touch $(VENV)/.unfinished; \
	echo "Installing stateform$(EXTRA) into $(VENV); PyTorch is large, so the first time takes a few minutes"; \
	$(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt -e '.$(EXTRA)'; \
	rm $(VENV)/.unfinished; touch $(VENV)/.has-demo $@
