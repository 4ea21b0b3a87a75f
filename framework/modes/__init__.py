"""One file a mode of launch.py; each has `main(run, overrides) -> exit status`, and `serve` has `main(workdir)`.

`outcome` and `watched` are parts of `verify_resume`.
"""
