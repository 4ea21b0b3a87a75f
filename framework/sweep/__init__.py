"""Sweeps: many runs of one experiment, whose values an optimizer of the package Optuna proposes.

`study` keeps which trials there are and proposes the next one, `worker` trains them in processes of their own, and
`runner` hands trials to workers. The extra `sweep` has Optuna.
"""
