"""What Health&Med is, with no web and no queue in it."""
