# Every target makes .venv and installs into it when that is needed: Python 3.11+ and make are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test fuzz lint web bench bench-step bench-export bench-browser install lock clean

# Both encoders get the same compute: an SSQL step costs two SimSiam steps, so SimSiam trains twice the epochs.
QUICKSTART := runs/quickstart
WORDS := experiments/speech/transformer_ssql_words.yaml

# Each step is made once: a stopped quickstart goes on, in its training as well; `rm -r runs/quickstart` begins anew.
ONWARD = $(if $(wildcard $(1)/checkpoints/*.ckpt),--resume true,--overwrite true)

ifneq ($(words $(QUICKSTART)),1)
$(error QUICKSTART must be a folder whose path has no spaces)
endif

quickstart: $(QUICKSTART)/encoder-int4.onnx
	@echo "Encoder, ONNX files, table and plot: $(QUICKSTART)/ (encoder/, encoder-*.onnx, accuracy.json, accuracy.png)"

$(QUICKSTART)/encoder/config.json: | $(INSTALLED)
	$(BIN)/ssql pretrain --config $(WORDS) --output $(QUICKSTART) $(call ONWARD,$(QUICKSTART))

$(QUICKSTART)/simsiam/encoder/config.json: | $(INSTALLED) $(QUICKSTART)/encoder/config.json
	$(BIN)/ssql pretrain --config $(WORDS) --output $(QUICKSTART)/simsiam $(call ONWARD,$(QUICKSTART)/simsiam) \
		--model.ssql false --trainer.max_epochs 12

$(QUICKSTART)/accuracy.json: $(QUICKSTART)/encoder/config.json $(QUICKSTART)/simsiam/encoder/config.json
	$(BIN)/ssql evaluate --encoders '{"SSQL": "$(QUICKSTART)/encoder", "SimSiam": "$(QUICKSTART)/simsiam/encoder"}' \
		--data SpokenWords --output $(QUICKSTART) --overwrite true

$(QUICKSTART)/encoder-int4.onnx: $(QUICKSTART)/accuracy.json
	$(BIN)/ssql export --encoder $(QUICKSTART)/encoder --output $(QUICKSTART) \
		--bit_width '[fp, w8a8, w4a8]' --input waveform --accuracy $(QUICKSTART)/accuracy.json --overwrite true

# Without Node.js 20 the page's tests are skipped, and say so.
NODE_20 := $(shell node --eval 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && echo yes)

test: lint $(if $(NODE_20),web)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --max-worker-restart 0

# Not in CI: 2,000 damaged inputs, options and files. FUZZ='--seed 1 --count 200 --only export' for others.
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

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
	$(BIN)/python benchmarks/exported.py $(RACE)

# In headless Chromium, by the page of `ssql demo`.
bench-browser: $(INSTALLED) web
	$(BIN)/python benchmarks/browser.py $(BROWSER)

install: $(INSTALLED)

# The locked set, by uv where it is there and else by pip. TORCH_INDEX=URL takes PyTorch from an index of your own,
# such as one of builds without CUDA: the same versions, without their hashes.
LOCK := requirements.lock
CUDA := torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install)

$(INSTALLED): pyproject.toml $(LOCK)
	@echo "Installing the locked packages into .venv: 2 to 4 minutes on a fast line, more where it is slow."
	$(if $(shell command -v uv),uv venv --quiet --allow-existing --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
ifdef TORCH_INDEX
	$(INSTALL) --no-deps --index-url $(TORCH_INDEX) $$(sed -nE 's/^((torch|torchvision|torchaudio)==[^ ]+).*/\1/p' $(LOCK))
	awk '/^[a-z]/ { cuda = ($$0 ~ /^($(CUDA))==/) } !cuda' $(LOCK) > .venv/without-torch.lock
	$(INSTALL) --no-deps --require-hashes --requirement .venv/without-torch.lock
else
	$(INSTALL) --require-hashes --requirement $(LOCK)
endif
	$(INSTALL) --quiet --no-deps --no-build-isolation --editable .
	touch $@

# A newer set is a deliberate step: run the tests on it before it is committed.
lock: $(INSTALLED)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-header \
		--extra dev --output-file $(LOCK) pyproject.toml

clean:
	rm -rf .venv runs ssql/page export/web/node_modules
