"""Text and token ids, both ways.

    tokenizer = text.load("path/to/directory")     # as Hugging Face lays it out, or one file of it
    ids = tokenizer.encode("Hello")
    tokenizer.decode(ids)

One interface (`Tokenizer`), whatever is behind it: bytes, byte-level BPE, SentencePiece-style BPE
or WordPiece. What is trained or loaded is saved beside weights and comes back by `load`.
"""

from zoo.text.byte import ByteTokenizer
from zoo.text.errors import TokenizerError
from zoo.text.families import from_tiktoken, train_bpe, train_words
from zoo.text.files import load
from zoo.text.tokenizer import Specials, Stream, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Specials",
    "Stream",
    "Tokenizer",
    "TokenizerError",
    "from_tiktoken",
    "load",
    "train_bpe",
    "train_words",
]
