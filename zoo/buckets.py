"""Few lengths for many: a program is compiled once for each length that it is called with."""

SHORTEST = 16  # tokens: fewer cost as much


def bucket(count: int, limit: int | None = None) -> int:
    """The power of two that so many are padded to, from 16 on, at most the limit."""
    size = max(SHORTEST, 1 << (count - 1).bit_length())
    return size if limit is None else min(size, limit)
