"""`python -m zoo list`, `describe MODEL`, `predict MODEL IMAGE…`, `search MODEL FOLDER QUERY`,
`generate MODEL PROMPT`, `render`, `mesh`, `points`, `view` of a WORKDIR, `parity` and `table`."""

import argparse
import importlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zoo
from zoo import registry
from zoo.card import Preprocess


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flax-zoo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="names, parameter counts and papers")
    listing.add_argument("pattern", nargs="?", default="*", help="a shell pattern: 'resnet*'")
    listing.set_defaults(run=lambda options: show_list(options.pattern))
    describing = commands.add_parser("describe", help="one variant: data flow, options, counts")
    describing.add_argument("model")
    describing.set_defaults(run=lambda options: zoo.describe(options.model))
    predicting = commands.add_parser("predict", help="what pictures show, as a model sees them")
    predicting.add_argument("model", help="a directory or file with weights, a tag or a hub id")
    predicting.add_argument("images", nargs="+", metavar="IMAGE")
    predicting.add_argument("--top", type=_positive, default=5, help="classes of each (default 5)")
    predicting.add_argument(
        "--classes", type=_names, help="of a pair of towers, such as CLIP: 'cat,dog', any words"
    )
    predicting.add_argument(
        "--template", action="append", help="a sentence around a class, 'a photo of a {}.'; repeats"
    )
    _add_source(predicting)
    predicting.set_defaults(run=predict)
    add_search(commands)
    add_generate(commands)
    add_scene(commands)
    ledger = commands.add_parser("parity", help="how far each model is from its reference")
    ledger.add_argument("family", nargs="?", help="such as vit (default all)")
    ledger.add_argument("--markdown", action="store_true", help="the table of the README")
    ledger.add_argument("--precision", choices=("highest", "default"), default="highest")
    ledger.set_defaults(run=parity)
    tabling = commands.add_parser("table", help="the Markdown table of the README")
    tabling.set_defaults(run=lambda options: table())
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where a console lacks a character
    try:
        found = options.run(options)
        if isinstance(found, int):
            return found
        print(found, flush=True)
    except BrokenPipeError:  # `| head` has what it wanted; nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:  # UnknownModel, WeightsError, Unreadable among them
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--revision", help="a branch, tag or commit of the repository")
    command.add_argument("--token", help="of an account of the hub that may read it")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


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


def parity(options: argparse.Namespace) -> int:
    """The ledger, whose golden files are in the repository and not in the package."""
    root = Path(__file__).parent.parent
    if not (root / "tests" / "golden" / "ledger.py").is_file():
        raise ValueError("parity replays golden files of the repository: run it in a clone of it")
    sys.path.insert(0, str(root))
    ledger = importlib.import_module("tests.golden.ledger")
    return ledger.show(options.family, markdown=options.markdown, precision=options.precision)


# What pictures show.


def predict(options: argparse.Namespace) -> str:
    """For each picture its likeliest classes, with their probabilities and bars."""
    if missing := [path for path in options.images if not os.path.isfile(path)]:
        raise ValueError(f"there is no picture {', '.join(missing)}")
    if options.template and options.classes is None:
        raise ValueError("--template is a sentence around a class: name --classes 'cat,dog' too")
    from zoo import zeroshot
    from zoo.preprocess import prepare
    from zoo.weights import hub, store

    if options.classes is not None:  # before anything is fetched or loaded
        zeroshot.check_classes(options.classes)
        zeroshot.check_templates(options.template or zeroshot.TEMPLATES)
    path = hub.fetch(options.model, revision=options.revision, token=options.token)
    model, variables, card = store.load(path)
    _check_classes(options.model, model, options.classes)
    preprocess = _preprocess(options.model, card)
    images = prepare(options.images, preprocess, channels=model.config.in_channels)
    labels = options.classes or card.labels
    if options.classes is None:
        shares = _probabilities(model, variables, images)
    else:
        given = {"templates": options.template} if options.template else {}
        tokenizer = zoo.tokenizer(path)
        shares = zoo.classify(model, variables, tokenizer, images, labels, batch=1, **given)
    charts = [chart(row, labels, options.top) for row in shares]
    return "\n\n".join(
        f"{path}\n{drawn}" for path, drawn in zip(options.images, charts, strict=True)
    )


def _probabilities(model: Any, variables: Any, images: Any) -> list[Any]:
    """Of the classes that a model was trained on, [classes] for each picture."""
    import jax
    import numpy as np

    one = jax.jit(lambda image: jax.nn.softmax(model.apply(variables, image)))
    return [np.asarray(one(image[None])[0]) for image in images]


