"""The architecture, checked on the source: which way imports point, and habits that hold everywhere.

every .py file -> ast -> imported module names -> layer rules
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"hybridna_cli": "hybridna_cli", "hybridna_core": "hybridna_core", "hybridna_kernels": "kernels"}
KERNEL_PACKAGES = {"triton", "mamba_ssm", "causal_conv1d", "flash_attn"}
CLI_PACKAGES = {"typer", "rich", "click"}

# Core modules or folders, lowest first; a module imports only from lower ranks, or from its own folder.
RANKS = {
    "errors": 0, "config": 1, "memory": 1, "run_config": 2, "tokenizer": 2, "model": 3, "data": 3, "weight_files": 4,
    "tune_config": 3, "part_files": 3, "task_files": 4, "task_metrics": 4, "sequence_baselines": 5, "task_store": 6,
    "checkpoint": 4, "hf_weights": 4, "metrics": 4, "train": 5,
    "scoring": 6, "score_fields": 6, "skipped": 6, "effect_plot": 6, "score_parquet": 7, "haplotype_scores": 7,
    "baselines": 6, "reports": 6, "task_report": 7,
    "calibration": 7,
    "halves": 1, "timing": 2, "context_lengths": 5, "slow_ways": 7, "peer_passes": 7, "bench_plot": 7,
    "logo": 4, "automaton": 4, "constraints": 5, "certificate": 6, "search": 6, "design_report": 7,
    "generation": 7, "oracle": 5, "design_measures": 6,
    "commands": 8, "__init__": 9,
}  # fmt: skip
# Below the command line the number of threads is the caller's; this module sets its workers', and the caller's back.
SETS_THREADS = "hybridna_core.halves"
COMMANDS_THAT_MAY_CALL_OTHERS = {"evaluate_effects", "evaluate_tasks"}


def module_name(path):
    """Return the import name of a source file: kernels/cpu/x.py -> hybridna_kernels.cpu.x"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = {folder: name for name, folder in FOLDERS.items()}[parts[0]]
    return ".".join([package, *[part for part in parts[1:] if part != "__init__"]])


SOURCES = {module_name(p): p for folder in FOLDERS.values() for p in sorted((ROOT / folder).rglob("*.py"))}


def imports_of(tree, name, is_package):
    """Yield (absolute name of an imported module or member, line, whether inside a function)."""
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in SOURCES else base), node.lineno, id(node) in inside


def group_of(name):
    """Return the rank key of a core module: hybridna_core.data.genome -> data."""
    parts = [*name.split("."), "__init__"]
    return "hf_weights" if parts[1].startswith("hf_") else parts[1]


def fault(name, imported, inside):
    """Return why module `name` may not import `imported`, or None."""
    package, target = name.split(".")[0], imported.split(".")[0]
    if target == "kernels":
        return "`kernels` is another distribution; this package is hybridna_kernels"
    if target in KERNEL_PACKAGES and package != "hybridna_kernels":
        return "only hybridna_kernels imports kernel packages"
    if target in CLI_PACKAGES and package != "hybridna_cli":
        return "only hybridna_cli imports typer and rich"
    order = ["hybridna_kernels", "hybridna_core", "hybridna_cli"]
    if target in order and order.index(target) > order.index(package):
        return f"{package} is below {target}"
    if package == "hybridna_cli" and target in ("hybridna_kernels", "torch", "numpy", "pysam"):
        return "the command line imports only the core"
    if package == "hybridna_cli" and target == "hybridna_core" and not inside and imported != "hybridna_core.errors":
        return "command files import the core inside the function"
    if package != "hybridna_core":
        return None
    own = group_of(name)
    if own not in RANKS:
        return f"{own!r} has no rank here"
    if own == "data" and target in ("torch", "hybridna_kernels"):
        return "data know nothing of the network"
    plain = own in ("errors", "config", "run_config", "tune_config")
    if plain and target != "hybridna_core" and target not in sys.stdlib_module_names:
        return "errors and configurations use the standard library only"
    if target != "hybridna_core":
        return None
    other = group_of(imported)
    if other not in RANKS:
        return f"{other!r} has no rank here"
    if own == other == "commands":
        stem = name.split(".")[-1]
        if stem in COMMANDS_THAT_MAY_CALL_OTHERS or stem == "commands" or imported == name:
            return None
        return "commands never import one another"
    same_folder = own == other and (ROOT / "hybridna_core" / own).is_dir()
    files_beside = RANKS[own] == RANKS[other] == 4
    if own == "__init__" or same_folder or files_beside or RANKS[other] < RANKS[own]:
        return None
    return f"{own} may not import {other}"


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_the_right_way(name):
    path = SOURCES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {imported}: {reason}"
        for imported, line, inside in imports_of(tree, name, path.name == "__init__.py")
        if (reason := fault(name, imported, inside)) is not None
    ]
    assert not faults, "\n".join(faults)


