"""Reads the graphs of traced functions: which variables they assign, which indices they look up, what they assert."""
