"""The use cases: one function is one use case and one transaction."""
