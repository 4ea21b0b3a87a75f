"""Where the numbers, pictures and texts of a run go."""
