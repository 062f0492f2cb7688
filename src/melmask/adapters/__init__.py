"""Other projects' interfaces to melmask's models."""
