"""Pages, tables, figures and numbers as text."""
