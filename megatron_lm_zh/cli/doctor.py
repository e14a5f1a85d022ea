"""Says what this machine has: each package that a Megatron system uses, what it does here and how to get it."""

from __future__ import annotations

import argparse

SUMMARY = "packages, device and memory of this machine, and how to get what is missing"
EXIT_MISSING = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes none."""


def run(args: argparse.Namespace) -> int:
    """Prints the packages and a few lines on the machine; 1 where a package that training needs is missing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from megatron_lm_zh.compat import packages

    console = Console(highlight=False)
    found = packages()
    table = Table("package", "version", "used here for", box=None, padding=(0, 2, 0, 0))
    for package in found:
        absent = "missing" if package.required else "not found"
        version = (package.version or "found") if package.found else absent
        table.add_row(*(Text(cell) for cell in (package.name, version, package.used_for)))
    console.print(table)
    missing = [package.name for package in found if package.required and not package.found]
    absentees = [package for package in found if not package.found]
    if absentees:
        console.print("\nhow to get what was not found")
    for package in absentees:
        console.print(Text(f"  {package.name}: {package.get}"), soft_wrap=True)
    console.print("\nthis machine")
    for name, value in _machine(with_device=not missing):
        console.print(Text(f"  {name:<8}{value}"), soft_wrap=True)
    if missing:
        console.print(Text(f"needed for training and missing: {', '.join(missing)}"), soft_wrap=True)
    return EXIT_MISSING if missing else 0


def _machine(*, with_device: bool) -> list[tuple[str, str]]:
    """Names and values of what this machine is; the device is asked of torch, so only where torch is there."""
    import platform

    import psutil

    memory = psutil.virtual_memory()
    lines = [
        ("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})"),
        ("cores", f"{psutil.cpu_count(logical=False) or '?'} physical, {psutil.cpu_count()} logical"),
        ("memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"),
    ]
    if with_device:
        from megatron_lm_zh.runtime.device import detect

        lines.append(("device", detect().kernels()))
    return lines
