"""What `scripts/gpu` is made of; nothing here needs more than Python and pip."""
