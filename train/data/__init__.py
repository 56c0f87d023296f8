"""Data: sources → Grain → batches of numpy arrays, prefetched to the devices.

    sources    where pictures come from: random-access splits, opened by name
    captions   where pictures with captions come from
    shards     tar shards, read at random
    glyphs     characters as pictures: letters with a class, all with their names
    augment    decoding and random changes, uint8 in and uint8 out
    pipeline   shuffled, sharded, resumable streams; evaluation batches; prefetch
    images     pictures with a class, opened
    pairs      pictures with captions, opened
    corpora    where text comes from: documents and their splits
    tokens     token files: the ids of a corpus, memory-mapped
    packing    rows of tokens, masking, batches
    labelled   texts with labels
    text       text of both kinds, opened
    picture    where one picture comes from
    pixels     one picture, opened: its pixels
    posed      where posed views of a scene come from: pictures with their cameras
    raytrace   the embedded scene, drawn
    views      posed views, opened: rays through their pixels
    prepare    writes IDX files (MNIST and its relatives) as a TFDS data set, without TensorFlow

`sources`, `captions`, `augment`, `corpora`, `tokens`, `labelled`, `picture` and `posed` can be
imported, and their checks called, without jax.
"""
