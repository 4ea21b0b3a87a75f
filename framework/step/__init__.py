"""The step: `gradients` (terms and the tape), `update` (norm and apply), `block` (K steps in one compiled call).

Its order is a contract: weights, gradients, reduce, unscale, finite, norm and clip, apply, bookkeeping.
"""
