"""Measurements. Each module prints one JSON line a figure, beside a reference of the same run."""
