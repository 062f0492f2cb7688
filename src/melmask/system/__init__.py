"""What the package asks of the machine it runs on: files, hardware, progress on a terminal."""
