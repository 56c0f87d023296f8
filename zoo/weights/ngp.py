"""NGP: nothing is published that others could load. A field is one scene, fitted in minutes by each
program for itself, and no two share the layout of their tables."""

from zoo.weights.convert import Format

MODEL_TYPES = ()
FORMATS: dict[str, Format] = {}
