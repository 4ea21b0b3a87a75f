"""Export hooks: what a trained model becomes for those who serve it, checked in the runtime that will serve it.

    from framework.export.base import Signature
    from framework.export.lite import Lite
    from framework.export.saved_model import SavedModel
    from framework.export.verify import export_all

An experiment lists hooks in `make_exports`; the loop runs them.
"""
