"""Data sets that melmask knows by name: so far, sounds that it synthesizes itself."""
