# make demo | make test | make nightly | make test-device | make docs, from a fresh clone with Python 3.11 or newer, venv and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test nightly test-device docs clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --durations 15 -m "not nightly and not device"

# The slowest end-to-end tests, such as training with several workers. make test does not run them.
nightly: .venv/installed
	$(BIN)/python -m pytest -q -n 3 --dist load --durations 15 -m "nightly and not device"

# Tests on a complete emulated device (Debian arm64 with systemd, without KVM). Building its disk image takes about half
# an hour, so set EDGEREC_DEVICE_CACHE to a folder that keeps the image. EDGEREC_DEVICE_ARCH=amd64 is faster. SELECT
# selects tests by name, as for pytest -k.
test-device: .venv/installed
	$(BIN)/python -m pytest -q --durations 15 -m device -k "$(SELECT)" tests/device

# The documentation as a web site in site/. Warnings, such as broken links, are errors.
docs: .venv/installed
	$(BIN)/python .ci/reference_pages.py
	$(BIN)/zensical build --strict --clean

# OpenCV with windows needs libGL and X libraries; where they are missing, the one without windows takes its place.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "edgerec needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train,dev]"
	@$(BIN)/python -c "import cv2" 2>/dev/null || { \
	  echo "system libraries for OpenCV's windows are missing: taking opencv-python-headless"; \
	  $(BIN)/python -m pip uninstall --quiet --yes opencv-python && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt opencv-python-headless && \
	  $(BIN)/python -c "import cv2"; }
	@touch $@

clean:
	rm -rf .venv demo dist build site
