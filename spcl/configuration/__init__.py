"""The settings of a run: files, command line, old words, the table of all of them."""
