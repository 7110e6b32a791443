"""Reports: HTML pages, tables, figures, and numbers formatted as text."""
