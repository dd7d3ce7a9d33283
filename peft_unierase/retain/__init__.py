"""Retain data from the model itself: what it knows, what it asks itself, and what lies near the facts to erase."""
