"""Explain scores: what a scored file's numbers are, in words, from its header.

VCF, BCF or table -> header lines -> runs -> lines of text
"""

import contextlib

from hybridna_core.data.inputs import check_input, read_chunks, read_lines
from hybridna_core.data.vcf import Header, VcfReader, to_text
from hybridna_core.data.writers import load_pyarrow
from hybridna_core.errors import DataError
from hybridna_core.score_fields import FIELDS, HAPLOTYPE_FIELDS, read_runs
from hybridna_core.score_parquet import read_parquet_header


def explain(path, *, allow_missing_eof=False):
    """Return what the scores of a file mean, as lines of text.

    path  VCF, VCF.gz or BCF of score_variants, or a table of score_variants or saturate; `-` for a VCF or BCF on
          standard input

    Raises DataError for a file that does not say how it was scored.
    """
    path = check_input(path)
    header, columns = read_header(path, allow_missing_eof)
    runs = read_runs(header)
    if not runs:
        hint = "--no-version leaves out what is needed here"
        raise DataError("the header does not say that hybridna scored this file", where=path, hint=hint)
    lines = []
    for run in runs:
        if columns:
            fields = set(columns)
            names = {name: field.column for name, field in FIELDS.items()}
        else:
            fields = {*header.ids("INFO"), *header.ids("FORMAT")}
            names = {name: f"{run.get('Prefix')}{name}" for name in (*FIELDS, *HAPLOTYPE_FIELDS)}
        lines += spell_meaning(path, run, {key: name for key, name in names.items() if name in fields})
    return lines


def read_header(path, allow_missing_eof):
    """Return the Header of a VCF or BCF and no columns, or the ## lines of a table and its column names."""
    if str(path).lower().endswith(".parquet"):
        load_pyarrow()
        return read_parquet_header(path)
    if not is_table(path):
        with VcfReader(path, allow_missing_eof=allow_missing_eof) as reader:
            return reader.header, []
    lines = []
    with contextlib.closing(read_chunks(path, allow_missing_eof=allow_missing_eof)) as chunks:
        for _, raw, _ in read_lines(chunks, path):
            lines.append(to_text(raw))
            if not raw.startswith(b"##"):
                break
    return Header(lines), lines[-1].removeprefix("#").split("\t")


def is_table(path):
    """Tell whether a file is a table of scores; standard input, which is read once, is taken for VCF or BCF."""
    if path == "-":
        return False
    with contextlib.closing(read_chunks(path, allow_missing_eof=True)) as chunks:
        return next(chunks, b"").startswith((b"##hybridna=", b"#chrom\t"))


def spell_meaning(path, run, names):
    """Yield the lines that explain one run. names: LLR, EDGE, ... -> how they are called in the file"""
    window, horizon, stride = (int(run[key]) for key in ("Window", "Horizon", "Stride"))
    before = f"{window - horizon:,}"
    llr = names.get("LLR", "the score")
    yield f"{path}: scored by hybridna {run.get('Version')} with the model {run.get('Model')}"
    yield f"{llr} = log P(alternative) - log P(reference), natural logarithm, in nats."
    yield f"  Below 0: the model finds the alternative less likely than the reference; {llr} = -2.3: ten times less."
    yield f"  Summed over up to {horizon:,} known bases from the first changed base on, given the {before} before;"
    yield "  both are read left to right and as reverse complements, and the two directions are averaged."
    if stride > 1:
        yield f"  What is read begins at multiples of {stride:,} bases, so up to {stride - 1:,} fewer come before."
    yield "  No cutoff tells harmful from harmless: compare within one kind of variant, model and setting."
    texts = {
        "EDGE": "1: a contig's end shortened what was read, so the score rests on less",
        "ST": "ok; swapped: the genome holds ALT, and the sign is that of the record; else why there is no score",
        "FWD": "the direction left to right alone", "REV": "the direction right to left alone",
        "PCT": "percent of matched alleles (same trinucleotide and change, or same length put in or taken out) of "
        f"{run.get('Calibration')} that score as low or lower, counting itself; 1: lower than 99 of 100",
        "PHRED": "-10 log10 of that share, 20 for one in a hundred, 0 for the highest",
        "DIST": f"{run.get('Distance')} distance of the two alleles' embeddings, 0 for equal ones; each is the mean of "
        "the model's last hidden vectors over all bases read, and the two directions are averaged",
    }  # fmt: skip
    for key, text in texts.items():
        if key in names:
            yield f"{names[key]}: {text}."
    if "HAP" in names:
        yield f"{names['HAP']}, one number for each haplotype of a sample: log P(haplotype) - log P(reference), of all"
        yield f"  alternatives that stand less than {horizon:,} bases apart on it together; in each of their records."
    if "EPI" in names:
        yield f"{names['EPI']}: that minus the sum of the same alternatives alone, over the same bases; 0: they add up."
    if "Haplotypes" in run:
        yield f"  Haplotypes by {run['Haplotypes']}; a dot: no ALT on that haplotype, or no score."
    start = "with" if run.get("StartToken") == "yes" else "without"
    yield f"Model: {run.get('Model')}, SHA-256 of its weights {run.get('ModelSHA256')};"
    yield f"  {run.get('Tokenizer')}; {start} a start token; computed in {run.get('Precision')}"
    yield f"  ({run.get('Backend')})."
    yield f"Reference: {run.get('Reference')}, MD5 of its contigs {run.get('ReferenceMD5')}."
