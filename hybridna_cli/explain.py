"""`hybridna explain`: what the scores in a file mean."""

import typer

from hybridna_cli.options import AllowMissingEof, Input


def explain(scores: Input, allow_missing_eof: AllowMissingEof = False):
    """Say in words what the scores of a VCF, BCF or table are: definition, settings, model and reference."""
    from hybridna_core.commands import explain as core

    typer.echo("\n".join(core.explain(scores, allow_missing_eof=allow_missing_eof)))
