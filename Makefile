# Every target creates .venv by itself. It needs only make and Python >= 3.11 with pip and venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-engine check ci verify dist clean

# uv is ten times faster than pip, so it goes into .venv first. Where uv cannot be installed, pip does the work.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rollout needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12"; rm -rf $(VENV); exit 2; }
	@$(BIN)/pip install --quiet --disable-pip-version-check uv 2>/dev/null || echo "the fast installer is not available; pip takes about a minute"
	@if test -x $(BIN)/uv; then VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -c constraints.txt -e . --group dev; \
	 else $(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip && $(BIN)/pip install --quiet -c constraints.txt -e . --group dev; fi
	@touch $(READY)

demo: $(READY)
	@$(BIN)/rollout run configs/color_codeword.yaml --set engine.sampling.temperature=0

# Two processes for each core, because many tests wait for other processes.
test: $(READY)
	@cores=$$(getconf _NPROCESSORS_ONLN || echo 2); \
	 $(BIN)/python -m pytest --numprocesses $$((2 * cores)) --dist worksteal

# The tests against a real vLLM on CPU. vLLM is installed into .venv-vllm, which takes 2 GB.
test-engine: $(READY)
	@bash .ci/engine

check: $(READY)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/python scripts/check_words.py && $(BIN)/mypy && \
	  $(BIN)/lint-imports --no-logo

ci:
	@bash .ci/run

# Everything at full size: long soaks, all fuzzing, all seeds. Takes hours.
verify:
	@ROLLOUT_TESTS=full bash .ci/run

# Builds the distributions from the last commit, so that no untracked file gets into them.
OUT ?= dist
dist: $(READY)
	@tree=$$(mktemp -d) && trap 'rm -rf "$$tree"' EXIT && git archive HEAD | tar -x -C "$$tree" && \
	  $(BIN)/uv build --quiet --out-dir "$(OUT)" "$$tree"

clean:
	rm -rf $(VENV) .venv-vllm .venv-torch .venv-transformers .venv-trl .venv-agents .agents-node runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
