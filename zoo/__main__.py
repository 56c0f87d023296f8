"""`python -m zoo list [PATTERN]`, `python -m zoo describe MODEL` and `python -m zoo table`."""

import argparse
import os
import re
import sys

import zoo
from zoo import registry


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flax-zoo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="names, parameter counts and papers")
    listing.add_argument("pattern", nargs="?", default="*", help="a shell pattern: 'resnet*'")
    listing.set_defaults(run=lambda options: show_list(options.pattern))
    describing = commands.add_parser("describe", help="one variant: data flow, options, counts")
    describing.add_argument("model")
    describing.set_defaults(run=lambda options: zoo.describe(options.model))
    tabling = commands.add_parser("table", help="the Markdown table of the README")
    tabling.set_defaults(run=lambda options: table())
    options = parser.parse_args(arguments)
    try:
        print(options.run(options), flush=True)
    except BrokenPipeError:  # `| head` has what it wanted; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except zoo.UnknownModel as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def show_list(pattern: str) -> str:
    """One line a variant; imports neither jax nor flax."""
    names = zoo.list_models(pattern)
    if not names:
        raise zoo.UnknownModel(f"no model matches {pattern!r}; see `python -m zoo list`")
    rows = [registry.entry(name) for name in names]
    return "\n".join(f"{row.name:<16} {row.params:>14,}  {row.paper}" for row in rows)


def table() -> str:
    """Every variant as a row of Markdown; imports neither jax nor flax."""
    rows = ["| model | parameters | paper |", "|---|---:|---|"]
    for row in map(registry.entry, zoo.list_models()):
        paper = re.sub(r"arXiv:([\d.]+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", row.paper)
        rows.append(f"| `{row.name}` | {row.params:,} | {paper} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
