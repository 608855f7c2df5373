"""Numbers for the rows of tables: arrays and tables in, numbers out. No model and no file is touched here."""
