"""The experiment file: loads it with its own modules, and checks the results and exceptions of its functions."""
