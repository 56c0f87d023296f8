"""Trees by path: names, tables of regex → value, casts, counts, and where leaves live on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from zoo import sharding, tree

pytestmark = pytest.mark.quick

PARAMS = {
    "head": {"bias": jnp.zeros(3), "kernel": jnp.zeros((8, 3))},
    "stem": {"kernel": jnp.zeros((3, 3, 1, 8)), "steps": jnp.zeros((), jnp.int32)},
}


def test_paths_are_the_keys_joined_by_slashes():
    assert list(tree.flatten(PARAMS)) == ["head/bias", "head/kernel", "stem/kernel", "stem/steps"]
    assert list(tree.flatten({"block": [1, (2, 3)]})) == ["block/0", "block/1/0", "block/1/1"]


def test_unflatten_undoes_flatten():
    nested = tree.unflatten(tree.flatten(PARAMS))
    assert jax.tree.structure(nested) == jax.tree.structure(PARAMS)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, nested, PARAMS)))


def test_the_first_row_that_matches_the_whole_path_wins():
    table = [("head/kernel", 1), (".*/kernel", 2), (".*bias", 3)]
    matched = tree.flatten(tree.match(PARAMS, table, default=0))
    assert matched == {"head/bias": 3, "head/kernel": 1, "stem/kernel": 2, "stem/steps": 0}


def test_part_of_a_path_is_not_a_match():
    with pytest.raises(ValueError, match=r"'kernel' matches no path; near it: \['.*kernel"):
        tree.match(PARAMS, [("kernel", 1)])
    assert set(jax.tree.leaves(tree.match(PARAMS, [("kernel", 1)], 0, strict=False))) == {0}


def test_a_row_behind_another_still_counts_as_used():
    tree.match(PARAMS, [(".*", 1), ("head/bias", 2)])


def test_a_mask_is_true_where_any_pattern_matches():
    masked = tree.flatten(tree.mask(PARAMS, ["head/.*", ".*steps"]))
    assert [path for path, hit in masked.items() if hit] == [
        "head/bias",
        "head/kernel",
        "stem/steps",
    ]


def test_a_cast_leaves_integers_and_kept_paths():
    cast = tree.flatten(tree.cast(PARAMS, jnp.bfloat16, keep=["head/bias"]))
    assert {path: str(leaf.dtype) for path, leaf in cast.items()} == {
        "head/bias": "float32",
        "head/kernel": "bfloat16",
        "stem/kernel": "bfloat16",
        "stem/steps": "int32",
    }


def test_a_count_needs_shapes_only():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert tree.count(shapes) == tree.count(PARAMS) == 3 + 24 + 72 + 1


@pytest.mark.parametrize(
    "shape, size, expected",
    [
        ((3, 3, 8, 16), 8, (None, None, None, "fsdp")),
        ((3, 3, 32, 16), 8, (None, None, "fsdp")),
        ((16, 16), 8, (None, "fsdp")),  # the last of equals
        ((12, 10), 8, ()),
        ((0, 8), 8, (None, "fsdp")),
        ((16,), 1, ()),
        ((), 8, ()),
    ],
)
def test_fsdp_splits_the_largest_divisible_axis(shape, size, expected):
    assert sharding.fsdp(shape, size) == PartitionSpec(*expected)


def test_rules_match_the_end_of_a_path_so_that_moments_lie_beside_their_parameters():
    mesh = jax.make_mesh((1, 4, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    rules = [("stem/kernel", (None, None, None, "tensor"))]
    both = {"params": PARAMS, "opt": {"mu": PARAMS}, "sub": {"xstem": PARAMS["stem"]}}
    placed = tree.flatten(sharding.shardings(both, mesh, rules))
    tensor = PartitionSpec(None, None, None, "tensor")
    assert placed["params/stem/kernel"].spec == placed["opt/mu/stem/kernel"].spec == tensor
    # "xstem/kernel" ends with the same letters, but is another name.
    assert placed["sub/xstem/kernel"].spec == PartitionSpec(None, None, None, "fsdp")
    assert placed["params/head/kernel"].spec == PartitionSpec("fsdp")
    # Blocks that are stacked for a scan have one more dimension, in front.
    assert sharding.split((12, 8, 6), ("fsdp", "tensor"), mesh) == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert sharding.split((8, 7), ("fsdp", "tensor"), mesh) == PartitionSpec("fsdp", None)
    # What an optimizer keeps of a leaf may have fewer: the sums of adafactor, and its counts.
    assert sharding.split((6,), ("fsdp", "tensor"), mesh) == PartitionSpec("tensor")
    assert sharding.split((1,), ("fsdp", "tensor"), mesh) == PartitionSpec(None)
    assert sharding.split((), ("fsdp", "tensor"), mesh) == PartitionSpec()
    array = jax.device_put(np.zeros((3, 3, 1, 8)), placed["params/stem/kernel"])
    assert array.addressable_shards[0].data.shape == (3, 3, 1, 4)
