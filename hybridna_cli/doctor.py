"""`hybridna doctor`: what is installed, what is in use, and whether it computes the right numbers."""

from typing import Annotated

import typer

from hybridna_cli.console import check_json, write_json


def doctor(
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", show_default=False, help="Write everything as JSON as well.")
    ] = None,
):
    """Show versions, devices and kernels, and compare each usable kernel with its definition."""
    from hybridna_core.commands import doctor as core
    from hybridna_core.errors import SystemFault

    if json is not None:
        check_json(json)
    found = core.doctor()
    print("\n".join(spell(found)))
    if json is not None:
        write_json(found.to_dict(), json)
    if found.problems:
        raise SystemFault(found.problems[0], hint=f"{len(found.problems)} in all, listed above")


def spell(found):
    """Yield the lines of a Checkup."""
    yield ", ".join(f"{name} {version}" for name, version in found.versions.items())
    yield "\nPackages"
    for row in found.packages:
        state = row["version"] or "absent"
        extra = f"  (extra {row['extra']})" if row["extra"] else ""
        yield f"  {row['name']:<18}{state:<16}needs {row['lowest']}{extra}"
    yield "\nDevices"
    for row in found.devices:
        yield f"  {row['device']:<18}{row['about']}"
    yield "\nKernels"
    for row in found.kernels:
        yield f"  {row['op']:<18}{row['backend']:<16}{row['state']}"
    yield "\nParity with the definition"
    for row in found.parity:
        yield f"  {row['op']:<18}{row['backend']:<16}{row['state']}, largest error {row['error']:.1e}"
    yield "\nProblems"
    for problem in found.problems or ["none"]:
        yield f"  {problem}"
