"""Keys of `log`: rows of metrics.jsonl and curves of TensorBoard."""

from framework.config.key import Key

KEYS = {
    "every": Key("100 steps", "period of rows", duration=True, required=True),
    "histograms_every": Key("1 epoch", "period of histograms of weights and gradients; '' = never", duration=True),
    "console": Key(
        "auto",
        "auto = a progress bar in a terminal, elsewhere a line in two seconds; plain = a line a row; quiet = no rows,"
        " the log and the results alone",
        choices=("auto", "plain", "quiet"),
    ),
    "images": Key(16, "inputs shown once in TensorBoard; 0 = none", low=0, high=400),
}
