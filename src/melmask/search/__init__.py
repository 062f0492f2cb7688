"""Search: an index of vectors on disk, what is nearest to a sound, and what is nearly the same."""
