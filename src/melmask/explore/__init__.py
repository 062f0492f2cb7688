"""`melmask explore`: a local page on which a collection of sounds is seen, heard, searched and labeled."""
