# Each target is a line or two that can be typed by hand. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
# The run file whose held-out genomes `heldout` measures; its genomes are not part of the repository.
RUN ?= hybridna_core/bundled/base/run.toml

# Of `experiments`: where the genomes lie, where its runs go, further options (--tokens, --seeds, --only, --list).
GENOMES ?= genomes
SCRATCH ?= runs/experiments
EXPERIMENTS ?=

.PHONY: demo test lint docs examples bench bench-all bench-commands bench-train bench-mixer bench-score bench-embed bench-beam bench-lengths bench-gpu heldout slow kill-storm stop-storm bit-flips long-context store-soak vcf-soak score-storm embed-soak embeddings label-models designs beams products kernels-compiled gpu-check sanitize experiments coding effects gue speed card sharing

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

# Of the benchmarks: further options (--threads, --length, --repeats, ...); tables as JSON and pictures go to SCRATCH/bench.
BENCH ?=
bench: .venv/bin/pytest
	.venv/bin/hybridna bench $(BENCH)

bench-train bench-mixer bench-score bench-embed bench-beam bench-lengths: bench-%: .venv/bin/pytest
	mkdir -p $(SCRATCH)/bench
	.venv/bin/hybridna bench --task $* --plot $(SCRATCH)/bench/$*.png --force --summary-json $(SCRATCH)/bench/$*.json $(BENCH)

# Each row of the table beside transformers in docs/benchmarks.md: ten minutes.
THREADS ?= 2
LARGE = --hidden-size 1024
bench-all: .venv/bin/pytest
	for options in "" "--precision bf16" "--task mixer" "--task mixer --precision bf16" "--task mixer $(LARGE)" \
	    "--task mixer $(LARGE) --precision bf16" "$(LARGE) --layers 24 --length 2048" \
	    "$(LARGE) --layers 24 --length 2048 --precision bf16" "--task train --length 1024 --length 2048" \
	    "--task train --length 1024 --length 2048 --precision bf16" "--task beam" "--task embed"; do \
	    echo "bench $$options"; .venv/bin/hybridna bench --threads $(THREADS) --repeats 3 $$options $(BENCH) || exit; done

# On a CUDA device: Fig. 4 of the paper, then passes beside Bamba, which may lack memory for the last.
GPU_KERNELS ?= triton,attention=sdpa
GPU = --device cuda --precision bf16 $(LARGE) --layers 24 --state-size 128 --force
bench-gpu: .venv/bin/pytest
	mkdir -p $(SCRATCH)/bench
	for options in lengths forward "train --length 8192" "train --length 32768"; do \
	    set -- $$options; out=$(SCRATCH)/bench/gpu-$$1$$3; HYBRIDNA_KERNELS=$(GPU_KERNELS) .venv/bin/hybridna bench \
	    --task $$options $(GPU) --plot $$out.png --summary-json $$out.json $(BENCH) || exit; done

# Each command with its kernels and in plain torch, results compared.
bench-commands: .venv/bin/pytest
	.venv/bin/python docs/time_commands.py

# Scores of the bundled model beside two full passes per allele, held against aims.
sharing: .venv/bin/pytest
	.venv/bin/python docs/time_sharing.py --check

heldout: .venv/bin/hybridna
	.venv/bin/hybridna evaluate genome $(RUN) --max-bases 300000

experiments: .venv/bin/pytest
	.venv/bin/python docs/run_experiments.py --genomes $(GENOMES) --out $(SCRATCH) $(EXPERIMENTS)

# 200 runs killed at random moments, 20 stopped, 1,000 bits flipped in snapshots; each prints a table, and fails on a loss.
kill-storm: .venv/bin/hybridna
	.venv/bin/python tests/storm.py kill 200

stop-storm: .venv/bin/hybridna
	.venv/bin/python tests/storm.py stop 20

# A few steps of tiny at 8,192, 32,768 and 131,072 tokens; prints the peak of memory, and fails above 12 GiB.
long-context: .venv/bin/hybridna
	.venv/bin/python tests/long_context.py --threads 1

bit-flips: .venv/bin/hybridna
	.venv/bin/python tests/storm.py flip 1000

# Of `coding`: a genome and its coding sequence.
FASTA ?= genomes/fungi/candida_auris_b11205_chr1_4_5_6_7.fa.gz
CDS ?= annotation/candida_auris_b11205_chr1_4_5_6_7.gff3.gz
SITES ?= 1000
coding: .venv/bin/hybridna
	.venv/bin/hybridna evaluate coding -f $(FASTA) --cds $(CDS) --codon-table 12 --background $(RUN) --sites $(SITES)

