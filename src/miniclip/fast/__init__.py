"""The same numbers, faster: forms that replace the plain ones."""
