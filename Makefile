# Two commands: `make demo` (text to 3D on this machine) and `make test`.  Everything lands in .venv and outputs/.
PYTHON ?= python3
PROMPT ?= a hamburger
ACTIVATED := . .venv/bin/activate &&
define NEWLINE


endef
# As it was typed, for the shell: neither make nor the shell looks for $, quotes or backticks in it.
QUOTED_PROMPT = '$(subst $(NEWLINE), ,$(subst ','\'',$(value PROMPT)))'

.PHONY: demo test fast-test test-cuda lint format clean

demo: .venv/installed
	$(ACTIVATED) python launch.py --config configs/ism-gs.yaml --train system.prompt_processor.prompt=$(QUOTED_PROMPT)

# All tests, the graded end-to-end run included.
test: .venv/installed lint
	$(ACTIVATED) python -m pytest -n auto

# Without the end-to-end run: what to repeat while working.
fast-test: .venv/installed
	$(ACTIVATED) python -m pytest -n auto -m "not graded"

# What only a GPU can show; `make test` skips it.
test-cuda: .venv/installed
	$(ACTIVATED) LUCID_TEST_CUDA=1 python -m pytest -m cuda

lint: .venv/installed
	$(ACTIVATED) ruff check . && ruff format --check .

format: .venv/installed
	$(ACTIVATED) ruff check --fix . ; ruff format .

# Made again when what it is made from changes.
.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf build dist *.egg-info
