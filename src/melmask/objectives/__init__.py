"""What a network is pre-trained to do."""
