# Each target is a line or two that can be typed by hand. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
# The run file whose held-out genomes `heldout` measures; its genomes are not part of the repository.
RUN ?= hybridna_core/bundled/base/run.toml

# Of `experiments`: where the genomes lie, where its runs go, further options (--tokens, --seeds, --only, --list).
GENOMES ?= genomes
SCRATCH ?= runs/experiments
EXPERIMENTS ?=

.PHONY: demo test lint docs examples bench heldout slow kill-storm stop-storm bit-flips experiments

demo: .venv/bin/hybridna
	.venv/bin/hybridna score-variants demo/promoter_variants.vcf -f demo/yeast_chrI.fa.gz --window 1024

test: .venv/bin/pytest
	.venv/bin/python -m pytest -q

lint: .venv/bin/pytest
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

docs: .venv/bin/hybridna
	.venv/bin/python docs/write_cli.py docs/cli.md

examples: .venv/bin/hybridna
	.venv/bin/python docs/write_examples.py

bench: .venv/bin/pytest
	.venv/bin/hybridna bench

heldout: .venv/bin/hybridna
	.venv/bin/hybridna evaluate genome $(RUN) --max-bases 300000

experiments: .venv/bin/pytest
	.venv/bin/python docs/run_experiments.py --genomes $(GENOMES) --out $(SCRATCH) $(EXPERIMENTS)

# 200 runs killed at random moments, 20 stopped, 1,000 bits flipped in snapshots; each prints a table, and fails on a loss.
kill-storm: .venv/bin/hybridna
	.venv/bin/python tests/storm.py kill 200

stop-storm: .venv/bin/hybridna
	.venv/bin/python tests/storm.py stop 20

bit-flips: .venv/bin/hybridna
	.venv/bin/python tests/storm.py flip 1000

slow: .venv/bin/pytest
	.venv/bin/python -m pytest -q -m slow

.venv/bin/hybridna: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . && touch $@

.venv/bin/pytest: .venv/bin/hybridna
	.venv/bin/pip install -q -c constraints.txt -e '.[dev]' && touch $@
