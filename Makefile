# Each target does all of its own set-up in .venv: Python 3.11 or newer and a C compiler are enough.
# `make run` installs what running needs; all else brings the tools of tests and lint.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
HOST ?= 127.0.0.1
PORT ?= 8080

# Of `make fuzz`.
INPUTS ?= 10000000
STREAMS ?= 200000
SEED ?= 1

SOURCES := setup.py pyproject.toml $(wildcard src_cy/*.pyx src_cy/*.h wsc_fast/_core/*.pxd)
# What is set up, in this order: an environment; the package and what running it needs; what tests,
# lint and trials need; and what the site is built with, which is a part of that.
MADE := $(VENV)/.made
BUILT := $(VENV)/.built
TESTED := $(VENV)/.tested
DOCUMENTED := $(VENV)/.documented
SANITIZE ?=
DEBUG_TREE := build/debug$(SANITIZE:%=-%)
# A sanitizer looks into nothing smaller than a malloc, so it takes the place of Python's allocator. That
# of addresses has to be loaded before Python. Leaks are the tests' own business: Python keeps what it
# has interned until its end.
DEBUG_ENV = $(if $(SANITIZE),PYTHONMALLOC=malloc,PYTHONMALLOC=debug) \
	$(if $(findstring address,$(SANITIZE)),LD_PRELOAD=$$(gcc -print-file-name=libasan.so) \
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1) \
	$(if $(findstring undefined,$(SANITIZE)),UBSAN_OPTIONS=print_stacktrace=1)

# Programs of others do not run with what is loaded before Python.
DEBUG_LESS = $(if $(findstring address,$(SANITIZE)),$(addprefix --ignore=tests/, \
	clients browsers proxies test_console_browser.py test_demo_browser.py test_herd.py test_javascript_client.py \
	test_torture_clients.py))

# The newest Python here that can build the package, from 3.13 on: of the PATH, or of pyenv. Empty where
# there is none.
NEWEST ?= $(shell for minor in 15 14 13; do \
	for each in python3.$$minor "$$(pyenv root 2>/dev/null)"/versions/3.$$minor.*/bin/python3; do \
	"$$each" -c 'import venv, ensurepip, sysconfig; open(sysconfig.get_config_h_filename())' \
	2>/dev/null && echo "$$each" && exit; done; done)
NEWEST_TREE := build/newest
# Left out is what a newer Python changes nothing of, or what takes long and tells little of it:
# - browsers, proxies, clients, the store in Redis: what other programs do with what we send them;
# - benchmarks, soak and torture: the long runs in short;
# - the style and the imports of the sources, the tables of security.md, the list of faults, the site: texts;
# - the wheel and the sdist: the environment is one that has been built and installed by this Python;
# - what is run with batches and with outboxes, the second time: small sets have outboxes in all tests;
# - the models of hypothesis, bombs (fault D1), contexts of zlib (D8) and crowds (F20, two thousand): what
#   the compiled code does with bytes and memory.
# With QUICK=1, as in CI, it is the tests of the compiled code and of the loop, on asyncio's own.
NEWEST_QUICK := test_acks.py test_deflate.py test_events.py test_hub.py test_life_cycle.py test_life_hooks.py \
	test_memory.py test_messages.py test_metrics.py test_outbox.py test_server.py test_timers.py
NEWEST_LESS := $(addprefix --ignore=tests/, browsers clients examples proxies test_console_browser.py \
	test_demo_browser.py test_javascript_client.py test_migration.py test_tutorial.py \
	test_herd.py test_redis_store.py test_benchmarks.py test_soak.py test_torture.py test_torture_clients.py \
	test_torture_cluster.py test_torture_users.py \
	test_style.py test_security_doc.py test_site.py faults/test_readme.py test_imports.py test_model.py) \
	-k "not (the_wheel or the_sources or outboxes or two_thousand$(if $(QUICK), or uvloop))" \
	-m "not (fault(number='D1') or fault(number='D8') or fault(number='F20'))" \
	$(if $(QUICK),$(addprefix tests/,$(NEWEST_QUICK)))

