"""The ledger of parity: what every golden file measures today, beside its bound.

    python -m zoo parity                       # every layer of every family and format
    python -m zoo parity vit                   # of one family
    python -m zoo parity --markdown            # the table of the README: the largest of each case
    python -m zoo parity --precision default   # as fast as the device multiplies, not as exactly

Differences are max |ours − reference| / max |reference|, in float32, on the device that JAX has.
Exits with 1 if one is above its bound.
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import jax

from tests.golden import replay

ROOT = Path(__file__).parent.parent
KINDS = ("hidden states", "output", "gradients", "running statistics")


def family_of(case: replay.Case) -> str:
    return case.page.__name__.rpartition(".")[2]


class Entry(NamedTuple):
    case: replay.Case
    found: list[replay.Measured]

    @property
    def reference(self) -> str:
        """The library that recorded the case, with its version."""
        library, version = next(iter(self.case.meta["versions"].items()))
        return f"{library} {version}"

    def largest(self, kind: str) -> replay.Measured | None:
        of_kind = [row for row in self.found if row.kind == kind]
        return max(of_kind, key=lambda row: row.error, default=None)


def cases() -> list[replay.Case]:
    """Every case of the tests, by family and format."""
    for path in (*(ROOT / "models").glob("test_*.py"), ROOT / "test_migration.py"):
        import_module(".".join(path.relative_to(ROOT.parent).with_suffix("").parts))
    return sorted(replay.CASES.values(), key=lambda c: (c.page.__name__, c.format, c.name))


def text(entry: Entry) -> str:
    """A line for each layer, with a mark behind what is above its bound."""
    format = entry.case.format or "its own names"
    lines = [f"{family_of(entry.case)}, {format}: {entry.case.name}, by {entry.reference}"]
    lines += [
        f"    {row.kind:<18}  {row.name:<56}  {row.error:7.1e}  bound {row.bound:.0e}"
        + ("" if row.error <= row.bound else "  ABOVE")
        for row in entry.found
    ]
    return "\n".join(lines)


def table(entries: Iterable[Entry]) -> str:
    lines = [
        "| family | format | case | reference | " + " | ".join(KINDS) + " |",
        "|---|---|---|---|" + "---|" * len(KINDS),
    ]
    for entry in entries:
        largest = (entry.largest(kind) for kind in KINDS)
        cells = [f"{row.error:.0e}" if row else "" for row in largest]
        facts = [family_of(entry.case), entry.case.format, f"`{entry.case.name}`", entry.reference]
        lines.append(f"| {' | '.join([*facts, *cells])} |")
    bounds = (f"{kind} {replay.BOUNDS[kind]:.0e}" for kind in KINDS)
    return "\n".join([*lines, "", f"Bounds: {', '.join(bounds)}."])


def show(family: str | None = None, *, markdown: bool = False, precision: str = "highest") -> int:
    """Prints the ledger of one family or all. 0: all within their bounds; 1: not; 2: no such one.

    precision: of products, for `jax_default_matmul_precision`; the bounds hold at the highest.
    """
    known = sorted({family_of(case) for case in cases()})
    if family not in (None, *known):
        names = ", ".join(known)
        print(f"error: no golden files of {family!r}; there are those of {names}", file=sys.stderr)
        return 2
    entries = []
    with jax.default_matmul_precision(precision):
        for case in cases():
            if family in (None, family_of(case)):
                entries.append(Entry(case, replay.measure(case)))
                if not markdown:
                    print(text(entries[-1]), flush=True)
    if markdown:
        print(table(entries))
    rows = [row for entry in entries for row in entry.found]
    above = sum(not row.error <= row.bound for row in rows)
    print(
        f"{len(rows)} values of {len(entries)} cases, {above} above their bound "
        f"(jax {jax.__version__}, {jax.devices()[0].device_kind}, precision {precision})",
        file=sys.stderr,
    )
    return 1 if above else 0
