# Every target sets up .venv by itself; the second time that takes no time.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CORPUS ?=
TOKENIZERS ?=
# The newest megatron-core that works, beside the one that this Python gets; 0.19 asks for Python 3.12 and triton.
NEXT_ENGINE := megatron-core==0.19.2 triton==3.9.0
# Older transformers that our tokenizers and exported models load in, each with the libraries that it pins.
OLDER_TRANSFORMERS := 4.45.2 4.51.3 4.57.3
WITH_4.45.2 := transformers==4.45.2 tokenizers==0.20.3 huggingface_hub==0.36.0
WITH_4.51.3 := transformers==4.51.3 tokenizers==0.21.1 huggingface_hub==0.36.0
WITH_4.57.3 := transformers==4.57.3 tokenizers==0.22.1 huggingface_hub==0.36.0

.PHONY: install demo test test-full test-next test-hf4 soak lint bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo/run.py $(if $(CORPUS),--corpus $(CORPUS))

test: install
	$(BIN)/python -m pytest -m "not slow and not soak"

test-full: install
	$(BIN)/python -m pytest -m "not soak"

$(VENV)/next/.installed: $(VENV)/.installed Makefile
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --ignore-requires-python \
		--target $(VENV)/next $(NEXT_ENGINE)
	touch $@

test-next: $(VENV)/next/.installed
	PYTHONPATH=$(abspath $(VENV))/next $(BIN)/python -m pytest -m "not slow and not soak"

$(VENV)/hf4/%/.installed: $(VENV)/.installed Makefile
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV)/hf4/$* $(WITH_$*)
	touch $@

test-hf4: $(OLDER_TRANSFORMERS:%=$(VENV)/hf4/%/.installed)
	$(BIN)/python -m pytest tests/tokenizer/merge/test_transformers_versions.py tests/convert/test_older_transformers.py

soak: install
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m pytest --hypothesis-profile=default $(shell grep -rl --include='test_*.py' hypothesis tests)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/peer_transformers.py
	$(BIN)/python benchmarks/order.py
	$(BIN)/python benchmarks/megatron_index.py
	$(BIN)/python benchmarks/packing.py
	$(if $(TOKENIZERS),$(BIN)/python benchmarks/preprocess.py $(if $(CORPUS),--corpus $(CORPUS)) $(addprefix --tokenizer ,$(TOKENIZERS)),\
		@echo 'benchmarks/preprocess.py: name tokenizers, e.g. TOKENIZERS="HuggingFace:DIR SentencePiece:FILE"')

clean:
	rm -rf $(VENV) build demo *.egg-info
