"""One paper, one page. This folder is the registry (`zoo.registry`)."""
