"""Scripts that measure. Each prints a table and, with ``--json PATH``, writes its figures: ``benchmarks.report``."""
