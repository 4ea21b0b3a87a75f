"""Examples and their order: `sources` (where they come from), `batches` (which one stands where)."""