# Of connections; with QUICK=1, as in CI, without those that take long.
CONNECTION_TESTS := test_contexts.py test_deflate.py test_hub.py test_kept_rooms.py test_limits.py test_reentrance.py \
	test_server.py test_tls.py faults/test_faults_handshake.py faults/test_faults_transport.py \
	faults/test_faults_transport_http.py $(if $(QUICK),,faults/test_faults_frames.py \
	test_late_loop.py test_life_cycle.py test_lingering.py test_model.py)

.PHONY: ready newest newest-tree test-newest test-picows test-loop run docs test conformance torture torture-cluster torture-clients soak fuzz lint format bench debug valgrind bench-full attack bench-micro bench-gate dist wheels clean

run: $(BUILT)
	$(BIN)/wsc-fast demo --host $(HOST) --port $(PORT)

# The site in build/site; a warning, such as a link that leads nowhere, ends it. With LINKS=1 it also asks the servers of
# all links to other sites. All pages are made anew, since each has the contents of the site beside it.
docs: $(BUILT) $(DOCUMENTED)
	$(BIN)/python -m sphinx -q -W --keep-going -E -a -b html docs build/site
	$(if $(LINKS),$(BIN)/python -m sphinx -q -b linkcheck docs build/links)
	@echo "The site is in build/site: open build/site/index.html"

# On all cores, see tests/spread.py; ARGS="-n 0" without further processes.
test: $(BUILT) $(TESTED)
	$(BIN)/python -m tests.spread $(ARGS)

# The tests of connections again, with picows as the hubs' transport, or with the loop's own transports.
test-picows test-loop: test-%: $(BUILT) $(TESTED)
	$(BIN)/python -m tests.spread --transport $* $(addprefix tests/,$(CONNECTION_TESTS)) $(ARGS)

newest:
	@echo $(NEWEST)

# The core of the suite on the newest Python of the machine, in a tree and an environment of its own.
# READY=1 takes the tree that `make newest-tree` has made.
test-newest: $(if $(READY),,newest-tree)
	cd $(NEWEST_TREE) && .venv/bin/python -m tests.spread $(NEWEST_LESS) $(ARGS)

newest-tree:
	@test -n "$(NEWEST)" || { echo "there is no Python 3.13 or newer here"; exit 1; }
	rm -rf $(NEWEST_TREE) && mkdir -p $(NEWEST_TREE)
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $(NEWEST_TREE)
	cd $(NEWEST_TREE) && $(NEWEST) -m venv .venv && .venv/bin/pip install -q -e ./clients/python -e '.[test,cli]'

# The Autobahn cases: all on uvloop; on asyncio's loop, over TLS and on picows without those for
# performance (9), and with QUICK=1, as in CI, without those for compression either, which none of
# the three concerns; and without QUICK=1 on uvicorn's port.
SLOW := --exclude '9.*' $(if $(QUICK),--exclude '12.*' --exclude '13.*')

conformance: $(BUILT) $(TESTED)
	$(BIN)/pip install -q --no-build-isolation -e '.[conformance]'
	$(BIN)/python -m trials.conformance.run $(ARGS)
ifndef ARGS
	$(BIN)/python -m trials.conformance.run --loop asyncio $(SLOW)
	$(BIN)/python -m trials.conformance.run --tls $(SLOW)
	$(BIN)/python -m trials.conformance.run --transport picows $(SLOW)
	$(if $(QUICK),,$(BIN)/python -m trials.conformance.run --transport uvicorn)
endif

# The parsers and the receiving half of a connection against plain versions, with sanitizers.
fuzz: $(BUILT) $(TESTED)
	mkdir -p build/fuzz
	$(CC) -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
		-o build/fuzz/wire trials/fuzz/fuzz_wire.c
	build/fuzz/wire trials/fuzz/corpus/wire
	build/fuzz/wire $(INPUTS) $(SEED)
	$(BIN)/python -m trials.fuzz.fuzz_stream trials/fuzz/corpus/stream
	$(BIN)/python -m trials.fuzz.fuzz_stream --count $(STREAMS) --seed $(SEED)

