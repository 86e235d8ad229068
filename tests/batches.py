"""Short names for the tests; the functions are those of `xtokd.rows.random_batches`."""
from xtokd.rows.random_batches import (
    EXAMPLE_TEXTS as TEXTS, batch_from_samples as batch, random_heads as heads, random_samples as parts,
    response_ids as ids_of, select_samples as some, trainable_tensors as leaves)

__all__ = ["TEXTS", "batch", "full", "heads", "ids_of", "leaves", "parts", "some"]


def full(pair, texts=TEXTS, text_source=None, **options):
    "A batch of random rows, and its tensors that get a gradient."
    samples = parts(pair, texts, **options)
    return batch(pair, samples, text_source), leaves(samples)
