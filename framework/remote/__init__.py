"""Run folders and data at addresses such as s3://bucket/run: a local copy of each, through fsspec."""
