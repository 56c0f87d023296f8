"""Data: sources → Grain → batches of numpy arrays, prefetched to the devices.

    sources    where pictures come from: random-access splits, opened by name
    augment    decoding and random changes, uint8 in and uint8 out
    pipeline   shuffled, sharded, resumable streams; evaluation batches; prefetch
    images     pictures with a class, opened
    corpora    where text comes from: documents and their splits
    tokens     token files: the ids of a corpus, memory-mapped
    packing    rows of tokens, masking, batches
    labelled   texts with labels
    text       text of both kinds, opened
    prepare    writes IDX files (MNIST and its relatives) as a TFDS data set, without TensorFlow

`sources`, `augment`, `corpora`, `tokens` and `labelled` can be imported, and their checks called,
without jax.
"""