def is_print(node):
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return named and node.func.id in ("print", "exit", "quit")


@pytest.mark.parametrize("name", SOURCES)
def test_habits(name):
    path = SOURCES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(ROOT)
    # A module that is also started as a process of its own may speak to its parent.
    mains = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == "main"]
    child = {id(n) for f in mains for n in ast.walk(f)} if "__main__" in path.read_text(encoding="utf-8") else set()
    faults = []
    if ast.get_docstring(tree) is None and path.stat().st_size:
        faults.append(f"{where}: no module docstring")
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            # python -O drops asserts, and with them the check.
            faults.append(f"{where}:{node.lineno}: assert in package code")
        if is_print(node) and not name.startswith("hybridna_cli") and id(node) not in child:
            faults.append(f"{where}:{node.lineno}: {node.func.id}() below the command line")
        is_setting = isinstance(node, ast.Attribute) and node.attr == "set_num_threads"
        if is_setting and not name.startswith("hybridna_cli") and name != SETS_THREADS:
            faults.append(f"{where}:{node.lineno}: the number of threads is the caller's")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f"{where}:{node.lineno}: bare except")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "name, imported, inside",
    [
        ("hybridna_core.data.genome", "hybridna_core.model.hybrid", False),
        ("hybridna_core.model.hybrid", "hybridna_core.data.genome", True),
        ("hybridna_core.data.genome", "torch", True),
        ("hybridna_core.errors", "numpy", False),
        ("hybridna_core.tokenizer", "hybridna_core.checkpoint", False),
        ("hybridna_core.commands.embed", "hybridna_core.commands.generate", True),
        ("hybridna_core.train.loop", "hybridna_core.commands.pretrain", True),
        ("hybridna_core.model.layers", "triton", True),
        ("hybridna_core.commands.bench", "rich.table", True),
        ("hybridna_kernels.dispatch", "hybridna_core.errors", True),
        ("hybridna_cli.embed", "hybridna_core.commands.embed", False),
        ("hybridna_cli.embed", "torch", True),
        ("hybridna_core.model.layers", "kernels", True),
    ],
)
def test_the_rules_refuse(name, imported, inside):
    assert fault(name, imported, inside) is not None


@pytest.mark.parametrize(
    "name, imported, inside",
    [
        ("hybridna_core.commands.embed", "hybridna_core.data.genome", False),
        ("hybridna_core.data.genome", "hybridna_core.data.inputs", False),
        ("hybridna_core.model.hybrid", "hybridna_kernels.gemm", False),
        ("hybridna_core.checkpoint", "hybridna_core.weight_files", False),
        ("hybridna_kernels.triton.scan", "triton", True),
        ("hybridna_cli.embed", "hybridna_core.commands.embed", True),
    ],
)
def test_the_rules_allow(name, imported, inside):
    assert fault(name, imported, inside) is None


def test_tree_is_not_deep():
    deep = [name for name in SOURCES if name.count(".") > 2]
    assert not deep, "nothing is deeper than package/group/module"
    assert not [name for name in SOURCES if name.endswith(".utils")], "no utils.py"
