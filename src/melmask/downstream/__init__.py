"""What a frozen representation is worth to a simple classifier."""
