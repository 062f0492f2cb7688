"""Sound that a computer makes: sources, events, rooms and scenes, all drawn from a seed."""
