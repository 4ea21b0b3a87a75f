"""The experiment file: loading it with what it imports, and checking what its functions return and raise."""