def _check_classes(source: str, model: Any, classes: Sequence[str] | None) -> None:
    """Raises ValueError for a model that has no classes, and for one that takes none."""
    from zoo import zeroshot

    if classes is not None:
        zeroshot.check_pair(model.config, source)
    elif zeroshot.is_pair(model.config):
        raise ValueError(
            f"{source} has no classes of its own, for it compares pictures with texts: name them, "
            "such as --classes 'cat,dog'"
        )
    elif not hasattr(model.config, "num_classes"):
        raise ValueError(
            f"{source} is no classifier of pictures, but a model of {type(model).__name__}, which "
            f"takes {', '.join(zoo.example(model))}"
        )
    elif not model.config.num_classes:
        raise ValueError(
            f"{source} has no head: it gives features, not classes; fine-tune it with "
            "num_classes=, or pass weights that were trained to classify"
        )


def _preprocess(source: str, card: zoo.Card) -> Preprocess:
    """The card's. Raises ValueError where there is none."""
    if card.preprocess is None:
        notes = "; ".join(card.notes) or "no preprocessing stated beside its weights"
        raise ValueError(
            f"{source}: {notes}; write it into its card (a Preprocess of zoo.card) and save the "
            "model with zoo.save(…, card=), or use zoo.preprocess.prepare"
        )
    return card.preprocess


# Pictures that fit a text.


def add_search(commands: Any) -> None:
    command = commands.add_parser("search", help="the pictures of a folder that fit a text best")
    command.add_argument("model", help="a pair of towers: a directory or file, a tag or a hub id")
    command.add_argument("folder", type=Path, help="pictures, in sub-folders too (no linked ones)")
    command.add_argument("query", help="what to look for, in words")
    command.add_argument("--top", type=_positive, default=5, help="how many (default 5)")
    command.add_argument("--out", type=Path, metavar="PNG", help="also draw them there")
    command.add_argument(
        "--index",
        type=Path,
        metavar="NPZ",
        help="where what is known of the pictures is kept (default: below ~/.cache/flax-zoo)",
    )
    _add_source(command)
    command.set_defaults(run=search)


def search(options: argparse.Namespace) -> str:
    """A line for each of the pictures that fit best: its cosine with the query, its share among all
    pictures of the folder, a bar and its path."""
    _check_search(options)
    from zoo import zeroshot
    from zoo.search import Reader, check_place, identity, pictures, place_of, rank, refresh
    from zoo.weights import hub, store

    # What can be refused is refused before anything is fetched, loaded or embedded.
    pictures(options.folder, options.out)
    if options.index is not None:
        check_place(options.index)
    path = hub.fetch(options.model, revision=options.revision, token=options.token)
    config = store.inspect(path).config
    zeroshot.check_pair(config, options.model)
    tokenizer = zoo.tokenizer(path)
    tokenizer.check(config.vocab)
    tokens = zeroshot.tokenise(tokenizer, [options.query], config.context)
    model, variables, card = store.load(path)
    towers, preprocess = zeroshot.towers(model), _preprocess(options.model, card)
    reader = Reader(partial(towers.image, variables), preprocess, model.config.in_channels)
    name = identity(path)
    place = options.index or place_of(name, reader, options.folder)
    told: Any = {"leave_out": options.out, "note": _note, "progress": _progress}
    index = refresh(place, options.folder, name, reader, **told)
    [query] = zeroshot.in_batches(partial(towers.text, variables), tokens)
    scale, _ = model.apply(variables, method="temperature")
    hits = rank(index, query, float(scale))[: options.top]
    if options.out is not None:
        _draw(options, hits)
    return "\n".join(
        f"  {hit.cosine:6.3f}  {hit.share:6.1%}  {bar(hit.share, BAR):<{BAR}}  "
        f"{options.folder / hit.name}"
        for hit in hits
    )


BAR = 20  # characters, beside a path


def _check_search(options: argparse.Namespace) -> None:
    """Raises ValueError for what can be seen without looking at the model."""
    if not options.query.strip():
        raise ValueError('the query is empty: say what to look for, such as "a red car"')
    for name, path, suffix in (("out", options.out, ".png"), ("index", options.index, ".npz")):
        if path is not None and (path.suffix != suffix or path.is_dir()):
            raise ValueError(f"--{name} {path}: give the path of a file that ends in {suffix}")
    if options.out is not None and not options.out.parent.is_dir():
        raise ValueError(f"--out {options.out}: there is no folder {options.out.parent}")


def _draw(options: argparse.Namespace, hits: Sequence[Any]) -> None:
    from zoo import gallery
    from zoo.preprocess import decode

    found = [gallery.shrunk(decode(options.folder / hit.name)) for hit in hits]
    captions = [f"{hit.share:.1%}  {hit.name}" for hit in hits]
    gallery.save(options.out, gallery.sheet([gallery.Row(options.query, found, captions)]))


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _progress(done: int, total: int, what: str = "new pictures") -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done:,} of {total:,} {what}", end=end, file=sys.stderr, flush=True)


