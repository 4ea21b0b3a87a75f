"""A run from its parts to its end: what it is built of, its folder, the loop, and what happens beside the step."""