# Of `effects`: the folder with `variants` and `genomes`; figures are kept in SCRATCH/effects.
DATA ?= .
effects: .venv/bin/pytest
	.venv/bin/python docs/score_effects.py --data $(DATA) --run $(RUN) --out $(SCRATCH)/effects

# Of `gue`: the folder with classify/ and reglm/; an hour or two on one core, and goes on where it was stopped.
gue: .venv/bin/hybridna
	.venv/bin/python docs/run_gue.py --data $(DATA)

speed: .venv/bin/hybridna
	.venv/bin/python docs/time_variants.py

card: .venv/bin/hybridna
	.venv/bin/python docs/write_card.py

# Memory and reading time over a synthetic genome of so many bases; the folder keeps 1.5 bytes a base.
BASES ?= 2000000000
store-soak: .venv/bin/hybridna
	.venv/bin/python tests/store_soak.py $(SCRATCH)/store-soak $(BASES)

# Memory of score-variants from ten thousand to a million records, with a stub for the network.
vcf-soak: .venv/bin/hybridna
	.venv/bin/python tests/vcf_soak.py 10000 1000000

# 50 scoring runs killed at random moments; prints a table, and fails on a difference.
score-storm: .venv/bin/hybridna
	.venv/bin/python tests/score_storm.py 50

# Memory while embedding 100,000 regions.
embed-soak: .venv/bin/pytest
	.venv/bin/python tests/embed_soak.py $(SCRATCH)/embed-soak

# Of `embeddings`: the yeast genome and its annotation.
YEAST ?= genomes/fungi/scerevisiae_r64.fa.gz
YEAST_GFF ?= annotation/scerevisiae_r64.gff3.gz
embeddings: .venv/bin/pytest
	.venv/bin/python docs/draw_embeddings.py --fasta $(YEAST) --gff $(YEAST_GFF) --scratch $(SCRATCH)/embeddings

# Of `label-models`: human chromosome 20 and the table of yeast promoters; an hour of one core. `designs` judges what they draw.
HUMAN ?= genomes/mammalian/human_grch37_chr20_7.39mb.fa.gz
PROMOTERS ?= reglm/yeast_promoters_train_val.tsv.gz
LABELS = --genome $(HUMAN) --yeast $(PROMOTERS) --out $(SCRATCH)/labels --bundled hybridna_core/bundled
label-models: .venv/bin/hybridna
	.venv/bin/python docs/make_label_models.py --only human-enhancers-demo $(LABELS)
	.venv/bin/python docs/make_label_models.py --only yeast-promoters --blind $(LABELS)

designs: .venv/bin/hybridna
	.venv/bin/python docs/judge_label_models.py --out $(SCRATCH)/labels

# The ways of matrix products, on one core: tiles, vectors, oneDNN, torch's own.
products: .venv/bin/pytest
	.venv/bin/python docs/time_products.py

# Beams of 256 x 80 and 2,500 x 200 bases beside reading all again, and beside transformers.
beams: .venv/bin/pytest
	.venv/bin/python docs/time_beams.py --limit 5

# Each Triton kernel compiled for sm_90; parity and times on a CUDA machine.
kernels-compiled: .venv/bin/pytest
	.venv/bin/python -m hybridna_kernels.triton.compiled

gpu-check: .venv/bin/pytest
	PYTHON=.venv/bin/python kernels/gpu_check.sh
	.venv/bin/python -m pytest -q -n0 tests/core/test_decode.py

# The C++ kernels under AddressSanitizer, which finds what they read or write beside their arrays.
ASAN = LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 CXX="$(CXX) -g -fsanitize=address"
sanitize: .venv/bin/pytest
	$(ASAN) .venv/bin/python -m pytest -q -n0 tests/kernels/test_cpu.py tests/kernels/test_cpu_training.py \
	    tests/kernels/test_product.py tests/kernels/test_tiles.py tests/kernels/test_block.py

slow: .venv/bin/pytest
	.venv/bin/python -m pytest -q -m slow

.venv/bin/hybridna: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . && touch $@

.venv/bin/pytest: .venv/bin/hybridna
	.venv/bin/pip install -q -c constraints.txt -e '.[dev]' && touch $@
