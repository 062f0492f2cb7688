"""For people to look at, never read back by melmask: pictures, which need the `plot` extra, and a run's page."""
