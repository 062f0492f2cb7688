"""Sound files and the log-mel front end."""
