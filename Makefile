# Each target is a line or two that can be typed by hand. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
# The run file whose held-out genomes `heldout` measures; its genomes are not part of the repository.
RUN ?= hybridna_core/bundled/base/run.toml

.PHONY: demo test lint docs examples bench heldout slow

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

slow: .venv/bin/pytest
	.venv/bin/python -m pytest -q -m slow

.venv/bin/hybridna: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . && touch $@

.venv/bin/pytest: .venv/bin/hybridna
	.venv/bin/pip install -q -c constraints.txt -e '.[dev]' && touch $@
