"""Tables between foreign tensor names and our paths: one file per family, one engine for all."""