# Servers and stores that are killed, full, late and shared: 50 rounds of each scenario over SQLite and
# Redis, in 15 to 30 minutes; with QUICK=1, as in the tests, a few rounds of each.
torture: $(BUILT) $(TESTED)
	$(BIN)/python -m trials.torture.run $(if $(QUICK),--quick) $(ARGS)

# Several hubs and their bus, killed, frozen, cut off and rewound: 50 rounds of each scenario, in an hour;
# with QUICK=1, as in the tests, a short round of each.
torture-cluster: $(BUILT) $(TESTED)
	$(BIN)/python -m trials.torture_cluster.run $(if $(QUICK),--quick) $(ARGS)

# Clients in JavaScript, in Chromium, Firefox and node: on hubs that are killed and a Redis that fails over, on
# networks that are away, and 10,000 of them that lose a hub; in 20 minutes. With QUICK=1, as in the tests, a few
# seconds of each.
torture-clients: $(BUILT) $(TESTED)
	$(BIN)/python -m trials.clients.run $(if $(QUICK),--quick) $(ARGS)
	$(BIN)/python -m trials.clients.networks $(if $(QUICK),--quick)
	$(BIN)/python -m trials.clients.herd $(if $(QUICK),--quick)

# Everything at once for half an hour, compared with a model; with QUICK=1, as in CI, for 3 minutes.
soak: $(BUILT) $(TESTED)
	$(BIN)/python -m trials.soak.run $(if $(QUICK),--quick) $(ARGS)

# The effect of attacks on a hub and its honest clients, as a table; QUICK=1 takes two minutes.
attack: $(BUILT) $(TESTED)
	$(BIN)/python -m trials.attack.run $(if $(QUICK),--quick) $(ARGS)

