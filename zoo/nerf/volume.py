"""Light along rays: from densities and colours to pixels.

n rays · s samples · c channels. Everything is float32, whatever the field computes in: a product of
a thousand transmittances in bfloat16 is none.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from zoo.nerf.cameras import Rays
from zoo.nerf.sampling import Samples

Field = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

LARGEST = 1e15  # of densities and of lengths: their products and sums stay numbers
FAINTEST = 1e-6  # an opacity below it has no depth to speak of


class Rendered(NamedTuple):
    """colour [n, c] over the background; depth [n]: the mean t of what is seen, 0 where nothing is;
    opacity [n]: the share of light that is not the background's; weights [n, s]: each sample's."""

    colour: jax.Array
    depth: jax.Array
    opacity: jax.Array
    weights: jax.Array


# ---- rendering ----


def render(field: Field, rays: Rays, samples: Samples, background: Any) -> Rendered:
    """All slots of all rays [n], in one call of the field; background [c] or [n, c]."""
    sigma, rgb = evaluate(field, rays, samples.t)
    return composite(sigma, rgb, samples.t, samples.delta, background)


class Packed(NamedTuple):
    """Samples of n rays, one after another, without the slots that rays leave empty.

    ray int32 [m], ascending; place int32 [m]: which of its ray's it is; t, delta [m]. What is left
    of m has delta 0 and stands last, with ray n.
    """

    ray: jax.Array
    place: jax.Array
    t: jax.Array
    delta: jax.Array


def thin(samples: Samples, room: int, key: jax.Array) -> Samples:
    """Samples [n, s] with every k-th slot used alone, which then stands for k; k: the whole number
    of times that those used fill the `room`, and each ray begins at another slot.

    So a step sees many rays in coarse steps while much may still be occupied, and as fine ones as
    there are once little is. Samples behind one another must be a step apart, as those of
    `occupancy.march` with all its slots are.
    """
    k = jnp.maximum(1, (samples.delta > 0).sum() // room)
    n, s = samples.t.shape
    shift = jax.random.randint(key, (n, 1), 0, 2**16)
    taken = (jnp.arange(s)[None] + shift) % k == 0
    return samples._replace(delta=jnp.where(taken, k * samples.delta, 0))


def pack(samples: Samples, room: int) -> tuple[Packed, jax.Array]:
    """The first `room` used slots of samples [n, s], and which rays are whole, bool [n]: those
    behind the last that fits are not."""
    n, s = samples.t.shape
    used = samples.delta > 0
    ends = jnp.cumsum(used.sum(axis=1))
    begins = jnp.pad(ends[:-1], (1, 0))
    slot, there = _first(used.reshape(-1), room)
    t, delta = (x.reshape(-1)[slot] for x in (samples.t, samples.delta))
    place = jnp.arange(room) - begins[slot // s]
    return Packed(jnp.where(there, slot // s, n), place * there, t, delta * there), ends <= room


class _Found(NamedTuple):
    """Where bool [m] is true: the first `room` places, int32 [room]; whether there are so many,
    bool [room]."""

    place: jax.Array
    there: jax.Array


def _first(true: jax.Array, room: int) -> _Found:
    """Words of 32 bits are counted and searched, and then the bits of those found: as exact as a
    running sum over all, in a fraction of the time."""
    bits = jnp.pad(true, (0, -len(true) % 32)).reshape(-1, 32).astype(jnp.uint32)
    words = jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32)[None], axis=1)
    counted = jnp.cumsum(jax.lax.population_count(words).astype(jnp.int32))
    wanted = jnp.arange(1, room + 1)
    word = jnp.searchsorted(counted, wanted)
    there = word < len(counted)
    word = jnp.minimum(word, len(counted) - 1)
    rest, rank = words[word], wanted - jnp.where(word > 0, counted[word - 1], 0)
    bit = jnp.zeros_like(word)
    for width in (16, 8, 4, 2, 1):  # is it in the lower half of what is left?
        low = rest & jnp.uint32(2**width - 1)
        count = jax.lax.population_count(low).astype(jnp.int32)
        above = rank > count
        rest, rank = jnp.where(above, rest >> width, low), jnp.where(above, rank - count, rank)
        bit += jnp.where(above, width, 0)
    return _Found(jnp.minimum(32 * word + bit, len(true) - 1), there)


def render_packed(
    field: Field, rays: Rays, samples: Packed, background: Any, *, longest: int | None = None
) -> Rendered:
    """As `render`, of packed samples; the weights are theirs, [m]. What it says of a ray that is
    not whole means nothing. longest: how many samples a ray has at most, where that is known."""
    n = len(rays.origins)
    sigma, rgb = field(*_asked(rays, samples))
    thickness = _thickness(sigma, samples.delta)
    weights = _before(thickness, samples.place, longest) * -jnp.expm1(-thickness)
    mixed = weights[:, None] * rgb.astype(jnp.float32)
    sums = jnp.stack([weights * samples.t, weights, thickness], axis=1)
    sums = _by_ray(jnp.concatenate([mixed, sums], axis=1), samples, n)
    colour, (distance, opacity, passed) = sums[:, :-3], jnp.moveaxis(sums[:, -3:], 1, 0)
    background = _for_each_ray(background, n)
    return _over(background, colour, distance, opacity, jnp.exp(-passed), weights)


def prune(
    density: Callable[[jax.Array], jax.Array],
    rays: Rays,
    samples: Packed,
    room: int,
    *,
    opaque: float = 1e-4,
    longest: int | None = None,
) -> tuple[Packed, jax.Array]:
    """Without the samples to which less than `opaque` of the light comes, so that what costs more
    than a density, colours and gradients, is not asked for there: the first `room` of those left,
    and the rays that have no more left than these, bool [n].

    density: points [m, 3] → sigma [m], the field's own, of these parameters, asked without a
    gradient. What another density hides, such as that of a grid, the field would see the background
    through: it learns a haze in front that covers the leak, the grid is surer than before, and
    training collapses. longest: as `render_packed` has it.
    """
    sigma = jax.lax.stop_gradient(density(_asked(rays, samples)[0]))
    before = _before(_thickness(sigma, samples.delta), samples.place, longest)
    kept = (before >= opaque) & (samples.delta > 0)
    slot, there = _first(kept, room)
    ray, place, t, delta = (x[slot] for x in samples)
    n = len(rays.origins)
    ends = jnp.cumsum(_by_ray(kept.astype(jnp.int32), samples, n))
    # What is hidden is behind all that is seen: places stay what they are.
    return Packed(jnp.where(there, ray, n), place, t, delta * there), ends <= room


def _asked(rays: Rays, samples: Packed) -> tuple[jax.Array, jax.Array]:
    """Points and directions [m, 3]; of a slot that is not used, some."""
    origins, directions = (x.at[samples.ray].get(mode="clip") for x in rays)
    return origins + samples.t[:, None] * directions, directions


def _before(thickness: jax.Array, place: jax.Array, longest: int | None) -> jax.Array:
    """The share of light [m] that comes from before each packed sample to the camera."""
    # Sums over 1, 2, 4, … neighbours of a ray. Differences of one sum over all lose their digits.
    passed = jnp.where(place > 0, jnp.roll(thickness, 1), 0)
    for i in range(((longest or len(place)) - 1).bit_length()):
        passed += jnp.where(place >= 2**i, jnp.roll(passed, 2**i), 0)
    return jnp.exp(-passed)


def _by_ray(x: jax.Array, samples: Packed, n: int) -> jax.Array:
    """Sums of x [m, …] by ray, [n, …]."""
    zeros = jnp.zeros((n, *x.shape[1:]), x.dtype)
    return zeros.at[samples.ray].add(x, mode="drop", indices_are_sorted=True)


def render_early(
    field: Field,
    rays: Rays,
    samples: Samples,
    background: Any,
    *,
    segment: int,
    opaque: float = 1e-4,
) -> Rendered:
    """As `render`, but `segment` slots of all rays at a time, and no further than to where each ray
    has ended or lets less than `opaque` of the light through (Instant-NGP, appendix E.1).

    Has no reverse derivative. Raises ValueError unless the slots divide into segments.
    """
    n, s = samples.t.shape
    if s % segment:
        raise ValueError(f"{s} slots a ray do not divide into segments of {segment}")
    background = _for_each_ray(background, n)
    ends = jnp.max(jnp.where(samples.delta > 0, jnp.arange(1, s + 1)[None], 0), axis=1)

    def goes_on(state: tuple[jax.Array, ...]) -> jax.Array:
        start, through, *_ = state
        return jnp.any((through > opaque) & (start < ends))

    def advance(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        start, through, colour, distance, weights = state
        t, delta = (
            jax.lax.dynamic_slice_in_dim(x, start, segment, axis=1)
            for x in (samples.t, samples.delta)
        )
        sigma, rgb = evaluate(field, rays, t)
        inner, passed = weigh(sigma, delta)
        seen = through[:, None] * inner
        return (
            start + segment,
            through * passed,
            colour + _mix(seen, rgb),
            distance + jnp.sum(seen * t, axis=1),
            jax.lax.dynamic_update_slice_in_dim(weights, seen, start, axis=1),
        )

    state = (
        jnp.int32(0),
        jnp.ones(n),
        jnp.zeros(background.shape),
        jnp.zeros(n),
        jnp.zeros((n, s)),
    )
    _, through, colour, distance, weights = jax.lax.while_loop(goes_on, advance, state)
    return _over(background, colour, distance, weights.sum(axis=1), through, weights)


def evaluate(field: Field, rays: Rays, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sigma [n, s] and rgb [n, s, c] at distances t [n, s] of n rays."""
    points = rays.at(t)
    directions = jnp.broadcast_to(rays.directions[:, None], points.shape)
    flat = (rearrange(x, "n s d -> (n s) d") for x in (points, directions))
    sigma, rgb = field(*flat)
    return sigma.reshape(t.shape), rearrange(rgb, "(n s) c -> n s c", n=len(t))


