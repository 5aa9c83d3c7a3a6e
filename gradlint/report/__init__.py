"""One module per output format, each `render(reports, ...) -> str`."""
