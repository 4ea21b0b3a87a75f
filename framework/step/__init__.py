"""A training step: `step` has its stages in order; the other modules are what the stages call, and who calls them.

`block` takes K steps in one compiled call, on one device or several; `asynchronous` takes them on parameter servers;
`evaluation` is a pass over a split without an update; `probe` traces them before anything runs.
"""
