"""Pictures of a run as RGB arrays, uint8 [H, W, 3]; drawn without a display or global state."""

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

DPI = 100
INK, GRID, RIGHT = "#222222", "#e4e4e4", "#228833"
SHARES = (0.01, 0.05, 0.2, 0.5, 1.0)
UNITS = ("images", "tokens", "texts", "pairs", "rays", "pixels")
PANELS = {  # key of a row: title; a panel stands where any row has a number for its key
    "loss": "loss",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "lr": "learning rate",
    "recall1": "text → picture, recall at 1",
    "psnr": "PSNR, dB",
    **{f"{u}_per_second": f"{u} per second" for u in UNITS},
}
BESIDE = {  # key of a row that has it beside another, as a line: its name and how it is drawn
    "bits_per_byte": {
        "zlib_bits_per_byte": ":",
        "xz_bits_per_byte": "--",
        "xz_seen_bits_per_byte": "-.",
    },
    "psnr": {"psnr_nearest": ":", "psnr_neighbours": "--"},
}
SPLITS = {  # split: colour, marker, how it is drawn: training as a line, evaluations as points
    "train": ("#4477aa", ""),
    "validation": ("#cc6633", "o"),
    "test": ("#228833", "*"),
}


def confusion_matrix(counts: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Counts [c, c], row = true class, column = predicted; colours are shares of a row.

    Counts are written into the cells of up to 20 classes; of many classes only every n-th label is
    written. Labels are plain text, cut at 20 characters. Raises ValueError unless the counts are
    [c, c] for c labels.
    """
    classes = len(labels)
    if classes == 0 or counts.shape != (classes, classes):
        raise ValueError(
            f"counts {counts.shape} for {classes} labels: need one row and column each"
        )
    total = counts.sum()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    side = min(max(3.2, 0.5 * classes if classes <= 20 else 0.105 * classes), 14)
    figure = Figure((side + 2.2, side + 1.6), dpi=DPI)
    axes = figure.add_subplot()
    # The square root of the share: else a few errors among many hits are as white as none.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=SHARES)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in SHARES])
    bar.ax.tick_params(length=0, colors=INK)
    bar.set_label("share of the true class", color=INK)
    bar.outline.set_visible(False)

    step, size = math.ceil(classes / 50), 9 if classes <= 20 else 7
    ticks = range(0, classes, step)
    names = [_short(labels[i]) for i in ticks]
    wide = max(map(len, names)) * 0.62 * size / 72 > step * side / classes
    axes.set_xticks(ticks, names, rotation=90 if wide else 0, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    right = f"{np.trace(counts) / total:.2%} of {total:,} right" if total else "no examples"
    axes.set_title(right, fontsize=11, color=INK)
    if classes <= 20:
        _annotate(axes, counts, share)
    return _render(figure)


def _annotate(axes: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if share[row, column] > 0.4 else INK
            size = 9 if count < 1000 else 7
            axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=size)


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The rows of metrics.jsonl over steps, one panel for each key of `PANELS` that they hold.

    A row has `step` and `split`; a number that is missing or not finite is left out of its curve.
    """
    curves = {key: _curves(rows, key) for key in PANELS}
    curves = {key: found for key, found in curves.items() if found}
    columns = 1 if len(curves) <= 1 else 2
    lines = max(1, math.ceil(len(curves) / columns))
    figure = Figure((5.2 * columns, 3.4 * lines), dpi=DPI, layout="constrained")
    if not curves:
        figure.text(0.5, 0.5, "nothing recorded yet", ha="center", va="center", color=INK)
    for i, (key, found) in enumerate(curves.items()):
        axes = figure.add_subplot(lines, columns, i + 1)
        for split, (steps, values) in found.items():
            _curve(axes, split, steps, values)
        _lines(axes, rows, key)
        _frame(axes, PANELS[key], legend=len(axes.lines) > 1)
        _range(axes, key, [value for _, values in found.values() for value in values])
    return _render(figure)


def _lines(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """What others reach on the validation split, level lines."""
    last = next((row for row in reversed(rows) if row.get("split") == "validation"), {})
    for name, style in BESIDE.get(key, {}).items():
        if _finite(last, name):
            label = f"{name.removesuffix(f'_{key}')} {last[name]:.4g}"
            axes.axhline(last[name], color="#888888", linestyle=style, linewidth=1.2, label=label)


def _curves(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, tuple[list, list]]:
    """`{split: (steps, values)}` of the splits with finite values, in the order of `SPLITS`."""
    found = {}
    for split in SPLITS:
        points = [(r["step"], r[key]) for r in rows if r.get("split") == split and _finite(r, key)]
        if points:
            steps, values = zip(*sorted(points), strict=True)
            found[split] = (list(steps), list(values))
    return found


def _finite(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(row.get(key), int | float) and math.isfinite(row[key])


def _curve(axes: Axes, split: str, steps: list, values: list) -> None:
    color, marker = SPLITS[split]
    marker = marker or ("o" if len(steps) == 1 else "")
    last = f"{split}, last {values[-1]:.4g}"
    axes.plot(steps, values, color=color, marker=marker, markersize=4, linewidth=1.5, label=last)


def _frame(axes: Axes, title: str, *, legend: bool) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel("step", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.02)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def _range(axes: Axes, key: str, values: list) -> None:
    """A loss that falls through more than a decade is logarithmic; rates start at zero."""
    if key == "loss" and 0 < 10 * min(values) < max(values):
        axes.set_yscale("log")
    if key == "lr" or key.endswith("_per_second"):
        axes.set_ylim(0, 1.05 * max(values) or 1)
    if key == "lr":
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))


class Query(NamedTuple):
    """A row of `gallery`: pictures uint8 [k, h, w, 1 or 3] that were found for a text, best first;
    the place of the right one among them, None where it is not; its rank among all, from 1."""

    text: str
    pictures: np.ndarray
    right: int | None
    rank: int


def gallery(queries: Sequence[Query]) -> np.ndarray:
    """A row for each query: its text and the rank of its picture above what was found, where a
    frame is around the right one."""
    columns = max(len(query.pictures) for query in queries)
    figure = Figure((1.2 * columns, 1.45 * len(queries)), dpi=DPI)
    for row, query in enumerate(queries):
        for column, picture in enumerate(query.pictures):
            axes = figure.add_subplot(len(queries), columns, 1 + row * columns + column)
            channels = np.broadcast_to(picture, (*picture.shape[:2], 3))
            axes.imshow(channels, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            framed = column == query.right
            axes.spines[:].set(color=RIGHT if framed else GRID, linewidth=4 if framed else 1)
            if column == 0:
                title = f"{_short(query.text, 60)} · {query.rank}"
                axes.set_title(title, loc="left", fontsize=9, color=INK, parse_math=False)
    return _render(figure)


def _short(label: str, length: int = 20) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def _render(figure: Figure) -> np.ndarray:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes; the run need not hear of it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # So it is told on a machine that is busy, of whatever a legend is put beside.
        warnings.filterwarnings("ignore", message='Creating legend with loc="best" can be slow')
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.15)
    return np.asarray(Image.open(buffer).convert("RGB"))


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] beside `path` and renames it: a reader never sees half a picture.

    Raises ValueError for another shape or dtype, OSError where the file cannot be written.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"picture {picture.dtype} {picture.shape}: a PNG takes uint8 [H, W, 3]")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- views of a scene ----


def depth(distance: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Distances [h, w] as colours, float32 [h, w, 3]: near is bright; what is not seen is white."""
    low, high = (distance[seen].min(), distance[seen].max()) if seen.any() else (0.0, 1.0)
    share = (distance - low) / max(high - low, 1e-9)
    colours = matplotlib.colormaps["viridis_r"](np.clip(share, 0, 1))[..., :3]
    return np.where(seen[..., None], colours, 1).astype(np.float32)


def tiles(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures [h, w, 3] in [0, 1] of one size, in rows and columns, as uint8 [H, W, 3]."""
    whole = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    return np.round(255 * np.clip(whole, 0, 1)).astype(np.uint8)