def composite(
    sigma: jax.Array, rgb: jax.Array, t: jax.Array, delta: jax.Array, background: Any
) -> Rendered:
    """NeRF, equation 3 (Max, 1995), over a background [c] or [n, c].

    sigma ≥ 0, t and delta [n, s]; rgb [n, s, c]. A slot with delta 0 adds nothing, whatever its
    density is, also an infinite one.
    """
    weights, through = weigh(sigma, delta)
    background = _for_each_ray(background, len(sigma))
    distance = jnp.sum(weights * t, axis=1)
    opacity = weights.sum(axis=1)
    return _over(background, _mix(weights, rgb), distance, opacity, through, weights)


def weigh(sigma: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights of samples, T (1 − exp(−σ δ)), [n, s], and the share of light that passes all of
    them, [n]. sigma, delta: [n, s]."""
    before, after = transmittance(sigma, delta)
    # No difference of transmittances: it loses its digits where little is absorbed.
    return before * -jnp.expm1(-_thickness(sigma, delta)), after


def transmittance(sigma: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The share of light that passes from before each sample to the camera, T [n, s], and from
    behind the last one, [n]. sigma, delta: [n, s]."""
    passed = jnp.cumsum(_thickness(sigma, delta), axis=1)
    before = jnp.pad(passed[:, :-1], [(0, 0), (1, 0)])
    return jnp.exp(-before), jnp.exp(-passed[:, -1])


def _thickness(sigma: jax.Array, delta: jax.Array) -> jax.Array:
    """σ δ. Both are bounded before they meet: the gradient of ∞ · 0 would be none either."""
    sigma, delta = (jnp.minimum(x.astype(jnp.float32), LARGEST) for x in (sigma, delta))
    return sigma * delta


def _mix(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Σ weights [n, s] · values [n, s, c] → [n, c]."""
    return jnp.sum(weights[:, :, None] * values.astype(jnp.float32), axis=1)


def _over(
    background: jax.Array,
    colour: jax.Array,
    distance: jax.Array,
    opacity: jax.Array,
    through: jax.Array,
    weights: jax.Array,
) -> Rendered:
    """What rays of light have gathered, over what they let through. distance: Σ weights · t;
    opacity: Σ weights, since 1 − through has no digits where little is seen."""
    depth = distance / jnp.maximum(opacity, FAINTEST)
    return Rendered(colour + through[:, None] * background, depth, opacity, weights)


# ---- backgrounds ----


def draw_background(
    kind: str, rays: int, *, key: jax.Array | None = None, logits: jax.Array | None = None
) -> jax.Array:
    """[rays, 3] of one of `BACKGROUNDS`: "random" takes a key and draws one colour for each ray,
    "learned" takes logits [3], a parameter. Raises ValueError for a kind without what it takes."""
    if kind not in BACKGROUNDS:
        raise ValueError(f"a background is one of {', '.join(BACKGROUNDS)}; not {kind!r}")
    needs, make = BACKGROUNDS[kind]
    given = {"key": key, "logits": logits, None: ()}[needs]
    if given is None:
        raise ValueError(f"the background {kind!r} needs {needs}=")
    return make((rays, 3), given)


BACKGROUNDS: dict[str, tuple[str | None, Callable[[tuple[int, int], Any], jax.Array]]] = {
    "white": (None, lambda shape, _: jnp.ones(shape)),
    "black": (None, lambda shape, _: jnp.zeros(shape)),
    "random": ("key", lambda shape, key: jax.random.uniform(key, shape)),
    "learned": ("logits", lambda shape, x: jnp.broadcast_to(jax.nn.sigmoid(x), shape)),
}


def over(rgba: jax.Array, background: Any) -> jax.Array:
    """Colours [n, 4] with straight alpha, as PNG has it, over a background [3] or [n, 3]."""
    alpha = rgba[:, 3:]
    return alpha * rgba[:, :3] + (1 - alpha) * _for_each_ray(background, len(rgba))


def _for_each_ray(background: Any, n: int) -> jax.Array:
    background = jnp.asarray(background, jnp.float32)
    return jnp.broadcast_to(background, (n, background.shape[-1]))


# ---- geometry ----


def normals(density: Callable[[jax.Array], jax.Array], points: jax.Array) -> jax.Array:
    """−∇σ of density ([m, 3] → [m]) at points [m, 3], of length 1; 0 where the gradient is."""
    sigma, pull = jax.vjp(density, points)
    (gradient,) = pull(jnp.ones_like(sigma))
    return -_unit(gradient.astype(jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
    # Its length does not depend on the scale, which keeps the squares inside float32.
    scale = jax.lax.stop_gradient(jnp.abs(x).max(axis=-1, keepdims=True))
    x = x / jnp.where(scale > 0, scale, 1)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(scale > 0, squares, 1))


def contract(points: jax.Array) -> jax.Array:
    """[..., 3] into the ball of radius 2; the unit ball stays (Mip-NeRF 360, eq. 10)."""
    # As in `_unit`: the result does not depend on the scale, which keeps the squares in float32.
    largest = jax.lax.stop_gradient(jnp.abs(points).max(axis=-1, keepdims=True))
    scale = jnp.maximum(largest, 1)
    scaled = points / scale
    squares = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    inside = (scale == 1) & (squares <= 1)
    length = jnp.sqrt(jnp.where(inside, 1, squares))
    return jnp.where(inside, points, scaled / length * (2 - 1 / (scale * length)))


def expand(points: jax.Array) -> jax.Array:
    """The inverse of `contract`. Float32 has no number between 2 and 2 − 1.2e-7: what was farther
    than some 8e6 comes back from about there."""
    squares = jnp.sum(points * points, axis=-1, keepdims=True)
    inside = squares <= 1
    length = jnp.sqrt(jnp.where(inside, 1, squares))
    return jnp.where(inside, points, points / length / jnp.maximum(2 - length, 1.2e-7))


# ---- regularisation ----


def distortion(t: jax.Array, delta: jax.Array, weights: jax.Array) -> jax.Array:
    """[n]: Mip-NeRF 360, equation 15, small where the weights [n, s] of a ray lie together.

    t: the intervals' middles, delta: their lengths, in normalised distances: those of
    `sampling.middles(samples.unit)` where `proposal.sample` drew them. O(s): each gap between
    neighbours counts as often as two weights lie on its two sides.
    """
    left = jnp.cumsum(weights, axis=1)[:, :-1]
    right = jax.lax.cumsum(weights, axis=1, reverse=True)[:, 1:]
    between = 2 * jnp.sum(left * right * jnp.diff(t, axis=1), axis=1)
    return between + jnp.sum(weights**2 * delta, axis=1) / 3
