"""What speaks to the service over HTTP."""
