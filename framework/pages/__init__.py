"""Pages and tables made of the files of run folders; nothing here imports TensorFlow.

`html` and `charts` are what all pages are made of, `stored` reads a run folder, `report` shows it, `listing` and
`comparison` show many.
"""
