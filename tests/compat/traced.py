"""Traces a function without autograph."""

import tensorflow as tf


def traced(fn, *args):
    return tf.function(fn, autograph=False).get_concrete_function(*args).graph
