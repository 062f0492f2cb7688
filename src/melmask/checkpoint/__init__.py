"""Models on disk: melmask's own folders and others' files."""