# Text.

SAMPLING = {  # option → type, help; their defaults are those of zoo.generation.generate
    "max-new-tokens": (_positive, "how long it may be (default 64, or what the context has left)"),
    "temperature": (float, "0 takes the likeliest token each time (default 1)"),
    "top-k": (_positive, "choose among so many likeliest tokens"),
    "top-p": (float, "choose among the likeliest tokens that have this probability together"),
    "min-p": (float, "choose among tokens with this share of the likeliest's probability"),
    "repetition-penalty": (float, "above 1: what was there already becomes less likely"),
    "length-penalty": (
        float,
        "of beams: above 0 favours long ones, below 0 short ones (default 1)",
    ),
    "beams": (_positive, "follow so many continuations and print the likeliest; not streamed"),
    "seed": (int, "of what is drawn: the same seed, the same text (default 0)"),
}


def add_generate(commands: Any) -> None:
    command = commands.add_parser("generate", help="the continuation of a text, as it is written")
    command.add_argument("model", help="a directory with weights, a workdir, a tag or a hub id")
    command.add_argument("prompt", help='a text; "-" reads it from standard input')
    for name, (kind, text) in SAMPLING.items():
        command.add_argument(f"--{name}", type=kind, help=text)
    command.add_argument(
        "--stop", action="append", default=[], help="end before this text; repeats"
    )
    command.add_argument("--chat", action="store_true", help="the prompt is a user's message")
    _add_source(command)
    command.set_defaults(run=generate)


def generate(options: argparse.Namespace) -> str:
    """Prints the continuation while it is written; beams only when they are done."""
    from zoo.weights import hub

    # The last line's end is the shell's, not the prompt's.
    piped = options.prompt == "-"
    prompt = sys.stdin.read().removesuffix("\n") if piped else options.prompt
    path = hub.fetch(options.model, revision=options.revision, token=options.token)
    tokenizer, (model, variables) = zoo.tokenizer(path), zoo.load(path)
    prompts: Any = [prompt]
    if options.chat:
        turns = [{"role": "user", "content": prompt}]
        prompts = [tokenizer.encode_chat(turns)]
    elif tokenizer.specials.eos is not None and not tokenizer.encode(prompt):
        prompts = [[tokenizer.specials.eos]]  # from nothing
    chosen = {key: getattr(options, key) for key in (name.replace("-", "_") for name in SAMPLING)}
    given = {key: value for key, value in chosen.items() if value is not None}
    stop = [*options.stop, *_ends(path if path.is_dir() else path.parent)]
    streamed = given.get("beams", 1) == 1
    stream = (lambda _, piece: print(piece, end="", flush=True)) if streamed else None
    [found] = zoo.generate(
        model, variables, prompts, tokenizer=tokenizer, stop=stop, stream=stream, **given
    )
    return "" if streamed else found.text


def _ends(folder: Path) -> list[Any]:
    """The ids that end a text by a `generation_config.json`; a tokenizer knows but one of them, and
    chats may end by another."""
    from zoo.text.read import json_object

    file = folder / "generation_config.json"
    stated = json_object(file).get("eos_token_id") if file.is_file() else None
    return stated if isinstance(stated, list) else [] if stated is None else [stated]


# A scene, as a field has learnt it.


def add_scene(commands: Any) -> None:
    rendering = commands.add_parser("render", help="a camera's way through a scene, as a video")
    rendering.add_argument(
        "--path",
        default="orbit",
        metavar="PATH",
        help="orbit (default), interpolate (through the test views), or a JSON file with cameras",
    )
    rendering.add_argument("--depth", action="store_true", help="depths: near is bright")
    rendering.add_argument("--size", type=_size, metavar="HxW", help="default: that of the views")
    rendering.add_argument("--frames", type=_positive, help="how many (default 120)")
    rendering.add_argument("--fps", type=_positive, default=30, help="a second (default 30)")
    meshing = commands.add_parser("mesh", help="the surface of a scene, by marching cubes")
    meshing.add_argument(
        "--resolution", type=_positive, default=256, help="cells of its longest side (default 256)"
    )
    meshing.add_argument(
        "--threshold", type=float, help="the density it lies at (default: by the scene's size)"
    )
    clouding = commands.add_parser("points", help="what the views of a scene show, as points")
    clouding.add_argument("--count", type=_positive, default=1_000_000, help="about so many")
    kinds = "FILE.mp4, FILE.gif, FILE_%%04d.png or a folder"
    for command, run, out in (
        (rendering, render, kinds),
        (meshing, mesh, "FILE.ply"),
        (clouding, points, "FILE.ply"),
    ):
        command.add_argument("workdir", type=Path, help="of a run, or a folder with scene.json")
        command.add_argument("--out", type=Path, required=True, metavar="PATH", help=out)
        command.set_defaults(run=run)
    viewing = commands.add_parser("view", help="a scene in the browser, to walk around in")
    viewing.add_argument("workdir", type=Path, help="of a run, or a folder with scene.json")
    viewing.add_argument("--port", type=_positive, default=8080, help="of the page (default 8080)")
    viewing.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines look (default 127.0.0.1)"
    )
    viewing.set_defaults(run=view)


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"0*([1-9]\d*)[x×]0*([1-9]\d*)", text)
    if not sides:
        raise argparse.ArgumentTypeError(f"{text!r} is no height and width, such as 480x640")
    return int(sides[1]), int(sides[2])


