"""What a search is made of; `tune/search.py` is the command."""
