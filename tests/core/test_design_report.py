"""The report: one file that needs nothing else, with the numbers of its designs.

designs -> certificates -> HTML -> parsed, its pictures decoded
"""

import base64
import html.parser
import re
import sys

import pytest
from toys import random_model

from hybridna_core.certificate import Certificate, Design, Reference, certify
from hybridna_core.commands.generate import generate
from hybridna_core.design_report import check_report, spell_report
from hybridna_core.errors import SystemFault, UsageError

DESIGNS = [Design("ACGTACGTAA", -9.0, 0.4, "44", 0, 0.75), Design("ACGTTCGTAC", -11.0, 0.5, "44", 0, 0.25)]
HOW = {"method": "sample", "seed": 4, "model": "toy:000000000000"}


class Page(html.parser.HTMLParser):
    """Collects the texts of cells, the titles and the sources of pictures; complains of tags left open."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.titles, self.pictures, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.pictures.append(dict(attributes)["src"])
        elif tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "code"):
            self.cells.append(data)
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_one_file_with_all_numbers_and_pictures():
    known = Reference([("one", "ACGTACGTAG"), ("two", "TTTTTTTTTN")])
    certificates = certify("design", DESIGNS, None, known, HOW)
    text = spell_report(certificates, [bases for _, bases in known.named])
    page = Page(text)
    facts = dict(zip(page.cells[0::2], page.cells[1::2], strict=False))
    assert facts["sequences"] == facts["distinct"] == "2" and facts["label"] == "44"
    assert facts["log-probability, nats"] == "mean -10.000, -11 to -9"
    assert facts["posterior of the label"] == "mean 0.500, 0.25 to 0.75"
    assert facts["mean edit distance of two designs"] == "2.00"
    assert "ACGTTCGTAC" in page.cells
    assert page.titles == ["Distributions", "4-mers", "Diversity", "Logo", "Sequences"]
    assert len(page.pictures) == 4
    for source in page.pictures:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    # Nothing is fetched from anywhere.
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "http" not in text
    assert text == spell_report(certificates, [bases for _, bases in known.named])


def test_a_single_design_of_a_file_with_a_bad_prompt():
    certificates = certify("a", DESIGNS[:1], None, None, HOW)
    certificates.append(Certificate("<b>", "NNN", {"status": "bad_prompt"}))
    page = Page(spell_report(certificates, None))
    assert page.titles == ["Distributions", "4-mers", "Logo", "Sequences"]
    assert page.cells[page.cells.index("prompts without designs") + 1] == "1"


def test_sequences_of_different_lengths_have_no_logo():
    mixed = [*DESIGNS, Design("ACG", -3.0, 0.67, None, 0)]
    assert "Logo" not in Page(spell_report(certify("a", mixed, None, None, HOW), None)).titles


def test_written_beside_the_fasta(tmp_path):
    model = random_model(3, layer_types=("mamba",))
    out, report = tmp_path / "o.fa", tmp_path / "o.html"
    generate(str(out), model=model, num_sequences=3, length=12, report=str(report))
    page = Page(report.read_text())
    sequences = [line for line in out.read_text().splitlines() if not line.startswith(">")]
    assert len(sequences) == 3 and all(sequence in page.cells for sequence in sequences)
    with pytest.raises(UsageError, match="exists already"):
        generate(str(tmp_path / "p.fa"), model=model, length=12, report=str(report))
    assert not (tmp_path / "p.fa").exists()


def test_names_and_what_is_not_installed(monkeypatch):
    with pytest.raises(UsageError, match="the report is HTML"):
        check_report("x.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemFault, match=r"--report needs matplotlib, which is not installed"):
        check_report("x.html")
