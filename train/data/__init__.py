"""Data: sources → decode → augment → Grain → batches of numpy arrays, prefetched to the devices.

    sources    where pictures come from: random-access splits, opened by name
    augment    decoding and random changes, uint8 in and uint8 out
    pipeline   shuffled, sharded, resumable streams; evaluation batches; prefetch
    prepare    writes IDX files (MNIST and its relatives) as a TFDS data set, without TensorFlow

`sources` and `augment` can be imported, and their checks called, without jax.
"""
