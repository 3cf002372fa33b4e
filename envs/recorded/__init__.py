"""Episodes that somebody recorded before, read from disk as real data."""
