"""Data sets that are found, downloaded, verified and cached, one a file."""
