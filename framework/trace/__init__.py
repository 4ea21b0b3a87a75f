"""What a traced function reads, assigns, looks up and asserts, found in its graph."""
