# make demo    the main job on the embedded default, from nothing but Python and pip
# make test    lint, types, layout, tests
# make shapes  the tests once more, with every annotated tensor shape checked as it passes (slow)
# make docs    the generated pages anew
# make speed   how fast beside the peers, which are installed for it: docs/speed/*.json, under 40 minutes on 2 cores
# make tables  how good: every delta, merge and balancer in the folder, and 18 tasks in one fit (an hour or two)
# make soak    hours of faults: 10,000 examples of every fuzz test, 100 kills, 100,000 requests; a part: make soak SHARE=0.05
# Another Python: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
SHARE ?= 1
EXTRAS_demo := embedded
EXTRAS_test := embedded,serve,dev

.PHONY: demo test shapes speed tables soak docs constraints
.SILENT:

demo: .venv/demo.stamp
	$(BIN)/anabranch demo --out demo-run

test: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

shapes: .venv/test.stamp
	$(BIN)/python -m pytest -q --jaxtyping-packages=anabranch,beartype.beartype

docs: .venv/test.stamp
	$(BIN)/python -m anabranch.report.families
	$(BIN)/python -m anabranch.report.overview
	$(BIN)/python -m anabranch.report.deltas
	$(BIN)/python -m anabranch.report.speed
	$(BIN)/python -m anabranch.atlas.docs

speed: .venv/test.stamp
	$(BIN)/python speed/run.py

tables: .venv/test.stamp
	$(BIN)/python speed/deltas.py
	$(BIN)/python speed/merges.py --out
	$(BIN)/python speed/balances.py --out
	$(BIN)/python speed/parity.py --out
	$(BIN)/python speed/results.py

soak: .venv/test.stamp
	ANABRANCH_SOAK=$(SHARE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto tests/faults
	$(BIN)/python speed/serve.py --soak $$($(BIN)/python -c 'print(round(100_000 * $(SHARE)))')

# A stamp is newer than what it was installed from, so that a second run installs nothing. torch comes first and alone:
# whichever build of it this machine's index offers (CPU or GPU), nothing later replaces it. Bytecode is compiled on use.
.venv/torch.stamp: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("anabranch needs Python 3.11 or newer: make ... PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --no-compile $$(grep '^torch==' $<)
	touch $@

.venv/%.stamp: .venv/torch.stamp pyproject.toml constraints.txt
	$(PIP) install --no-compile -c constraints.txt -e '.[$(EXTRAS_$*)]'
	touch $@

# The newest versions on which all extras agree, from a fresh environment; torch moves by hand, in the line below.
constraints:
	rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip -qq install torch==2.13.0
	.venv-constraints/bin/python -m pip -qq install '.[embedded,serve,balance,ray,mlflow,dev]'
	.venv-constraints/bin/python -m pip check
	{ echo '# The versions that were tested together, for all extras; written by: make constraints'; \
	  .venv-constraints/bin/python -m pip freeze --exclude anabranch | sed 's/+[a-z0-9.]*$$//'; } > constraints.txt
	rm -rf .venv-constraints
