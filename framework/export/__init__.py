"""Export hooks: what a trained model becomes for those who serve it, checked in the runtime that will serve it.

from framework.export.base import Signature, export_all
from framework.export.lite import Lite
from framework.export.saved_model import SavedModel
"""
