"""Data sets by name, one a file: each is found, downloaded, verified and cached by `data/fetch.py`."""
