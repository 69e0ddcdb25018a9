"""The tables of the READMEs."""
TABLES = {}
