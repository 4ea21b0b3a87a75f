"""The step: `gradients` (terms and the tape), `update` (norm and apply), `block` (K steps in one compiled call).

Its order is a contract: terms, each divided by the weight of the whole batch; gradients; norm; apply; the row of
numbers.
"""
