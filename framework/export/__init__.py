"""Export hooks: what a trained model becomes for those who serve it, checked in the runtime that will serve it.

    signature = export.Signature(fn=…, inputs={"image": tf.TensorSpec([None, 28, 28])})
    return [export.SavedModel({export.SERVING: signature}), export.Lite(signature)]

An experiment lists hooks in `make_exports`; the loop runs them.
"""

from framework.export.base import SERVING, ExportHook, ExportReport, Signature
from framework.export.lite import Lite
from framework.export.runner import export_all
from framework.export.saved_model import SavedModel

__all__ = ["SERVING", "ExportHook", "ExportReport", "Lite", "SavedModel", "Signature", "export_all"]
