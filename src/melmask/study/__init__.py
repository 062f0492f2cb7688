"""Studies: many short runs of one recipe that differ in a few settings, judged on labeled files."""
