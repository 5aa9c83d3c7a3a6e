"""Output formats, one module for each: a module here is a format, and `--output-format` takes its name.

Each has a function `render(reports, *, version, show_refuted, timings, **options) -> str`.
"""
