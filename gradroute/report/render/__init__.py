"""The page, tables, figures and texts of a comparison."""
