"""Is it any good? Networks, distances, tables, verdicts."""
