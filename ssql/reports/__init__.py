"""Results as files, tables, pictures and pages."""
