"""`python -m train CONFIG [--workdir DIR] [--section.key VALUE …]`"""

import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from train import serialise, workdir
from train.check import check
from train.config import ConfigError, Experiment, Init, Missing

USAGE = """usage: python -m train CONFIG [--workdir DIR] [--section.key VALUE …]

Trains, evaluates, checkpoints, and resumes if the workdir has a checkpoint.

CONFIG is a name below, a Python file with experiment(), a config.json or a workdir.
  {names}

Every field of the experiment is an option: `python -m train CONFIG --help` lists them, and
--model.options takes JSON, such as '{{"zero_init": false}}'.
  --workdir DIR          where the run lives (runs/CONFIG)
  --init.from SOURCE     begin with weights: a path, a hub id or a tag, as zoo.load takes them
  --print-config         show the experiment as JSON, and stop
  --overfit-one-batch    sanity check: can the model learn one batch?
  --accept-changes       go on in a workdir with another configuration
  --log plain            lines instead of a progress bar
"""


@dataclass(frozen=True)
class Options:
    """What is not part of the experiment."""

    workdir: Path
    print_config: bool = False
    overfit_one_batch: bool = False
    accept_changes: bool = False


def main(arguments: list[str] | None = None) -> int:
    """0: trained, complete or stopped by a signal. 2: a wrong configuration. 1: a failure.
    130: Ctrl-C before the run began."""
    source, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if source in ("-h", "--help"):
        print(USAGE.format(names="\n  ".join(serialise.shipped())))
        return 0
    try:
        experiment, options = parse(source, rest)
        return show(experiment) if options.print_config else run(check(experiment), options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("zoo", "train"):
            raise
        print(f"error: {error}; the trainer needs: pip install 'flax-zoo[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the run began", file=sys.stderr)
        return 130


def parse(source: str, arguments: list[str]) -> tuple[Experiment, Options]:
    """The experiment with the command line's changes. Exits with 2 on a key that does not exist."""
    import tyro

    if source.startswith("-"):
        raise ConfigError(f"CONFIG comes before {source}: python -m train CONFIG {source} …")
    default = serialise.load(source)
    path = Path(source)
    home = path if path.is_dir() else Path("runs") / path.stem
    if path.name == workdir.CONFIG:
        home = path.parent

    def together(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = default,
        options: Annotated[Options, tyro.conf.arg(name="")] = Options(home),
    ) -> tuple[Experiment, Options]:
        return experiment, options

    with constructors():
        return tyro.cli(together, prog=f"python -m train {source}", args=arguments)


def constructors() -> Any:
    """Within it tyro reads a dict as JSON, otherwise an empty one could not be changed, and calls
    the source of `Init` --init.from."""
    from tyro.conf import arg
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
        StructConstructorSpec,
        StructFieldSpec,
        StructTypeInfo,
    )

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def options(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type != dict[str, Any]:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=lambda texts: json.loads(texts[0]),
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [json.dumps(value)],
        )

    @registry.struct_rule
    def init(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is not Init:
            return None
        source: Any = Annotated[str | None, arg(name="from", help="path, hub id or tag of weights")]
        hints = get_type_hints(Init) | {"source": source}
        known = [
            StructFieldSpec(field.name, hints[field.name], getattr(info.default, field.name))
            for field in fields(Init)
        ]
        return StructConstructorSpec(Init, tuple(known))

    return registry


def show(experiment: Experiment) -> int:
    """Prints the experiment, also where the data are not there, or not yet."""
    try:
        experiment = check(experiment)
    except Missing as error:
        print(f"warning: {error}", file=sys.stderr)
    print(json.dumps(serialise.to_dict(experiment), indent=2))
    return 0


def run(experiment: Experiment, options: Options) -> int:
    """Imports jax only now: all that can be wrong without it has been checked."""
    directory = options.workdir
    if options.overfit_one_batch or workdir.newest_step(directory) is None:
        experiment.init.check()
    if not options.overfit_one_batch:
        workdir.claim(directory, experiment, accept_changes=options.accept_changes)
        if result := workdir.result(directory):
            print(f"{directory} is complete: {summary(result, directory)}")
            return 0
    print("preparing jax, data and model …", flush=True)  # 5 s and more of silence otherwise
    from train import log, loop
    from train.checkpoint import CheckpointError

    try:
        if options.overfit_one_batch:
            return 0 if loop.overfit(experiment) else 1
        result = loop.fit(experiment, directory)
    except (CheckpointError, loop.NonFinite) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    log.say(f"done: {summary(result, directory)}" if result else stopped(directory))
    return 0


def stopped(directory: Path) -> str:
    step = workdir.newest_step(directory)
    if step is None:
        return "stopped before the first step: there is nothing to save yet"
    return f"stopped: step {step} is saved in {directory}; the same command goes on"


def summary(result: dict, directory: Path) -> str:
    """What was reached and where it lies."""
    return (
        f"test {workdir.phrase(result['test'])} after {result['training_seconds']:.0f} s of "
        f"training; the weights of step {result['best_step']} of {result['steps']}, best on "
        f"validation, are in {directory / 'model'}"
    )


if __name__ == "__main__":
    sys.exit(main())
