"""Evaluation: judging networks, distances, tables, verdicts, comparisons."""
