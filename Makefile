# Two commands do everything on a machine that has only Python 3.11+, make and a package index:
#   make demo    one clip through each dialect, saved in demo/
#   make test    the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyPI's is built for CUDA; a CPU build where the index offers one. `make -B install TORCH="torch==… --index-url …"` takes
# another, -B because one is there already.
TORCH ?= torch==2.13.0

.PHONY: help install demo up test test-slow test-gpu train-demo-model screenshot storm lint lock check-deploy image-check docs format bench bench-queue clean
help:
	@sed -n '/^[a-z-]*:.*## /s/:.*## /\t/p' Makefile | expand -t 18

install: $(VENV)/.installed ## the project and all tools in .venv

$(VENV)/.installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Polyreel needs Python 3.11 or newer; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 3 minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[worker,dev]'
	@touch $@

demo: install ## one clip through each dialect, saved in demo/
	@$(BIN)/python -P examples/demo.py

up: install ## serve until Ctrl-C
	@exec $(BIN)/polyreel up

QUICK := $(BIN)/python -m pytest -m "not slow and not gpu"

# Two halves beside each other: the first computes on one core, the other mostly waits for processes.
HALF := tests/models tests/core tests/workers
test: install ## the test suite; ARGS="tests/core -k name" runs a part
ifeq ($(ARGS),)
	@$(QUICK) $(HALF) >$(VENV)/half.log 2>&1 & half=$$!; trap 'kill $$half' INT TERM; \
	$(QUICK) $(HALF:%=--ignore=%); rest=$$?; \
	wait $$half; first=$$?; cat $(VENV)/half.log; exit $$((rest | first))
else
	@$(QUICK) $(ARGS)
endif

SLOW := $(BIN)/python -m pytest -m "slow and not gpu"

# As `test`: the demonstration model's figures compute, the others mostly wait. The tests for CUDA run tiny and on the CPU
# after those: else nobody without a GPU would see that a change has broken them.
test-slow: install ## what takes minutes by nature: full-size examples, foreign clients
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[clients]'
ifeq ($(ARGS),)
	@( OMP_NUM_THREADS=1 $(SLOW) tests/atelier; figures=$$?; \
	POLYREEL_GPU_TESTS_ON_CPU=1 $(BIN)/python -m pytest -q -m gpu tests/gpu; exit $$((figures | $$?)) \
	) >$(VENV)/half.log 2>&1 & half=$$!; trap 'kill $$half' INT TERM; \
	$(SLOW) --ignore=tests/atelier; rest=$$?; \
	wait $$half; first=$$?; cat $(VENV)/half.log; exit $$((rest | first))
else
	@$(SLOW) $(ARGS)
endif

test-gpu: install ## full-size models with random weights on CUDA, with a report of memory and speed
	@$(BIN)/python -m pytest -m gpu $(ARGS)

train-demo-model: install ## train models/atelier from nothing, or go on: hours on two cores; ARGS="--device cuda"
	@$(BIN)/python -m models.atelier train $(ARGS)

screenshot: install ## take the README's picture of the page again, in a real Chromium
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[clients]'
	@SCREENSHOT=1 $(BIN)/python -m pytest -q -m slow tests/browser/test_page.py -k journey

SECONDS ?= 60
storm: install ## kill parts of a server under load for a while: make storm SECONDS=60 SEED=7
	@$(BIN)/python -m tests.faults.storm --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

lint: install ## ruff, mypy, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: install ## rewrite the generated parts of docs/: index, settings, errors, tables
	@$(BIN)/python -m tests.docs.generate

lock: install ## write requirements/*.txt anew; ARGS=--upgrade takes the newest versions that pyproject.toml allows
	@$(BIN)/python requirements/lock.py $(ARGS)

check-deploy: install ## Dockerfile, compose, Kubernetes, Caddy, Prometheus, Grafana: all that no container engine is needed for
	@$(BIN)/python -m pytest -q tests/deploy

image-check: ## build both images without a container engine and run them (root, buildah, debootstrap); IMAGES=server
	@deploy/image-check.sh

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install ## what the server adds to the bare pipeline
	@$(BIN)/python -P benchmarks/bench_server.py

bench-queue: install ## rates and latencies of the queue, each with its control
	@$(BIN)/python -P benchmarks/bench_queue.py

clean:
	rm -rf demo build *.egg-info
