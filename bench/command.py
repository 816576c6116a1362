"""Command lines of the benchmarks."""

from __future__ import annotations

import argparse


def listed(text: str) -> list[str]:
    """ "a,b" -> ["a", "b"]"""
    return [name for name in text.split(",") if name]


def command(name: str, page: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring: its first line before the options, the rest after them."""
    head, _, rest = page.partition("\n")
    return argparse.ArgumentParser(
        prog=name, description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
