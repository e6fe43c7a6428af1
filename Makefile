# Everything runs in .venv, which the first command makes.
PYTHON ?= python3
BIN := .venv/bin

# Two processes, since most of the time goes into tracing and compiling on one core; each takes one half of the tests in
# their order, and at last some of the other's.
PYTEST_FLAGS ?= -n 2 --dist worksteal

# Each on one core: PyTorch's threads wait for each other spinning; with two each, tests that train took twice as long.
test: export OMP_NUM_THREADS ?= 1

.PHONY: demo test parity bench lint clean

demo: .venv/examples
	$(BIN)/python examples/transfer_learning.py

test: .venv/test lint
	for backend in tensorflow jax torch; do \
		KERAS_BACKEND=$$backend $(BIN)/python -m pytest $(PYTEST_FLAGS) || exit 1; \
	done

# Every variant and size in float32 and float64, with the errors printed, and whatever else is marked slow.
parity: .venv/test
	for backend in tensorflow jax torch; do \
		KERAS_BACKEND=$$backend $(BIN)/python -m pytest tests/models/test_parity.py -m "" -s || exit 1; \
		KERAS_BACKEND=$$backend $(BIN)/python -m pytest -m slow --ignore tests/models/test_parity.py || exit 1; \
	done

# Speed and memory of every variant and backend; benchmarks/README.md has the flags, such as
# make bench BENCH_FLAGS="--family dualvit --reference ~/checkouts"
bench: .venv/bench
	$(BIN)/python -m benchmarks.speed $(BENCH_FLAGS)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv build output
