"""Readers of the field's formats, and generators that write the same formats."""
