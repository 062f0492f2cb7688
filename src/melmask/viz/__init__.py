"""Pictures for people: they need the `plot` extra and are never read back by melmask."""
