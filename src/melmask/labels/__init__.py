"""Tables of labels, and what of them is held out."""
