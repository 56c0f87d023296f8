"""Functions on parameter trees: path names, tables of regex → value, casts, counts.

A path joins the keys of nested dicts with "/": `stage1/block_0/conv1/kernel`. A table is a sequence
of `(regex, value)` rows; the first row whose regex matches the *whole* path wins.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def name(path: Sequence[Any]) -> str:
    """The "/"-joined name of a key path as `jax.tree_util.tree_map_with_path` gives it."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(tree: Tree) -> dict[str, Any]:
    """`{path: leaf}` in the tree's own order."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose `flatten` is `leaves`."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = root
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return root


def map_named(f: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """`f(path, leaf)` at every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: f(name(path), leaf), tree)


def match(
    tree: Tree, table: Iterable[tuple[str, Any]], default: Any = None, *, strict: bool = True
) -> Tree:
    """The value of the first row that matches each leaf's whole path, else `default`.

    Raises ValueError for a row that matches no leaf, unless `strict` is False: a typo in a mask
    must not pass in silence.
    """
    rows = [(re.compile(pattern), value) for pattern, value in table]
    used = [False] * len(rows)

    def value(path: str, leaf: Any) -> Any:
        hits = [i for i, (pattern, _) in enumerate(rows) if pattern.fullmatch(path)]
        for i in hits:
            used[i] = True
        return rows[hits[0]][1] if hits else default

    result = map_named(value, tree)
    for (pattern, _), hit in zip(rows, used, strict=True):
        if strict and not hit:
            near = difflib.get_close_matches(pattern.pattern, flatten(tree), n=3, cutoff=0.0)
            raise ValueError(f"regex {pattern.pattern!r} matches no path; near it: {near}")
    return result


def mask(tree: Tree, patterns: Iterable[str]) -> Tree:
    """True where any of the patterns matches the whole path."""
    return match(tree, [(pattern, True) for pattern in patterns], default=False)


def cast(tree: Tree, dtype: Any, keep: Sequence[str] = ()) -> Tree:
    """Floating leaves as `dtype`, but not where a regex of `keep` matches; others untouched."""
    kept = [re.compile(pattern) for pattern in keep]

    def convert(path: str, leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not floating or any(pattern.fullmatch(path) for pattern in kept):
            return leaf
        return jnp.asarray(leaf, dtype)

    return map_named(convert, tree)


def count(tree: Tree) -> int:
    """The number of scalars in a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def stacked(tree: Mapping[str, Any], start: int = 0) -> dict[str, Any]:
    """A loop's tree as that of a scan: per scope, `block_i` from `start` on become `blocks`."""
    result = {k: stacked(v, start) if isinstance(v, Mapping) else v for k, v in tree.items()}
    names = [f"block_{i}" for i in range(start, len(tree)) if f"block_{i}" in tree]
    if names:
        blocks = [result.pop(name) for name in names]
        result["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return result


def unstacked(tree: Mapping[str, Any], start: int = 0) -> dict[str, Any]:
    """The inverse of `stacked`."""
    result = {k: unstacked(v, start) if isinstance(v, Mapping) else v for k, v in tree.items()}
    if "blocks" in result:
        blocks = result.pop("blocks")
        depth = jax.tree.leaves(blocks)[0].shape[0]
        for i in range(depth):
            result[f"block_{start + i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
    return result