lint: $(BUILT) $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=$(abspath $(BIN)):$$PATH cython-lint --max-line-length 100 src_cy wsc_fast/_core
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --ignore-missing-stub \
		$(patsubst wsc_fast/_core/%.pyi,wsc_fast._core.%,$(wildcard wsc_fast/_core/*.pyi))

format: $(BUILT) $(TESTED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The Python peers are optional: one that does not install is named in the table and left out.
# `bench` is the main table and the claims; `bench-full` is all, and writes docs/benchmarks/.
bench bench-full: $(BUILT) $(TESTED)
	-while read -r peer; do case "$$peer" in [a-z]*) $(BIN)/pip install -q "$$peer";; esac; done \
		< benchmarks/requirements.txt
	$(BIN)/python benchmarks/run.py $(if $(filter bench-full,$@),--full --docs docs/benchmarks) $(ARGS)

# Single calls, in nanoseconds; ARGS="-k outbox" for some of them.
bench-micro: $(BUILT) $(TESTED)
	$(BIN)/pip install -q wsproto
	mkdir -p build/bench
	$(BIN)/python -m pytest benchmarks/micro --benchmark-enable --benchmark-only --benchmark-quiet -q \
		--benchmark-json=build/bench/micro.json $(ARGS)
	$(BIN)/python benchmarks/micro/table.py build/bench/micro.json

# Instructions per message, compared with benchmarks/gate.json, and that a slower flush would be seen;
# RECORD=1 records them anew.
bench-gate: $(BUILT) $(TESTED)
	$(BIN)/python benchmarks/gate/run.py $(if $(RECORD),--record)
ifndef RECORD
	$(BIN)/python -m pytest -q --benchmark-disable benchmarks/gate
endif

# Bounds checks, assertions, Python's debug allocator and the count of the engine's objects, in a tree
# of its own; with SANITIZE=address or undefined that sanitizer in the allocator's place.
debug: $(MADE)
	rm -rf $(DEBUG_TREE) && mkdir -p $(DEBUG_TREE)
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $(DEBUG_TREE)
	cd $(DEBUG_TREE) && $(PYTHON) -m venv .venv && WSC_DEBUG=1 WSC_SANITIZE=$(SANITIZE) \
		.venv/bin/pip install -q -e ./clients/python -e '.[test,cli]'
	cd $(DEBUG_TREE) && $(DEBUG_ENV) PYTHONFAULTHANDLER=1 .venv/bin/python -m tests.spread $(DEBUG_LESS) $(ARGS)

# The tests under valgrind, which checks the engine's use of memory. It is some thirty times slower,
# so no real clients and no test that measures. Only a report with our modules in it counts, see
# tests/valgrind.py.
valgrind: $(BUILT) $(TESTED)
	$(BIN)/python tests/valgrind.py $(ARGS)

# The sources, and a wheel of this Python that runs on other Linuxes of its kind, too.
dist: $(BUILT) $(TESTED)
	rm -rf dist && mkdir -p dist
	$(BIN)/pip install -q build
	$(BIN)/python -m build --no-isolation --sdist
	$(MAKE) wheels PYTHONS=$(BIN)/python

# A wheel for each of these Pythons: of the PATH, or of pyenv.
PYTHONS ?= $(shell for minor in 11 12 13 14; do \
	for each in "$$(pyenv root 2>/dev/null)"/versions/3.$$minor.*/bin/python3 python3.$$minor; do \
	"$$each" -c 'import pip, sysconfig; open(sysconfig.get_config_h_filename())' \
	2>/dev/null && echo "$$each" && break; done; done)

# Of an earlier build only what is compiled counts: a module that is gone would go into the wheel.
wheels: $(BUILT) $(TESTED)
	mkdir -p dist build && find build -path 'build/lib.*' -type f ! -name '*.so' -delete
	for python in $(PYTHONS); do echo "A wheel for $$python" && rm -rf build/wheel && \
		"$$python" -m pip wheel -q --no-deps -w build/wheel . && $(REPAIR) || exit 1; done
	ls -l dist

# On Linux with the tag of the oldest system that it runs on.
REPAIR = $(if $(filter Linux,$(shell uname)), \
	PATH=$(abspath $(BIN)):$$PATH auditwheel -q repair --strip -w dist build/wheel/*.whl,cp build/wheel/*.whl dist)

# All that tests need, before several targets are made at a time.
ready: $(BUILT) $(TESTED)

$(MADE):
	@echo "Making an environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Writes down what pyproject.toml names: for the build, or for the hub and its command line.
NEEDS = $(BIN)/python -c 'import tomllib; of = tomllib.load(open("pyproject.toml", "rb")); \
	project = of["project"]; print(*$(1), sep="\n")' > $(VENV)/.needs
BUILD_NEEDS := of["build-system"]["requires"]
RUN_NEEDS := project["dependencies"], *project["optional-dependencies"]["cli"]

# The modules are compiled while pip installs what only running needs: compiling keeps the processor busy,
# and pip the network. `pip install -e` then finds all modules compiled. It runs without the isolation of
# a build, so that Cython is installed once, and what was compiled before counts.
# The extra `cli` needs wsc-client, which is that of this tree.
# With --no-compile Python writes bytecode of the modules that are imported, and pip not of all.
$(BUILT): $(MADE) $(SOURCES)
	@echo "Installing what the build needs, such as Cython"
	@$(call NEEDS,$(BUILD_NEEDS))
	@$(BIN)/pip install -q --no-compile -r $(VENV)/.needs
	@echo "Compiling $(words $(wildcard src_cy/*.pyx)) modules, and installing what the hub and its command line" \
		"need: up to a minute the first time"
	@$(call NEEDS,$(RUN_NEEDS))
	@$(BIN)/python setup.py -q build_ext --inplace & modules=$$!; \
		$(BIN)/pip install -q --no-compile --no-build-isolation -e ./clients/python -r $(VENV)/.needs; \
		installed=$$?; wait $$modules && exit $$installed
	@$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	@touch $@

$(TESTED): pyproject.toml | $(BUILT)
	@echo "Installing what tests and lint need: browsers' drivers, node, linters and more, 500 MB"
	@$(BIN)/pip install -q --no-build-isolation -e '.[cli,test,lint]'
	@touch $@

$(DOCUMENTED): pyproject.toml | $(BUILT)
	@echo "Installing what builds the site"
	@$(BIN)/pip install -q --no-build-isolation -e '.[docs]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .venv .mypy_cache .ruff_cache .pytest_cache wsc_fast/_core/*.so
