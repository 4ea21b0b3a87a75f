"""Keys of `cluster`: the weights of a kernel share a few values, so that a file of them compresses well."""

from framework.config.key import Key

_ON = {"name": ("kmeans",)}

KEYS = {
    "name": Key(
        "none",
        "kmeans = each clustered variable has at most `clusters` distinct values from `begin` on",
        choices=("none", "kmeans"),
    ),
    "clusters": Key(
        16, "most distinct values of a variable; one of them is 0 if it has zeros", low=2, high=255, only_with=_ON
    ),
    "begin": Key("", "updates before the clusters are found; '' = none, with init_from", duration=True, only_with=_ON),
    "include": Key(
        "", "regex of the clustered parameters; '' = all of rank 2 or more, but biases", regex=True, only_with=_ON
    ),
    "exclude": Key(
        "", "regex of parameters that are not clustered, e.g. 'head/.*'; '' = none", regex=True, only_with=_ON
    ),
}
