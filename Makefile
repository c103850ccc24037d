# Every target makes .venv and installs into it when that is needed: Python 3.11+ and make are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test lint web bench bench-step bench-export install clean

# Both encoders get the same compute: an SSQL step costs two SimSiam steps, so SimSiam trains twice the epochs.
QUICKSTART := runs/quickstart
WORDS := experiments/speech/transformer_ssql_words.yaml

quickstart: $(INSTALLED)
	$(BIN)/ssql pretrain --config $(WORDS) --output $(QUICKSTART) --overwrite true
	$(BIN)/ssql pretrain --config $(WORDS) --output $(QUICKSTART)/simsiam --overwrite true \
		--model.ssql false --trainer.max_epochs 12
	$(BIN)/ssql evaluate --encoders '{"SSQL": "$(QUICKSTART)/encoder", "SimSiam": "$(QUICKSTART)/simsiam/encoder"}' \
		--data SpokenWords --output $(QUICKSTART) --overwrite true --quantizers '{"mse": {"observer": "mse"}}'
	$(BIN)/ssql export --encoder $(QUICKSTART)/encoder --output $(QUICKSTART) \
		--bit_width '[fp, w8a8, w4a8]' --overwrite true
	@echo "Encoder, ONNX files, table and plot: $(QUICKSTART)/ (encoder/, encoder-*.onnx, accuracy.json, accuracy.png)"

# Without Node.js 20 the page's tests are skipped, and say so.
NODE_20 := $(shell node --eval 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && echo yes)

test: lint $(if $(NODE_20),web)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

# The page of `ssql demo`.
PAGE := ssql/page/index.html

web: $(PAGE)

$(PAGE): $(wildcard export/web/*.json export/web/*.ts export/web/*.html export/web/src/*)
	cd export/web && npm ci --no-audit --no-fund && npm run build

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-step bench-export

bench-step: $(INSTALLED)
	$(BIN)/python benchmarks/step.py

bench-export: $(INSTALLED)
	$(BIN)/python benchmarks/exported.py

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs ssql/page export/web/node_modules
