"""One file a mode of launch.py; each has `main(run, overrides) -> exit status`, those without a run `main(workdir)`.

`outcome` and `watched` are parts of `verify_resume`.
"""
