# make demo   compress, decompress and compare a synthetic scene; needs only Python
# make test   style, types and tests, as CI runs them
# Both make a virtual environment in .venv first. PYTHON and VENV choose another Python or folder.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN = $(VENV)/bin/splatcodec

.PHONY: demo test fuzz clean

demo: $(VENV)/.installed
	mkdir -p demo
	@echo "== a synthetic scene (its ratio says nothing about trained scenes)"
	$(RUN) sample demo/sample.ply --overwrite
	@echo "== lossy"
	$(RUN) compress demo/sample.ply demo/sample.splc --overwrite
	$(RUN) verify demo/sample.splc
	$(RUN) decompress demo/sample.splc demo/decoded.ply --overwrite
	$(RUN) compare demo/sample.ply demo/sample.splc --views 8 --size 384 --min-psnr 36 --report demo/report.html --overwrite
	$(RUN) render demo/sample.ply demo/original.png --overwrite
	$(RUN) render demo/decoded.ply demo/decoded.png --views-of demo/sample.ply --overwrite
	@echo "== lossless"
	$(RUN) compress demo/sample.ply demo/lossless.splc --lossless --overwrite
	$(RUN) decompress demo/lossless.splc demo/lossless.ply --overwrite
	cd demo && sha256sum sample.ply lossless.ply
	cmp demo/sample.ply demo/lossless.ply
	@echo "== done: pictures are demo/original.png and demo/decoded.png, the comparison is demo/report.html"

test: $(VENV)/.installed-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest

# Not part of `make test`: hours of damaged files on two processes; what it finds lies in .cache/fuzz.
fuzz: $(VENV)/.installed-test
	$(VENV)/bin/python tools/fuzz.py --count 2000000 --processes 2

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[train,dev,serve]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf demo build .mypy_cache .pytest_cache .ruff_cache
