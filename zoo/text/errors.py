"""The one error of this folder, on its own so that every file of it can raise it."""


class TokenizerError(ValueError):
    """A tokenizer, text or ids that cannot be used as asked; the message says what to do."""
