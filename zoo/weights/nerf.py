"""NeRF: the weights that the authors published are of single scenes, in pickles of NumPy that no
reader of ours opens, and for frequencies without the π of equation 4."""

from zoo.weights.convert import Format

MODEL_TYPES = ()
FORMATS: dict[str, Format] = {}