def render(options: argparse.Namespace) -> str:
    from zoo.nerf import out, paths

    write = out.writer(options.out)
    scene, place = _scene(options.workdir)
    cameras = paths.along(options.path, scene, options.frames)
    seen = scene.height, scene.width
    height, width = out.fitting(options.out, options.size or seen, options.size is not None)
    cameras = paths.resized(cameras, seen, (height, width))
    draw = out.depths if options.depth else out.pictures
    total = len(cameras.pose)
    frames = draw(_renderer(place, scene), cameras, height, width)
    write(options.out, _counted(frames, total), options.fps)
    return f"{options.out}: {total} frames of {height}×{width}"


def mesh(options: argparse.Namespace) -> str:
    from zoo.nerf import out, surface

    _check_ply(options.out)
    out.library("skimage")  # before anything is loaded
    scene, place = _scene(options.workdir)
    made = surface.mesh(
        _renderer(place, scene),
        resolution=options.resolution,
        threshold=options.threshold,
        progress=partial(_progress, what="slabs of the box"),
    )
    made.save(options.out)
    return f"{options.out}: {len(made.faces):,} triangles, {len(made.corners.points):,} corners"


def points(options: argparse.Namespace) -> str:
    from zoo.nerf import surface

    _check_ply(options.out)
    scene, place = _scene(options.workdir)
    progress = partial(_progress, what="views")
    cloud = surface.cloud(_renderer(place, scene), scene, count=options.count, progress=progress)
    cloud.save(options.out)
    return f"{options.out}: {len(cloud.points):,} points"


def view(options: argparse.Namespace) -> int:
    """Until Ctrl-C."""
    from zoo.nerf import viewer

    workdir, where = options.workdir, {"host": options.host, "port": options.port}
    viewer.library("viser", "viewer")  # before anything is loaded
    viewer.check_free(**where)
    if (workdir / "checkpoints").is_dir() and not (workdir / "model").is_dir():
        raise ValueError(f"{workdir} is still being trained: watch it by python -m train.view")
    scene, place = _scene(workdir)
    field = viewer.Field(_renderer(place, scene))
    viewer.serve(lambda: field, scene, **where, say=partial(print, flush=True))
    return 0


def _check_ply(path: Path) -> None:
    if path.suffix != ".ply" or path.is_dir():
        raise ValueError(f"--out {path}: give the path of a file that ends in .ply")
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: there is no folder {path.parent}")


def _scene(workdir: Path) -> tuple[Any, Path]:
    """The scene of a workdir or of a folder, and the folder that it is in."""
    from zoo.nerf import scene

    inside = workdir / "model"
    place = inside if (inside / scene.FILE).is_file() else workdir
    return scene.load(place), place


def _renderer(place: Path, scene: Any) -> Any:
    from zoo.nerf import view

    model, variables = zoo.load(place)
    return view.renderer(model, variables, scene.space)


def _counted(frames: Iterable[Any], total: int) -> Iterator[Any]:
    for done, frame in enumerate(frames, start=1):
        yield frame
        _progress(done, total, "frames")


EIGHTHS = " ▏▎▍▌▋▊▉█"


def chart(probabilities: Any, labels: Sequence[str], top: int) -> str:
    """A line for each of the `top` classes of [classes], as wide as the terminal (80 without one):
    label, probability and a bar. A class without a name is called by its number."""
    order = (-probabilities).argsort(kind="stable")[:top]
    named = len(labels) == len(probabilities)
    names = [str(labels[i]) if named else f"class {i}" for i in order]
    free = max(shutil.get_terminal_size((80, 24)).columns - 12, 8)  # beside numbers and gaps
    widest = min(max(map(len, names)), free // 2)
    space = free - widest
    lines = []
    for name, share in zip(names, probabilities[order].tolist(), strict=True):
        name = name if len(name) <= widest else name[: widest - 1] + "…"
        lines.append(f"  {name:<{widest}}  {share:6.1%}  {bar(share, space)}".rstrip())
    return "\n".join(lines)


def bar(share: float, space: int) -> str:
    """So many eighths of `space` characters."""
    full, rest = divmod(round(8 * space * share), 8)
    return f"{'█' * full}{EIGHTHS[rest]}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
