"""Exporting a trained model in formats that others serve, each verified in the runtime that serves it.

    signature = export.Signature(fn=…, inputs={"image": tf.TensorSpec([None, 28, 28])})
    return [export.SavedModel({export.SERVING: signature}), export.Lite(signature)]

An experiment returns its hooks from `make_exports`; the run exports with them at its end.
"""

from framework.export.base import SERVING, ExportHook, Runtime, Signature
from framework.export.bounds import Bounds
from framework.export.lite import Lite
from framework.export.lite_decoder import LiteDecoder
from framework.export.lite_rules import LiteByRules, LiteRule
from framework.export.runner import export_all
from framework.export.saved_model import SavedModel
from framework.export.serving import Serving
from framework.pages.exports import ExportReport

__all__ = [
    "SERVING",
    "Bounds",
    "ExportHook",
    "ExportReport",
    "Lite",
    "LiteByRules",
    "LiteDecoder",
    "LiteRule",
    "Runtime",
    "SavedModel",
    "Serving",
    "Signature",
    "export_all",
]
