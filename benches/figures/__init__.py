"""Parts of the benchmark: measuring, and the page that shows it."""
