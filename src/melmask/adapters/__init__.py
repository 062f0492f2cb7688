"""melmask's models behind other projects' interfaces."""
